"""Tensors and programs as they come: what works, what is refused, and docs/compatibility.md.

Every case is run through every column of the table, by `backward` and by `loss`. What comes out
must be what `torch.autograd` says of a plain version of the same program, or an error of ours;
which of the two is what the page says. ``python tests/test_compatibility.py`` writes the page.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from textwrap import shorten
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch._inductor import config as inductor
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from evenhand import MGDA, Balance, Balancer, GradDrop, TaskGradients
from programs import DTYPE, dense, gradients, gramian, scripted

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
REFUSED = re.compile(
    "cannot be told"  # whose a parameter is
    "|cannot be differentiated for several tasks at once"  # with what to do instead
    "|no loss depends on features="
    "|at='representation'"
    "|use_reentrant"
    "|donated_buffer = False"
)
"""What an error of ours speaks of. Anything else that is raised is a defect."""


# The cases ------------------------------------------------------------------------------------


@dataclass
class Bench:
    """One program: what it trains, and a forward pass, as the user writes it or plainly.

    Attributes:
        leaves: what gets a `.grad`.
        losses: (plainly) -> the losses and the features, if they are known. A plain pass is one
            that `torch.autograd.grad` can be asked about.
        tolerance: relative to the largest entry.
    """

    leaves: Sequence[Tensor]
    losses: Callable[[bool], tuple[dict[str, Tensor], Any]]
    tolerance: float = 1e-10


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    make: Callable[[], Bench]


def data(width: int = 4, samples: int = 6) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(1)
    x = torch.randn(samples, width, generator=chance, dtype=DTYPE)
    return x, torch.randn(samples, 4, generator=chance, dtype=DTYPE)


def read(outputs: Sequence[Tensor], y: Tensor) -> dict[str, Tensor]:
    """One loss for each output."""
    names = ("a", "b", "c", "d")
    return {
        names[k]: (k + 0.5) * (out.squeeze(-1).to(DTYPE) - y[:, k]).square().mean()
        for k, out in enumerate(outputs)
    }


def three_heads(width: int = 3) -> nn.ModuleList:
    return nn.ModuleList([nn.Linear(width, 1, dtype=DTYPE) for _ in range(3)])


def simple(trunk: nn.Module, width: int = 3, *, plain: nn.Module | None = None) -> Bench:
    """A trunk, three linear heads."""
    heads = three_heads(width)
    x, y = data()

    def losses(plainly: bool) -> tuple[dict[str, Tensor], Any]:
        z = (trunk if plain is None or not plainly else plain)(x)
        return read([head(z) for head in heads], y), z

    return Bench([*trunk.parameters(), *heads.parameters()], losses)


def linear(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for one, other in pairwise(widths):
        layers += [nn.Linear(one, other, dtype=DTYPE), nn.Tanh()]
    return nn.Sequential(*layers)


def sparse_embedding() -> Bench:
    table, body, heads = nn.Embedding(9, 4, sparse=True, dtype=DTYPE), linear(4, 3), three_heads()
    own = nn.Embedding(5, 3, sparse=True, dtype=DTYPE)
    ids = torch.tensor([0, 3, 3, 5, 8, 0])
    _, y = data()

    def losses(plainly: bool) -> tuple[dict[str, Tensor], Any]:
        z = body(table(ids))
        outs = [heads[0](z + own(ids % 5)), heads[1](z), heads[2](z)]
        return read(outs, y), z

    modules = nn.ModuleList([table, body, heads, own])
    return Bench(list(modules.parameters()), losses)


class Spectrum(nn.Module):
    """Complex weights between two Fourier transforms."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, 4, dtype=torch.complex128))
        self.out = nn.Linear(4, 3, dtype=DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.fft.ifft(torch.fft.fft(x) @ self.filter).real).tanh()


