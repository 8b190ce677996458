"""Many runs as stacks, for a GPU: seeds and starting rates side by side, a stack for each method.

What `alternation.run` does for one network, for all of them at once and on any device: SGD without
momentum, phases of E epochs, each member with its own order of the data, plateau, early stopping
and best weights. In a phase only what moves has its gradient taken, and a layer's step is taken by
the product that would have made its gradient. Sums are taken in another order, so numbers agree to
rounding. The library's own stacks neither know plateaus nor leave the CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from alternation import METHODS, judged
from captured import Repeated
from staged import with_few
from torch import Tensor, nn

from evenhand.comparison.request import load_problem
from evenhand.data import Problem, Stream
from evenhand.ensemble.network import Stack
from evenhand.schedules import mixed_seed

PATIENCE, PLATEAU, FACTOR = 350, 50, 0.75
OWN = ("rates", "best", "plateau", "waited", "best_epoch", "going")
"""What is a member's own beside its parameters and its best ones."""
PARTS = ("shared", "own", "all")
"""What moves in an epoch: the trunk, the heads, or either."""
CHECKED = 10
"""After so many epochs stacks are asked whether a member of theirs goes on."""
THIN = 10
"""Of runs that may take more than a hundred times as many epochs, curves have every tenth."""


class Members:
    """The stack of one method, and what each member is about.

    An epoch waits for nothing: it is asked for, and what comes out stays on the device.

    Args:
        cells: a run each, told as by `alternation.cells`, of one problem, cap and method.
        device: where the stack is trained.
    """

    def __init__(self, cells: Sequence[Mapping[str, Any]], device: str) -> None:
        self.cells, self.device = cells, torch.device(device)
        on_gpu = self.device.type == "cuda"
        self._activated, self._opened = _fused() if on_gpu else (activated, opened)
        if len({cell["method"] for cell in cells}) != 1:
            raise ValueError("the cells of a stack must be of one method")
        self._length = METHODS[cells[0]["method"]]
        self.problem = load_problem(cells[0]["source"])
        if "samples" in cells[0]:
            self.problem = with_few(self.problem, cells[0]["samples"])
        networks = []
        for cell in cells:
            torch.manual_seed(cell["seed"])
            networks.append(self.problem.network(tuple(self.problem.tasks)))
        self.stack = Stack(networks).to(self.device).requires_grad_(False)
        first = networks[0]
        self._trunk = _layers(first.trunk, list(self.stack.trunk.parameters()))
        self._heads = {
            task: _layers(first.head(task), list(self.stack.head(task).parameters()))
            for task in first.tasks
        }
        self.seeds = list(dict.fromkeys(cell["seed"] for cell in cells))
        number, where = len(cells), {"device": self.device}
        self._which = torch.tensor([self.seeds.index(cell["seed"]) for cell in cells], **where)
        self.train, self.validation = (
            part.to(self.device) for part in (self.problem.train, self.problem.validation)
        )
        self.rates = torch.tensor([cell["rate"] for cell in cells], **where)
        self.best = torch.full((number,), torch.inf, **where)
        self.plateau = self.best.clone()  # what the plateau has seen best
        self.waited = torch.zeros(2, number, dtype=torch.int64, **where)
        self.best_epoch = torch.zeros(number, dtype=torch.int64, **where)
        self.going = torch.ones(number, dtype=torch.bool, **where)
        self.weights = [p.clone() for p in self.stack.parameters()]
        rows = cells[0]["epochs"] + 1
        self.curves = {
            name: torch.zeros(rows, number, **where) for name in ("validation", "training", "rate")
        }
        self._orders = torch.zeros(
            len(self.seeds), len(self.problem.train), dtype=torch.int64, device=self.device
        )
        self._number = torch.zeros(1, dtype=torch.int64, **where)  # of the epoch, on the device
        self._epochs = {
            part: Repeated(partial(self._whole_epoch, part), self.device, self._still)
            for part in PARTS
        }
        self.epoch = 0
        self.curves["validation"][0] = self._validated()
        self._stream = torch.cuda.Stream() if on_gpu else None

    # One epoch ----------------------------------------------------------------------------------

    def train_epoch(self, orders: Tensor) -> None:
        """Ask for an epoch with these orders of the samples, [seeds, n]."""
        with self._beside():
            self._orders.copy_(orders, non_blocking=True)
            self._epochs[self._part()]()
        self.epoch += 1

    def goes_on(self) -> bool:
        """Whether a member has not ended; this waits for the epochs that were asked for."""
        with self._beside():
            return bool(self.going.any())

    def _beside(self) -> AbstractContextManager[Any]:
        """What is asked for within runs beside the other stacks."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _part(self) -> str:
        """What moves in the next epoch: the trunk first, where there are phases."""
        if not self._length:
            return "all"
        return PARTS[(self.epoch // self._length) % 2]

    def _still(self) -> Any:
        """What is changed now is put back when what is returned is called."""
        changed = [*self.stack.parameters(), *self.weights, *self.curves.values(), self._number]
        changed += [getattr(self, name) for name in OWN]
        kept = [tensor.clone() for tensor in changed]

        def restore() -> None:
            for tensor, value in zip(changed, kept, strict=True):
                tensor.copy_(value)

        return restore

    def _whole_epoch(self, part: str) -> None:
        rates = torch.where(self.going, self.rates, 0.0)
        seen = torch.zeros_like(self.rates)
        self.curves["rate"].index_copy_(0, self._number, self.rates.unsqueeze(0))
        batches = self._orders[self._which].split(self.problem.batch_size, dim=1)
        for index in batches:
            seen += self._step(index, rates, part)
        seen /= len(batches)
        self.curves["training"].index_copy_(0, self._number, seen.unsqueeze(0))
        self._number += 1
        values = self._validated()
        self.curves["validation"].index_copy_(0, self._number, values.unsqueeze(0))
        self._judge(values)

    def _step(self, index: Tensor, rates: Tensor, part: str) -> Tensor:
        """One batch; the members' losses before it.

        What is led back is the gradient times −rate, so that a layer's product adds its step.
        """
        trunk = self._through(self._trunk, self.train.inputs[index])
        z = trunk[-1]
        heads = {task: self._through(layers, z) for task, layers in self._heads.items()}
        with torch.enable_grad():
            outputs = {task: seen[-1].requires_grad_() for task, seen in heads.items()}
            losses = self._losses(outputs, {t: y[index] for t, y in self.train.targets.items()})
            gradients = torch.autograd.grad(losses.sum(), list(outputs.values()))
        below = None
        for (task, seen), gradient in zip(heads.items(), gradients, strict=True):
            g = gradient.view(*seen[-1].shape) * -rates.view(-1, 1, 1)
            g = self._back(self._heads[task], seen, g, move=part != "shared", on=part != "own")
            if g is not None:
                below = g if below is None else below.add_(g)
        if below is not None:
            self._back(self._trunk, trunk, self._opened(below, z), move=True, on=False)
        return losses.detach()

    def _through(self, layers: Sequence[Dense], x: Tensor) -> list[Tensor]:
        """The inputs of every layer [members, b, …], and the output of the last."""
        found = [x]
        for layer in layers:
            y = found[-1] @ layer.weight.mT
            bias = layer.bias.unsqueeze(1)
            found.append(self._activated(y, bias) if layer.active else y.add_(bias))
        return found

    def _back(
        self, layers: Sequence[Dense], seen: Sequence[Tensor], g: Tensor, move: bool, on: bool
    ) -> Tensor | None:
        """Lead g back from the last layer's output, before its ReLU; the layers take their steps.

        Args:
            layers: as they were passed.
            seen: what `_through` returned.
            g: [members, b, outputs].
            move: whether the layers move.
            on: whether what comes out for the input of the first layer is wanted, else None.
        """
        for k in reversed(range(len(layers))):
            weight, bias = layers[k].weight, layers[k].bias
            further = on or k > 0
            before = g @ weight if further else None
            if move:
                weight.baddbmm_(g.mT, seen[k])
                bias += g.sum(1)
            if before is None:
                return None
            g = before if k == 0 else self._opened(before, seen[k])
        return g

    def _losses(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Σ of the tasks' losses of each member, [members]."""
        each = [
            torch.func.vmap(self.problem.tasks[task].loss)(_told(outputs[task]), targets[task])
            for task in outputs
        ]
        return torch.stack(each).sum(dim=0)

    @torch.no_grad()
    def _outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """What every member makes of the same inputs."""
        z = self._through(self._trunk, inputs.expand(len(self.cells), *inputs.shape))[-1]
        return {task: self._through(layers, z)[-1] for task, layers in self._heads.items()}

    @torch.no_grad()
    def _validated(self) -> Tensor:
        """Σ of the validation losses of each member."""
        number = len(self.cells)
        targets = {t: y.expand(number, *y.shape) for t, y in self.validation.targets.items()}
        return self._losses(self._outputs(self.validation.inputs), targets)

    def _judge(self, values: Tensor) -> None:
        """Best weights, early stopping and plateaus, of each member that goes on."""
        better = self.going & (values < self.best)
        self.best.copy_(torch.where(better, values, self.best))
        self.best_epoch.copy_(torch.where(better, self._number, self.best_epoch))
        for kept, parameter in zip(self.weights, self.stack.parameters(), strict=True):
            chosen = better.view(-1, *[1] * (kept.ndim - 1))
            torch.where(chosen, parameter, kept, out=kept)
        risen = values < self.plateau
        self.plateau.copy_(torch.where(risen, values, self.plateau))
        improved = torch.stack([better, risen])
        self.waited.copy_(torch.where(improved, 0, self.waited + 1))
        reduced = self.waited[1] >= PLATEAU
        self.rates.copy_(torch.where(reduced & self.going, FACTOR * self.rates, self.rates))
        self.waited[1].copy_(torch.where(reduced, 0, self.waited[1]))
        self.going &= (self.waited[0] < PATIENCE) & values.isfinite()

    # What comes out -----------------------------------------------------------------------------

    def reached(self, k: int) -> int:
        """The epoch of member k's end, or as many as there were so far."""
        ended = not bool(self.going[k])
        return min(self.epoch, int(self.best_epoch[k]) + PATIENCE) if ended else self.epoch

    def values(self, seconds: float) -> list[dict[str, Any]]:
        """What `alternation.run` returns, but oscillation, for each member."""
        parameters = list(self.stack.parameters())
        now = [p.clone() for p in parameters]
        every = THIN if self.cells[0]["epochs"] > 100 * THIN else 1
        for parameter, kept in zip(parameters, self.weights, strict=True):
            parameter.copy_(kept)
        outputs = self._outputs(self.problem.test.inputs.to(self.device))
        rows = {name: curve[: self.epoch + 1].tolist() for name, curve in self.curves.items()}
        found = []
        for k in range(len(self.cells)):
            last = self.reached(k)
            curves = {
                name: [_rounded(row[k]) for row in of[: last + (name == "validation")][::every]]
                for name, of in rows.items()
            }
            found.append(
                {
                    "test": judged({t: _told(y)[k] for t, y in outputs.items()}, self.problem),
                    "best epoch": int(self.best_epoch[k]),
                    "epochs": last,
                    "seconds per epoch": _rounded(seconds / max(self.epoch, 1) / len(self.cells)),
                    **({"every": every} if every > 1 else {}),
                    **curves,
                }
            )
        for parameter, value in zip(parameters, now, strict=True):
            parameter.copy_(value)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        return {
            "stack": [p.cpu() for p in self.stack.parameters()],
            "weights": [p.cpu() for p in self.weights],
            "curves": {name: curve.cpu() for name, curve in self.curves.items()},
            "epoch": self.epoch,
            **{name: getattr(self, name).cpu() for name in OWN},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for name in ("stack", "weights"):
            own = self.stack.parameters() if name == "stack" else self.weights
            for tensor, value in zip(own, state[name], strict=True):
                tensor.copy_(value)
        for name, curve in self.curves.items():
            saved = state["curves"][name]
            rows = min(len(curve), len(saved))
            curve[:rows].copy_(saved[:rows])
        self.epoch = state["epoch"]
        self._number.fill_(self.epoch)
        for name in OWN:
            getattr(self, name).copy_(state[name])


class Orders:
    """The orders of the samples that the training's own streams draw, for stacks of some seeds."""

    def __init__(self, problem: Problem, seeds: Sequence[int], pinned: bool) -> None:
        data, size = problem.train, problem.batch_size
        self._streams = [Stream(data, size, mixed_seed(seed, *b"data")) for seed in seeds]
        self._pinned = pinned

    def of(self, epoch: int) -> Tensor:
        """[seeds, n]."""
        steps = len(self._streams[0])
        numbers = range(epoch * steps, (epoch + 1) * steps)
        drawn = [torch.cat([stream.index(k) for k in numbers]) for stream in self._streams]
        orders = torch.stack(drawn)
        return orders.pin_memory() if self._pinned else orders


def run(stacks: Sequence[Members], until: float, keep: Path | None = None) -> bool:
    """Train stacks side by side until all are finished (True) or the clock says `until` (False).

    Those that go on must be of the same seeds and the same cap, and at the same epoch.
    """
    if stacks[0].device.type == "cuda":
        torch.cuda.synchronize()  # a stack's own stream does not wait for what made it
    going = [stack for stack in stacks if stack.goes_on()]
    if not going:
        return True
    first = going[0]
    if any((s.seeds, s.epoch) != (first.seeds, first.epoch) for s in going):
        raise ValueError("stacks side by side must be of the same seeds and at the same epoch")
    cap = first.cells[0]["epochs"]
    orders = Orders(first.problem, first.seeds, first.device.type == "cuda")
    epoch = first.epoch
    drawn = orders.of(epoch)
    while going and epoch < cap and time.time() < until:
        for stack in going:
            stack.train_epoch(drawn)
        epoch += 1
        drawn = orders.of(epoch)  # while the device is at work
        if epoch % CHECKED == 0:
            going = [stack for stack in going if stack.goes_on()]
    going = [stack for stack in going if stack.goes_on()]
    if going and epoch < cap:
        if keep is not None:
            torch.save([stack.state_dict() for stack in stacks], keep)
        return False
    return True


@dataclass(frozen=True)
class Dense:
    """A stacked linear layer: weight [members, outputs, inputs], bias, and a ReLU or none."""

    weight: Tensor
    bias: Tensor
    active: bool


def _layers(module: nn.Module, parameters: Sequence[Tensor]) -> list[Dense]:
    """The layers of a stack of such modules."""
    children = list(module.children())
    kinds = [type(child) for child in children if not isinstance(child, nn.Flatten)]
    linear = [k for k, kind in enumerate(kinds) if kind is nn.Linear]
    if any(kind not in (nn.Linear, nn.ReLU) for kind in kinds) or kinds[0] is not nn.Linear:
        raise ValueError(f"a stack here has linear layers and ReLUs alone, not {kinds}")
    return [
        Dense(weight, bias, k + 1 < len(kinds) and kinds[k + 1] is nn.ReLU)
        for k, weight, bias in zip(linear, parameters[::2], parameters[1::2], strict=True)
    ]


def _told(outputs: Tensor) -> Tensor:
    """A head with one output tells a number for each sample."""
    return outputs.squeeze(-1) if outputs.shape[-1] == 1 else outputs


def activated(y: Tensor, bias: Tensor) -> Tensor:
    """relu(y + bias) of [members, b, outputs]."""
    return (y + bias).relu()


def opened(g: Tensor, y: Tensor) -> Tensor:
    """g where the ReLU that made y was open."""
    return torch.where(y > 0, g, 0.0)


@lru_cache
def _fused() -> tuple[Callable[..., Tensor], ...]:
    """Both in one kernel each, compiled once for all stacks."""
    return tuple(torch.compile(function, dynamic=False) for function in (activated, opened))


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
