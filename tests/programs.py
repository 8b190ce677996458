"""Multi-task programs, drawn at random, and what autograd itself says about each.

A `Program` describes a network, its losses and what changes from step to step; `World` builds it
and computes its losses. Every drawn program has a *kind*: something that it certainly does and
that somebody who decides ownership wrongly gets wrong. `planted` says what such a mistake would
leave in `.grad`, so that a test can show that each kind would be noticed.

`Account` is the tests' own book of who has reached what, from `torch.autograd.grad` alone.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from evenhand import (
    FAMO,
    IMTLG,
    MGDA,
    RLW,
    Aggregator,
    AlignedMTL,
    CAGrad,
    CentralDirection,
    Equal,
    Fixed,
    GradDrop,
    GradNorm,
    MultiTaskNetwork,
    NashMTL,
    PCGrad,
    Tension,
    Uncertainty,
    UPGrad,
    Weighting,
)

WIDTH, SAMPLES = 3, 5
DTYPE = torch.float64


# What is drawn --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """Maps the features (or the input: round the features) to an output, through some pieces."""

    layer: str = "linear"
    through: tuple[int, ...] = ()
    reads: str = "features"


@dataclass(frozen=True)
class Part:
    """What a loss makes of one head: of `view` times what the head reads; −1 reverses gradients."""

    head: int
    view: float = 1.0


@dataclass(frozen=True)
class Loss:
    """size × the mean squares of its parts, decays of heads' weights, and terms beside."""

    parts: tuple[Part, ...]
    decay: tuple[int, ...] = ()
    beside: tuple[str, ...] = ()
    size: float = 1.0
    start: int = 0
    absent: tuple[int, ...] = ()


@dataclass(frozen=True)
class Change:
    """At this step, what happens to which: see `World.change`."""

    step: int
    what: str
    which: int = 0


@dataclass(frozen=True)
class Program:
    """A network, its losses, and what changes.

    Attributes:
        network: "plain", a module of a user's own, or "multitask", a `MultiTaskNetwork`.
        trunk: the kinds of its layers; `nested` features are a mapping that holds a list.
        names: of the losses; heads are named h0, h1, h2.
        tied: whether heads 0 and 1, which are linear, have one weight.
        frozen: what is frozen until which step.
        dropped: what is left out at which step.
        rotate: whether heads change their pieces from step to step (a mixture of experts).
        route: how the balancer is told where the features are; see ROUTES.
        turn: whether nothing is told at every other step.
        fused: whether a `MultiTaskNetwork` evaluates linear heads at once.
    """

    kind: str
    seed: int
    heads: tuple[Head, ...]
    losses: tuple[Loss, ...]
    names: tuple[str, ...]
    network: str = "plain"
    trunk: tuple[str, ...] = ("linear",)
    nested: bool = False
    pieces: tuple[str, ...] = ()
    tied: bool = False
    frozen: tuple[Change, ...] = ()
    dropped: tuple[Change, ...] = ()
    changes: tuple[Change, ...] = ()
    rotate: bool = False
    steps: int = 2
    route: str = "none"
    turn: bool = False
    fused: bool = False
    method: str = "mgda"
    jacobian: str | int = "looped"
    factored: str = "auto"
    named: bool = True

    @property
    def known(self) -> bool:
        """Whether the balancer knows the structure of a `MultiTaskNetwork`."""
        return self.network == "multitask" and self.route in ("outputs", "model", "model+outputs")

    def present(self, step: int) -> list[int]:
        """The losses at this step, by position."""
        return [
            k
            for k, loss in enumerate(self.losses)
            if loss.start <= step and step not in loss.absent
        ]


ROUTES = ("none", "features", "module", "model", "outputs", "model+outputs")
"""Nothing; the features, a tensor or a nest; the trunk itself; model=; outputs of the network."""


# The methods ----------------------------------------------------------------------------------

Slots = tuple[Weighting | None, Weighting | Aggregator | None]


def _shares(names: Sequence[str]) -> dict[str, float]:
    return {name: 0.3 + 0.4 * k for k, name in enumerate(names)}


METHODS: Mapping[str, Callable[[Sequence[str], bool], Slots]] = {
    "mgda": lambda names, known: (None, MGDA()),
    "mgda-weighting": lambda names, known: (MGDA(), None),
    "mgda-ub": lambda names, known: (None, MGDA(at="representation")),
    "upgrad": lambda names, known: (None, UPGrad()),
    "pcgrad": lambda names, known: (None, PCGrad()),
    "imtl-g": lambda names, known: (None, IMTLG()),
    "imtl-g-ub": lambda names, known: (None, IMTLG(at="representation")),
    "cagrad": lambda names, known: (None, CAGrad(c=0.5)),
    "nash-mtl": lambda names, known: (None, NashMTL()),
    "aligned-mtl": lambda names, known: (None, AlignedMTL()),
    "fixed": lambda names, known: (None, Fixed(_shares(names))),
    "fixed-weighting": lambda names, known: (Fixed(_shares(names)), None),
    "equal": lambda names, known: (None, Equal()),
    "uncertainty": lambda names, known: (Uncertainty(), None),
    "uncertainty+mgda": lambda names, known: (Uncertainty(), MGDA()),
    "gradnorm": lambda names, known: (GradNorm(at="last_layer" if known else "parameters"), None),
    "rlw": lambda names, known: (RLW(), None),
    "central": lambda names, known: (None, CentralDirection()),
    "tension": lambda names, known: (None, Tension(MGDA(), period=1)),
    "famo": lambda names, known: (FAMO(), None),
    "graddrop": lambda names, known: (None, GradDrop()),
}
"""(names of all tasks, whether the trunk's last layer is known) -> the two slots."""

