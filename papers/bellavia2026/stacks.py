"""Many runs as one stack, for a GPU: methods, seeds and starting rates side by side.

What `alternation.run` does for one network, for all of them at once and on any device: SGD without
momentum, phases of E epochs, each member with its own order of the data, plateau, early stopping
and best weights. What does not move in a phase has the rate 0. Sums are taken in another order, so
numbers agree to rounding. The library's own stacks neither know plateaus nor leave the CPU.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from alternation import METHODS, judged
from captured import Repeated
from staged import with_few
from torch import Tensor

from evenhand.comparison.request import load_problem
from evenhand.data import Stream
from evenhand.ensemble.network import Stack
from evenhand.schedules import mixed_seed

PATIENCE, PLATEAU, FACTOR = 350, 50, 0.75
OWN = ("rates", "best", "plateau", "waited", "best_epoch", "going")
"""What is a member's own beside its parameters and its best ones."""
THIN = 10
"""Of runs that may take more than a hundred times as many epochs, curves have every tenth."""


class Members:
    """The stack, and what each member is about.

    Args:
        cells: a run each, told as by `alternation.cells`, of one problem and cap.
        device: where the stack is trained.
    """

    def __init__(self, cells: Sequence[Mapping[str, Any]], device: str) -> None:
        self.cells, self.device = cells, torch.device(device)
        self.problem = load_problem(cells[0]["source"])
        if "samples" in cells[0]:
            self.problem = with_few(self.problem, cells[0]["samples"])
        networks = []
        for cell in cells:
            torch.manual_seed(cell["seed"])
            networks.append(self.problem.network(tuple(self.problem.tasks)))
        self.stack = Stack(networks).to(self.device)
        seeds = list(dict.fromkeys(cell["seed"] for cell in cells))
        self.streams = [
            Stream(self.problem.train, self.problem.batch_size, mixed_seed(seed, *b"data"))
            for seed in seeds
        ]
        number = len(cells)
        self._which = torch.tensor([seeds.index(cell["seed"]) for cell in cells])
        self.train, self.validation = (
            part.to(self.device) for part in (self.problem.train, self.problem.validation)
        )
        self.rates = torch.tensor([cell["rate"] for cell in cells], device=self.device)
        self.best = torch.full((number,), torch.inf, device=self.device)
        self.plateau = self.best.clone()  # what the plateau has seen best
        self.waited = torch.zeros(2, number, dtype=torch.int64, device=self.device)
        self.best_epoch = torch.zeros(number, dtype=torch.int64, device=self.device)
        self.going = torch.ones(number, dtype=torch.bool, device=self.device)
        self.weights = [p.detach().clone() for p in self.stack.parameters()]
        # What the steps of an epoch read and write: the order of the samples, [members, n], the
        # rates of trunk and heads, and the losses' sum.
        lengths = torch.tensor([METHODS[cell["method"]] for cell in cells], device=self.device)
        self._length = lengths
        self._order = torch.zeros(
            number, len(self.problem.train), dtype=torch.int64, device=self.device
        )
        self._moving = {part: torch.zeros_like(self.rates) for part in ("shared", "own")}
        self._losses_seen = torch.zeros_like(self.rates)
        self._steps = Repeated(self._all_steps, self.device, self._still)
        self._values = torch.zeros_like(self.rates)
        self._validate = Repeated(self._all_validated, self.device, lambda: lambda: None)
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
        length = self._length.clamp_min(1)
        turn = (self.epoch // length) % 2  # 0: the trunk's, where there are phases
        jointly, rates = self._length == 0, torch.where(self.going, self.rates, 0.0)
        self._moving["shared"].copy_(torch.where(jointly | (turn == 0), rates, 0.0))
        self._moving["own"].copy_(torch.where(jointly | (turn == 1), rates, 0.0))
        self._order.copy_(self._drawn(), non_blocking=True)
        self._losses_seen.zero_()
        self.curves["rate"].append(self.rates.tolist())
        self._steps()
        self.epoch += 1
        self.curves["training"].append((self._losses_seen / len(self.streams[0])).tolist())
        self._judge(self.validated())

    def _drawn(self) -> Tensor:
        """The order of the samples in this epoch, [members, n]."""
        steps = len(self.streams[0])
        numbers = range(self.epoch * steps, (self.epoch + 1) * steps)
        orders = [torch.cat([stream.index(k) for k in numbers]) for stream in self.streams]
        return torch.stack(orders)[self._which]

    def _still(self) -> Any:
        """Nothing moves until what is returned is called."""
        kept = [rates.clone() for rates in self._moving.values()]
        for rates in self._moving.values():
            rates.zero_()

        def restore() -> None:
            for rates, value in zip(self._moving.values(), kept, strict=True):
                rates.copy_(value)
            self._losses_seen.zero_()

        return restore

    def _all_steps(self) -> None:
        blocks = self.stack.blocks()
        heads = [p for of_task in blocks.own.values() for p in of_task]
        moving = [(p, self._moving["shared"]) for p in blocks.shared]
        moving += [(p, self._moving["own"]) for p in heads]
        for index in self._order.split(self.problem.batch_size, dim=1):
            outputs = self.stack(self.train.inputs[index])
            targets = {task: target[index] for task, target in self.train.targets.items()}
            losses = self._losses(outputs, targets)
            gradients = torch.autograd.grad(losses.sum(), [p for p, _ in moving])
            with torch.no_grad():
                self._losses_seen += losses
                for (parameter, rates), gradient in zip(moving, gradients, strict=True):
                    parameter -= rates.view(-1, *[1] * (parameter.ndim - 1)) * gradient

    def _losses(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Σ of the tasks' losses of each member, [members]."""
        each = [
            torch.func.vmap(self.problem.tasks[task].loss)(outputs[task], targets[task])
            for task in outputs
        ]
        return torch.stack(each).sum(dim=0)

    def validated(self) -> Tensor:
        """Σ of the validation losses of each member."""
        self._validate()
        return self._values.clone()

    @torch.no_grad()
    def _all_validated(self) -> None:
        number = len(self.cells)
        inputs = self.validation.inputs.expand(number, *self.validation.inputs.shape)
        targets = {t: y.expand(number, *y.shape) for t, y in self.validation.targets.items()}
        self._values.copy_(self._losses(self.stack(inputs), targets))

    def _judge(self, values: Tensor) -> None:
        """Best weights, early stopping and plateaus, of each member that goes on."""
        better = self.going & (values < self.best)
        self.best = torch.where(better, values, self.best)
        self.best_epoch = torch.where(better, self.epoch, self.best_epoch)
        for kept, parameter in zip(self.weights, self.stack.parameters(), strict=True):
            chosen = better.view(-1, *[1] * (kept.ndim - 1))
            torch.where(chosen, parameter.detach(), kept, out=kept)
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

    def reached(self, k: int) -> int:
        """The epoch of member k's end, or as many as there were so far."""
        ended = not bool(self.going[k])
        return min(self.epoch, int(self.best_epoch[k]) + PATIENCE) if ended else self.epoch

    def values(self, seconds: float) -> list[dict[str, Any]]:
        """What `alternation.run` returns, but oscillation, for each member."""
        parameters = list(self.stack.parameters())
        now = [p.detach().clone() for p in parameters]
        every = THIN if self.cells[0]["epochs"] > 100 * THIN else 1
        found = []
        with torch.no_grad():
            for parameter, kept in zip(parameters, self.weights, strict=True):
                parameter.copy_(kept)
            inputs = self.problem.test.inputs.to(self.device)
            outputs = self.stack(inputs.expand(len(self.cells), *inputs.shape))
        for k in range(len(self.cells)):
            last = self.reached(k)
            curves = {
                name: [_rounded(row[k]) for row in rows[: last + (name == "validation")][::every]]
                for name, rows in self.curves.items()
            }
            found.append(
                {
                    "test": judged({t: y[k] for t, y in outputs.items()}, self.problem),
                    "best epoch": int(self.best_epoch[k]),
                    "epochs": last,
                    "seconds per epoch": _rounded(seconds / max(self.epoch, 1) / len(self.cells)),
                    **({"every": every} if every > 1 else {}),
                    **curves,
                }
            )
        with torch.no_grad():
            for parameter, value in zip(parameters, now, strict=True):
                parameter.copy_(value)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        return {
            "stack": [p.detach().cpu() for p in self.stack.parameters()],
            "weights": [p.cpu() for p in self.weights],
            "curves": self.curves,
            "epoch": self.epoch,
            **{name: getattr(self, name).cpu() for name in OWN},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        with torch.no_grad():
            for parameter, value in zip(self.stack.parameters(), state["stack"], strict=True):
                parameter.copy_(value)
            for kept, value in zip(self.weights, state["weights"], strict=True):
                kept.copy_(value)
        self.curves, self.epoch = state["curves"], state["epoch"]
        for name in OWN:
            setattr(self, name, state[name].to(self.device))


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