def mixed_precisions() -> Bench:
    first, second = nn.Linear(4, 5), nn.Linear(5, 3, dtype=DTYPE)
    heads = three_heads()
    x, y = data()

    def losses(plainly: bool) -> tuple[dict[str, Tensor], Any]:
        z = second(first(x.float()).tanh().double()).tanh()
        return read([head(z) for head in heads], y), z

    modules = nn.ModuleList([first, second, heads])
    return Bench(list(modules.parameters()), losses, tolerance=1e-5)


def scalars() -> Bench:
    """Two 0-dimensional parameters, shared by four tasks."""
    a, b = (nn.Parameter(torch.tensor(v, dtype=DTYPE)) for v in (0.3, -0.8))
    x, y = data()

    def losses(plainly: bool) -> tuple[dict[str, Tensor], Any]:
        z = (a * x).tanh() + b
        return read([z[:, k : k + 1] for k in range(4)], y), z

    return Bench([a, b], losses)


class Empty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = linear(4, 3)
        self.nothing = nn.Parameter(torch.zeros(0, 3, dtype=DTYPE))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.nothing.sum(0)


class Hooked(nn.Module):
    """Gradients by a layer's output, and by the features, are changed on their way."""

    def __init__(self, layer: bool) -> None:
        super().__init__()
        self.layer = layer
        self.first, self.second = nn.Linear(4, 5, dtype=DTYPE), nn.Linear(5, 3, dtype=DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.layer:
            h.register_hook(lambda gradient: 2 * gradient)
        z = self.second(h.tanh())
        if not self.layer:
            z.register_hook(lambda gradient: 3 * gradient)
        return z


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.second = linear(4, 5), linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.second, self.first(x), use_reentrant=self.reentrant)


def checkpointed(reentrant: bool) -> Bench:
    trunk = Checkpointed(reentrant)
    return simple(trunk, plain=nn.Sequential(trunk.first, trunk.second))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.net = kind(2, 3, batch_first=True, dtype=DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.unflatten(1, (2, 2)))[0][:, -1]


def functional() -> Bench:
    body, heads = linear(4, 3), three_heads()
    weights = {name: nn.Parameter(p.detach().clone()) for name, p in body.named_parameters()}
    x, y = data()

    def losses(plainly: bool) -> tuple[dict[str, Tensor], Any]:
        z = functional_call(body, weights, (x,))
        return read([head(z) for head in heads], y), z

    return Bench([*weights.values(), *heads.parameters()], losses)


@dataclass
class Features:
    """What a trunk of a library for language models returns."""

    last_hidden_state: Tensor
    pooled: Tensor | None = None
    hidden: tuple[Tensor, ...] = field(default_factory=tuple)


def nested(kind: str) -> Bench:
    one, two, heads = linear(4, 3), linear(4, 3), three_heads()
    x, y = data()

    def losses(plainly: bool) -> tuple[dict[str, Tensor], Any]:
        z1, z2 = one(x), two(x)
        told: Any = {
            "a dataclass": Features(z1, None, (z2,)),
            "a tuple with None": (z1, None, [z2]),
            "a mapping with None": {"last": z1, "pooled": None, "others": {"second": z2}},
        }[kind]
        outs = [heads[0](z1), heads[1](z2 + z1), heads[2](z2 * z1)]
        return read(outs, y), told

    modules = nn.ModuleList([one, two, heads])
    return Bench(list(modules.parameters()), losses)


