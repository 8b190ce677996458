"""Runs of one method as one stack, for a GPU: seeds and starting rates side by side.

What `alternation.run` does for one network, for all of them at once and on any device: SGD without
momentum, phases of E epochs, each member with its own order of the data, plateau, early stopping
and best weights. Sums are taken in another order, so numbers agree to rounding. The library's own
stacks neither know plateaus nor leave the CPU.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from alternation import METHODS, scores
from staged import with_few
from torch import Tensor

from evenhand.comparison.request import load_problem
from evenhand.data import Stream
from evenhand.ensemble.network import Stack
from evenhand.schedules import mixed_seed

PATIENCE, PLATEAU, FACTOR = 350, 50, 0.75


class Members:
    """All runs of one method: the stack, and what each member is about.

    Args:
        method: one of `alternation.METHODS`.
        cells: a run each, told as by `alternation.cells`; they differ in seed and rate alone.
        device: where the stack is trained.
    """

    def __init__(self, method: str, cells: Sequence[Mapping[str, Any]], device: str) -> None:
        self.cells, self.device, self.length = cells, torch.device(device), METHODS[method]
        self.problem = load_problem(cells[0]["source"])
        if "samples" in cells[0]:
            self.problem = with_few(self.problem, cells[0]["samples"])
        self.networks = []
        for cell in cells:
            torch.manual_seed(cell["seed"])
            self.networks.append(self.problem.network(tuple(self.problem.tasks)))
        self.stack = Stack(self.networks).to(self.device)
        self.streams = [
            Stream(self.problem.train, self.problem.batch_size, mixed_seed(cell["seed"], *b"data"))
            for cell in cells
        ]
        self.train, self.validation = (
            part.to(self.device) for part in (self.problem.train, self.problem.validation)
        )
        number = len(cells)
        self.rates = torch.tensor([cell["rate"] for cell in cells], device=self.device)
        self.best = torch.full((number,), torch.inf, device=self.device)
        self.plateau = self.best.clone()  # what the plateau has seen best
        self.waited = torch.zeros(2, number, dtype=torch.int64, device=self.device)
        self.best_epoch = torch.zeros(number, dtype=torch.int64, device=self.device)
        self.going = torch.ones(number, dtype=torch.bool, device=self.device)
        self.weights = [p.detach().clone() for p in self.stack.parameters()]
        self.curves: dict[str, list[list[float]]] = {"validation": [], "training": [], "rate": []}
        self.epoch = 0
        self.curves["validation"].append(self.validated().tolist())

    def run(self, until: float, keep: Path | None = None) -> bool:
        """Train until all are finished (True) or the clock says `until` (False)."""
        epochs = self.cells[0]["epochs"]
        while self.epoch < epochs and bool(self.going.any()):
            if time.time() >= until:
                if keep is not None:
                    torch.save(self.state_dict(), keep)
                return False
            self._epoch()
        return True

    # One epoch ----------------------------------------------------------------------------------

    def _epoch(self) -> None:
        shared = bool(self.length) and (self.epoch // self.length) % 2 == 0
        own = bool(self.length) and not shared
        blocks = self.stack.blocks()
        heads = [p for of_task in blocks.own.values() for p in of_task]
        moving = list(blocks.shared) if shared else heads if own else [*blocks.shared, *heads]
        rates = torch.where(self.going, self.rates, 0.0)
        self.curves["rate"].append(self.rates.tolist())
        losses, steps = torch.zeros_like(self.rates), len(self.streams[0])
        for k in range(steps):
            losses += self._step(self.epoch * steps + k, moving, rates, own)
        self.epoch += 1
        self.curves["training"].append((losses / steps).tolist())
        self._judge(self.validated())

    def _step(self, number: int, moving: list[Tensor], rates: Tensor, own: bool) -> Tensor:
        index = torch.stack([stream.index(number) for stream in self.streams]).to(self.device)
        inputs = self.train.inputs[index]
        with torch.set_grad_enabled(not own):
            features = self.stack.trunk(inputs)
        outputs = {task: self.stack.head(task)(features) for task in self.stack.tasks}
        losses = self._losses(
            outputs, {task: target[index] for task, target in self.train.targets.items()}
        )
        gradients = torch.autograd.grad(losses.sum(), moving)
        with torch.no_grad():
            for parameter, gradient in zip(moving, gradients, strict=True):
                parameter -= rates.view(-1, *[1] * (parameter.ndim - 1)) * gradient
        return losses.detach()

    def _losses(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Σ of the tasks' losses of each member, [members]."""
        each = [
            torch.func.vmap(self.problem.tasks[task].loss)(outputs[task], targets[task])
            for task in outputs
        ]
        return torch.stack(each).sum(dim=0)

    @torch.no_grad()
    def validated(self) -> Tensor:
        """Σ of the validation losses of each member."""
        number = len(self.cells)
        inputs = self.validation.inputs.expand(number, *self.validation.inputs.shape)
        targets = {t: y.expand(number, *y.shape) for t, y in self.validation.targets.items()}
        return self._losses(self.stack(inputs), targets)

    def _judge(self, values: Tensor) -> None:
        """Best weights, early stopping and plateaus, of each member that goes on."""
        better = self.going & (values < self.best)
        self.best = torch.where(better, values, self.best)
        self.best_epoch = torch.where(better, self.epoch, self.best_epoch)
        for kept, parameter in zip(self.weights, self.stack.parameters(), strict=True):
            kept[better] = parameter.detach()[better]
        risen = values < self.plateau
        self.plateau = torch.where(risen, values, self.plateau)
        for row, improved in enumerate((better, risen)):
            self.waited[row] = torch.where(improved, 0, self.waited[row] + 1)
        reduced = self.waited[1] >= PLATEAU
        self.rates = torch.where(reduced & self.going, FACTOR * self.rates, self.rates)
        self.waited[1] = torch.where(reduced, 0, self.waited[1])
        self.going = self.going & (self.waited[0] < PATIENCE) & values.isfinite()
        self.curves["validation"].append(values.tolist())

    # What comes out -----------------------------------------------------------------------------

    def values(self, seconds: float) -> list[dict[str, Any]]:
        """What `alternation.run` returns, but oscillation, for each member."""
        parameters = list(self.stack.parameters())
        with torch.no_grad():
            for parameter, kept in zip(parameters, self.weights, strict=True):
                parameter.copy_(kept)
        found = []
        for k, network in enumerate(self.networks):
            network.load_state_dict({n: v.cpu() for n, v in self.stack.member(k).items()})
            last = int(self.best_epoch[k]) + PATIENCE
            curves = {
                name: [_rounded(row[k]) for row in rows[: last + (name == "validation")]]
                for name, rows in self.curves.items()
            }
            found.append(
                {
                    "test": scores(network, self.problem),
                    "best epoch": int(self.best_epoch[k]),
                    "seconds per epoch": _rounded(seconds / max(self.epoch, 1) / len(self.cells)),
                    **curves,
                }
            )
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        tensors = ("rates", "best", "plateau", "waited", "best_epoch", "going")
        return {
            "stack": [p.detach().cpu() for p in self.stack.parameters()],
            "weights": [p.cpu() for p in self.weights],
            "curves": self.curves,
            "epoch": self.epoch,
            **{name: getattr(self, name).cpu() for name in tensors},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        with torch.no_grad():
            for parameter, value in zip(self.stack.parameters(), state["stack"], strict=True):
                parameter.copy_(value)
        self.weights = [w.to(self.device) for w in state["weights"]]
        self.curves, self.epoch = state["curves"], state["epoch"]
        for name in ("rates", "best", "plateau", "waited", "best_epoch", "going"):
            setattr(self, name, state[name].to(self.device))


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