AT_FEATURES = ("mgda-ub", "imtl-g-ub")
LOSS_BASED = ("fixed-weighting", "uncertainty", "rlw", "famo")


# The modules ----------------------------------------------------------------------------------


class Layer(nn.Module):
    """A layer of the trunk, or a piece; it can be left out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.dropped = False
        match kind:
            case "linear":
                self.first = nn.Linear(WIDTH, WIDTH, dtype=DTYPE)
            case "mlp":
                self.first = nn.Linear(WIDTH, WIDTH + 1, dtype=DTYPE)
                self.second = nn.Linear(WIDTH + 1, WIDTH, bias=False, dtype=DTYPE)
            case "twice":
                self.first = nn.Linear(WIDTH, WIDTH, dtype=DTYPE)
            case "embedding":
                self.table = nn.Embedding(4, WIDTH, dtype=DTYPE)
                self.first = nn.Linear(WIDTH, WIDTH, dtype=DTYPE)
            case "norm":
                self.first = nn.LayerNorm(WIDTH, dtype=DTYPE)
                nn.init.normal_(self.first.weight)
            case _:
                raise ValueError(kind)

    def forward(self, x: Tensor) -> Tensor:
        if self.dropped:
            return x
        match self.kind:
            case "mlp":
                return self.second(self.first(x).tanh()).tanh()
            case "twice":
                return self.first(self.first(x).tanh()).tanh()
            case "embedding":
                return (self.first(x) + self.table(_ids(x))).tanh()
            case "norm":
                return self.first(x)
            case _:
                return self.first(x).tanh()


LAYERS = ("linear", "mlp", "twice", "embedding", "norm")


def _ids(x: Tensor) -> Tensor:
    """Numbers from 0 to 3, one a sample, that no gradient depends on."""
    signs = (x.detach() > 0).long()
    return signs[:, 0] + 2 * signs[:, 1]


class Trunk(nn.Module):
    """Layers one after another; the features are a tensor, or a mapping that holds a list."""

    def __init__(self, layers: Sequence[Layer], nested: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.nested = nested

    def forward(self, x: Tensor) -> Any:
        first = x
        for layer in self.layers:
            first, x = x, layer(x)
        return {"last": x.sin(), "others": [x * first.detach().cos()]} if self.nested else x


def _tensor(features: Any) -> Tensor:
    """One tensor [n, WIDTH] of features that may be nested."""
    if isinstance(features, Tensor):
        return features
    return features["last"] + features["others"][0]


class HeadModule(nn.Module):
    """A path through pieces, then a layer. A `MultiTaskNetwork` must find the pieces in it."""

    def __init__(self, layer: nn.Module, pieces: Sequence[nn.Module], inside: bool) -> None:
        super().__init__()
        self.layer = layer
        self.path: Any = nn.ModuleList(pieces) if inside else tuple(pieces)

    def forward(self, features: Any) -> Tensor:
        x = _tensor(features)
        for piece in self.path:
            x = piece(x)
        return self.layer(x)


def weight_of(head: nn.Module) -> Tensor:
    """The weight of a head's (first) output layer."""
    layer = head.layer if isinstance(head, HeadModule) else head
    return layer.weight if isinstance(layer, nn.Linear) else layer[0].weight


def _first_two(heads: Mapping[str, nn.Module]) -> list[nn.Module]:
    return list(heads.values())[:2]


def _output_layer(kind: str, width: int) -> nn.Module:
    match kind:
        case "linear":
            return nn.Linear(WIDTH, width, dtype=DTYPE)
        case "unbiased":
            return nn.Linear(WIDTH, width, bias=False, dtype=DTYPE)
        case "mlp":
            return nn.Sequential(
                nn.Linear(WIDTH, WIDTH, dtype=DTYPE),
                nn.Tanh(),
                nn.Linear(WIDTH, width, dtype=DTYPE),
            )
        case _:
            raise ValueError(kind)