class Text(nn.Module):
    """Looks at the ids of words and at a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4, dtype=DTYPE)
        self.body = linear(4, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        weights = mask / mask.sum(-1, keepdim=True)
        return self.body((self.table(ids) * weights.unsqueeze(-1)).sum(1))


def several_inputs() -> Bench:
    trunk, heads = Text(), three_heads()
    ids = torch.arange(18).reshape(6, 3) % 7
    mask = torch.ones(6, 3, dtype=DTYPE)
    mask[::2, -1] = 0
    _, y = data()

    def losses(plainly: bool) -> tuple[dict[str, Tensor], Any]:
        z = trunk(ids, mask=mask)
        return read([head(z) for head in heads], y), z

    return Bench([*trunk.parameters(), *heads.parameters()], losses)


def heads_with_more() -> Bench:
    """Heads that read the input beside the features."""
    trunk, heads = linear(4, 3), three_heads(7)
    x, y = data()

    def losses(plainly: bool) -> tuple[dict[str, Tensor], Any]:
        z = trunk(x)
        return read([head(torch.cat([z, x], -1)) for head in heads], y), z

    return Bench([*trunk.parameters(), *heads.parameters()], losses)


def stacked_heads() -> Bench:
    """Heads of one shape, evaluated by vmap."""
    trunk, heads = linear(4, 3), three_heads()
    x, y = data()

    def losses(plainly: bool) -> tuple[dict[str, Tensor], Any]:
        z = trunk(x)
        if plainly:
            return read([head(z) for head in heads], y), z
        weight = torch.stack([head.weight for head in heads])
        bias = torch.stack([head.bias for head in heads])
        outs = torch.vmap(nn.functional.linear, in_dims=(None, 0, 0))(z, weight, bias)
        return read(list(outs), y), z

    return Bench([*trunk.parameters(), *heads.parameters()], losses)


def one_layer() -> Bench:
    """One layer of which each column is a task."""
    trunk, head = linear(4, 3), nn.Linear(3, 3, dtype=DTYPE)
    x, y = data()

    def losses(plainly: bool) -> tuple[dict[str, Tensor], Any]:
        z = trunk(x)
        return read(list(head(z).split(1, dim=-1)), y), z

    return Bench([*trunk.parameters(), *head.parameters()], losses)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 1, 3, 0.0, batch_first=True, dtype=DTYPE)
        self.out = nn.Linear(4, 3, dtype=DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x.unflatten(1, (2, 2))).flatten(1))


def in_place() -> Bench:
    def relu(one: int, other: int) -> nn.Module:
        return nn.Sequential(nn.Linear(one, other, dtype=DTYPE), nn.LeakyReLU(inplace=True))

    trunk = nn.Sequential(relu(4, 5), relu(5, 3))
    heads = nn.ModuleList([nn.Sequential(relu(3, 3), relu(3, 1)) for _ in range(3)])
    x, y = data()

    def losses(plainly: bool) -> tuple[dict[str, Tensor], Any]:
        z = trunk(x)
        return read([head(z) for head in heads], y), z

    return Bench([*trunk.parameters(), *heads.parameters()], losses)


class Square(torch.autograd.Function):
    """A function of a user's own, without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class OwnFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear(4, 5), linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(Square.apply(self.first(x)))


def physics() -> Bench:
    """A loss on the derivative of an output by the input."""
    trunk, heads = linear(4, 3), three_heads()
    x, y = data()

    def losses(plainly: bool) -> tuple[dict[str, Tensor], Any]:
        points = x.clone().requires_grad_()
        z = trunk(points)
        outs = [head(z) for head in heads]
        (slope,) = torch.autograd.grad(outs[0].sum(), points, create_graph=True)
        found = read(outs, y)
        found["a"] = found["a"] + slope.square().mean()
        return found, z

    return Bench([*trunk.parameters(), *heads.parameters()], losses)


def normalised(kind: str) -> Bench:
    trunk = linear(4, 3)
    wrap = {"weight norm": parametrizations.weight_norm, "orthogonal": parametrizations.orthogonal}
    trunk[0] = wrap[kind](trunk[0])
    return simple(trunk)


def batch_statistics() -> Bench:
    return simple(
        nn.Sequential(nn.Linear(4, 3, dtype=DTYPE), nn.BatchNorm1d(3, dtype=DTYPE), nn.Tanh())
    )


def convolutions() -> Bench:
    trunk = nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 2, 2, padding=1, dtype=DTYPE),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(18, 3, dtype=DTYPE),
    )
    return simple(trunk)


def half_precision() -> Bench:
    """bfloat16 inside autocast."""
    trunk, heads = linear(4, 3).float(), three_heads().float()
    x, y = data()

    def losses(plainly: bool) -> tuple[dict[str, Tensor], Any]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = trunk(x.float())
            outs = [head(z) for head in heads]
        return read(outs, y), z

    return Bench([*trunk.parameters(), *heads.parameters()], losses, tolerance=2e-2)


