"""The bare loop, which every trainer must equal bit for bit."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import points
import torch
from torch.nn.utils import clip_grad_norm_

from evenhand import Balancer, MultiTaskNetwork


def autocast(bf16: bool) -> AbstractContextManager[None]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext()


def train(
    network: MultiTaskNetwork,
    balancer: Balancer,
    method: str,
    *,
    epochs: int = 2,
    clip: float = 0.5,
    micro_batches: int = 1,
    bf16: bool = False,
    together: bool = False,
) -> None:
    """Each micro-batch is balanced alone; with `together`, all of a step at once."""
    optimizer = points.make_optimizer(network, balancer)
    parameters = [*network.parameters(), *balancer.parameters()]
    for epoch in range(epochs):
        network.train()
        phase = points.phase_of(method, epoch)
        for last, batch in _numbered(points.loader(96, seed=0), micro_batches):
            with autocast(bf16), points.held(network, phase):
                outputs = network(batch["x"])
                losses = points.losses(outputs, batch)
            if together:
                losses = {task: loss / micro_batches for task, loss in losses.items()}
                if not last:
                    balancer.accumulate(losses, features=network.trunk, phase=phase)
                    continue
                balancer.backward(losses, features=network.trunk, phase=phase)
            else:
                scale = 1 / micro_batches if micro_batches > 1 else None
                balancer.backward(losses, features=network.trunk, phase=phase, scale=scale)
            if last:
                clip_grad_norm_(parameters, clip)
                optimizer.step()
                optimizer.zero_grad()


def _numbered(loader: torch.utils.data.DataLoader, micro: int) -> Iterator[tuple[bool, dict]]:
    """Batches, and whether each is the last of its step. Dropout is drawn by the step's number."""
    for k, batch in enumerate(loader):
        torch.manual_seed(k)
        yield (k + 1) % micro == 0, batch
