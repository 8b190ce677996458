"""Operations that put the outputs of heads side by side: the graph alone does not tell tasks apart.

Each loss reads its own part of what is joined, so autograd's gradients by the other head are zero.
Without a model such a program is refused; with one, its structure tells, and the weights are those
of the two gradients by the trunk.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping

import pytest
import torch
from torch import Tensor, nn

from evenhand import MGDA, Balancer, MultiTaskNetwork
from evenhand.linalg import min_norm
from programs import gradients, gramian, scripted

Join = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
FIRST, SECOND = torch.arange(6), torch.arange(6, 12)


def zeros() -> Tensor:
    return torch.zeros(12, 1, dtype=torch.float64)


def halves(joined: Tensor) -> tuple[Tensor, Tensor]:
    return joined[:6], joined[6:]


def chosen(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    odd = torch.tensor([0, 1, 0, 1, 0, 1], dtype=torch.bool)
    found = torch.where(odd.unsqueeze(1), a, b)
    return found[odd], found[~odd]


def written(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    found = zeros()
    found[:6] = a
    found[6:] = b
    return halves(found)


def complex_numbers(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    found = torch.complex(a, b)
    return found.real, found.imag


def nested(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*nested tensors")
        one, other = torch.nested.as_nested_tensor([a, b[:4]]).unbind()
    return one, other


def lists(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    one, other = torch._foreach_mul([a, b], 2.0)
    return one, other


def beside_a_constant(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    one, constant = halves(torch.cat([a, torch.zeros_like(b)]))
    return one, b + constant


def filled(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    one, constant = halves(torch.cat([a, a]).where(torch.arange(12).view(12, 1) < 6, 0.0))
    return one, b + constant


def by_index(method: str, *options: str) -> Join:
    def join(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        found = zeros()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*in beta")
            for index, part in ((FIRST, a), (SECOND, b)):
                found = getattr(found, method)(0, index, part, *options)
        return halves(found)

    return join


def scattered(method: str, *options: str) -> Join:
    def join(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        found = zeros()
        for index, part in ((FIRST, a), (SECOND, b)):
            found = getattr(found, method)(0, index.unsqueeze(1), part, *options)
        return halves(found)

    return join


JOINS: Mapping[str, Join] = {
    "cat": lambda a, b: halves(torch.cat([a, b])),
    "stack": lambda a, b: torch.stack([a, b]).unbind(),
    "block_diag": lambda a, b: (torch.block_diag(a, b)[:6, 0], torch.block_diag(a, b)[6:, 1]),
    "cat with a constant": beside_a_constant,
    "where": chosen,
    "where with a constant": filled,
    "slices": written,
    "index_copy": by_index("index_copy"),
    "index_add": by_index("index_add"),
    "index_reduce": by_index("index_reduce", "mean"),
    "index_put": lambda a, b: halves(
        zeros().index_put((FIRST,), a).index_put((SECOND,), b, accumulate=True)
    ),
    "put": lambda a, b: halves(zeros().put(FIRST, a.view(6)).put(SECOND, b.view(6))),
    "scatter": scattered("scatter"),
    "scatter_add": scattered("scatter_add"),
    "scatter_reduce": scattered("scatter_reduce", "sum"),
    "slice_scatter": lambda a, b: halves(
        zeros().slice_scatter(a, 0, 0, 6).slice_scatter(b, 0, 6, 12)
    ),
    "masked_scatter": lambda a, b: halves(
        zeros()
        .masked_scatter(torch.arange(12).view(12, 1) < 6, a)
        .masked_scatter(torch.arange(12).view(12, 1) >= 6, b)
    ),
    "complex": complex_numbers,
    "nested": nested,
    "pad_sequence": lambda a, b: nn.utils.rnn.pad_sequence([a, b]).unbind(1),
    "foreach": lists,
}


def network() -> MultiTaskNetwork:
    torch.manual_seed(1)
    trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    return MultiTaskNetwork(trunk, {"a": nn.Linear(4, 1), "b": nn.Linear(4, 1)}).double()


def data() -> Tensor:
    torch.manual_seed(2)
    return torch.randn(6, 3, dtype=torch.float64)


def losses(made: MultiTaskNetwork, join: Join | None) -> dict[str, Tensor]:
    z = made.trunk(data())
    a, b = made.head("a")(z), made.head("b")(z)
    if join is not None:
        a, b = join(a, b)
    return {"a": a.square().mean(), "b": (b - 1).square().sum() / 3}


def right(found: Mapping[str, Tensor], trunk: Iterable[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The min-norm weights by autograd's gradients at the trunk, and what it is to get."""
    leaves = list(trunk)
    rows = gradients(found, leaves)
    weights = min_norm(gramian(rows, range(len(leaves)))).weights
    pairs = zip(*rows.values(), strict=True)
    return weights, [weights[0] * a + weights[1] * b for a, b in pairs]


