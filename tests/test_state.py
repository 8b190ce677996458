"""The state of methods: a value that they get and return, and that a balancer holds."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import evenhand as eh
from cases import CASES
from evenhand import (
    Balancer,
    Clock,
    Outcome,
    Running,
    StatefulWeighting,
    TaskGradients,
    Traits,
    Weighting,
)
from evenhand.balancer import extra_state
from evenhand.weighting.base import Method
from evenhand.weighting.state import Held, State
from evenhand.weighting.traits import Needs, joined
from samplers import inputs, losses_of, same, small_network

TASKS = ("a", "b", "c")


def backward(balancer: Balancer, network: nn.Module, step: int = 0) -> eh.Balance:
    network.zero_grad()
    return balancer.backward(losses_of(network(inputs(step)), step))


def fail(balancer: Balancer, network: nn.Module) -> None:
    """A step that comes to nothing: the losses are finite, a gradient is not."""
    outputs = network(inputs())
    losses = losses_of(outputs)
    z = outputs["b"]
    losses["b"] = losses["b"] + (z - z.detach()).abs().sqrt().sum()
    with pytest.raises(eh.NonFiniteError):
        balancer.backward(losses)


def bound(method: Method, slot: str = "weighting") -> tuple[Balancer, nn.Module]:
    network = small_network(TASKS)
    return Balancer(**{slot: method}, tasks=TASKS, model=network), network


# Nothing goes past the state ------------------------------------------------------------------


class Counting(Weighting):
    """What a newcomer writes first."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def weigh(self, g: TaskGradients) -> Tensor:
        self.n = self.n + 1
        return self.n * torch.ones_like(g.losses)


def test_a_method_that_counts_in_an_attribute_is_stopped() -> None:
    method = Counting()
    balancer, network = bound(eh.CRMOGM(method))
    with pytest.raises(AttributeError, match=r"Counting sets self\.n .* StatefulWeighting"):
        backward(balancer, network)
    assert method.n == 0
    assert all(p.grad is None for p in network.parameters())
    method.n = 3  # elsewhere its attributes are its own
    assert method.n == 3


class Calls(StatefulWeighting):
    """The same, as it should be."""

    def init(self, total: int) -> State:
        return {"n": torch.zeros((), dtype=torch.int64)}

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        n = state["n"] + 1
        return Outcome(n * torch.ones_like(g.losses), {"n": n})


def test_a_step_that_fails_does_not_count() -> None:
    balancer, network = bound(Calls())
    seen = [float(backward(balancer, network).weights[0])]
    fail(balancer, network)
    seen.append(float(backward(balancer, network).weights[0]))
    assert seen == [1, 2]


def test_one_method_object_in_several_places_has_a_state_in_each() -> None:
    method = Calls()
    network = small_network(TASKS)
    one = Balancer(method, method, tasks=TASKS, model=network)
    other = Balancer(method, tasks=TASKS, model=network)
    backward(one, network)
    balance = backward(one, network)
    assert float(balance.weights[0]) == 2
    assert float(balance.trunk_weights[0]) == 4  # 2 in either slot
    assert float(backward(other, network).weights[0]) == 1


