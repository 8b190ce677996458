"""Table 3's runs as one stack, for a GPU: rows, rates and seeds side by side.

What `redraw.run` does for one network with the usual settings, for all of them at once: the same
initial weights, orders and stopping. Every member has both heads, and a task that it does not have
weighs nothing. The weights of two tasks' gradients are written out here for all members: those of
`evenhand.MGDA` with and without the released edges, `CentralDirection` and `Tension`. Sums are
taken in another order, so numbers agree to rounding, and runs as long as they agree.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import redraw
import torch
from captured import Repeated
from ledger import key
from torch import Tensor, nn
from torch.nn import functional

from evenhand.data import Stream, mnist, multimnist
from evenhand.data.problem import Split
from evenhand.schedules import mixed_seed

ALPHA, PERIOD = 0.3, 10
SHRINK = 0.75
"""A stack goes on without the members that have ended when no larger share of it is left."""
CHUNK = 250
"""Samples of which every member's windows are in memory at a time between epochs."""
PIECES = 16
"""Into how many the samples are divided for the convolutions' weight gradients."""
KINDS = ("equal", "min-norm", "central")


def kind(row: str) -> tuple[str, bool, bool]:
    """Whose weights a row has before tension, whether with released edges, and with tension."""
    base = row.partition(" + ")[0]
    names = {"Central": "central", "Min-norm": "min-norm", "Min-norm (exact)": "min-norm"}
    return names.get(base, "equal"), base == "Min-norm", row.endswith("+ tension")


@dataclass(frozen=True)
class Layer:
    """Weights [members, inputs, outputs] and biases [members, 1, outputs], within one tensor."""

    weight: Tensor
    bias: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.weight, self.bias))


