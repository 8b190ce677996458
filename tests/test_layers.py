"""Gradients by layers' weights as factors, against the gradients themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evenhand import MGDA, Balancer, MultiTaskNetwork, TaskGradients
from evenhand.aggregation import Aggregator
from evenhand.autodiff.factors import Convolution, Embedding, Linear, _best_rows, _saved, layers
from samplers import chance, flat_grad, plain_jacobian

TASKS = ("a", "b", "c", "d", "e")


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.layer(self.layer(x).tanh()))


class ByHand(nn.Module):
    """A weight that is used through other operations than a layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.layer = nn.Parameter(torch.ones(4, 3)), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(2 * (x @ self.weight))


class Bilingual(nn.Module):
    """Two tables, one of them with a row that is not trained, and a product of sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 4, padding_idx=2)
        self.places = nn.Embedding(4, 4)
        self.mix = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        places = self.places(torch.arange(x.shape[1]).expand_as(x))
        return self.mix(self.words(x) + places).flatten(1)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=chance("layers", *shape))


@dataclass(frozen=True)
class Case:
    trunk: Callable[[], nn.Module]
    inputs: Tensor
    width: int
    found: tuple[type, ...]


def stacked(*parts: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(part() for part in parts))


conv = partial(nn.Conv2d, 2, 3, 3)
CASES: Mapping[str, Case] = {
    "linear": Case(
        stacked(partial(nn.Linear, 4, 5), nn.Tanh, partial(nn.Linear, 5, 3)),
        normal(3, 4),
        3,
        (Linear, Linear),
    ),
    "sequences": Case(
        stacked(partial(nn.Linear, 4, 5), nn.Tanh, partial(nn.Linear, 5, 3, bias=False), Flat),
        normal(3, 2, 4),
        6,
        (Linear, Linear),
    ),
    "pictures": Case(
        stacked(partial(conv, stride=2, padding=1), nn.Tanh, Flat),
        normal(3, 2, 5, 6),
        27,
        (Convolution,),
    ),
    "dilated pictures": Case(
        stacked(partial(conv, dilation=2, padding="same", padding_mode="circular"), Flat),
        normal(3, 2, 5, 6),
        90,
        (Convolution,),
    ),
    "series": Case(
        stacked(partial(nn.Conv1d, 2, 3, 4, stride=2, padding=2, bias=False), nn.ReLU, Flat),
        normal(3, 2, 7),
        12,
        (Convolution,),
    ),
    "in place": Case(
        stacked(partial(nn.Linear, 4, 5), partial(nn.ReLU, inplace=True), partial(nn.Linear, 5, 3)),
        normal(3, 4),
        3,
        (Linear, Linear),
    ),
    "normalised": Case(
        stacked(conv, partial(nn.BatchNorm2d, 3), nn.ReLU, Flat, partial(nn.LayerNorm, 36)),
        normal(3, 2, 5, 6),
        36,
        (Convolution,),
    ),
    "tables": Case(Bilingual, torch.arange(9).reshape(3, 3) % 5, 9, (Embedding, Embedding, Linear)),
    "groups": Case(
        stacked(partial(nn.Conv2d, 2, 4, 3, groups=2), Flat), normal(3, 2, 4, 4), 16, ()
    ),
    "transposed": Case(
        stacked(partial(nn.ConvTranspose2d, 2, 3, 2), Flat), normal(3, 2, 3, 3), 48, ()
    ),
    "tied": Case(Tied, normal(3, 4), 3, (Linear,)),
    "by hand": Case(ByHand, normal(3, 4), 3, (Linear,)),
    "volumes": Case(stacked(partial(nn.Conv3d, 1, 2, 2), Flat), normal(2, 1, 3, 3, 3), 16, ()),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def made(case: Case) -> tuple[MultiTaskNetwork, dict[str, Tensor], Tensor, list[nn.Parameter]]:
    torch.manual_seed(0)
    heads = {task: nn.Linear(case.width, 1 + k) for k, task in enumerate(TASKS)}
    network = MultiTaskNetwork(case.trunk(), heads).double().train()
    outputs = network(case.inputs)
    losses = {t: (y - k).square().mean() for k, (t, y) in enumerate(outputs.items())}
    return network, losses, outputs.features, list(network.trunk.parameters())


@each_case
def test_what_is_found(case) -> None:
    _, losses, features, trunk = made(case)
    for roots in ([features.grad_fn], [loss.grad_fn for loss in losses.values()]):
        assert tuple(type(layer) for layer in layers(roots, trunk).values()) == case.found


class Looks(Aggregator):
    """Keeps the view; its direction is the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def merge(self, g: TaskGradients) -> Tensor:
        self.seen[:] = g.gramian, g.product(torch.arange(1.0, 6.0).double()), g.jacobian
        return g.jacobian.sum(0)


