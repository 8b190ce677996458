"""Tasks as they come: absent, constant, zero, not finite; and what a user says of parameters.

Expected gradients are worked out with `torch.autograd.grad`; nothing of ours is the reference.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from evenhand import (
    GLS,
    IMTLL,
    MGDA,
    Aggregator,
    Balance,
    Balancer,
    Fixed,
    MultiTaskNetwork,
    NonFiniteError,
    Outputs,
    ScaleInvariant,
    TaskGradients,
    Uncertainty,
    UPGrad,
    Weighting,
)
from evenhand.autodiff.arithmetic import finite
from evenhand.balancer import extra_state
from programs import DTYPE, gradients

TASKS = ("a", "b", "c")
SHARES = {"a": 0.2, "b": 0.5, "c": 2.0}


class Model(nn.Module):
    """A user's own network."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Linear(3, 1) for task in TASKS})
        self.double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {task: head(z) for task, head in self.heads.items()}


def batch(step: int = 0) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(step)
    x = torch.randn(6, 4, generator=chance, dtype=DTYPE)
    return x, torch.randn(6, 3, generator=chance, dtype=DTYPE)


def losses_of(outputs: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
    return {
        task: (k + 0.5) * (outputs[task].squeeze(-1) - y[:, k]).square().mean()
        for k, task in enumerate(TASKS)
    }


def step_of(model: nn.Module, step: int = 0) -> dict[str, Tensor]:
    x, y = batch(step)
    return losses_of(model(x), y)


def by_backward(balancer: Balancer, losses: Mapping[str, Tensor | None], **told: object) -> Balance:
    return balancer.backward(losses, **told)


def by_loss(balancer: Balancer, losses: Mapping[str, Tensor | None], **told: object) -> Balance:
    balancer.loss(losses, **told).backward()
    return balancer.last


both_ways = pytest.mark.parametrize("call", [by_backward, by_loss], ids=["backward", "loss"])
Call = Callable[..., Balance]


def taken(parameters: Sequence[Tensor]) -> list[Tensor | None]:
    found = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return found


def alike(found: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def weighted(
    losses: Mapping[str, Tensor], parameters: Sequence[Tensor], weights: Mapping[str, float]
) -> list[Tensor | None]:
    """Σ weights_i ∂L_i/∂p, from autograd."""
    rows = gradients(losses, parameters)
    found: list[Tensor | None] = []
    for k in range(len(parameters)):
        terms = [w * rows[t][k] for t, w in weights.items() if rows[t][k] is not None]
        found.append(sum(terms[1:], terms[0]) if terms else None)
    return found


def same_state(one: Balancer, other: Balancer) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    told, other_told = (extra_state(s.pop("_extra_state")) for s in (first, second))
    assert (told["tasks"], told["step"]) == (other_told["tasks"], other_told["step"])
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0)


# Absent tasks ---------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("absent", [None, "a constant"])
@pytest.mark.parametrize(
    "make", [lambda: Balancer(aggregator=MGDA()), Balancer], ids=["mgda", "empty"]
)
def test_a_loss_without_a_graph_is_an_absent_task(
    make: Callable[[], Balancer], absent: str | None, call: Call
) -> None:
    """The same as a mapping without it; said once, by name."""
    model = Model()
    ours, theirs = make(), make()
    for balancer in (ours, theirs):
        call(balancer, step_of(model))
    taken(list(model.parameters()))
    for step in (1, 2):
        losses: dict[str, Tensor | None] = dict(step_of(model, step))
        losses["b"] = None if absent is None else torch.zeros((), dtype=DTYPE)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            balance = call(ours, losses)
        assert balance.tasks == ("a", "c")
        assert [str(w.message).count("'b'") for w in said] == ([1] if step == 1 else [])
        found = taken(list(model.parameters()))
        present = step_of(model, step)
        del present["b"]
        call(theirs, present)
        alike(found, taken(list(model.parameters())))
        same_state(ours, theirs)


def test_all_tasks_absent_is_an_error() -> None:
    balancer = Balancer(aggregator=MGDA(), tasks=TASKS)
    with pytest.raises(ValueError, match="'a'"):
        balancer.backward(dict.fromkeys(TASKS, torch.zeros(())))


@both_ways
@pytest.mark.parametrize("method", [MGDA, UPGrad])
def test_a_gradient_that_is_exactly_zero_is_told_of_once(
    method: type[Weighting], call: Call
) -> None:
    """A satisfied hinge stops the methods of least norm: its task is named, once."""
    model = Model()
    balancer = Balancer(aggregator=method())
    said = []
    for step in range(3):
        losses = step_of(model, step)
        losses["b"] = (losses["b"] - 1e6).relu()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call(balancer, losses)
        said += [str(w.message) for w in found if "'b'" in str(w.message)]
        assert all(p.grad is not None for p in model.heads["a"].parameters())
        taken(list(model.parameters()))
    assert len(said) == (1 if method is MGDA else len(said))
    assert len(said) <= 1


# What is not finite ---------------------------------------------------------------------------


class Broken(torch.autograd.Function):
    """The identity; its gradient is NaN."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * float("nan")


def spoiled(losses: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """b's loss is infinite, or its gradient is NaN."""
    b = losses["b"]
    return losses | {"b": b * float("inf") if what == "loss" else Broken.apply(b)}


class Elsewhere(Tensor):
    """A tensor that says that it is not on the CPU."""

    @property
    def is_cpu(self) -> bool:
        return False


def test_gradients_that_are_not_on_the_cpu_are_finite_where_every_entry_is() -> None:
    """One norm tells it, unless finite entries overflow it: then they are looked at themselves."""

    def there(*values: float) -> Tensor:
        return torch.tensor(values).as_subclass(Elsewhere)

    assert finite([there(1.0, 2.0), None])
    assert finite([there(3e38, 3e38), there(1.0)])
    for bad in (float("inf"), float("-inf"), float("nan")):
        assert not finite([there(1.0, bad), there(1.0)])
        assert not finite([there(1.0), there(bad, 1.0)])


@both_ways
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_raising_names_the_task(what: str, call: Call) -> None:
    model = Model()
    balancer = Balancer(aggregator=MGDA())
    with pytest.raises(NonFiniteError) as error:
        call(balancer, spoiled(step_of(model), what))
    assert error.value.tasks == ("b",)
    assert all(p.grad is None for p in model.parameters())


@both_ways
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_skipping_changes_nothing_and_counts(what: str, call: Call) -> None:
    model = Model()
    balancer = Balancer(aggregator=MGDA(), nonfinite="skip")
    call(balancer, step_of(model))
    before = taken(list(model.parameters()))
    for p, g in zip(model.parameters(), before, strict=True):
        p.grad = g.clone()
    control = copy.deepcopy(balancer)
    balance = call(balancer, spoiled(step_of(model, 1), what))
    assert not balance.applied
    assert balance.left_out == ("b",)
    alike([p.grad for p in model.parameters()], before)
    same_state(balancer, control)


@both_ways
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("method", [MGDA, UPGrad])
def test_leaving_out_is_being_absent(method: type[Weighting], what: str, call: Call) -> None:
    model = Model()
    ours, theirs = (Balancer(aggregator=method(), nonfinite="leave_out") for _ in range(2))
    for balancer in (ours, theirs):
        call(balancer, step_of(model))
    taken(list(model.parameters()))
    balance = call(ours, spoiled(step_of(model, 1), what))
    found = taken(list(model.parameters()))
    assert balance.tasks == ("a", "c")
    assert balance.left_out == ("b",)
    present = step_of(model, 1)
    del present["b"]
    call(theirs, present)
    alike(found, taken(list(model.parameters())))
    same_state(ours, theirs)


@both_ways
@pytest.mark.parametrize("make", [Uncertainty, IMTLL, GLS, ScaleInvariant])
def test_a_negative_loss_is_refused_by_name(make: Callable[[], Weighting], call: Call) -> None:
    """Where a method needs positive ones."""
    model = Model()
    balancer = Balancer(make(), tasks=TASKS)
    losses = step_of(model)
    losses["b"] = losses["b"] - 100
    with pytest.raises(ValueError, match=r"\bb\b"):
        call(balancer, losses)
    assert all(p.grad is None for p in model.parameters())


# What a user says of parameters ---------------------------------------------------------------


class Columns(nn.Module):
    """One layer with n outputs of which each column is a task."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double()
        self.head = nn.Linear(3, 3).double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = self.head(self.trunk(x))
        return {task: out[:, k : k + 1] for k, task in enumerate(TASKS)}


@both_ways
def test_shared_says_what_is_balanced_and_the_rest_is_summed(call: Call) -> None:
    model = Columns()
    trunk, head = list(model.trunk.parameters()), list(model.head.parameters())
    balancer = Balancer(aggregator=Fixed(SHARES))
    for step in range(2):
        plain = step_of(model, step)
        wanted = [
            *weighted(plain, trunk, SHARES),
            *weighted(plain, head, dict.fromkeys(TASKS, 1.0)),
        ]
        call(balancer, step_of(model, step), shared=trunk)
        alike(taken([*trunk, *head]), wanted)


@both_ways
def test_an_empty_own_keeps_a_task_out(call: Call) -> None:
    model = Columns()
    trunk, head = list(model.trunk.parameters()), list(model.head.parameters())
    plain = step_of(model)
    wanted = [*weighted(plain, trunk, SHARES), *weighted(plain, head, {"a": 1.0, "c": 1.0})]
    call(Balancer(aggregator=Fixed(SHARES)), step_of(model), shared=trunk, own={"b": []})
    alike(taken([*trunk, *head]), wanted)


def test_a_parameter_in_both_is_an_error() -> None:
    model = Columns()
    trunk = list(model.trunk.parameters())
    with pytest.raises(ValueError, match="own"):
        Balancer(aggregator=MGDA()).backward(step_of(model), shared=trunk, own={"a": [trunk[0]]})


@both_ways
def test_an_alternating_loop_of_ones_own_needs_no_model(call: Call) -> None:
    """With the trunk frozen, what the losses reach is the heads'; from the first call on."""
    model = Model()
    balancer = Balancer(aggregator=Fixed(SHARES))
    trunk, heads = list(model.trunk.parameters()), list(model.heads.parameters())
    ones = dict.fromkeys(TASKS, 1.0)
    for step in range(4):
        alone = step % 2 == 0
        model.trunk.requires_grad_(not alone)
        model.heads.requires_grad_(alone)
        plain = step_of(model, step)
        wanted = [*weighted(plain, trunk, SHARES), *weighted(plain, heads, ones)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(balancer, step_of(model, step))
        alike(taken([*trunk, *heads]), wanted)


@both_ways
def test_a_model_replaced_begins_anew(call: Call) -> None:
    """Two networks in turn, as folds are: neither inherits the other's sharing."""
    balancer = Balancer(aggregator=Fixed(SHARES))
    for fold in range(3):
        torch.manual_seed(fold)
        model = Model()
        trunk, heads = list(model.trunk.parameters()), list(model.heads.parameters())
        plain = step_of(model)
        ones = dict.fromkeys(TASKS, 1.0)
        wanted = [*weighted(plain, trunk, SHARES), *weighted(plain, heads, ones)]
        call(balancer, step_of(model))
        alike(taken([*trunk, *heads]), wanted)


class Watching(Weighting):
    """Looks at the gradients of the parameters that a callable chooses, and keeps their shapes."""

    def __init__(self) -> None:
        super().__init__(at=self._all)
        self.seen: list[tuple[int, ...]] = []

    def _all(self, shared: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.seen[:] = [tuple(p.shape) for p in shared]
        return shared

    def weigh(self, g: TaskGradients) -> Tensor:
        return torch.ones_like(g.gramian[0])


@both_ways
def test_places_see_the_parameters_in_the_models_order(call: Call) -> None:
    model = Model()
    watching = Watching()
    call(Balancer(aggregator=watching, model=model), step_of(model))
    assert watching.seen == [tuple(p.shape) for p in model.trunk.parameters()]


# Saved, copied, averaged ----------------------------------------------------------------------


def absent_after(balancer: Balancer, model: nn.Module) -> None:
    """A step of a alone: the trunk stays balanced, as it was before."""
    losses = {"a": step_of(model, 3)["a"]}
    trunk, heads = list(model.trunk.parameters()), list(model.heads.parameters())
    wanted = [*weighted(losses, trunk, {"a": 0.2}), *weighted(losses, heads, {"a": 1.0})]
    taken([*trunk, *heads])
    balancer.backward({"a": step_of(model, 3)["a"]})
    alike(taken([*trunk, *heads]), wanted)


def trained(model: nn.Module, known_as: nn.Module | None = None) -> Balancer:
    balancer = Balancer(aggregator=Fixed(SHARES), tasks=TASKS, model=known_as)
    balancer.backward(step_of(model))
    taken(list(model.parameters()))
    return balancer


def test_the_union_is_saved_by_name() -> None:
    model = Model()
    state = trained(model, known_as=model).state_dict()
    other = copy.deepcopy(model)
    balancer = Balancer(aggregator=Fixed(SHARES), tasks=TASKS, model=other)
    balancer.load_state_dict(state)
    absent_after(balancer, other)


def test_a_union_saved_without_names_is_said_to_be_lost() -> None:
    model = Model()
    balancer = Balancer(aggregator=Fixed(SHARES), tasks=TASKS)
    with pytest.warns(UserWarning, match="model"):
        balancer.load_state_dict(trained(model).state_dict())


@pytest.mark.parametrize("wrapped_first", [True, False])
def test_a_state_saved_with_a_wrapper_loads_without_and_back(wrapped_first: bool) -> None:
    model = Model()
    wrapped = torch.compile(model, backend="eager")
    one, other = (wrapped, model) if wrapped_first else (model, wrapped)
    state = trained(model, known_as=one).state_dict()
    balancer = Balancer(aggregator=Fixed(SHARES), tasks=TASKS, model=other)
    balancer.load_state_dict(state)
    absent_after(balancer, model)


def test_a_balancer_is_copied_with_its_model() -> None:
    model = Model()
    balancer = trained(model)
    copied, its_model = copy.deepcopy((balancer, model))
    absent_after(copied, its_model)
    absent_after(balancer, model)


def test_a_balancer_copied_alone_serves_the_same_model() -> None:
    model = Model()
    absent_after(copy.deepcopy(trained(model)), model)


def test_a_balancer_is_pickled_and_averaged() -> None:
    model = Model()
    balancer = trained(model)
    again = pickle.loads(pickle.dumps(balancer))
    same_state(balancer, again)
    stream = io.BytesIO()
    torch.save(balancer, stream)
    stream.seek(0)
    same_state(balancer, torch.load(stream, weights_only=False))
    averaged = AveragedModel(balancer)
    averaged.update_parameters(balancer)


def test_what_a_balancer_remembers_fits_safetensors() -> None:
    """Tensors of its state, and nothing that is not one, beside one JSON."""
    from safetensors.torch import load, save

    model = Model()
    balancer = trained(model, known_as=model)
    tensors = {k: v for k, v in balancer.state_dict().items() if isinstance(v, Tensor)}
    assert set(load(save(tensors))) == set(tensors)


# Outputs that a wrapper rebuilt ---------------------------------------------------------------


def network() -> MultiTaskNetwork:
    trunk = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    return MultiTaskNetwork(trunk, {task: nn.Linear(3, 1) for task in TASKS}).double()


@both_ways
def test_rebuilt_outputs_know_nothing_but_what_the_graph_says(call: Call) -> None:
    """A wrapper makes ``type(outputs)({task: cast(y)})``; the network is known otherwise."""
    model = network()
    x, y = batch()
    outputs = model(x)
    rebuilt = type(outputs)({task: out.clone() for task, out in outputs.items()})
    assert isinstance(rebuilt, Outputs)
    assert not rebuilt.readings
    trunk, heads = list(model.trunk.parameters()), list(model.heads.parameters())
    plain = losses_of(model(x), y)
    wanted = [
        *weighted(plain, trunk, SHARES),
        *weighted(plain, heads, dict.fromkeys(TASKS, 1.0)),
    ]
    call(Balancer(aggregator=Fixed(SHARES)), losses_of(rebuilt, y), features=rebuilt)
    alike(taken([*trunk, *heads]), wanted)


def test_rebuilt_outputs_have_no_representation() -> None:
    model = network()
    x, y = batch()
    rebuilt = Outputs({task: out.clone() for task, out in model(x).items()})
    balancer = Balancer(aggregator=MGDA(at="representation"))
    with pytest.raises(ValueError, match="features"):
        balancer.backward(losses_of(rebuilt, y), features=rebuilt)


@both_ways
def test_gradnorm_finds_the_last_layer_by_the_outputs(call: Call) -> None:
    """The outputs of a MultiTaskNetwork carry its structure."""
    from evenhand import GradNorm

    model = network()
    x, y = batch()
    plain = losses_of(model(x), y)
    last = list(model.trunk[0].parameters())
    rows = gradients(plain, last)
    norms = torch.stack([torch.cat([g.flatten() for g in rows[t]]).norm() for t in TASKS])
    balancer = Balancer(GradNorm(), tasks=TASKS)
    outputs = model(x)
    balance = call(balancer, losses_of(outputs, y), features=outputs)
    torch.testing.assert_close(balance.norms, norms)


# Off the span ---------------------------------------------------------------------------------


class Signs(Aggregator):
    """The signs of the mean: a direction that no weights give."""

    def merge(self, g: TaskGradients) -> Tensor:
        return g.jacobian.sum(0).sign()


@both_ways
def test_a_direction_off_the_span_is_delivered(call: Call) -> None:
    model = Model()
    trunk, heads = list(model.trunk.parameters()), list(model.heads.parameters())
    plain = step_of(model)
    ones = dict.fromkeys(TASKS, 1.0)
    wanted = [g.sign() for g in weighted(plain, trunk, ones) if g is not None]
    call(Balancer(aggregator=Signs()), step_of(model))
    alike(taken(trunk), wanted)
    alike(taken(heads), weighted(plain, heads, ones))


def test_a_task_that_shares_nothing_does_not_stop_those_that_do() -> None:
    """The weights of a and b are MGDA's of the two: those of c, which has a network of its own,
    are nobody's business.
    """
    torch.manual_seed(0)
    trunk, own = nn.Linear(3, 4), nn.Linear(3, 1)
    heads = [nn.Linear(4, 1), nn.Linear(4, 1)]
    x = torch.randn(5, 3)
    z = trunk(x)
    losses = {"a": heads[0](z).square().mean(), "b": (heads[1](z) - 1).square().mean()}
    leaves = list(trunk.parameters())
    a, b = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves, retain_graph=True)])
        for loss in losses.values()
    )
    share = ((b @ b - a @ b) / (a - b).square().sum()).clamp(0, 1)
    losses["c"] = own(x).square().mean()
    Balancer(aggregator=MGDA()).backward(losses)
    found = torch.cat([p.grad.flatten() for p in leaves])
    torch.testing.assert_close(found, share * a + (1 - share) * b)