class Beside(nn.Module):
    """What losses may use beside the network; a plain leaf tensor is not even a parameter."""

    def __init__(self, what: Iterable[str]) -> None:
        super().__init__()
        what = set(what)
        if "scale" in what:
            self.scale = nn.Parameter(torch.tensor(0.3, dtype=DTYPE))
        if "empty" in what:
            self.empty = nn.Parameter(torch.zeros(0, 2, dtype=DTYPE))
        if "complex" in what:
            self.phase = nn.Parameter(torch.randn(WIDTH, dtype=torch.complex128))
        if "sparse" in what:
            self.table = nn.Embedding(6, 2, sparse=True, dtype=DTYPE)
        if "leaf" in what:
            self.leaf = torch.randn(WIDTH, dtype=DTYPE, requires_grad=True)

    def term(self, what: str, x: Tensor, target: Tensor) -> Tensor:
        """What a loss adds; x are features or input, [n, WIDTH]."""
        match what:
            case "scale":
                return (self.scale * x.mean(0).sum() - target[0, 0]).square()
            case "empty":
                return self.empty.sum()
            case "complex":
                turned = (x.mean(0) + 1j * target[0]) * self.phase
                return turned.real.square().sum() + (turned.imag - 1).square().sum()
            case "sparse":
                return (self.table(_ids(target)) - target[:, :2]).square().mean()
            case "leaf":
                return ((self.leaf * x).sum(-1) - target[:, 0]).square().mean()
            case _:
                raise ValueError(what)