@pytest.mark.parametrize("jacobian", ["looped", "batched", 2])
@each_case
def test_gramian_product_and_jacobian(case, jacobian) -> None:
    network, losses, features, trunk = made(case)
    expected = plain_jacobian(losses.values(), trunk)
    looks = Looks()
    balancer = Balancer(aggregator=looks, model=network, jacobian=jacobian, factored="always")
    balancer.backward(losses, features=features)
    gramian, product, found = looks.seen
    weights = torch.arange(1.0, 6.0).double()
    for one, other in (
        (found, expected),
        (gramian, expected @ expected.T),
        (product, expected @ expected.T @ weights),
        (flat_grad(trunk), expected.sum(0)),
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10 * float(other.abs().max()))


class Cast(nn.Module):
    """What autocast does, by hand: the products are taken in another type."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            for part in self.parts:
                x = part(x)
        return x.float()


@pytest.mark.parametrize(
    ("parts", "shape", "width"),
    [
        ((partial(nn.Linear, 4, 5), nn.Tanh, partial(nn.Linear, 5, 3)), (6, 4), 3),
        ((conv, nn.ReLU, Flat), (3, 2, 4, 4), 12),
    ],
    ids=["linear", "pictures"],
)
@pytest.mark.parametrize("jacobian", ["looped", "batched"])
def test_weights_are_recognised_in_mixed_precision(parts, shape, width, jacobian) -> None:
    """δ and A come in bfloat16; the Gramian of their products is formed without rounding more."""
    torch.manual_seed(0)
    heads = {task: nn.Linear(width, 1 + k) for k, task in enumerate(TASKS)}
    network = MultiTaskNetwork(Cast(*(part() for part in parts)), heads)
    outputs = network(normal(*shape).float())
    losses = {t: (y - k).square().mean() for k, (t, y) in enumerate(outputs.items())}
    trunk = list(network.trunk.parameters())
    wide = [p for p in trunk if p.ndim > 1]
    assert len(layers([outputs.features.grad_fn], trunk)) == len(wide)
    expected = plain_jacobian(losses.values(), trunk).double()
    looks = Looks()
    balancer = Balancer(aggregator=looks, model=network, jacobian=jacobian, factored="always")
    balancer.backward(losses, features=outputs.features)
    gramian, product, found = looks.seen
    eps = torch.finfo(torch.bfloat16).eps
    size = float(expected.norm(dim=1).max())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=eps * size)
    torch.testing.assert_close(gramian.double(), expected @ expected.T, rtol=0, atol=eps * size**2)
    torch.testing.assert_close(
        flat_grad(trunk).double(), expected.sum(0), rtol=0, atol=len(TASKS) * eps * size
    )
    assert product.isfinite().all()


class Again(nn.Module):
    """Its activations are computed again in the backward pass, and handed out once."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        again: Tensor = checkpoint(self.parts, x, use_reentrant=False)
        return again


@pytest.mark.parametrize("factored", ["auto", "always"])
@pytest.mark.parametrize(
    ("part", "shape", "width"),
    [
        (partial(nn.Linear, 64, 64), (2, 64), 64),
        (stacked(partial(nn.Conv2d, 8, 32, 3), Flat), (1, 8, 3, 3), 32),
    ],
    ids=["linear", "pictures"],
)
def test_a_layer_that_is_computed_again_is_looked_at_once(part, shape, width, factored) -> None:
    """Inside the backward pass of `loss`, which all its passes belong to for the checkpoint."""
    torch.manual_seed(0)
    trunk = Again(part(), nn.Tanh())
    network = MultiTaskNetwork(trunk, {task: nn.Linear(width, 1) for task in TASKS}).double()
    x = normal(*shape)

    def losses() -> dict[str, Tensor]:
        return {t: (y - k).square().mean() for k, (t, y) in enumerate(network(x).items())}

    shared = list(trunk.parameters())
    expected = plain_jacobian(losses().values(), shared)
    balancer = Balancer(aggregator=MGDA(), factored=factored)
    balancer.loss(losses()).backward()
    torch.testing.assert_close(flat_grad(shared), balancer.last.trunk_weights @ expected)


