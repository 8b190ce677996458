"""The Hugging Face Trainer: `compute_loss` returns the balancer's scalar.

The Trainer saves its model's tensors; a callback saves the balancer beside them, and the Trainer
here takes it up again when it resumes. The Trainer clears and clips the gradients of its model's
parameters and of nothing else, so weights that a method learns must be among them.
"""

from pathlib import Path
from typing import Any

import points
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from evenhand import Balancer, MultiTaskNetwork

FILE = "balancer.pt"


class BalancedTrainer(Trainer):
    """A Trainer whose loss is balanced."""

    def __init__(self, *, network: MultiTaskNetwork, balancer: Balancer, method: str, **more: Any):
        optimizer = points.make_optimizer(network, balancer)
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        super().__init__(model=Model(network, balancer), optimizers=(optimizer, constant), **more)
        self.balancer, self.network, self.method = balancer, network, method
        self.add_callback(Keep(balancer))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        phase = points.phase_of(self.method, int(self.state.epoch or 0)) if model.training else None
        with points.held(self.network, phase):
            outputs = model(**inputs)
        losses = points.losses(outputs, inputs)
        scalar = self.balancer.loss(losses, features=self.network.trunk, phase=phase)
        return (scalar, {"loss": scalar, **outputs}) if return_outputs else scalar

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.balancer.load_state_dict(torch.load(Path(resume_from_checkpoint) / FILE))


class Model(torch.nn.Module):
    """The network and the learned weights, called as the Trainer calls models: with a batch."""

    def __init__(self, network: MultiTaskNetwork, balancer: Balancer) -> None:
        super().__init__()
        self.network = network
        self.learned = torch.nn.ParameterList(balancer.parameters())

    def forward(self, x: Tensor, **labels: Tensor) -> Any:
        return self.network(x)


class Keep(TrainerCallback):
    """Saves the balancer in every checkpoint."""

    def __init__(self, balancer: Balancer) -> None:
        self.balancer = balancer

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **more: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        torch.save(self.balancer.state_dict(), folder / FILE)


class Reseed(TrainerCallback):
    """Dropout is drawn by the number of the batch, so that the bare loop can draw it too."""

    def __init__(self) -> None:
        self.number = 0

    def on_epoch_begin(self, *args: Any, **more: Any) -> None:
        self.number = 0

    def on_step_begin(self, *args: Any, **more: Any) -> None:
        torch.manual_seed(self.number)
        self.number += 1

    on_substep_end = on_step_begin


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
    resume: Path | None = None,
) -> Path:
    """Train; returns the checkpoint of the last epoch, which `resume` goes on from."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        bf16=bf16,
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        train_sampling_strategy="sequential",
        max_grad_norm=clip,
        gradient_accumulation_steps=micro_batches,  # each micro-batch is balanced alone
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=list(points.TASKS),
    )
    trainer = BalancedTrainer(
        network=network,
        balancer=balancer,
        method=method,
        args=arguments,
        train_dataset=points.Points(96, seed=0),
        eval_dataset=points.Points(32, seed=1),
        callbacks=[Reseed()],
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return folder / f"checkpoint-{trainer.state.global_step}"


if __name__ == "__main__":
    torch.manual_seed(0)
    network = points.make_network()
    train(
        network, points.METHODS["cagrad"](network), "cagrad", folder=Path("evenhand-transformers")
    )