def compiled(what: str, backend: str = "aot_eager") -> Bench:
    """torch.compile, or "script": TorchScript.

    aot_eager compiles nothing but traces like inductor, the default.
    """
    trunk, heads = linear(4, 5, 3), three_heads()
    x, y = data()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.heads = trunk, heads

        def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            z = self.trunk(x)
            return z, [head(z) for head in self.heads]

    whole = Whole()
    torch._dynamo.reset()
    script = backend == "script"
    make = partial(scripted, x) if script else partial(torch.compile, backend=backend)
    fast_trunk, fast_whole = make(trunk), make(whole)
    fast_heads = [make(head) for head in heads] if "heads" in what else []

    def losses(plainly: bool) -> tuple[dict[str, Tensor], Any]:
        if plainly:
            z, outs = whole(x)
        elif what == "whole":
            z, outs = fast_whole(x)
        else:
            z = fast_trunk(x) if "trunk" in what else trunk(x)
            outs = [head(z) for head in (fast_heads if "heads" in what else heads)]
        return read(outs, y), z

    return Bench(list(whole.parameters()), losses)


CASES = (
    Case("sparse embedding", sparse_embedding),
    Case("complex parameters", lambda: simple(Spectrum())),
    Case("float32 and float64 in one trunk", mixed_precisions),
    Case("0-dimensional parameters, four tasks", scalars),
    Case("an empty parameter", lambda: simple(Empty())),
    Case("a hook on a layer's output", lambda: simple(Hooked(layer=True))),
    Case("a hook on the features", lambda: simple(Hooked(layer=False))),
    Case("checkpoint, not reentrant", lambda: checkpointed(False)),
    Case("checkpoint, reentrant", lambda: checkpointed(True)),
    Case("nn.LSTM", lambda: simple(Recurrent(nn.LSTM))),
    Case("nn.GRU", lambda: simple(Recurrent(nn.GRU))),
    Case("nn.TransformerEncoderLayer", lambda: simple(Attention())),
    Case("nn.Conv2d", convolutions),
    Case("nn.BatchNorm1d", batch_statistics),
    Case("weight normalisation", lambda: normalised("weight norm")),
    Case("orthogonal parametrisation", lambda: normalised("orthogonal")),
    Case("torch.func.functional_call", functional),
    Case("torch.func.vmap over heads", stacked_heads),
    Case("features that are a dataclass", lambda: nested("a dataclass")),
    Case("features that are a tuple with None", lambda: nested("a tuple with None")),
    Case("features that are a mapping with None", lambda: nested("a mapping with None")),
    Case("several inputs", several_inputs),
    Case("heads that need more than the features", heads_with_more),
    Case("one layer, each column a task", one_layer),
    Case("operations in place", in_place),
    Case("an autograd.Function without vmap", lambda: simple(OwnFunction())),
    Case("a derivative in the loss", physics),
    Case("autocast to bfloat16", half_precision),
    Case("torch.compile of the trunk", lambda: compiled("trunk")),
    Case("torch.compile of the heads", lambda: compiled("heads")),
    Case("torch.compile of trunk and heads apart", lambda: compiled("trunk and heads")),
    Case("torch.compile of the whole", lambda: compiled("whole")),
    Case("torch.jit.script of the trunk", lambda: compiled("trunk", "script")),
    Case("torch.jit.script of the whole", lambda: compiled("whole", "script")),
)
INDUCTOR = {
    Case(
        "torch.compile of the trunk, inductor, after a plain step",
        lambda: compiled("trunk", "inductor"),
    ): True,
    Case(
        "torch.compile of the trunk, inductor, donated_buffer = False",
        lambda: compiled("trunk", "inductor"),
    ): False,
}
"""Compiled by a C++ compiler; whether a pass may use the memory of what was saved for it again."""
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


