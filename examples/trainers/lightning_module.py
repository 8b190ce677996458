"""Lightning: `training_step` returns the balancer's scalar, and Lightning does the rest.

The balancer is a submodule, so checkpoints hold it with the network; and its learned weights, if
it has any, are trained by the optimizer that `configure_optimizers` gives them to.
"""

from pathlib import Path

import lightning as L
import points
import torch
from torch import Tensor

from evenhand import Balancer, MultiTaskNetwork


class PointsModule(L.LightningModule):
    """Automatic optimisation: clipping, precision and accumulation are the Trainer's."""

    def __init__(self, network: MultiTaskNetwork, balancer: Balancer, method: str) -> None:
        super().__init__()
        self.network, self.balancer, self.method = network, balancer, method

    def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
        phase = points.phase_of(self.method, self.current_epoch)
        with points.held(self.network, phase):
            losses = points.losses(self.network(batch["x"]), batch)
        return self.balancer.loss(losses, features=self.network.trunk, phase=phase)

    def validation_step(self, batch: dict[str, Tensor], number: int) -> None:
        losses = points.losses(self.network(batch["x"]), batch)
        self.log("validation", self.balancer.loss(losses))  # a value: there are no gradients here

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return points.make_optimizer(self.network, self.balancer)


class AccumulatingModule(PointsModule):
    """Manual optimisation: one solve over all micro-batches of a step, as for a large batch."""

    def __init__(self, *given: object, micro_batches: int, clip: float) -> None:
        super().__init__(*given)
        self.automatic_optimization = False
        self.micro_batches, self.clip = micro_batches, clip

    def training_step(self, batch: dict[str, Tensor], number: int) -> None:
        phase = points.phase_of(self.method, self.current_epoch)
        with points.held(self.network, phase):
            losses = points.losses(self.network(batch["x"]), batch)
        losses = {task: loss / self.micro_batches for task, loss in losses.items()}
        told = {"features": self.network.trunk, "phase": phase}
        if (number + 1) % self.micro_batches:
            self.balancer.accumulate(losses, **told)
            return
        self.manual_backward(self.balancer.loss(losses, **told))
        optimizer = self.optimizers()
        self.clip_gradients(optimizer, self.clip, "norm")
        optimizer.step()
        optimizer.zero_grad()


class Reseed(L.Callback):
    """Dropout is drawn by the number of the batch, so that the bare loop can draw it too."""

    def on_train_batch_start(
        self, trainer: L.Trainer, module: object, batch: object, k: int
    ) -> None:
        torch.manual_seed(k)


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
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=epochs,
        precision="bf16-mixed" if bf16 else "32-true",
        gradient_clip_val=None if together else clip,
        # Each micro-batch is balanced alone, and what comes out of them is averaged.
        accumulate_grad_batches=1 if together else micro_batches,
        callbacks=[Reseed()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = PointsModule(network, balancer, method)
    if together:
        module = AccumulatingModule(
            network, balancer, method, micro_batches=micro_batches, clip=clip
        )
    trainer.fit(module, points.loader(96, seed=0), points.loader(32, seed=1), ckpt_path=resume)
    saved = folder / "last.ckpt"
    trainer.save_checkpoint(saved)
    return saved


if __name__ == "__main__":
    torch.manual_seed(0)
    network = points.make_network()
    train(network, points.METHODS["cagrad"](network), "cagrad", folder=Path("evenhand-lightning"))