def test_tasks_that_do_not_reach_a_layer() -> None:
    torch.manual_seed(0)
    deep, wide = nn.Linear(4, 3).double(), nn.Linear(3, 3).double()
    heads = [nn.Linear(3, 1).double() for _ in range(4)]
    z = deep(normal(5, 4))
    losses = {f"t{k}": head(wide(z) if k else z).square().mean() for k, head in enumerate(heads)}
    shared = [*deep.parameters(), *wide.parameters()]
    expected = plain_jacobian(losses.values(), shared)
    balancer = Balancer(aggregator=MGDA(), factored="always")
    balance = balancer.backward(losses, shared=shared)
    torch.testing.assert_close(balance.norms, expected.norm(dim=1))
    torch.testing.assert_close(flat_grad(shared), balance.trunk_weights @ expected)


def test_a_hook_on_a_weight_is_heard() -> None:
    network, losses, features, trunk = made(CASES["linear"])
    trunk[0].register_hook(lambda gradient: 3 * gradient)
    expected = plain_jacobian(losses.values(), trunk)
    balancer = Balancer(aggregator=MGDA(), model=network, factored="always")
    balance = balancer.backward(losses, features=features)
    torch.testing.assert_close(flat_grad(trunk), balance.trunk_weights @ expected)


# In the last case they would take less arithmetic, but less than looking for them.
@pytest.mark.parametrize(
    ("batch", "width", "pays"), [(8, 256, True), (256, 256, False), (4, 64, False)]
)
def test_factors_are_kept_where_rows_are_few(batch, width, pays, monkeypatch) -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(width, width), nn.Tanh())
    network = MultiTaskNetwork(trunk, {t: nn.Linear(width, 1) for t in TASKS})
    outputs = network(torch.randn(batch, width, generator=chance("pays")))
    taken: list[Linear] = []
    plain = Linear.column
    monkeypatch.setattr(Linear, "column", lambda layer, m: taken.append(layer) or plain(layer, m))
    losses = {task: y.square().mean() for task, y in outputs.items()}
    Balancer(aggregator=MGDA()).backward(losses, features=outputs)
    assert bool(taken) is pays


def test_gradients_that_cancel_over_the_batch_keep_their_gramian() -> None:
    """Near an optimum samples pull apart, and what is left of their sum must not drown."""
    x = normal(12, 4).float()
    whole = torch.linalg.qr(x.double(), mode="complete").Q
    apart = whole[:, 4:] @ normal(8, 3)  # whose product with x is zero
    deltas = [(apart * (1 + k) + 1e-4 * normal(12, 3 + k)[:, :3]).float() for k in range(5)]
    trunk = nn.Linear(4, 3, bias=False)
    z = trunk(x)
    losses = {task: (delta * z).sum() for task, delta in zip(TASKS, deltas, strict=True)}
    rows = torch.stack([delta.double().T @ x.double() for delta in deltas]).flatten(1)
    balancer = Balancer(aggregator=MGDA(), factored="always")
    balance = balancer.backward(losses, shared=trunk.parameters())
    torch.testing.assert_close(balance.norms.double(), rows.norm(dim=1), rtol=1e-5, atol=0)


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ValueError, match="factored='sometimes'"):
        Balancer(factored="sometimes")


def test_what_factors_could_save_at_best_is_where_no_number_of_rows_saves_more() -> None:
    for shape, m, least in (((64, 48), 3, 1), ((256, 256), 3, 1), ((16, 512), 8, 4)):
        weight = torch.zeros(shape)
        best = _saved(weight, m, _best_rows(weight, m, least))
        assert best >= max(_saved(weight, m, r) for r in range(least, 200))