# The columns ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A balancer; told of the features, or not."""

    make: Callable[[], Balancer]
    told: bool = False


COLUMNS: Mapping[str, Column] = {
    "sum": Column(Balancer),
    "looped": Column(lambda: Balancer(aggregator=MGDA(), factored="never")),
    "batched": Column(lambda: Balancer(aggregator=MGDA(), jacobian="batched", factored="never")),
    "factored": Column(lambda: Balancer(aggregator=MGDA(), factored="always")),
    "features": Column(lambda: Balancer(aggregator=MGDA()), told=True),
    "representation": Column(lambda: Balancer(aggregator=MGDA(at="representation")), told=True),
    "off the span": Column(lambda: Balancer(aggregator=GradDrop(leak=1.0)), told=True),
}
"""GradDrop that lets everything through is the sum, by the way of a direction."""


@contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def outcome(case: Case, column: Column, call: Callable[..., Balance]) -> str:
    """ "yes", or why it was refused. What is neither is a failed assertion."""
    torch.manual_seed(0)
    bench = case.make()
    plain, at = bench.losses(True)
    rows = gradients(plain, bench.leaves)
    z = [t for t in tensors(at) if t.requires_grad]
    at_features = gradients(plain, z)
    balancer = column.make()
    with quietly():
        losses, told = bench.losses(False)
    try:
        with quietly():
            balance = call(balancer, losses, features=told if column.told else None)
    except (ValueError, NotImplementedError) as refusal:
        if not REFUSED.search(str(refusal)):
            raise
        assert all(leaf.grad is None for leaf in bench.leaves), "refused, but not in time"
        return str(refusal)
    count = range(len(bench.leaves))
    balanced = [k for k in count if sum(row[k] is not None for row in rows.values()) > 1]
    matrix = gramian(rows, balanced)
    if isinstance(balancer.aggregator, MGDA):
        if balancer.aggregator.at == "representation":
            matrix = gramian(at_features, range(len(z)))
        wanted = MGDA()(TaskGradients.of(gramian=matrix))
        torch.testing.assert_close(
            balance.trunk_weights.to(wanted), wanted, rtol=0, atol=max(1e-6, bench.tolerance)
        )
    ones = torch.ones(len(rows), dtype=DTYPE)
    trunk = ones if balance.trunk_weights is None else balance.trunk_weights.to(DTYPE)
    size = max(float(dense(g).abs().max()) for row in rows.values() for g in row if _some(g))
    for k, leaf in enumerate(bench.leaves):
        weights = trunk if k in balanced else balance.weights.to(DTYPE)
        terms = [
            w * dense(row[k])
            for w, row in zip(weights, rows.values(), strict=True)
            if row[k] is not None
        ]
        if not terms:
            assert leaf.grad is None or not bool(dense(leaf.grad).any()), k
            continue
        assert leaf.grad is not None, f"leaf {k}"
        assert leaf.grad.dtype == leaf.dtype
        torch.testing.assert_close(
            dense(leaf.grad),
            sum(terms[1:], terms[0]).to(leaf.dtype),
            rtol=0,
            atol=bench.tolerance * size,
        )
    return "yes"


def _some(gradient: Tensor | None) -> bool:
    return gradient is not None and gradient.numel() > 0


def tensors(nest: Any) -> list[Tensor]:
    """The tensors of features as they come."""
    match nest:
        case Tensor():
            return [nest]
        case None:
            return []
        case Features():
            return tensors([nest.last_hidden_state, nest.pooled, nest.hidden])
        case dict():
            return tensors(list(nest.values()))
        case _:
            return [t for part in nest for t in tensors(part)]


def by_backward(balancer: Balancer, losses: Mapping[str, Tensor], **told: object) -> Balance:
    return balancer.backward(losses, **told)


def by_loss(balancer: Balancer, losses: Mapping[str, Tensor], **told: object) -> Balance:
    balancer.loss(losses, **told).backward()
    return balancer.last


CALLS = {"backward": by_backward, "loss": by_loss}


