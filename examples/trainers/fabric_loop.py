"""Fabric: the network and the optimizer are set up, the balancer's scalar goes to `backward`."""

from pathlib import Path

import points
import torch
from lightning.fabric import Fabric

from evenhand import Balancer, MultiTaskNetwork


def train(
    network: MultiTaskNetwork,
    balancer: Balancer,
    method: str,
    *,
    folder: Path,
    epochs: int = 2,
    clip: float = 0.5,
    micro_batches: int = 1,
    bf16: bool = False,
    together: bool = False,
    resume: Path | None = None,
) -> Path:
    """Train; returns the checkpoint of the last epoch, which `resume` goes on from."""
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed" if bf16 else "32-true")
    model, optimizer = fabric.setup(network, points.make_optimizer(network, balancer))
    batches, validation = fabric.setup_dataloaders(
        points.loader(96, seed=0), points.loader(32, seed=1)
    )
    state = {"model": model, "optimizer": optimizer, "balancer": balancer, "epoch": 0}
    if resume is not None:
        fabric.load(resume, state)
    for epoch in range(state["epoch"], epochs):
        model.train()
        phase = points.phase_of(method, epoch)
        for k, batch in enumerate(batches):
            torch.manual_seed(k)
            with points.held(network, phase):
                outputs = model(batch["x"])
            losses = points.losses(outputs, batch)
            last = (k + 1) % micro_batches == 0
            if together:
                losses = {task: loss / micro_batches for task, loss in losses.items()}
                if not last:
                    balancer.accumulate(losses, features=network.trunk, phase=phase)
                    continue
            scalar = balancer.loss(losses, features=network.trunk, phase=phase)
            fabric.backward(scalar if together else scalar / micro_batches)
            if last:
                fabric.clip_gradients(model, optimizer, max_norm=clip)
                optimizer.step()
                optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            for batch in validation:
                balancer.loss(points.losses(model(batch["x"]), batch))
    saved = folder / "last.ckpt"
    fabric.save(saved, state | {"epoch": epochs})
    return saved


if __name__ == "__main__":
    torch.manual_seed(0)
    network = points.make_network()
    train(network, points.METHODS["cagrad"](network), "cagrad", folder=Path("evenhand-fabric"))