def assert_close(found: Iterable[Tensor | None], expected: Iterable[Tensor | None]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", JOINS)
def test_heads_that_are_joined_are_told_apart_or_refused(name) -> None:
    made, join = network(), JOINS[name]
    weights, merged = right(losses(made, join), made.trunk.parameters())
    heads = list(made.heads.parameters())
    summed = torch.autograd.grad(sum(losses(made, join).values()), heads)
    assert weights.min() > 0.01

    with pytest.raises(
        ValueError, match=r"be told whose a parameter .* is: the losses of 'a', 'b' pass"
    ):
        Balancer(aggregator=MGDA()).backward(losses(made, join))
    assert all(p.grad is None for p in made.parameters())
    balance = Balancer(aggregator=MGDA(), model=made).backward(losses(made, join))
    found = [*made.trunk.parameters(), *heads]
    assert_close([balance.trunk_weights, *(p.grad for p in found)], [weights, *merged, *summed])


def test_what_is_shared_may_pass_such_a_node_while_a_head_begins_at_zero() -> None:
    """The trunk is dense, and the gradient of one task there is zero at first."""
    made = network()
    nn.init.zeros_(made.head("b").weight)
    first = nn.Linear(3, 3).double()

    def dense() -> dict[str, Tensor]:
        x = data()
        z = made.trunk(torch.where(x > 0, first(x), x.square() * first.bias))
        return {t: (made.head(t)(z) - 1).square().mean() for t in ("a", "b")}

    balancer = Balancer(aggregator=MGDA())
    with pytest.warns(UserWarning, match="the gradient of 'b' is exactly zero"):
        assert balancer.backward(dense()).trunk_weights.tolist() == [0, 1]
    nn.init.ones_(made.head("b").weight)
    weights, _ = right(dense(), [*first.parameters(), *made.trunk.parameters()])
    assert_close([balancer.backward(dense()).trunk_weights], [weights])


def test_a_task_that_has_nothing_else_in_common_speaks_at_its_own_head() -> None:
    """The trunk is frozen, and of what is joined to the other head the loss reads a constant."""
    made = network()
    made.trunk.requires_grad_(False)
    with pytest.raises(ValueError, match="the gradient of 'b' there is zero"):
        Balancer(aggregator=MGDA()).backward(losses(made, beside_a_constant))
    with pytest.warns(UserWarning, match="is the trunk frozen"):
        Balancer(aggregator=MGDA(), model=made).backward(losses(made, beside_a_constant))
    heads = list(made.heads.parameters())
    summed = torch.autograd.grad(sum(losses(made, None).values()), heads)
    assert_close([p.grad for p in heads], summed)


def test_heads_evaluated_at_once_need_not_all_have_a_bias() -> None:
    """The biases are joined with zeros, and a task does not reach the other's bias."""
    torch.manual_seed(1)
    heads = {"a": nn.Linear(4, 1), "b": nn.Linear(4, 1, bias=False)}
    made = MultiTaskNetwork(nn.Linear(3, 4), heads, fused=True).double()

    def found() -> dict[str, Tensor]:
        outputs = made(data())
        return {"a": outputs["a"].square().mean(), "b": (outputs["b"] - 1).square().mean()}

    weights, merged = right(found(), made.trunk.parameters())
    balance = Balancer(aggregator=MGDA(), model=made).backward(found())
    trunk = [p.grad for p in made.trunk.parameters()]
    assert_close([balance.trunk_weights, *trunk], [weights, *merged])


# TorchScript ------------------------------------------------------------------------------------


class Whole(nn.Module):
    """Trunk and heads in one; scripted, its graph is one node."""

    def __init__(self) -> None:
        super().__init__()
        made = network()
        self.trunk, self.a, self.b = made.trunk, made.head("a"), made.head("b")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.trunk(x)
        return self.a(z).tanh() * 2, self.b(z).tanh() * 3


def test_a_scripted_network_is_refused_where_it_hides_whose_heads_are() -> None:
    plain = Whole()
    fast = scripted(data(), plain)

    def found(made: nn.Module) -> dict[str, Tensor]:
        a, b = made(data())
        return {"a": a.square().mean(), "b": (b - 1).square().mean()}

    for options in ({}, {"model": fast}, {"model": plain}):
        with pytest.raises(ValueError, match="cannot be told"):
            Balancer(aggregator=MGDA(), **options).backward(found(fast))
    weights, merged = right(found(plain), plain.trunk.parameters())
    balance = Balancer(aggregator=MGDA()).backward(found(fast), shared=plain.trunk.parameters())
    trunk = [p.grad for p in plain.trunk.parameters()]
    assert_close([balance.trunk_weights, *trunk], [weights, *merged])


def test_a_scripted_part_of_a_network_takes_no_hooks_and_needs_none() -> None:
    made = network()
    weights, merged = right(losses(made, None), made.trunk.parameters())
    made.trunk = scripted(data(), made.trunk)
    balance = Balancer(aggregator=MGDA(), model=made).backward(losses(made, None))
    trunk = [p.grad for p in made.trunk.parameters()]
    assert_close([balance.trunk_weights, *trunk], [weights, *merged])
    with pytest.raises(ValueError, match=r"is a scripted module.*give the tensor that it returns"):
        Balancer(aggregator=MGDA()).backward(losses(made, None), features=made.trunk)
