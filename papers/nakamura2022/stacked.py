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
from collections.abc import Mapping, Sequence
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
KINDS = ("equal", "min-norm", "central")
Layer = tuple[Tensor, Tensor]
"""Weight [members, inputs, outputs] and bias [members, 1, outputs]."""


def kind(row: str) -> tuple[str, bool, bool]:
    """Whose weights a row has before tension, whether with released edges, and with tension."""
    base = row.partition(" + ")[0]
    names = {"Central": "central", "Min-norm": "min-norm", "Min-norm (exact)": "min-norm"}
    return names.get(base, "equal"), base == "Min-norm", row.endswith("+ tension")


class Members:
    """The stack, and what each member is about.

    Args:
        cells: a run each, told as by `redraw.cell`; they differ in row, rate and seed alone.
        device: where the stack is trained.
    """

    def __init__(self, cells: Sequence[Mapping[str, Any]], device: str) -> None:
        self.cells, self.device = list(cells), torch.device(device)
        first = cells[0]
        same = {name: first[name] for name in first if name not in ("row", "rate", "seed")}
        usual = {name: redraw.SETTINGS[name] for name in ("dropout", "decoder", "watched")}
        if any({**cell, **same, **usual} != cell for cell in cells):
            raise ValueError("cells of a stack differ in row, rate and seed alone")
        self.batch, self.cap, self.patience = first["batch"], first["epochs"], first["patience"]
        self.momentum = first["momentum"]
        self.problem = redraw.problem(first["resize"], first["placed"], first["scaled"], device)
        self.data: _Fixed | _Fresh = (
            _Fresh(cells, self.device) if first.get("fresh") else _Fixed(cells, self.problem.train)
        )
        self.ended: dict[str, dict[str, Any]] = {}
        self._make_parameters()
        number = len(cells)
        where = {"device": self.device}
        self.rates = torch.tensor([cell["rate"] for cell in cells], **where)
        has = [[t in redraw.AGGREGATORS[c["row"]][0] for t in redraw.BOTH] for c in cells]
        self.has = torch.tensor(has, **where)
        self.weighing = Weighing([cell["row"] for cell in cells], self.has)
        self.going = torch.ones(number, dtype=torch.bool, **where)
        self.sound = torch.ones(number, dtype=torch.bool, **where)
        self.best = torch.full((number,), torch.inf, dtype=torch.float64, **where)
        self.waited = torch.zeros(number, dtype=torch.int64, **where)
        self.best_epoch = torch.zeros(number, dtype=torch.int64, **where)
        self.kept = [p.detach().clone() for p in self.parameters]
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
        """The members' parameters, a head that a member does not have being 0."""
        made: dict[str, list[Tensor]] = {}
        for cell in self.cells:
            torch.manual_seed(cell["seed"])
            tasks = redraw.AGGREGATORS[cell["row"]][0]
            network = redraw.network(tasks, cell["dropout"], cell["decoder"])
            parts: dict[str, nn.Module] = {"trunk": network.trunk}
            parts |= {task: network.head(task) for task in tasks}
            if not made:
                both = redraw.network(redraw.BOTH, cell["dropout"], cell["decoder"])
                self._shapes = {
                    f"{part}.{name}": value.shape
                    for part, module in (("trunk", both.trunk), *_heads(both))
                    for name, value in module.named_parameters()
                }
                made = {name: [] for name in self._shapes}
            values = {
                f"{part}.{name}": value.detach()
                for part, module in parts.items()
                for name, value in module.named_parameters()
            }
            for name, shape in self._shapes.items():
                made[name].append(values.get(name, torch.zeros(shape)))
        self.parameters = []
        self.layers: dict[str, list[Layer]] = {part: [] for part in ("trunk", *redraw.BOTH)}
        names = list(self._shapes)
        for weight, bias in zip(names[::2], names[1::2], strict=True):
            w = torch.stack([one.flatten(1).T for one in made[weight]]).contiguous()
            b = torch.stack(made[bias]).unsqueeze(1)
            pair = w.to(self.device).requires_grad_(), b.to(self.device).requires_grad_()
            self.layers[weight.partition(".")[0]].append(pair)
            self.parameters += pair
        self.buffers = [torch.zeros_like(p) for p in self.parameters]

    # Forward --------------------------------------------------------------------------------

    def _trunk(self, x: Tensor) -> Tensor:
        """[members, b, 28, 28] → [members, b, 50]."""
        one, two, three = self.layers["trunk"]
        members, b = x.shape[:2]
        x = x.reshape(members * b, 1, 28, 28)
        for layer in (one, two):
            x = functional.max_pool2d(_convolved(x, layer, members), 2).relu()
        return _dense(x.reshape(members, b, -1), three).relu()

    def _upper(self, z: Tensor) -> Tensor:
        one, two = self.layers["upper"]
        return _dense(_dense(z, one).relu(), two)

    def _lower(self, z: Tensor) -> Tensor:
        one, two = self.layers["lower"]
        return _dense(_dense(z, one).relu(), two)

    def _losses(self, z: Tensor, upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        """Each member's negative log-likelihood and squared error, [members]."""
        logits = self._upper(z)
        likelihood = functional.cross_entropy(logits.mT, upper, reduction="none").mean(-1)
        return likelihood, (self._lower(z) - lower).square().mean((-1, -2))

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
        self.first = self.first[:, at]
        self.weighing.select(at)
        self.data.which = self.data.which[at]
        parameters = iter([p.detach()[at].clone().requires_grad_() for p in self.parameters])
        self.layers = {
            part: [(next(parameters), next(parameters)) for _ in layers]
            for part, layers in self.layers.items()
        }
        self.parameters = [p for of in self.layers.values() for layer in of for p in layer]
        self.buffers = [v[at].clone() for v in self.buffers]
        self.kept = [p[at].clone() for p in self.kept]
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
        own = [self._position, self._weights_seen, self.sound, *self.buffers]
        return [*own, *self.weighing.state]

    def _step(self, size: int) -> None:
        x, upper, lower = self.data.batch(self._position, size)
        self._position += size
        trunk = [p for layer in self.layers["trunk"] for p in layer]
        heads = {task: [p for layer in self.layers[task] for p in layer] for task in redraw.BOTH}
        z = self._trunk(x)
        at = z.detach().requires_grad_()
        losses = self._losses(at, upper, lower)
        rows, own = [], []
        for task, loss in zip(redraw.BOTH, losses, strict=True):
            row, *gradients = torch.autograd.grad(loss.sum(), [at, *heads[task]])
            rows.append(row)
            own += gradients
        left = torch.autograd.grad(z, trunk, rows[0], retain_graph=True)
        right = torch.autograd.grad(z, trunk, rows[1])
        with torch.no_grad():
            both = torch.stack(losses, -1).double()
            self.sound &= (both.isfinite() | ~self.has).all(-1)
            weights = self.weighing(_gramian(left, right), both)
            self._weights_seen += weights
            w = weights.float()
            mixed = [
                _by_member(w[:, 0], a) * a + _by_member(w[:, 1], b) * b
                for a, b in zip(left, right, strict=True)
            ]
            moved = [*trunk, *heads["upper"], *heads["lower"]]
            for p, v, g in zip(moved, self.buffers, [*mixed, *own], strict=True):
                v.mul_(self.momentum).add_(g)
                p.sub_(_by_member(self._moving, v) * v)

    # Between epochs -------------------------------------------------------------------------

    @torch.no_grad()
    def _measure(self, split: Any) -> None:
        """Errors of the class and of the picture, and the losses of either, [4, members]."""
        self._measured.zero_()
        number, count = len(self.cells), len(split)
        for index in torch.arange(count, device=self.device).split(64):
            x = split.inputs[index].squeeze(1).expand(number, -1, -1, -1)
            upper = split.targets["upper"][index].expand(number, -1)
            lower = split.targets["lower"][index].expand(number, -1, -1)
            z = self._trunk(x)
            logits, picture = self._upper(z), self._lower(z)
            wrong = (logits.argmax(-1) != upper).double().sum(-1)
            likelihood = functional.cross_entropy(logits.mT, upper, reduction="none")
            squared = (picture - lower).square().mean(-1).double().sum(-1)
            found = torch.stack([wrong, squared, likelihood.double().sum(-1), squared])
            self._measured += found / count

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
        for kept, parameter in zip(self.kept, self.parameters, strict=True):
            torch.where(_by_member(better, kept), parameter.detach(), kept, out=kept)
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
        now = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for parameter, kept in zip(self.parameters, self.kept, strict=True):
                parameter.copy_(kept)
            self._measure(self.problem.test)
            wrong, squared = self._measured[:2].tolist()
            for parameter, value in zip(self.parameters, now, strict=True):
                parameter.copy_(value)
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


def _gramian(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Inner products of each member's two gradients, [members, 2, 2]."""

    def product(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
        pairs = zip(one, other, strict=True)
        return torch.stack([(a * b).flatten(1).sum(-1) for a, b in pairs]).sum(0).double()

    crossed = product(left, right)
    rows = [product(left, left), crossed, crossed, product(right, right)]
    return torch.stack(rows, -1).view(-1, 2, 2)


# Layers -----------------------------------------------------------------------------------------


def _heads(network: Any) -> list[tuple[str, nn.Module]]:
    return [(task, network.head(task)) for task in redraw.BOTH]


def _dense(x: Tensor, layer: Layer) -> Tensor:
    weight, bias = layer
    return torch.baddbmm(bias, x, weight)


def _convolved(x: Tensor, layer: Layer, members: int) -> Tensor:
    """A convolution of 5×5, [members · b, c, h, w], as one product of each member's windows."""
    windows = x.unfold(2, 5, 1).unfold(3, 5, 1)  # [members · b, c, h, w, 5, 5]
    count, _, h, w = windows.shape[:4]
    columns = windows.permute(0, 2, 3, 1, 4, 5).reshape(members, count // members * h * w, -1)
    return _dense(columns, layer).view(count, h, w, -1).permute(0, 3, 1, 2)


def _by_member(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


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
        self.which = torch.tensor([seeds.index(cell["seed"]) for cell in cells], device=device)
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
        """Inputs, classes and pictures of each member, [members, size, …]."""
        at = position + torch.arange(size, device=position.device)
        index = self.orders[:, at][self.which]
        inputs, targets = self.split.inputs, self.split.targets
        return inputs[index].squeeze(2), targets["upper"][index], targets["lower"][index]


class _Fresh:
    """`redraw.Fresh` for many members: pictures paired anew, made smaller bilinearly."""

    def __init__(self, cells: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        if cells[0]["resize"] != "bilinear" or not cells[0]["scaled"]:
            raise ValueError("fresh pairs are made here bilinearly and standardised alone")
        self.placed = cells[0]["placed"]
        generator = torch.Generator().manual_seed(mixed_seed(0, *b"multimnist"))
        images, labels = multimnist.parts(mnist.load(), generator)[0]
        self.images, self.labels = images.to(device), labels.to(device)
        self.seeds = list(dict.fromkeys(cell["seed"] for cell in cells))
        which = [self.seeds.index(cell["seed"]) for cell in cells]
        self.which = torch.tensor(which, device=device)
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
        """Inputs, classes and pictures of each member, [members, size, …]."""
        at = position + torch.arange(size, device=position.device)
        index, partner = self.orders[:, at], self.partners[:, at]
        first, other = self.images[index], self.images[partner]  # [seeds, size, 28, 28]
        beside = functional.pad(other, (4, 0, 4, 0))
        inputs = _smaller(torch.maximum(functional.pad(first, (0, 4, 0, 4)), beside))
        lower = _smaller(beside) if self.placed else other.float()
        chosen = self.which
        return (
            ((inputs / 255 - multimnist.MEAN) / multimnist.DEVIATION)[chosen],
            self.labels[index][chosen],
            (lower.flatten(2) / 255)[chosen],
        )


def _smaller(pictures: Tensor) -> Tensor:
    """To 28×28, in bytes as the CPU makes them, but for the rounding of its weights."""
    made = functional.interpolate(pictures.float(), (28, 28), mode="bilinear", antialias=True)
    return made.round()