def test_one_learning_method_in_two_balancers_learns_twice() -> None:
    method = eh.Uncertainty()
    (one, network), (other, _) = bound(method), bound(method)
    backward(one, network)
    assert all(p.grad is not None for p in one.parameters())
    assert all(p.grad is None for p in other.parameters())
    assert not {*one.parameters()} & {*other.parameters()}
    assert list(method.parameters()) == []


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({}, r"the entries \[\] under 'weighting' 'base', where its init made \['n'\]"),
        ({"n": torch.ones(()), "m": torch.ones(())}, r"\['m', 'n'\] under 'weighting' 'base', "),
    ],
)
def test_a_state_with_other_entries_is_refused(
    returned: Mapping[str, Tensor], message: str
) -> None:
    class Forgetful(Calls):
        def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
            return Outcome(torch.ones_like(g.losses), dict(returned))

    balancer, network = bound(eh.CRMOGM(Forgetful()))
    before = copy.deepcopy(balancer.state_dict())
    with pytest.raises(ValueError, match=message):
        backward(balancer, network)
    after = balancer.state_dict()
    for state in (before, after):  # that the call has shown who reaches what may stay
        told = extra_state(state.pop("_extra_state"))
        state["step"] = torch.tensor(told["step"])
    assert same(after, before)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"a.b": torch.ones(())}, ValueError, "'a.b' cannot name an entry"),
        ({"training": torch.ones(())}, ValueError, "'training' cannot name an entry"),
        ({"n": 0}, TypeError, "'n' in a state must be a tensor or a dict of them"),
    ],
)
def test_what_a_state_can_hold(state: State, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Held(state)


def test_gradnorm_is_normalised_by_steps_that_stand_alone() -> None:
    balancer, network = bound(eh.GradNorm())
    scalars = list(balancer.parameters())
    with torch.no_grad():
        for scalar, value in zip(scalars, (1.0, 2.0, 6.0), strict=True):
            scalar.fill_(value)
    fail(balancer, network)
    assert [float(s.detach()) for s in scalars] == [1, 2, 6]
    assert all(s.grad is None for s in scalars)
    backward(balancer, network)
    assert [float(s.detach()) for s in scalars] == pytest.approx([1 / 3, 2 / 3, 2])
    assert list(balancer.parameters()) == scalars  # an optimizer knows these


# What is held ---------------------------------------------------------------------------------


def test_names_are_paths_through_the_wrapping() -> None:
    method = eh.CRMOGM(eh.Normalized(eh.FAMO(), by="loss"))
    balancer, _ = bound(method, "aggregator")
    names = {name for name in balancer.state_dict() if name.startswith("states.aggregator.")}
    famo = ("logits", "mean", "square", "steps", "before", "waiting", "warned")
    expected = {"average", "count", "base.scale", *(f"base.base.{name}" for name in famo)}
    assert names == {f"states.aggregator.{name}" for name in expected}
    assert "states.weighting.scalars.1" in bound(eh.IMTLL())[0].state_dict()


def test_a_balancer_can_be_copied_pickled_and_averaged() -> None:
    balancer, network = bound(eh.CRMOGM(eh.GradNorm()))
    for step in range(3):
        backward(balancer, network, step)
    for other in (copy.deepcopy(balancer), pickle.loads(pickle.dumps(balancer))):
        assert same(other.states.state_dict(), balancer.states.state_dict())
        assert not {*other.parameters()} & {*balancer.parameters()}
    averaged = AveragedModel(balancer.states)
    averaged.update_parameters(balancer.states)
    assert same(averaged.module.state_dict(), balancer.states.state_dict())


def test_histories_in_float64_stay_so_in_a_model_that_is_cast() -> None:
    for cast in (nn.Module.half, nn.Module.bfloat16, lambda module: module.to(torch.float16)):
        balancer, network = bound(eh.CRMOGM(eh.MGDA()))
        backward(balancer, network)
        before = copy.deepcopy(balancer.states.state_dict())
        cast(balancer)
        assert same(balancer.states.state_dict(), before)
        assert {value.dtype for value in before.values()} == {torch.float64}


def test_a_state_follows_to_another_device() -> None:
    balancer, _ = bound(eh.CRMOGM(eh.GradNorm()))
    balancer.to("meta")
    assert {v.device.type for v in balancer.states.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_state_can_be_kept_in_a_file_of_tensors(case) -> None:
    """As safetensors asks: names and tensors of their own memory, nothing else."""
    m = 3 if 3 in case.tasks else case.tasks[0]
    names = tuple(f"t{i}" for i in range(m))
    state = Running(case.make(names), names).state_dict()
    memory = [value.untyped_storage().data_ptr() for value in state.values() if value.numel()]
    assert all(isinstance(value, Tensor) and value.is_contiguous() for value in state.values())
    assert len(set(memory)) == len(memory)
    torch.save(state, file := io.BytesIO())
    file.seek(0)
    assert same(torch.load(file, weights_only=True), dict(state))


def test_reset_begins_again() -> None:
    balancer, network = bound(eh.CRMOGM(eh.GradNorm()))
    fresh, twin = bound(eh.CRMOGM(eh.GradNorm()))
    scalars = list(balancer.parameters())
    for step in range(3):
        backward(balancer, network, step)
        with torch.no_grad():
            for scalar in scalars:
                scalar -= 0.1 * scalar.grad
    assert not same(balancer.states.state_dict(), fresh.states.state_dict())
    balancer.reset()
    assert same(balancer.states.state_dict(), fresh.states.state_dict())
    assert list(balancer.parameters()) == scalars
    assert all(scalar.grad is None for scalar in scalars)
    twin.load_state_dict(network.state_dict())
    ours, theirs = backward(balancer, network), backward(fresh, twin)
    assert same(ours.weights, theirs.weights)
    assert same(balancer.states.state_dict(), fresh.states.state_dict())


@pytest.mark.parametrize("make", [eh.MoCo, lambda: eh.Tension(eh.MGDA(), period=2), eh.GradNorm])
def test_members_that_leave_take_their_state_with_them(make) -> None:
    """Which entries have a dimension for members follows from the shapes that init gave."""
    together = Running(make(), TASKS)
    together.held.expand(torch.Size([3]))
    chance = torch.Generator().manual_seed(0)
    rows = [torch.randn(3, 3, 5, generator=chance, dtype=torch.float64) for _ in range(3)]
    for jacobian in rows[:2]:
        together(TaskGradients.of(jacobian=jacobian, tasks=TASKS))
    kept = torch.tensor([2, 0])
    few = copy.deepcopy(together)
    few.held.select(kept)
    found = few(TaskGradients.of(jacobian=rows[2][kept], tasks=TASKS))
    whole = together(TaskGradients.of(jacobian=rows[2], tasks=TASKS))
    torch.testing.assert_close(found, whole[kept])
    resumed = Running(make(), TASKS)
    resumed.held.expand(torch.Size([2]))
    resumed.load_state_dict(few.state_dict())
    assert same(dict(resumed.state_dict()), dict(few.state_dict()))


# Traits ---------------------------------------------------------------------------------------

PARTS: Sequence[Weighting] = (
    eh.Equal(),
    eh.DWA(),
    eh.FAMO(),
    eh.IMTLL(),
    eh.GradNorm(),
    eh.MGDA(),
    eh.OnlineMinNorm(),
    eh.MoDo(),
    eh.SDMGrad(),
    eh.ExcessMTL(),
    eh.LogSTCH(),
)
WRAPPINGS: Mapping[str, Callable[[Weighting], Weighting]] = {
    "cr-mogm": eh.CRMOGM,
    "tension": eh.Tension,
    "every-1": lambda base: eh.Every(base, steps=1),
    "every-3": lambda base: eh.Every(base, steps=3),
    "l2": lambda base: eh.Normalized(base, by="l2"),
    "loss": lambda base: eh.Normalized(base, by="loss", back=True),
}


def in_blocks(base: Weighting) -> eh.PerBlock:
    def make(*, at: Any) -> Weighting:
        placed = copy.copy(base)
        placed.at = at
        return placed

    return eh.PerBlock(make, {"all": lambda shared: shared})


@pytest.mark.parametrize("outer", [*WRAPPINGS, "per block"])
@pytest.mark.parametrize("inner", [*WRAPPINGS, "nothing"])
def test_no_wrapper_drops_a_need(inner: str, outer: str) -> None:
    """Whatever is wrapped in whatever: what a part needs, the whole needs."""
    order = get_args(Needs)
    for part in PARTS:
        between = WRAPPINGS.get(inner, lambda base: base)(part)
        whole = WRAPPINGS.get(outer, in_blocks)(between)
        for needed, seen in ((part, between), (between, whole)):
            assert order.index(seen.traits.needs) >= order.index(needed.traits.needs)
            assert seen.traits.batches >= needed.traits.batches
            for need in ("after", "counts_epochs", "learned"):
                assert getattr(seen.traits, need) >= getattr(needed.traits, need), need
            now, its = (m.needs(m.init(3), Clock()) for m in (seen, needed))
            assert order.index(its) <= order.index(now) <= order.index(seen.traits.needs)


def test_joining_needs_the_most_and_promises_the_least() -> None:
    one = Traits(needs="losses", batches=3, counts_epochs=True, feasible=True, stationary=True)
    other = Traits(needs="norms", after=True, learned=True, feasible=True, scale_invariant=True)
    both = joined(one, other)
    assert both == Traits(
        needs="norms", batches=3, after=True, counts_epochs=True, learned=True, feasible=True
    )
    assert joined(one, needs="jacobian").needs == "jacobian"
    assert joined(one) == one
    with pytest.raises(ValueError, match="needs='hessian': must be one of nothing, losses"):
        Traits(needs="hessian")
    with pytest.raises(ValueError, match="batches=0"):
        Traits(batches=0)


def test_a_model_with_a_balancer_in_it_can_be_saved_as_safetensors(tmp_path: Path) -> None:
    """As the Hugging Face Trainer saves its model."""
    model = nn.ModuleDict({"balancer": Balancer(eh.Uncertainty(), tasks=("a", "b"))})
    save_file(model.state_dict(), tmp_path / "model.safetensors")