class Members:
    """The stack, and what each member is about.

    Args:
        cells: a run each, told as by `redraw.cell`; they differ in row, rate and seed alone.
        device: where the stack is trained.
    """

    def __init__(self, cells: Sequence[Mapping[str, Any]], device: str) -> None:
        # Members of one seed stand side by side: they see the same pictures.
        self.cells = sorted(cells, key=lambda cell: cell["seed"])
        self.device = torch.device(device)
        first = self.cells[0]
        same = {name: first[name] for name in first if name not in ("row", "rate", "seed")}
        usual = {name: redraw.SETTINGS[name] for name in ("dropout", "decoder", "watched")}
        if any({**cell, **same, **usual} != cell for cell in cells):
            raise ValueError("cells of a stack differ in row, rate and seed alone")
        self.batch, self.cap, self.patience = first["batch"], first["epochs"], first["patience"]
        self.momentum = first["momentum"]
        self.problem = redraw.problem(first["resize"], first["placed"], first["scaled"], device)
        self.data: _Fixed | _Fresh = (
            _Fresh(self.cells, self.device)
            if first.get("fresh")
            else _Fixed(self.cells, self.problem.train)
        )
        self.ended: dict[str, dict[str, Any]] = {}
        self._make_parameters()
        number = len(cells)
        where = {"device": self.device}
        self.rates = torch.tensor([cell["rate"] for cell in self.cells], **where)
        has = [[t in redraw.AGGREGATORS[c["row"]][0] for t in redraw.BOTH] for c in self.cells]
        self.has = torch.tensor(has, **where)
        self.weighing = Weighing([cell["row"] for cell in self.cells], self.has)
        self.going = torch.ones(number, dtype=torch.bool, **where)
        self.sound = torch.ones(number, dtype=torch.bool, **where)
        self.best = torch.full((number,), torch.inf, dtype=torch.float64, **where)
        self.waited = torch.zeros(number, dtype=torch.int64, **where)
        self.best_epoch = torch.zeros(number, dtype=torch.int64, **where)
        self.kept = self.parameters.clone()
        self._make_room()
        self.epoch = 0
        self.curves: dict[str, list[list[float]]] = {
            f"{what} {task}": [] for what in ("metric", "loss") for task in redraw.BOTH
        }
        self.curves |= {f"weight {task}": [] for task in redraw.BOTH}
        self.first = self._validated()

    def _make_room(self) -> None:
        """What the steps and the validation read and write, for as many members as there are."""
        number, where = len(self.cells), {"device": self.device}
        self.layers = self._layers(self.parameters)
        self._gradient = torch.zeros_like(self.parameters)
        self._gradients = self._layers(self._gradient)
        self._which = self.data.which.to(self.device)
        which = self.data.which.tolist()
        self._groups = [  # (seed's position, its members)
            (seed, slice(which.index(seed), which.index(seed) + which.count(seed)))
            for seed in dict.fromkeys(which)
        ]
        self._moving = torch.zeros_like(self.rates)
        self._position = torch.zeros((), dtype=torch.int64, **where)
        self._weights_seen = torch.zeros(number, 2, dtype=torch.float64, **where)
        self._measured = torch.zeros(4, number, dtype=torch.float64, **where)
        whole, rest = divmod(len(self.data), self.batch)
        self._sizes = [self.batch] * whole + [rest] * bool(rest)
        self._steps = {
            size: Repeated(partial(self._step, size), self.device, self._still)
            for size in set(self._sizes)
        }
        self._validate = Repeated(
            partial(self._measure, self.problem.validation), self.device, lambda: lambda: None
        )

    def _make_parameters(self) -> None:
        """The members' parameters, [members, all], a head that a member does not have being 0."""
        both = redraw.network(redraw.BOTH, False, "400")
        self._shapes = {
            f"{part}.{name}": tuple(value.shape)
            for part, module in (("trunk", both.trunk), *_heads(both))
            for name, value in module.named_parameters()
        }
        rows = []
        for cell in self.cells:
            torch.manual_seed(cell["seed"])
            tasks = redraw.AGGREGATORS[cell["row"]][0]
            rows.append(self.flat(redraw.network(tasks, cell["dropout"], cell["decoder"])))
        self.parameters = torch.stack(rows).to(self.device)
        self.buffers = torch.zeros_like(self.parameters)
        trunk = [math.prod(s) for name, s in self._shapes.items() if name.startswith("trunk.")]
        self.shared = sum(trunk)

    def flat(self, network: Any, gradients: bool = False) -> Tensor:
        """A network's parameters, or their gradients, in the order and layout of a member's."""
        parts = {"trunk": network.trunk, **{t: network.head(t) for t in network.tasks}}
        named = {
            f"{part}.{name}": value.grad if gradients else value.detach()
            for part, module in parts.items()
            for name, value in module.named_parameters()
        }
        values = [_laid(named.get(name), shape) for name, shape in self._shapes.items()]
        return torch.cat([value.flatten() for value in values])

    def _layers(self, flat: Tensor) -> dict[str, list[Layer]]:
        """The parts of [members, all], as views."""
        shapes = list(self._shapes.items())
        sizes = [math.prod(shape) for _, shape in shapes]
        found: dict[str, list[Layer]] = {part: [] for part in ("trunk", *redraw.BOTH)}
        views = flat.split(sizes, dim=1)
        for (name, shape), weight, bias in zip(shapes[::2], views[::2], views[1::2], strict=True):
            layer = Layer(weight.unflatten(1, (-1, shape[0])), bias.unsqueeze(1))
            found[name.partition(".")[0]].append(layer)
        return found

    # One step -------------------------------------------------------------------------------

    def _step(self, size: int) -> None:
        pictures, upper, lower = self.data.batch(self._position, size)
        self._position += size
        losses, rows = self.gradients(pictures, upper, lower)
        both = losses.double()
        self.sound &= (both.isfinite() | ~self.has).all(-1)
        weights = self.weighing(_gramian(rows), both)
        self._weights_seen += weights
        w = weights.to(rows.dtype).unsqueeze(-1)
        torch.sum(w * rows, 1, out=self._gradient[:, : self.shared])
        self.buffers.mul_(self.momentum).add_(self._gradient)
        self.parameters.addcmul_(self._moving.unsqueeze(-1), self.buffers, value=-1)

    def gradients(self, pictures: Tensor, upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [members, 2], and their gradients for the trunk [members, 2, shared].

        Those for the heads are put in place.

        Args:
            pictures: each seed's, [seeds, b, 28, 28].
            upper: their classes, [seeds, b].
            lower: the pictures to be drawn, [seeds, b, 784].
        """
        seen = windows(pictures.flatten(0, 1).unsqueeze(-1)).view(*pictures.shape[:2], -1, 25)
        trunk = self._trunk(seen, [(seed, members) for seed, members in self._groups])
        z = trunk[-1]
        likelihood, for_class = self._class_head(z, upper[self._which])
        error, for_picture = self._picture_head(z, lower[self._which])
        incoming = torch.stack([for_class, for_picture], 2)  # [members, b, 2, 50]
        # The gradient of a head that a member does not have may be anything.
        used = self.has[:, None, :, None] & (z > 0).unsqueeze(2)
        rows = self._through_trunk(seen, trunk, torch.where(used, incoming, 0.0))
        return torch.stack([likelihood, error], -1), rows

    def _class_head(self, z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The mean negative log-likelihood [members], and its gradient for z."""
        one, two = self.layers["upper"]
        hidden = _dense(z, one).relu_()
        logs = _dense(hidden, two).log_softmax(-1)
        loss = -logs.gather(-1, target.unsqueeze(-1)).mean((-1, -2))
        classes = torch.arange(logs.shape[-1], device=logs.device)
        g = (logs.exp() - (target.unsqueeze(-1) == classes).to(logs.dtype)) / target.shape[1]
        return loss, self._through_head("upper", z, hidden, g)

    def _picture_head(self, z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The mean squared error [members], and its gradient for z."""
        one, two = self.layers["lower"]
        hidden = _dense(z, one).relu_()
        g = _dense(hidden, two).sub_(target)
        loss = g.square().mean((-1, -2))
        return loss, self._through_head("lower", z, hidden, g.mul_(2 / target[0].numel()))

    def _through_head(self, task: str, z: Tensor, hidden: Tensor, g: Tensor) -> Tensor:
        """The gradient for z, of that for the output; those for the parameters are put down."""
        one, two = self.layers[task]
        for_one, for_two = self._gradients[task]
        _put(for_two, hidden, g)
        g = (g @ two.weight.mT).mul_(hidden > 0)
        _put(for_one, z, g)
        return g @ one.weight.mT

    def _trunk(self, seen: Tensor, groups: Sequence[tuple[int, slice]]) -> tuple[Tensor, ...]:
        """What the trunk computes of windows [seeds, b, 576, 25], up to z [members, b, 50]."""
        one, two, three = self.layers["trunk"]
        b, members = seen.shape[1], len(self.cells)
        x = seen.new_empty(members, b * 576, 10)
        for seed, of in groups:
            same = seen[seed].view(1, b * 576, 25).expand(of.stop - of.start, -1, -1)
            torch.bmm(same, one.weight[of], out=x[of])
        first, where_first = pooled(x.view(members, b, 24, 24, 10), one.bias[:, None, None])
        columns = windows(first.view(-1, 12, 12, 10)).view(members, b * 64, 250)
        x = torch.bmm(columns, two.weight).view(members, b, 8, 8, 20)
        second, where_second = pooled(x, two.bias[:, None, None])
        second = second.view(members, b, 320)
        z = _dense(second, three).relu_()
        return where_first, columns, where_second, second, z

    def _through_trunk(self, seen: Tensor, trunk: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """The trunk's gradients [members, 2, shared] of those for z, [members, b, 2, 50]."""
        where_first, columns, where_second, second, _ = trunk
        m, b = g.shape[:2]
        rows = g.new_empty(m, 2, self.shared)
        one, two, three = self._layers_of_trunk(rows)
        three.weight.copy_((second.mT @ g.view(m, b, 100)).view(m, 320, 2, 50).transpose(1, 2))
        three.bias.copy_(g.sum(1).unsqueeze(2))

        g = (g.view(m, 2 * b, 50) @ self.layers["trunk"][2].weight.mT).view(m, b, 2, 4, 4, 20)
        g = spread(g.permute(0, 1, 3, 4, 2, 5), where_second)
        flat = g.view(m, b * 64, 40)
        two.weight.copy_(self._divided(columns, flat).view(m, 250, 2, 20).transpose(1, 2))
        two.bias.copy_(flat.sum(1).view(m, 2, 1, 20))

        g = self._for_first(g.view(m, b, 8, 8, 2, 20)).view(m, b, 12, 12, 2, 10)
        g = spread_by_picture(g, where_first).view(b, 576, m, 20)
        pieces = math.gcd(b, PIECES)
        for seed, of in self._groups:
            some = g[:, :, of].reshape(pieces, b // pieces * 576, -1)
            found = (seen[seed].view(pieces, b // pieces * 576, 25).mT @ some).sum(0)
            one.weight[of].copy_(found.view(25, -1, 2, 10).permute(1, 2, 0, 3))
        one.bias.copy_(g.sum((0, 1)).view(m, 2, 1, 10))
        return rows

    def _layers_of_trunk(self, rows: Tensor) -> list[Layer]:
        """Weights [members, 2, inputs, outputs] and biases [members, 2, 1, outputs], as views."""
        shapes = [s for name, s in self._shapes.items() if name.startswith("trunk.")]
        views = rows.split([math.prod(shape) for shape in shapes], dim=2)
        return [
            Layer(weight.unflatten(2, (-1, shape[0])), bias.unsqueeze(2))
            for shape, weight, bias in zip(shapes[::2], views[::2], views[1::2], strict=True)
        ]

    def _for_first(self, g: Tensor) -> Tensor:
        """The gradient for the second convolution's input, of that for its output.

        A product of windows along rows, whose results are added up along columns.
        """
        weight = self.layers["trunk"][1].weight  # [members, (row, column, 10), 20]
        m, b = g.shape[:2]
        padded = functional.pad(g, (0, 0, 0, 0, 4, 4)).flatten(0, 1)  # [.., 8, 16, 2, 20]
        n, *_ = padded.shape
        whole, row, column, task, _ = padded.stride()
        near = padded.as_strided((n, 8, 12, 2, 5, 20), (whole, row, column, task, column, 1))
        turned = weight.view(m, 5, 5, 10, 20).flip(2).permute(0, 2, 4, 1, 3).reshape(m, 100, 50)
        made = near.reshape(m, b * 192, 100) @ turned
        return overlaid(made.view(n, 8, 12, 2, 5, 10))

    def _divided(self, x: Tensor, g: Tensor) -> Tensor:
        """xᵀ g of each member, as a sum of products of fewer rows."""
        m, rows = x.shape[:2]
        pieces = math.gcd(rows, PIECES)
        parts = (t.view(m * pieces, rows // pieces, -1) for t in (x, g))
        left, right = parts
        return (left.mT @ right).view(m, pieces, x.shape[2], -1).sum(1)

    # One epoch ------------------------------------------------------------------------------

    def run(self, until: float) -> bool:
        """Train until all are finished (True) or the clock says `until` (False)."""
        while self.epoch < self.cap and bool(self.going.any()):
            if time.time() >= until:
                return False
            self._epoch()
            left = int(self.going.sum())
            if left and left <= SHRINK * len(self.cells):
                self._shrink()
        return True

    def _shrink(self) -> None:
        """Go on without the members that have ended."""
        values = self._all_values()
        going = self.going.tolist()
        self.ended |= {
            key(cell): value
            for cell, value, goes in zip(self.cells, values, going, strict=True)
            if not goes
        }
        at = self.going.nonzero().flatten()
        chosen = at.tolist()
        self.cells = [self.cells[k] for k in chosen]
        self.curves = {
            name: [[row[k] for k in chosen] for row in rows] for name, rows in self.curves.items()
        }
        for name in ("rates", "has", "going", "sound", "best", "waited", "best_epoch"):
            setattr(self, name, getattr(self, name)[at].clone())
        for name in ("parameters", "buffers", "kept"):
            setattr(self, name, getattr(self, name)[at].clone())
        self.first = self.first[:, at]
        self.weighing.select(at)
        self.data.which = self.data.which[chosen]
        self._make_room()

    def _epoch(self) -> None:
        self.data.draw(self.epoch)
        self._moving.copy_(torch.where(self.going, self.rates, 0.0))
        self._position.zero_()
        self._weights_seen.zero_()
        for size in self._sizes:
            self._steps[size]()
        self.epoch += 1
        mean = self._weights_seen / len(self._sizes)
        for k, task in enumerate(redraw.BOTH):
            self.curves[f"weight {task}"].append(mean[:, k].tolist())
        self._judge(self._validated())

    def _still(self) -> Any:
        """Nothing moves until what is returned is called."""
        rates = self._moving.clone()
        state = [t.clone() for t in self._changing()]
        self._moving.zero_()

        def restore() -> None:
            self._moving.copy_(rates)
            for tensor, value in zip(self._changing(), state, strict=True):
                tensor.copy_(value)

        return restore

    def _changing(self) -> list[Tensor]:
        """What a step writes to beside the parameters."""
        own = [self._position, self._weights_seen, self.sound, self.buffers]
        return [*own, *self.weighing.state]

    # Between epochs -------------------------------------------------------------------------

    @torch.no_grad()
    def _measure(self, split: Any) -> None:
        """Errors of the class and of the picture, and the losses of either, [4, members]."""
        self._measured.zero_()
        number, count = len(self.cells), len(split)
        for index in torch.arange(count, device=self.device).split(CHUNK):
            pictures = windows(split.inputs[index].squeeze(1).unsqueeze(-1)).view(-1, 576, 25)
            z = self._trunk(pictures.unsqueeze(0), [(0, slice(0, number))])[-1]
            upper = split.targets["upper"][index].expand(number, -1)
            logits, picture = (
                _dense(_dense(z, one).relu_(), two)
                for one, two in (self.layers[task] for task in redraw.BOTH)
            )
            wrong = (logits.argmax(-1) != upper).double().sum(-1)
            logs = logits.log_softmax(-1).gather(-1, upper.unsqueeze(-1))
            squared = picture.sub_(split.targets["lower"][index]).square_().mean(-1)
            likelihood, squared = -logs.double().sum((-1, -2)), squared.double().sum(-1)
            self._measured += torch.stack([wrong, squared, likelihood, squared]) / count

    def _validated(self) -> Tensor:
        """Validation errors [2, members]; they and the losses are put down."""
        self._validate()
        seen = self._measured.tolist()
        self.curves["metric upper"].append([1 - value for value in seen[0]])
        self.curves["metric lower"].append(seen[1])
        self.curves["loss upper"].append(seen[2])
        self.curves["loss lower"].append(seen[3])
        return self._measured[:2].clone()

    def _judge(self, errors: Tensor) -> None:
        """`redraw.errors`, the best weights and early stopping, of each member that goes on."""
        ratios = (errors / self.first.clamp_min(1e-12)).mT
        value = torch.where(self.has, ratios, 0.0).sum(-1) / self.has.sum(-1)
        self.going &= self.sound
        better = self.going & (value < self.best)
        self.best = torch.where(better, value, self.best)
        self.best_epoch = torch.where(better, self.epoch, self.best_epoch)
        self.kept = torch.where(better.unsqueeze(-1), self.parameters, self.kept)
        self.waited = torch.where(better, 0, self.waited + 1)
        self.going &= self.waited < self.patience

    # What comes out -------------------------------------------------------------------------

    def reached(self, k: int) -> int:
        """The epoch of member k's end, or as many as there were so far."""
        ended = int(self.best_epoch[k]) + self.patience
        return self.epoch if bool(self.going[k]) else min(self.epoch, ended)

    def values(self) -> dict[str, dict[str, Any]]:
        """What `redraw.run` returns for each member, by its cell's key."""
        now = zip(map(key, self.cells), self._all_values(), strict=True)
        return {**self.ended, **dict(now)}

    def _all_values(self) -> list[dict[str, Any]]:
        now = self.parameters.clone()
        self.parameters.copy_(self.kept)
        self._measure(self.problem.test)
        wrong, squared = self._measured[:2].tolist()
        self.parameters.copy_(now)
        return [self._value(k, 1 - wrong[k], squared[k]) for k in range(len(self.cells))]

    def _value(self, k: int, accuracy: float, squared: float) -> dict[str, Any]:
        if not bool(self.sound[k]):
            return {"diverged": "a loss is not finite", "monitored": None, "test": {}}
        tasks = redraw.AGGREGATORS[self.cells[k]["row"]][0]
        best, last = int(self.best_epoch[k]), self.reached(k)
        tests = {"upper": accuracy, "lower": squared}

        def curve(name: str, task: str, count: int) -> list[float]:
            return [_rounded(row[k]) for row in self.curves[f"{name} {task}"][:count]]

        return {
            "monitored": float(self.best[k]),
            "best epoch": best,
            "epochs": last,
            "validation": {t: self.curves[f"metric {t}"][best][k] for t in tasks},
            "test": {task: tests[task] for task in tasks},
            "curves": {t: curve("metric", t, last + 1) for t in tasks},
            "losses": {t: curve("loss", t, last + 1) for t in tasks},
            "weights": {t: curve("weight", t, last) for t in tasks},
        }


def _heads(network: Any) -> list[tuple[str, nn.Module]]:
    return [(task, network.head(task)) for task in redraw.BOTH]


def _laid(value: Tensor | None, shape: Sequence[int]) -> Tensor:
    """A parameter in the layout that it has here: [inputs, outputs], windows channels last."""
    if value is None:
        return torch.zeros(math.prod(shape))
    if value.ndim == 4:  # [outputs, channels, 5, 5]
        return value.permute(2, 3, 1, 0)
    if value.shape == (50, 320):  # its inputs are 4×4 pictures of 20 channels
        return value.view(50, 20, 4, 4).permute(2, 3, 1, 0)
    return value.T if value.ndim == 2 else value


def _put(gradients: Layer, x: Tensor, g: Tensor) -> None:
    """A dense layer's gradients, of its inputs and the gradient for its outputs."""
    torch.bmm(x.mT, g, out=gradients.weight)
    torch.sum(g, 1, keepdim=True, out=gradients.bias)


# Weights of two tasks ---------------------------------------------------------------------------


class Weighing:
    """The weights of each member's two gradients, by the method of its row.

    Args:
        rows: the members'.
        has: which of the two tasks each has, [members, 2].
    """

    def __init__(self, rows: Sequence[str], has: Tensor) -> None:
        kinds = [kind(row) for row in rows]
        where = {"device": has.device}
        self.has = has
        self.which = {
            name: torch.tensor([k[0] == name for k in kinds], **where).unsqueeze(-1)
            for name in KINDS
        }
        self.released = torch.tensor([k[1] for k in kinds], **where).unsqueeze(-1)
        self.pulled = torch.tensor([k[2] for k in kinds], **where).unsqueeze(-1)
        self.window = torch.zeros(len(rows), PERIOD, 2, dtype=torch.float64, **where)
        self.count = torch.zeros((), dtype=torch.float64, **where)

    @property
    def state(self) -> tuple[Tensor, Tensor]:
        """What a call writes to."""
        return self.window, self.count

    def select(self, at: Tensor) -> None:
        """Go on with the members at these positions."""
        self.which = {name: chosen[at] for name, chosen in self.which.items()}
        for name in ("has", "released", "pulled", "window"):
            setattr(self, name, getattr(self, name)[at].clone())

    def __call__(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Weights [members, 2] from G [members, 2, 2] and losses [members, 2]."""
        mean = self.has / self.has.sum(-1, keepdim=True)
        edges = self.released & ((least := _min_norm(gramian)) == 0).any(-1, keepdim=True)
        least = torch.where(edges, least.clamp(0.001, 0.999), least)
        length = gramian.diagonal(dim1=-2, dim2=-1).sqrt()
        central = length.flip(-1) / length.sum(-1, keepdim=True).clamp_min(1e-300)
        weights = torch.where(self.which["min-norm"], least, mean.double())
        weights = torch.where(self.which["central"], central, weights)
        return torch.where(self.pulled, self._tensed(gramian, weights, length, losses), weights)

    def _tensed(self, gramian: Tensor, weights: Tensor, length: Tensor, losses: Tensor) -> Tensor:
        """`evenhand.Tension` on the segment between two gradients, with the authors' pass."""
        window = torch.cat([self.window, length.unsqueeze(1)], dim=1)
        before, now = window[:, :-1].mean(1), window[:, 1:].mean(1)
        growth = torch.where((before == 0) & (now == 0), 1.0, now / before)
        delta = growth + losses.clamp_min(1e-12).log10()
        strengths = ALPHA * torch.sigmoid(math.e * (delta - 1)) + 1 - ALPHA
        strengths = torch.where(self.count >= PERIOD, strengths, 0.0)
        self.window.copy_(window[:, 1:])
        self.count += 1
        (a, b), (_, d) = (row.unbind(-1) for row in gramian.unbind(-2))
        apart = a + d - 2 * b
        rounding = 4 * torch.finfo(torch.float32).eps * length.sum(-1).square()
        distance = torch.where(apart > rounding, apart.clamp_min(0).sqrt(), torch.inf)
        pull = (strengths[:, 0] - strengths[:, 1]) / distance
        moved = weights + torch.stack([pull, -pull], -1)
        for i in range(2):
            own, other = gramian[:, i, i], gramian[:, i, 1 - i]
            crossed = other * moved[:, 1 - i]
            product = crossed + own * moved[:, i]
            s = own / (own - product)
            pair = [-s * crossed / own, s * moved[:, 1 - i]]
            passed = torch.stack(pair if i == 0 else pair[::-1], -1)
            moved = torch.where((product < 0).unsqueeze(-1), passed, moved)
        return torch.where((pull == 0).unsqueeze(-1), weights, moved)


def _min_norm(gramian: Tensor) -> Tensor:
    """The least norm in the convex hull of two gradients, [members, 2]."""
    (a, b), (_, d) = (row.unbind(-1) for row in gramian.unbind(-2))
    first = ((d - b) / (a + d - 2 * b).clamp_min(1e-300)).clamp(0, 1)
    return torch.stack([first, 1 - first], -1)


def _gramian(rows: Tensor) -> Tensor:
    """Inner products of each member's gradients [members, 2, entries], [members, 2, 2]."""
    return (rows.unsqueeze(1) * rows.unsqueeze(2)).sum(-1, dtype=torch.float64)


# Layers -----------------------------------------------------------------------------------------
# Pictures are [members, b, height, width, channels] here, and what is [members, rows, columns] is
# multiplied for all members at once. The convolutions are products of 5×5 windows, whose entries
# are in the order (row, column, channel).


def _dense(x: Tensor, layer: Layer) -> Tensor:
    weight, bias = layer
    return torch.baddbmm(bias, x, weight)


def windows(x: Tensor) -> Tensor:
    """The 5×5 windows of [n, h, w, c] as rows of 25 c, [n, h − 4, w − 4, 5, 5 c]."""
    n, h, w, c = x.shape
    whole, row, column, _ = x.stride()
    shape = n, h - 4, w - 4, 5, 5 * c
    return x.as_strided(shape, (whole, row, column, row, 1)).contiguous()


def pooled(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """relu(max + bias) of every 2×2 field of [m, b, h, w, c], and where the greatest entry is.

    Where: 0 to 3 in the order of reading, the first of equals; 4 where the ReLU is closed.
    """
    (a, b), (c, d) = ([x[:, :, i::2, j::2] for j in range(2)] for i in range(2))
    upper, lower = torch.maximum(a, b), torch.maximum(c, d)
    y = (torch.maximum(upper, lower) + bias).relu()
    where = torch.where(lower > upper, (d > c).byte() + 2, (b > a).byte())
    return y, torch.where(y > 0, where, 4)


def spread(gradient: Tensor, where: Tensor) -> Tensor:
    """The gradient for what `pooled` read, of those for its y: [.., h, w, t, c] at `where`.

    In: gradient [m, b, h, w, t, c] for each of t tasks, where [m, b, h, w, c].
    Out: [m, b, h, 2, w, 2, t, c].
    """
    place = torch.arange(4, dtype=torch.uint8, device=where.device).view(2, 1, 2, 1, 1)
    chosen = where[:, :, :, None, :, None, None, :] == place
    return torch.where(chosen, gradient[:, :, :, None, :, None], 0.0)


def spread_by_picture(gradient: Tensor, where: Tensor) -> Tensor:
    """`spread`, [b, h, 2, w, 2, m, t, c]."""
    place = torch.arange(4, dtype=torch.uint8, device=where.device).view(2, 1, 2, 1, 1, 1)
    m, b, h, w, t, c = gradient.shape
    made = gradient.new_empty(b, h, 2, w, 2, m, t, c)
    chosen = where.permute(1, 2, 3, 0, 4)[:, :, None, :, None, :, None] == place
    moved = gradient.permute(1, 2, 3, 0, 4, 5)[:, :, None, :, None]
    return torch.where(chosen, moved, gradient.new_zeros(()), out=made)


def overlaid(rows: Tensor) -> Tensor:
    """Sums of the columns of 5 [n, h, w, t, 5, c] where they overlap, [n, h + 4, w, t, c]."""
    n, h, w, t, _, c = rows.shape
    made = rows.new_zeros(n, h + 4, w, t, c)
    for i in range(5):
        made[:, i : i + h] += rows[..., i, :]
    return made


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


# Batches ----------------------------------------------------------------------------------------


class _Fixed:
    """The pictures of a split, in each member's order."""

    def __init__(self, cells: Sequence[Mapping[str, Any]], split: Any) -> None:
        self.split, device = split, split.inputs.device
        seeds = list(dict.fromkeys(cell["seed"] for cell in cells))
        # The orders are those of the training's own stream, and do not depend on what is ordered.
        counted = Split(torch.zeros(len(split)), {})
        size = cells[0]["batch"]
        self.streams = [Stream(counted, size, mixed_seed(seed, *b"data")) for seed in seeds]
        self.which = torch.tensor([seeds.index(cell["seed"]) for cell in cells])
        self.orders = torch.zeros(len(seeds), len(split), dtype=torch.int64, device=device)

    def __len__(self) -> int:
        return len(self.split)

    def draw(self, epoch: int) -> None:
        """Put the orders of an epoch in place."""
        steps = len(self.streams[0])
        numbers = range(epoch * steps, (epoch + 1) * steps)
        orders = [torch.cat([stream.index(k) for k in numbers]) for stream in self.streams]
        self.orders.copy_(torch.stack(orders))

    def batch(self, position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, classes and pictures of each seed, [seeds, size, …]."""
        index = self.orders[:, position + torch.arange(size, device=position.device)]
        inputs, targets = self.split.inputs, self.split.targets
        return inputs[index].squeeze(2), targets["upper"][index], targets["lower"][index]


class _Fresh:
    """`redraw.Fresh` for many members: pictures paired anew."""

    def __init__(self, cells: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        if not cells[0]["scaled"]:
            raise ValueError("fresh pairs are made here standardised alone")
        self.placed = cells[0]["placed"]
        self.smaller = _SMALLER[cells[0]["resize"]]
        generator = torch.Generator().manual_seed(mixed_seed(0, *b"multimnist"))
        images, labels = multimnist.parts(mnist.load(), generator)[0]
        self.images, self.labels = images.to(device), labels.to(device)
        self.seeds = list(dict.fromkeys(cell["seed"] for cell in cells))
        self.which = torch.tensor([self.seeds.index(cell["seed"]) for cell in cells])
        shape = len(self.seeds), len(images)
        self.orders = torch.zeros(*shape, dtype=torch.int64, device=device)
        self.partners = torch.zeros_like(self.orders)

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, epoch: int) -> None:
        """Put the orders and partners of an epoch in place."""
        number = len(self.images)
        for row, seed in enumerate(self.seeds):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(mixed_seed(mixed_seed(seed, *b"data"), epoch, *b"loader"))
                generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            order = torch.randperm(number, generator=generator)
            partner = torch.randint(number, (number,), generator=generator)
            self.orders[row].copy_(order)
            self.partners[row].copy_(partner[order])

    def batch(self, position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, classes and pictures of each seed, [seeds, size, …]."""
        at = position + torch.arange(size, device=position.device)
        index, partner = self.orders[:, at], self.partners[:, at]
        first, other = self.images[index], self.images[partner]  # [seeds, size, 28, 28]
        beside = functional.pad(other, (4, 0, 4, 0))
        inputs = self.smaller(torch.maximum(functional.pad(first, (0, 4, 0, 4)), beside))
        lower = self.smaller(beside) if self.placed else other.float()
        scaled = (inputs / 255 - multimnist.MEAN) / multimnist.DEVIATION
        return scaled, self.labels[index], lower.flatten(2) / 255


def _bilinear(pictures: Tensor) -> Tensor:
    """To 28×28, in bytes as the CPU makes them, but for the rounding of its weights."""
    made = functional.interpolate(pictures.float(), (28, 28), mode="bilinear", antialias=True)
    return made.round()


def _nearest(pictures: Tensor) -> Tensor:
    at = torch.arange(28, device=pictures.device) * pictures.shape[-1] // 28
    return pictures[..., at, :][..., at].float()


_SMALLER = {"bilinear": _bilinear, "nearest": _nearest}
