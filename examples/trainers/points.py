"""What the trainers' examples train: points in space, and three things to say of them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from evenhand import (
    MGDA,
    Balancer,
    CAGrad,
    GradDrop,
    MoCo,
    MultiTaskNetwork,
    Phase,
    Uncertainty,
    frozen,
)

TASKS = ("side", "height", "reach")


class Points(Dataset):
    """Points x [3], and of each: on which side it is, how high it is, how far out."""

    def __init__(self, samples: int, seed: int) -> None:
        self.x = torch.randn(samples, 3, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        x = self.x[k]
        return {"x": x, "side": (x[0] > 0).float(), "height": 10 * x[1:2], "reach": x.norm()[None]}


def loader(samples: int, seed: int) -> DataLoader:
    """Batches of sixteen, always in the same order."""
    return DataLoader(Points(samples, seed), 16, generator=torch.Generator())


def make_network() -> MultiTaskNetwork:
    trunk = nn.Sequential(
        nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 8)
    )
    return MultiTaskNetwork(trunk, {task: nn.Linear(8, 1) for task in TASKS})


def losses(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    logits = outputs["side"].float().squeeze(-1)
    return {
        "side": functional.binary_cross_entropy_with_logits(logits, batch["side"]),
        "height": functional.mse_loss(outputs["height"].float(), batch["height"]),
        "reach": functional.l1_loss(outputs["reach"].float(), batch["reach"]),
    }


METHODS: Mapping[str, Callable[[MultiTaskNetwork], Balancer]] = {
    "sum": lambda network: Balancer(model=network),
    "mgda": lambda network: Balancer(aggregator=MGDA(), model=network),
    "cagrad": lambda network: Balancer(aggregator=CAGrad(), model=network),
    "uncertainty": lambda network: Balancer(Uncertainty(), tasks=TASKS, model=network),
    "uncertainty+cagrad": lambda network: Balancer(
        Uncertainty(), CAGrad(), tasks=TASKS, model=network
    ),
    "graddrop": lambda network: Balancer(aggregator=GradDrop(), model=network),
    "moco": lambda network: Balancer(aggregator=MoCo(), model=network),
    "mgda-ub": lambda network: Balancer(aggregator=MGDA(at="representation"), model=network),
    "ate-mgda": lambda network: Balancer(aggregator=MGDA(), model=network),
}


def phase_of(method: str, epoch: int) -> Phase | None:
    """Alternate training: an epoch for the trunk, one for the heads. Else everything moves."""
    if not method.startswith("ate"):
        return None
    return Phase(TASKS, trains=("own",) if epoch % 2 else ("shared",))


def held(network: MultiTaskNetwork, phase: Phase | None) -> AbstractContextManager[None]:
    """Around the forward pass: what does not move in this phase rests."""
    return nullcontext() if phase is None else frozen(network, phase)


def make_optimizer(network: MultiTaskNetwork, balancer: Balancer) -> torch.optim.Optimizer:
    """One for the network, and for the weights that a method learns."""
    learned = list(balancer.parameters())
    groups = [{"params": list(network.parameters())}]
    if learned:
        groups.append({"params": learned, "lr": 0.02})
    return torch.optim.Adam(groups, lr=0.01)