# The page -------------------------------------------------------------------------------------


@cache
def listed() -> dict[tuple[str, str], str]:
    """What the page says, by case and column: "yes" or "refused"."""
    found: dict[tuple[str, str], str] = {}
    for line in PAGE.read_text().splitlines():
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if line.startswith("|") and name in {case.name for case in (*CASES, *INDUCTOR)}:
            for column, cell in zip(COLUMNS, cells, strict=True):
                found[name, column] = cell.split("[")[0]
    return found


@contextmanager
def compiling(donates: bool) -> Iterator[None]:
    """Inductor with nothing in its cache, so that the first pass decides what is compiled.

    The plain sum is the first column: its pass may use what was saved for it as its own memory.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        functorch.patch(donated_buffer=donates),
        inductor.patch(compile_threads=1),  # no pool of processes
        quietly(),
    ):
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", folder)
        yield


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_what_comes_is_right_or_refused(case: Case, column: str, call: str) -> None:
    """As autograd says, or an error of ours that leaves everything as it was; as the page says."""
    found = outcome(case, COLUMNS[column], CALLS[call])
    assert (found == "yes") == (listed()[case.name, column] == "yes"), found


@pytest.mark.skipif(COMPILER is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in INDUCTOR])
def test_what_a_compiler_makes_is_right_or_refused(case: Case) -> None:
    """In one test, so that one process compiles it once."""
    with compiling(INDUCTOR[case]):
        for column in COLUMNS:
            for call in CALLS:
                found = outcome(case, COLUMNS[column], CALLS[call])
                assert (found == "yes") == (listed()[case.name, column] == "yes"), (
                    column,
                    call,
                    found,
                )


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_an_empty_balancer_refuses_nothing(case: Case) -> None:
    assert outcome(case, COLUMNS["sum"], by_backward) == "yes"


HEADER = """\
# What works with what

Every cell is a test: what comes out is what `torch.autograd` says of the same program, by
`Balancer.backward` and by the backward of `Balancer.loss`; or the call is refused, with the words
of the footnote, and nothing is changed. `python tests/test_compatibility.py` writes this page.

- **sum**: `Balancer()`.
- **looped**, **batched**, **factored**: `Balancer(aggregator=MGDA(), …)` with `jacobian="looped"`,
  `jacobian="batched"` or `factored="always"`; no features are told.
- **features**: `Balancer(aggregator=MGDA())`, told the features.
- **representation**: the same with `MGDA(at="representation")`.
- **off the span**: `GradDrop(leak=1)`, which lets everything through and so is the sum, by way of
  a direction.

Hooks of a leaf run once, on what is delivered. Hooks of modules and activations run once in every
pass that goes through them: once for the sum and for methods that look at losses alone, up to m
times where every task's gradient is taken, and once on the combination where the representation is
told. So a hook that is not linear (a clamp) sees other numbers there than the sum's.

"""


def row(case: Case, footnotes: dict[str, int]) -> str:
    """A row of the table; what is refused, and in which words, is added to the footnotes."""
    cells = []
    for column in COLUMNS.values():
        found, by_the_scalar = (outcome(case, column, call) for call in CALLS.values())
        if found == by_the_scalar == "yes":
            cells.append("yes")
            continue
        assert found != "yes", f"{case.name}: `loss` refuses what `backward` does: {by_the_scalar}"
        words = shorten(found, 320, placeholder=" …")  # torch's own words may fill pages
        cells.append(f"refused[^{footnotes.setdefault(words, len(footnotes) + 1)}]")
    return f"| {case.name} | " + " | ".join(cells) + " |"


def page() -> str:
    """docs/compatibility.md, from what happens."""
    footnotes: dict[str, int] = {}
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for case in CASES:
        lines.append(row(case, footnotes))
    for case, donates in INDUCTOR.items():
        with compiling(donates):
            lines.append(row(case, footnotes))
    notes = [f"[^{number}]: {words}" for words, number in footnotes.items()]
    return HEADER + "\n".join([*lines, "", *notes, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