class Net(nn.Module):
    """A user's own network: trunk, pieces, heads, and what is beside."""

    def __init__(
        self, trunk: Trunk, pieces: nn.ModuleList, heads: Mapping[str, nn.Module], beside: Beside
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.pieces = pieces
        self.heads = nn.ModuleList(heads.values())
        self.beside = beside
        self.input_readers: frozenset[int] = frozenset()
        self.only: tuple[int, ...] | None = None

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.trunk(x)
        return {
            f"h{k}": head(x if k in self.input_readers else features)
            for k, head in enumerate(self.heads)
        } | {"features": features}


# A program that runs --------------------------------------------------------------------------


@dataclass
class Forward:
    """One forward pass: the losses by name, and what the balancer is told of the features."""

    losses: dict[str, Tensor]
    features: Any
    told: Any


class World:
    """A program built: its network, its data, its parameters."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.version = 0
        self.step = 0
        self.part = slice(None)  # of the batch, where it is taken in micro-batches
        self.build()

    def build(self) -> None:
        """A fresh network; another one for each version."""
        program = self.program
        torch.manual_seed(1000 * program.seed + self.version)
        inside = program.network == "multitask"
        self.beside = Beside(w for loss in program.losses for w in loss.beside)
        trunk = Trunk([Layer(kind) for kind in program.trunk], program.nested)
        self.pieces = nn.ModuleList(Layer(kind) for kind in program.pieces)
        heads = {f"h{k}": self._head(k, inside) for k in range(len(program.heads))}
        if program.tied:
            one, other = (h.layer if isinstance(h, HeadModule) else h for h in _first_two(heads))
            other.weight = one.weight
        if inside:
            self.network: nn.Module = MultiTaskNetwork(trunk, heads, fused=self.fused(heads))
        else:
            net = Net(trunk, self.pieces, heads, self.beside)
            net.input_readers = frozenset(
                k for k, head in enumerate(program.heads) if head.reads == "input"
            )
            self.network = net
        self.runs: Callable[..., Any] = self.network  # what is called: wrappers may stand here

    def _head(self, k: int, inside: bool) -> nn.Module:
        head = self.program.heads[k]
        layer = _output_layer(head.layer, 2 if self.program.tied else 1 + k)
        if inside and not head.through and not self.program.nested:
            return layer  # as users of a MultiTaskNetwork write them
        return HeadModule(layer, [self.pieces[p] for p in head.through], inside)

    def fused(self, heads: Mapping[str, nn.Module]) -> bool:
        """Whether linear heads are evaluated at once: asked for, possible, and told of."""
        linear = all(type(head) is nn.Linear for head in heads.values())
        return self.program.fused and self.program.known and linear

    @property
    def trunk(self) -> Trunk:
        return self.network.trunk

    @property
    def heads(self) -> nn.ModuleList:
        return self.network.heads

    def leaves(self) -> list[Tensor]:
        """Everything that has a `.grad`, once each."""
        found = dict.fromkeys([*self.network.parameters(), *self.beside.parameters()])
        leaf = getattr(self.beside, "leaf", None)
        return [*found, *([] if leaf is None else [leaf])]

    def place(self, leaf: Tensor) -> str:
        """Where a leaf stands: "trunk", "piece", "beside", or a head's name ("" if several)."""
        if any(leaf is p for p in self.trunk.parameters()):
            return "trunk"
        if any(leaf is p for p in self.pieces.parameters()):
            return "piece"
        holders = [
            f"h{k}"
            for k, head in enumerate(self.heads)
            if any(leaf is p for p in head.parameters())
        ]
        return holders[0] if len(holders) == 1 else "" if holders else "beside"

    def uses(self, leaf: Tensor, step: int) -> int:
        """How often the losses of this step use the head that a leaf stands in."""
        count = 0
        for k in self.program.present(step):
            loss = self.program.losses[k]
            for part in loss.parts:
                count += any(leaf is p for p in self.heads[part.head].parameters())
            count += sum(leaf is weight_of(self.heads[head]) for head in loss.decay)
        return count

    def last_layer(self) -> list[Tensor]:
        """The parameters of the trunk's last layer that has some of its own."""
        layers = [m for m in self.trunk.modules() if any(True for _ in m.parameters(False))]
        return list(layers[-1].parameters(False))

    def prepare(self, step: int, carried: Sequence[Any] = ()) -> list[Any]:
        """What changes at this step. Returns `carried`, copied along where the network is."""
        self.step = step
        carried = list(carried)
        for change in self.program.changes:
            if change.step == step:
                carried = self._change(change, carried)
        for layers, kind in ((self.trunk.layers, "trunk"), (self.pieces, "piece")):
            for k, layer in enumerate(layers):
                layer.dropped = Change(step, kind, k) in self.program.dropped
        for until in self.program.frozen:
            part = {"trunk": self.trunk.layers, "piece": self.pieces, "head": self.heads}
            part[until.what][until.which].requires_grad_(step >= until.step)
        if self.program.rotate:
            count = len(self.pieces)
            for k, head in enumerate(self.heads):
                head.path = (self.pieces[(k + step) % count],)
        return carried

    def _change(self, change: Change, carried: list[Any]) -> list[Any]:
        match change.what:
            case "replace head":
                torch.manual_seed(7 + self.program.seed)
                inside = self.program.network == "multitask"
                self.heads[change.which] = self._head(change.which, inside)
            case "fold":
                self.version += 1
                self.build()
            case "copy":
                together = (self.network, self.beside, self.pieces, carried)
                self.network, self.beside, self.pieces, carried = copy.deepcopy(together)
                self.runs = self.network
            case "assign":
                state = self.network.state_dict()
                noise = torch.Generator().manual_seed(self.program.seed)
                for name, value in state.items():
                    moved = torch.randn(value.shape, generator=noise, dtype=value.dtype)
                    state[name] = (value + 0.1 * moved).clone()
                self.network.load_state_dict(state, assign=True)
            case _:
                raise ValueError(change.what)
        return carried

    def inputs(self) -> Tensor:
        """x, [n, WIDTH], of this step."""
        chance = torch.Generator().manual_seed(17 * self.program.seed + self.step)
        return torch.randn(SAMPLES, WIDTH, generator=chance, dtype=DTYPE)[self.part]

    def target(self, k: int, width: int) -> Tensor:
        """What loss k wants, [n, width], of this step."""
        chance = torch.Generator().manual_seed(1 + 17 * self.program.seed + self.step + 1000 * k)
        return torch.randn(SAMPLES, width, generator=chance, dtype=DTYPE)[self.part]

    def forward(self, join: Callable[[Any], Any] | None = None) -> Forward:
        """The losses of this step, from a forward pass of its own.

        `join` is what a wrapper makes of the network's outputs before the losses see them.
        """
        x = self.inputs()
        outputs = self.runs(x)
        features = (
            outputs.features
            if isinstance(outputs, dict) and hasattr(outputs, "features")
            else outputs["features"]
        )
        by_head = outputs if join is None else join(outputs)
        losses = {
            self.program.names[k]: self._loss(k, x, features, by_head)
            for k in self.program.present(self.step)
        }
        told = {
            "none": None,
            "model": None,
            "features": features,
            "module": self.trunk,
            "outputs": outputs,
            "model+outputs": outputs,
        }[self.program.route]
        if self.program.turn and self.step % 2:
            told = None
        return Forward(losses, features, told)

    def forward_apart(self) -> Forward:
        """The same from the bare network, each head evaluated by itself."""
        runs, fused = self.runs, getattr(self.network, "fused", False)
        self.runs = self.network
        if fused:
            self.network.fused = False
        try:
            return self.forward()
        finally:
            self.runs = runs
            if fused:
                self.network.fused = True

    def _loss(self, k: int, x: Tensor, features: Any, outputs: Mapping[str, Any]) -> Tensor:
        loss = self.program.losses[k]
        z = _tensor(features)
        total = torch.zeros((), dtype=DTYPE)
        for part in loss.parts:
            if part.view == 1.0:
                y = outputs[f"h{part.head}"]
            else:
                at_input = self.program.heads[part.head].reads == "input"
                seen = x if at_input else z
                seen = 2 * seen.detach() - seen if part.view < 0 else part.view * seen
                y = self.heads[part.head](seen)
            total = total + (y - self.target(k, y.shape[-1])).square().mean()
        for head in loss.decay:
            total = total + 0.5 * weight_of(self.heads[head]).square().sum()
        for what in loss.beside:
            total = total + self.beside.term(what, z, self.target(k, WIDTH))
        return loss.size * total


# What autograd says ---------------------------------------------------------------------------

Row = Sequence[Tensor | None]


def gradients(losses: Mapping[str, Tensor], of: Sequence[Tensor]) -> dict[str, list[Tensor | None]]:
    """∂L_i/∂p for every loss and tensor; None where the loss does not reach it, or it is frozen."""
    able = [p for p in of if p.requires_grad]
    rows: dict[str, list[Tensor | None]] = {}
    for name, loss in losses.items():
        found: Sequence[Tensor | None] = ()
        if able:
            found = torch.autograd.grad(loss, able, retain_graph=True, allow_unused=True)
        by_id = {id(p): g for p, g in zip(able, found, strict=True)}
        rows[name] = [by_id.get(id(p)) for p in of]
    return rows


def gramian(rows: Mapping[str, Row], positions: Iterable[int]) -> Tensor:
    """G_ij = Σ over these positions of Re⟨g_i, g_j⟩, [m, m]; what is not reached counts as 0."""
    total = torch.zeros(len(rows), len(rows), dtype=DTYPE)
    for k in positions:
        for i, one in enumerate(rows.values()):
            for j, other in enumerate(rows.values()):
                if one[k] is not None and other[k] is not None:
                    product = dense(one[k]) * dense(other[k]).conj()
                    total[i, j] += product.real.sum() if product.is_complex() else product.sum()
    return total


def scripted(x: Tensor, module: nn.Module) -> nn.Module:
    """The module as TorchScript, run often enough that the graph of a run is one node."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script")  # deprecated
        made: nn.Module = torch.jit.script(module)
    for _ in range(3):  # it is made faster when it has been run twice
        made(x)
    return made


def dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.layout != torch.strided else tensor


class Account:
    """Who has reached what, up to and including the last call entered."""

    def __init__(self) -> None:
        self.reached: dict[int, tuple[Tensor, set[str]]] = {}

    def enter(self, leaves: Sequence[Tensor], rows: Mapping[str, Row]) -> None:
        """Note what this call's losses reach."""
        for k, leaf in enumerate(leaves):
            who = {name for name, row in rows.items() if row[k] is not None}
            if who:
                self.reached.setdefault(id(leaf), (leaf, set()))[1].update(who)

    def who(self, leaf: Tensor) -> set[str]:
        return self.reached.get(id(leaf), (leaf, set()))[1]

    def moved(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        """The network was copied: what is known of the old leaves holds for the new ones."""
        for old, new in zip(before, after, strict=True):
            if old is not new and id(old) in self.reached:
                self.reached[id(new)] = (new, set(self.who(old)))


@dataclass
class Step:
    """What the tests know of one step.

    Attributes:
        rows: ∂L_i/∂p, for every leaf.
        at_features: ∂L_i/∂Z, for every tensor of features.
        balanced: for every leaf, whether several tasks have reached it (or a known trunk holds it).
    """

    world: World
    leaves: list[Tensor]
    losses: dict[str, Tensor]
    rows: dict[str, list[Tensor | None]]
    at_features: dict[str, list[Tensor | None]]
    balanced: list[bool]
    behind: list[bool]
    account: Account
    first: Account
    now: Account

    def reached(self, k: int) -> bool:
        return any(row[k] is not None for row in self.rows.values())

    def mixed(self, k: int, weights: Mapping[str, float]) -> Tensor | None:
        """Σ w_i ∂L_i/∂p over the losses in `weights`, dense; None where none of them reaches it."""
        terms = [
            weights[name] * dense(row[k])
            for name, row in self.rows.items()
            if name in weights and row[k] is not None
        ]
        return sum(terms[1:], terms[0]) if terms else None

    def size(self, k: int) -> float:
        """The largest entry of any loss's gradient by leaf k."""
        sizes = [
            float(dense(row[k]).abs().max())
            for row in self.rows.values()
            if row[k] is not None and dense(row[k]).numel()
        ]
        return max(sizes, default=0.0)


class Observer:
    """Looks at a program step by step, with autograd alone."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.account = Account()
        self.first: Account | None = None

    def look(self, parts: Sequence[slice] = (slice(None),)) -> Step:
        """What this step's losses reach, and the gradients; on a graph of its own.

        The losses are the sums over these parts of the batch. No two heads meet in that graph:
        through a cat autograd would report zeros, not None, for the heads that a loss does not
        read.
        """
        world = self.world
        leaves = world.leaves()
        losses: dict[str, Tensor] = {}
        rows: dict[str, list[Tensor | None]] = {}
        at_features: dict[str, list[Tensor | None]] = {}
        behind = [False] * len(leaves)
        for world.part in parts:
            seen = world.forward_apart()
            tensors = [z for z in _tensors(seen.features) if z.requires_grad]
            if tensors:
                joint = torch.stack([z.sum() for z in tensors]).sum()
                behind = [g is not None for g in gradients({"z": joint}, leaves)["z"]]
            found, found_at_features = (gradients(seen.losses, of) for of in (leaves, tensors))
            for name, loss in seen.losses.items():
                losses[name] = losses.get(name, 0) + loss.detach()
                before = rows.get(name, [None] * len(leaves))
                rows[name] = [_plus(a, b) for a, b in zip(before, found[name], strict=True)]
                at_features.setdefault(name, []).extend(found_at_features[name])
        world.part = slice(None)
        self.account.enter(leaves, rows)
        now = Account()
        now.enter(leaves, rows)
        if self.first is None:
            self.first = now
        trunk: set[int] = set()  # the structure decides only where the graph cannot tell
        balanced = [len(self.account.who(p)) > 1 or id(p) in trunk for p in leaves]
        return Step(
            world,
            leaves,
            losses,
            rows,
            at_features,
            balanced,
            behind,
            self.account,
            self.first,
            now,
        )


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return one if other is None else other if one is None else one + other


def _tensors(features: Any) -> list[Tensor]:
    if isinstance(features, Tensor):
        return [features]
    return [features["last"], *features["others"]]


# Planted bugs ---------------------------------------------------------------------------------

Weights = Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """Who gets a say on a leaf, and with which weights: the trunk's, or the heads'."""

    balanced: bool
    tasks: frozenset[str] | None = None  # None: all


NOBODY = Verdict(False, frozenset())


def _first_call(step: Step, k: int) -> Verdict:
    """What the first call reached is kept for ever; what came later is nobody's."""
    who = step.first.who(step.leaves[k])
    return Verdict(len(who) > 1) if who else NOBODY


def _this_call(step: Step, k: int) -> Verdict:
    """Each call decides anew."""
    return Verdict(len(step.now.who(step.leaves[k])) > 1)


def _names(step: Step, k: int) -> Verdict:
    """A head belongs to the loss of its name, or, where none has it, to nobody."""
    place = step.world.place(step.leaves[k])
    if place in ("trunk", "piece", "beside", ""):
        return Verdict(step.balanced[k])
    return Verdict(False, frozenset({place}))


def _structure(step: Step, k: int) -> Verdict:
    """The trunk is shared, all else is the heads'."""
    return Verdict(step.world.place(step.leaves[k]) == "trunk")


def _uses(step: Step, k: int) -> Verdict:
    """What is used twice is shared, whoever uses it."""
    return Verdict(step.balanced[k] or step.world.uses(step.leaves[k], step.world.step) > 1)


def _nodes(step: Step, k: int) -> Verdict:
    """All that lies behind a node that several tasks pass (a cat of the outputs) is shared."""
    return Verdict(step.world.place(step.leaves[k]) != "beside" or step.balanced[k])


def _behind(step: Step, k: int) -> Verdict:
    """What lies behind the features is shared, and nothing else."""
    return Verdict(step.behind[k])


def _parameters(step: Step, k: int) -> Verdict:
    """A leaf that is no nn.Parameter does not exist."""
    return Verdict(step.balanced[k]) if isinstance(step.leaves[k], nn.Parameter) else NOBODY


PLANTS: Mapping[str, Callable[[Step, int], Verdict]] = {
    "first call": _first_call,
    "this call": _this_call,
    "names": _names,
    "structure": _structure,
    "uses": _uses,
    "nodes": _nodes,
    "behind": _behind,
    "parameters": _parameters,
}


def law(step: Step, k: int) -> Verdict:
    """What the weights law says."""
    return Verdict(step.balanced[k])


def delivered(
    step: Step, k: int, verdict: Verdict, trunk: Weights, heads: Weights
) -> Tensor | None:
    """What `.grad` of leaf k is after a call, under a verdict and with these weights."""
    weights = trunk if verdict.balanced else heads
    if verdict.tasks is not None:
        weights = {name: w for name, w in weights.items() if name in verdict.tasks}
    return step.mixed(k, weights)


# Wrappings ------------------------------------------------------------------------------------

Heads = Mapping[str, Any]


def _read(outputs: Heads) -> dict[str, Tensor]:
    """The heads' outputs, without the features."""
    return {name: y for name, y in outputs.items() if name != "features"}


def _cat(outputs: Heads) -> Heads:
    heads = _read(outputs)
    joint = torch.cat(list(heads.values()), dim=-1)
    pieces = joint.split([y.shape[-1] for y in heads.values()], dim=-1)
    return dict(zip(heads, pieces, strict=True))


class _Sink(torch.autograd.Function):
    """The identity of all outputs at once, as wrappers for many processes have it."""

    @staticmethod
    def forward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(y.view_as(y) for y in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return gradients


def _sink(outputs: Heads) -> Heads:
    heads = _read(outputs)
    return dict(zip(heads, _Sink.apply(*heads.values()), strict=True))


def _flat(outputs: Heads) -> Heads:
    """Flattened into one vector and taken apart by index, out of order."""
    heads = _read(outputs)
    joint = torch.cat([y.flatten() for y in reversed(heads.values())])
    ends = dict(zip(reversed(heads), _ends(reversed(heads.values())), strict=True))
    return {k: joint[ends[k] - y.numel() : ends[k]].view_as(y) for k, y in heads.items()}


def _ends(tensors: Iterable[Tensor]) -> list[int]:
    ends = [0]
    for y in tensors:
        ends.append(ends[-1] + y.numel())
    return ends[1:]


@dataclass(frozen=True)
class Wrapping:
    """What stands between a network and its losses; whether heads meet there in the graph."""

    join: Callable[[Heads], Heads]
    meets: bool


WRAPPINGS: Mapping[str, Wrapping] = {
    "cloned": Wrapping(lambda o: {k: y.clone() for k, y in _read(o).items()}, False),
    "cast": Wrapping(
        lambda o: {k: y.to(torch.complex128).real for k, y in _read(o).items()}, False
    ),
    "rebuilt": Wrapping(lambda o: {k: y.view_as(y) for k, y in _read(o).items()}, False),
    "cat": Wrapping(_cat, True),
    "sink": Wrapping(_sink, True),
    "flat": Wrapping(_flat, True),
}


# The drawing ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What programs of this kind certainly do, and the mistake that they are there to catch.

    Attributes:
        shape: makes a drawn program one of this kind.
        plant: the ownership bug that changes its result; see PLANTS.
        routes: what the balancer may be told.
        network: what network it needs, or None.
    """

    shape: Callable[[Program], Program]
    plant: str
    routes: tuple[str, ...] = ROUTES
    network: str | None = None


def _loss(program: Program, k: int, **changes: Any) -> Program:
    losses = list(program.losses)
    losses[k] = replace(losses[k], **changes)
    return replace(program, losses=tuple(losses))


def _head(program: Program, k: int, **changes: Any) -> Program:
    heads = list(program.heads)
    heads[k] = replace(heads[k], **changes)
    return replace(program, heads=tuple(heads))


def _alone(program: Program, **changes: Any) -> Program:
    """Loss 0 is the only one that reads head 0, and head 0 reads nothing that others do."""
    program = _head(program, 0, through=())
    for k in range(1, len(program.losses)):
        parts = tuple(part for part in program.losses[k].parts if part.head) or (Part(1),)
        program = _loss(program, k, parts=parts)
        program = _loss(program, k, decay=tuple(h for h in program.losses[k].decay if h))
    others = tuple(part for part in program.losses[0].parts if part.head)
    return _loss(program, 0, **({"parts": (Part(0), *others), "decay": ()} | changes))


def _swapped(program: Program) -> Program:
    """Loss h0 reads head 1, loss h1 reads head 0."""
    names = ("h0", "h1", "other", "fourth")[: len(program.losses)]
    program = _loss(program, 0, parts=(Part(1),))
    program = _loss(program, 1, parts=(Part(0),))
    return replace(program, names=names)


def _unlike(program: Program) -> Program:
    names = ("depth", "normals", "edges", "words")[: len(program.losses)]
    return replace(_alone(program), names=names)


def _over_heads(program: Program) -> Program:
    """Loss h0 is over two heads, or three."""
    program = _loss(program, 0, parts=tuple(Part(k) for k in range(len(program.heads))))
    return replace(program, names=("h0", "second", "third", "fourth")[: len(program.losses)])


def _one_head(program: Program) -> Program:
    program = _loss(program, 0, parts=(Part(0),))
    return _loss(program, 1, parts=(Part(0), Part(1)))


def _tied(program: Program) -> Program:
    heads = tuple(
        replace(head, layer="linear", reads="features", through=()) if k < 2 else head
        for k, head in enumerate(program.heads)
    )
    program = replace(program, heads=heads, tied=True)
    program = _loss(program, 0, parts=(Part(0),))
    return _loss(program, 1, parts=(Part(1),))


def _passing(program: Program) -> Program:
    """Piece 0 is passed by losses 0 and 1, each through a head of its own."""
    program = replace(program, pieces=program.pieces or ("linear",))
    program = _head(_head(program, 0, through=(0,)), 1, through=(0,))
    program = _loss(program, 0, parts=(Part(0),))
    return _loss(program, 1, parts=(Part(1),))


def _round(program: Program) -> Program:
    """Heads 0 and 1 share piece 0, and head 1 reads the input, round the features."""
    program = _passing(program)
    program = _head(program, 1, reads="input")
    program = _loss(program, 1, parts=(Part(1), Part(len(program.heads) - 1, 0.5)))
    return program if len(program.heads) > 2 else _loss(program, 1, parts=(Part(1), Part(0, 0.5)))


def _three(program: Program) -> Program:
    return replace(program, steps=3)


def _experts(program: Program) -> Program:
    """Head k goes through piece k + step: each piece is another head's at every step."""
    program = replace(program, pieces=("linear", "linear"), rotate=True)
    for k in range(len(program.losses)):
        program = _loss(program, k, parts=(Part(1 if k == 1 else 0),))
    return _three(program)


def _late(view: float) -> Callable[[Program], Program]:
    """The last loss starts at step 1 and reads head 0, until then loss 0's alone."""

    def shape(program: Program) -> Program:
        program = _alone(program)
        if len(program.losses) < 3:
            extra = Loss((Part(1),))
            program = replace(program, losses=(*program.losses, extra))
        last = len(program.losses) - 1
        program = _loss(program, last, parts=(Part(0, view),), start=1)
        if len(program.names) <= last:
            program = replace(program, names=(*program.names, "late"))
        return _three(replace(program, named=True))

    return shape


def _absent(program: Program) -> Program:
    """At step 1 loss 0 is alone."""
    for k in range(1, len(program.losses)):
        program = _loss(program, k, absent=(1,))
    return _three(program)


def _first_alone(program: Program) -> Program:
    """At step 0 loss 0 is alone; the network's structure is known."""
    for k in range(1, len(program.losses)):
        program = _loss(program, k, absent=(0,))
    return replace(program, named=True)


def _changing(*changes: Change) -> Callable[[Program], Program]:
    return lambda program: replace(program, changes=changes)


def _replaced(program: Program) -> Program:
    """Head 0, which loss 0 reads, is another one from step 1 on."""
    program = _loss(program, 0, parts=(Part(0), *program.losses[0].parts))
    return replace(program, changes=(Change(1, "replace head", 0),))


def _copied(program: Program) -> Program:
    return replace(_absent(program), changes=(Change(1, "copy"),))


def _beside(*what: str, losses: int = 2) -> Callable[[Program], Program]:
    def shape(program: Program) -> Program:
        for k in range(losses):
            program = _loss(program, k, beside=what)
        return program

    return shape


def _unfreeze(what: str) -> Callable[[Program], Program]:
    def shape(program: Program) -> Program:
        if what == "head":
            program = _alone(program)
        else:
            program = replace(program, trunk=("linear", *program.trunk[:1]))
        return _three(replace(program, frozen=(Change(1, what, 0),)))

    return shape


def _dropped(program: Program) -> Program:
    """The trunk's first layer is left out at step 0."""
    trunk = ("linear", *program.trunk[:1])
    return _three(replace(program, trunk=trunk, dropped=(Change(0, "trunk", 0),)))


KINDS: Mapping[str, Kind] = {
    "swapped names": Kind(_swapped, "names"),
    "unlike names": Kind(_unlike, "names"),
    "a loss over heads": Kind(_over_heads, "names"),
    "losses on one head": Kind(_one_head, "structure"),
    "two views": Kind(lambda p: _alone(p, parts=(Part(0), Part(0, 0.5))), "uses"),
    "decay": Kind(lambda p: _alone(p, parts=(Part(0),), decay=(0,)), "uses"),
    "tied": Kind(_tied, "structure"),
    "passing": Kind(_passing, "structure"),
    "round the features": Kind(_round, "behind", network="plain"),
    "unfrozen trunk": Kind(_unfreeze("trunk"), "first call"),
    "unfrozen head": Kind(_unfreeze("head"), "first call"),
    "dropped": Kind(_dropped, "first call"),
    "experts": Kind(_experts, "first call", network="plain"),
    "late": Kind(_late(0.5), "first call"),
    "adversarial": Kind(_late(-1.0), "first call"),
    "absent": Kind(_absent, "this call"),
    "first alone": Kind(
        _first_alone,
        "first call",
        routes=("outputs", "model", "model+outputs"),
        network="multitask",
    ),
    "head replaced": Kind(_replaced, "first call"),
    "next fold": Kind(_changing(Change(1, "fold")), "first call"),
    "copied": Kind(_copied, "this call"),
    "assigned": Kind(_changing(Change(1, "assign")), "first call"),
    "scale": Kind(_beside("scale", "empty"), "structure"),
    "complex": Kind(_beside("complex"), "structure"),
    "sparse": Kind(_beside("sparse"), "structure"),
    "leaf": Kind(_beside("leaf", losses=1), "parameters"),
}


NAMES = st.sampled_from(
    [
        ("h0", "h1", "h2", "h3"),
        ("h1", "h2", "h0", "x"),
        ("a", "b", "c", "d"),
        ("l.0", "keys", "h0", "features"),
    ]
)


@st.composite
def programs(draw: st.DrawFn, kind: str | None = None, method: str | None = None) -> Program:
    """A program of this kind (or any), for this method (or any)."""
    kind = draw(st.sampled_from(list(KINDS))) if kind is None else kind
    method = draw(st.sampled_from(list(METHODS))) if method is None else method
    wanted = KINDS[kind]
    network = wanted.network or draw(st.sampled_from(["plain", "multitask"]))
    routes = [r for r in wanted.routes if network == "multitask" or "outputs" not in r]
    if method in AT_FEATURES:
        routes = [r for r in routes if r not in ("none", "model")]
    pieces = tuple(draw(st.lists(st.sampled_from(LAYERS), max_size=2)))
    # A piece in several heads of a MultiTaskNetwork is tied: drawn by its kinds only.
    free = network == "plain" and len(pieces)
    head = st.builds(
        Head,
        layer=st.sampled_from(["linear", "unbiased", "mlp"]),
        through=st.lists(st.integers(0, len(pieces) - 1), max_size=2).map(tuple)
        if free
        else st.just(()),
    )
    heads = tuple(draw(st.lists(head, min_size=2, max_size=3)))
    part = st.builds(
        Part, head=st.integers(0, len(heads) - 1), view=st.sampled_from([1.0, 1.0, 0.5])
    )
    loss = st.builds(
        Loss,
        parts=st.lists(part, min_size=1, max_size=3).map(tuple),
        decay=st.lists(st.integers(0, len(heads) - 1), max_size=1).map(tuple),
        size=st.sampled_from([0.2, 1.0, 3.0]),
    )
    losses = tuple(draw(st.lists(loss, min_size=2, max_size=4)))
    program = Program(
        kind=kind,
        seed=draw(st.integers(0, 999)),
        heads=heads,
        losses=losses,
        names=draw(NAMES)[: len(losses)],
        network=network,
        trunk=tuple(draw(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=2))),
        nested=draw(st.booleans()),
        pieces=pieces,
        route=draw(st.sampled_from(routes)),
        method=method,
        jacobian=draw(st.sampled_from(["looped", "batched", 2])),
        factored=draw(st.sampled_from(["never", "always", "auto"])),
        named=draw(st.booleans()),
        turn=method not in (*AT_FEATURES, "gradnorm") and draw(st.booleans()),
        fused=draw(st.booleans()),
        frozen=(Change(99, "head", 2),) if len(heads) > 2 and draw(st.booleans()) else (),
    )
    return wanted.shape(program)
