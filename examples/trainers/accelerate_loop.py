"""Accelerate: `accelerator.backward` gets the balancer's scalar.

`register_for_checkpointing` lets `save_state` and `load_state` keep the balancer.
"""

from pathlib import Path

import points
import torch
from accelerate import Accelerator

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
    """Train; returns the folder of the state after the last epoch, which `resume` goes on from."""
    accelerator = Accelerator(
        cpu=True,
        mixed_precision="bf16" if bf16 else "no",
        # Accelerate divides by it: each micro-batch is balanced alone, the results are averaged.
        gradient_accumulation_steps=1 if together else micro_batches,
    )
    model, optimizer, batches, validation = accelerator.prepare(
        network,
        points.make_optimizer(network, balancer),
        points.loader(96, seed=0),
        points.loader(32, seed=1),
    )
    accelerator.register_for_checkpointing(balancer)
    parameters = [*network.parameters(), *balancer.parameters()]
    first = 0
    if resume is not None:
        accelerator.load_state(str(resume))
        first = int((resume / "epoch").read_text())
    for epoch in range(first, epochs):
        model.train()
        phase = points.phase_of(method, epoch)
        for k, batch in enumerate(batches):
            torch.manual_seed(k)
            with accelerator.accumulate(model):
                with points.held(network, phase):
                    outputs = model(batch["x"])
                losses = points.losses(outputs, batch)
                if together:
                    losses = {task: loss / micro_batches for task, loss in losses.items()}
                    if (k + 1) % micro_batches:
                        balancer.accumulate(losses, features=network.trunk, phase=phase)
                        continue
                scalar = balancer.loss(losses, features=network.trunk, phase=phase)
                accelerator.backward(scalar)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(parameters, clip)
                optimizer.step()
                optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            for batch in validation:
                balancer.loss(points.losses(model(batch["x"]), batch))
    saved = folder / "last"
    accelerator.save_state(str(saved))
    (saved / "epoch").write_text(str(epochs))
    return saved


if __name__ == "__main__":
    torch.manual_seed(0)
    network = points.make_network()
    train(network, points.METHODS["cagrad"](network), "cagrad", folder=Path("evenhand-accelerate"))
