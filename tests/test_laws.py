"""The law book: every registered piece through every law that applies to it.

What a method promises it declares itself (its `Traits`), and the laws read it there. What a law
cannot ask of a method stands in a table beside the law, with the reason; an entry that is not
needed fails.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import evenhand as eh
from cases import CASES, OPTIMIZERS, SCHEDULES, Case
from evenhand import (
    Aggregator,
    Balancer,
    Clock,
    MultiTaskNetwork,
    NonFiniteError,
    Phase,
    Running,
    TaskGradients,
    Weighting,
    frozen,
)
from evenhand.autodiff.gradients import Matrices, Place, norms, times
from evenhand.comparison.job import Job
from evenhand.comparison.plan import training
from evenhand.comparison.request import Settings
from evenhand.recipes import RECIPES
from evenhand.training import checkpoint, loop
from evenhand.training.epoch_statistics import EpochStatistics
from evenhand.training.loop import Training
from evenhand.training.optimizers import Optimizers
from evenhand.training.records import Record
from evenhand.training.steps import NetworkStepper, Turn
from evenhand.training.stopping import relative, total
from evenhand.weighting.base import Method
from evenhand.weighting.traits import dearest
from samplers import (
    DEGENERATE,
    EVERY,
    NAMES,
    PROBLEMS,
    REGULAR,
    STATIONARY,
    Moment,
    PlainTraining,
    SpyClock,
    chance,
    flat_grad,
    in_double,
    inputs,
    losses_of,
    moment,
    pairwise,
    plain_jacobian,
    positive,
    same,
    small_network,
    snapshot,
    stacked,
)

# The registry, seen by the laws ---------------------------------------------------------------


def sizes(case: Case) -> list[int]:
    """For how many tasks a case is tried."""
    return [*case.tasks, 40] if 8 in case.tasks else list(case.tasks)


def few(case: Case) -> int:
    """A number of tasks for the dearer laws: three, or as near as the case allows."""
    return min(case.tasks, key=lambda m: (m < 2, abs(m - 3)))


def every_case(*, least: int = 1, of=lambda case, m: True, where=lambda method: True):
    """Parametrise by case and number of tasks."""
    pairs = [(c, m) for c in CASES for m in sizes(c) if m >= least and of(c, m)]
    pairs = [(c, m) for c, m in pairs if where(made(c, m))]
    return pytest.mark.parametrize(("case", "m"), pairs, ids=[f"{c.name}-{m}" for c, m in pairs])


def each_case(*, of=lambda case: True, where=lambda method: True):
    """Parametrise by case."""
    cases = [case for case in CASES if of(case) and where(made(case, few(case)))]
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def each_slot():
    """Parametrise by case and the slots it can be in."""
    slots = [(c, slot) for c in CASES for slot in slots_of(made(c, few(c)))]
    return pytest.mark.parametrize(
        ("case", "slot"), slots, ids=[f"{c.name}-{slot}" for c, slot in slots]
    )


def slots_of(method: Method) -> tuple[str, ...]:
    return ("weighting", "aggregator") if isinstance(method, Weighting) else ("aggregator",)


def made(case: Case, tasks: int | Sequence[str]) -> Weighting | Aggregator:
    """The case's method."""
    names = NAMES[:tasks] if isinstance(tasks, int) else tuple(tasks)
    method = case.make(NAMES[: len(names)])
    method.require(names)
    return method


def run(case: Case, tasks: int | Sequence[str]) -> Running:
    """The case's method with its state."""
    return Running(made(case, tasks), NAMES[:tasks] if isinstance(tasks, int) else tuple(tasks))


def is_weighting(method: Method) -> bool:
    return isinstance(method, Weighting)


@dataclass(frozen=True)
class Result:
    """What a method did in one call: its weights, if it is a weighting, and the direction."""

    direction: Tensor
    weights: Tensor | None
    size: Tensor
    """How long the direction could be: what errors are relative to."""


def call(running: Running, g: TaskGradients) -> Result:
    """One call, judged in float64."""
    method, found = running.method, running(g)
    jacobian = g.jacobian.double()
    longest = jacobian.norm(dim=-1)
    if isinstance(method, Aggregator):
        return Result(found.double(), None, torch.maximum(longest.amax(-1), found.double().norm()))
    weights = found.double()
    direction = (weights.unsqueeze(-2) @ jacobian).squeeze(-2)
    return Result(direction, found, (weights.abs() * longest).sum(-1))


def follow(running: Running, g: TaskGradients, after: Tensor | None) -> None:
    """What follows a call: learned weights take a step, and the losses come again."""
    small_step(running)
    if running.method.traits.after:
        assert after is not None
        running.after(
            TaskGradients.of(
                losses=after, tasks=g.tasks, index=g.index, total=g.total, clock=g.clock
            )
        )


def small_step(module: nn.Module) -> None:
    """Learned weights take a step."""
    for scalar in module.parameters():
        if scalar.grad is not None:
            scalar.data -= 0.05 * scalar.grad
            scalar.grad = None


def walk(
    running: Running,
    moments: Sequence[Moment],
    *,
    speaking: Sequence[Sequence[int]] | None = None,
    steps: Sequence[int] | None = None,
    stream: int = 0,
    drawn: list[str] | None = None,
) -> list[Result]:
    """A method through several calls, its history kept."""
    results = []
    for k, now in enumerate(moments):
        clock = SpyClock.at(k if steps is None else steps[k], stream)
        who = None if speaking is None else speaking[k]
        g = now.view(running.tasks, who, clock, running.method.traits.batches)
        results.append(call(running, g))
        follow(running, g, now.after)
        if drawn is not None:
            drawn += clock.drawn
    return results


def path(kind: str, m: int, steps: int = 3, dtype: torch.dtype = torch.float64) -> list[Moment]:
    """A few moments of that kind."""
    return [moment(kind, m, seed, dtype) for seed in range(steps)]


def draws(case: Case, m: int) -> bool:
    """Whether the method uses chance."""
    drawn: list[str] = []
    walk(run(case, m), path("conflicting", m, 2), drawn=drawn)
    return bool(drawn)


def far(one: Tensor, other: Tensor, size: Tensor | float) -> float:
    """How far apart two vectors (or stacks of them) are, relative to `size`."""
    apart = (one.double() - other.double()).norm(dim=-1)
    return float((apart / (torch.as_tensor(size, dtype=torch.float64) + 1e-300)).max())


def turned(one: Result, other: Result) -> float:
    """How far one direction turns into another one, beyond what cancellation in it explains."""
    unit, again = (r.direction / (r.direction.norm() + 1e-300) for r in (one, other))
    size = torch.minimum(*(r.direction.norm() / (r.size + 1e-300) for r in (one, other)))
    return far(unit, again, 1) * float(size)


def noise(moments: Sequence[Moment]) -> float:
    """What rounding does to the solution of a system with the Gramian, at the worst of these."""
    values = [torch.linalg.svdvals(now.jacobian) for now in moments]
    worst = max(float((v.max() / v.min()).square()) for v in values)
    return 1e-7 + 10 * torch.finfo(torch.float64).eps * worst


DRAWING = {case.name for case in CASES if draws(case, few(case))}
"""The cases that leave something to chance."""


# Permutation: reordering the tasks reorders the weights, and nothing else ---------------------

TIES: Mapping[tuple[str, int], str] = {
    ("krum", 3): "each other's nearest neighbours have equal scores, and the first is taken"
}
"""Cases that the order of the tasks decides by design, and why."""


@every_case(least=2, of=lambda case, m: case.name not in DRAWING and (case.name, m) not in TIES)
def test_permutation(case, m) -> None:
    _order_is_indifferent(case, m)


@pytest.mark.parametrize(("name", "m"), TIES)
def test_exceptions_to_the_law_of_permutation_are_needed(name, m) -> None:
    (case,) = (case for case in CASES if case.name == name)
    with pytest.raises(AssertionError):
        _order_is_indifferent(case, m)


def _order_is_indifferent(case: Case, m: int) -> None:
    order = torch.randperm(m, generator=chance("order", m))
    for kind in REGULAR:
        moments = path(kind, m)
        results = walk(run(case, m), moments)
        names = [NAMES[i] for i in order]
        shuffled = walk(run(case, names), [now.take(order) for now in moments])
        for step, (one, other) in enumerate(zip(results, shuffled, strict=True)):
            where, rounding = f"{kind}, step {step}", noise(moments[: step + 1])
            assert far(one.direction, other.direction, one.size) <= rounding, where
            if one.weights is not None:
                weights = one.weights[order]
                assert far(weights, other.weights, weights.norm()) <= rounding, where


@every_case(
    least=2,
    of=lambda case, m: case.name not in DRAWING,
    where=lambda method: method.traits.feasible or method.traits.stationary,
)
def test_permutation_of_degenerate_gradients(case, m) -> None:
    """What promises something of its direction has but one, whatever the gradients."""
    order = torch.randperm(m, generator=chance("order", m))
    for kind in DEGENERATE:
        now = moment(kind, m)
        (one,) = walk(run(case, m), [now])
        (other,) = walk(run(case, [NAMES[i] for i in order]), [now.take(order)])
        assert turned(one, other) <= 1e-6, kind


@each_case(of=lambda case: case.name in DRAWING)
def test_permutation_in_distribution(case) -> None:
    """A method that draws gives reordered tasks other draws, but the same distribution."""
    m = few(case)
    order = torch.randperm(m, generator=chance("order", m, 1))
    now, many = moment("conflicting", m), 400
    one = call(run(case, m), stacked([now] * many).view(NAMES[:m], batches=3)).direction
    names = [NAMES[i] for i in order]
    clock = Clock(seed=1)
    g = stacked([now.take(order)] * many).view(names, None, clock, batches=3)
    other = call(run(case, names), g).direction
    error = ((one.var(0) + other.var(0)) / many).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() <= 5 * error + 1e-9).all()


# Scale: what happens when losses, and with them their gradients, are multiplied ---------------

INHOMOGENEOUS: Mapping[type[Method], str] = {
    eh.Tension: "log L is added to a ratio",
    eh.STCH: "the temperature has the unit of the losses; LogSTCH is the one without",
    eh.MoDo: "its weights take steps of a fixed rate along the Gramian",
    eh.MoCo: "its weights take steps of a fixed rate along the Gramian",
}
"""Methods whose direction depends on the common scale of the losses, and why."""


def is_homogeneous(method: Method) -> bool:
    return not any(type(part) in INHOMOGENEOUS for part in method.modules())


# With units of 1e±9 FairGrad's solves end some 1e-6 from the optimum, and say so.
@pytest.mark.filterwarnings("ignore:FairGrad:RuntimeWarning")
@every_case(where=is_homogeneous)
def test_common_scale(case, m) -> None:
    """All losses in other units: the direction stays. (Learned weights take steps that do not.)"""
    steps = 1 if made(case, m).traits.learned else 3
    _direction_stays(case, m, [torch.full((m,), s) for s in (1e-9, 1e-3, 1e3, 1e9)], steps)


@pytest.mark.parametrize("kind", INHOMOGENEOUS)
def test_exceptions_to_the_law_of_scale_are_needed(kind) -> None:
    concerned = [c for c in CASES if kind in map(type, made(c, few(c)).modules())]
    for case in concerned:
        m = few(case)
        with pytest.raises(AssertionError):
            _direction_stays(case, m, [torch.full((m,), s) for s in (1e-9, 1e9)], 3)


@every_case(where=lambda method: method.traits.scale_invariant, least=2)
def test_scale_of_each_task(case, m) -> None:
    """Each loss in units of its own: the direction stays, where that is promised."""
    at = chance("scales", m)
    factors = [(4 * torch.randn(m, generator=at, dtype=torch.float64)).exp() for _ in range(3)]
    _direction_stays(case, m, factors, 3)


def _direction_stays(case: Case, m: int, factors: Sequence[Tensor], steps: int) -> None:
    for kind in ("independent", "conflicting", "agreeing"):
        moments = path(kind, m, steps)
        results = walk(run(case, m), moments)
        for factor in factors:
            scaled = walk(run(case, m), [now.scaled(factor) for now in moments])
            for step, (one, other) in enumerate(zip(results, scaled, strict=True)):
                assert turned(one, other) <= 1e-6, f"{kind} × {factor[0]:.0e}, step {step}"


# Feasible: no task's loss rises to first order ------------------------------------------------


def slack(g: Tensor, result: Result, dtype: torch.dtype) -> Tensor:
    """How far below zero g_i·v may be: a rounded cosine, and the rounding of G and of Σ w_j g_j.

    The latter is (m + n)/2 ulps of ‖g_i‖ Σ |w_j|‖g_j‖, which matters where v all but vanishes.
    """
    ulp = torch.finfo(dtype).eps
    return g.norm(dim=1) * (ulp**0.5 * result.direction.norm() + sum(g.shape) * ulp * result.size)


@every_case(where=lambda method: method.traits.feasible)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_feasible(case, m, dtype) -> None:
    for kind in EVERY:
        moments = path(kind, m, dtype=dtype)
        for step, (now, result) in enumerate(
            zip(moments, walk(run(case, m), moments), strict=True)
        ):
            g = now.jacobian.double()
            products = g @ result.direction
            assert (products >= -slack(g, result, dtype)).all(), f"{kind}, step {step}"


# Stationary: the direction is zero where zero is in the hull of the gradients -----------------


@every_case(where=lambda method: method.traits.stationary, least=2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stationary(case, m, dtype) -> None:
    tolerance = 30 * torch.finfo(dtype).eps ** 0.5
    for kind in STATIONARY:
        if kind == "stationary face" and m == 2:
            continue
        moments = path(kind, m, dtype=dtype)
        for result in walk(run(case, m), moments):
            assert result.direction.norm() <= tolerance * result.size, kind


def test_directions_elsewhere_are_not_zero() -> None:
    """So that the law above says something."""
    for case in CASES:
        m = few(case)
        (result,) = walk(run(case, m), path("independent", m, 1))
        assert result.direction.norm() > 1e-3 * result.size, case.name


# Finite ---------------------------------------------------------------------------------------


EXTREMES = ("independent", "conflicting", "zero row", "opposed", "collinear", "low rank")
"""Kinds that are tried at extreme scales too."""


@every_case()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite(case, m, dtype) -> None:
    plain = [(kind, 1.0) for kind in EVERY]
    extreme = product(EXTREMES, (1e-12, 1e12)) if m <= 8 else ()
    for kind, scale in (*plain, *extreme):
        moments = [now.scaled(scale) for now in path(kind, m, 2, dtype)]
        if kind == "zeros":
            moments = [replace(now, losses=0 * now.losses, after=0 * now.losses) for now in moments]
        for step, result in enumerate(walk(run(case, m), moments)):
            where = f"{kind} × {scale}, step {step}"
            assert result.direction.isfinite().all(), where
            if result.weights is not None:
                assert result.weights.isfinite().all(), where
                assert result.weights.shape == (m,), where


@st.composite
def jacobians(draw: st.DrawFn, m: int) -> Tensor:
    """Anything: a low rank, zero rows, repeated rows, rows of very different lengths."""
    rank = draw(st.integers(1, m + 2))
    at = chance("hypothesis", draw(st.integers(0, 10**6)))
    left, right = (torch.randn(*shape, generator=at) for shape in ((m, rank), (rank, m + 3)))
    rows = (left @ right).double()
    for i in range(m):
        match draw(st.sampled_from(["free", "zero", "copy", "opposite"])):
            case "zero":
                rows[i] = 0
            case "copy":
                rows[i] = rows[i - 1]
            case "opposite":
                rows[i] = -rows[i - 1]
    lengths = draw(st.lists(st.integers(-6, 6), min_size=m, max_size=m))
    return 10.0 ** torch.tensor(lengths).double().unsqueeze(1) * rows


@each_case()
@settings(max_examples=15)
@given(data=st.data())
def test_whatever_the_gradients(case, data) -> None:
    """Finite, and feasible and stationary where that is promised, on Jacobians found by search."""
    m = data.draw(st.sampled_from([m for m in case.tasks if m <= 8]))
    jacobian, losses = data.draw(jacobians(m)), moment("independent", m).losses
    now = Moment(jacobian, losses, (Moment(jacobian.flip(-1), losses),) * 2, losses)
    running = run(case, m)
    (result,) = walk(running, [now])
    assert result.direction.isfinite().all()
    if running.method.traits.feasible:
        assert (jacobian @ result.direction >= -slack(jacobian, result, torch.float64)).all()


# Dtype ----------------------------------------------------------------------------------------


@each_case(where=is_weighting)
def test_weights_come_in_the_precision_of_the_losses(case) -> None:
    m = few(case)
    for dtype in (torch.float32, torch.float64):
        for result in walk(run(case, m), path("independent", m, 4, dtype)):
            assert result.weights.dtype == dtype


# Needs: what a method declares to look at is what it looks at ---------------------------------


class Witness(Matrices):
    """Gradients that note what is asked of them."""

    def __init__(self, jacobian: Tensor) -> None:
        super().__init__(jacobian, jacobian @ jacobian.mT)
        self.asked: set[str] = set()

    def jacobian(self, place: Place) -> Tensor:
        self.asked.add("jacobian")
        return super().jacobian(place)

    def gramian(self, place: Place) -> Tensor:
        self.asked.add("gramian")
        return super().gramian(place)

    def norms(self, place: Place) -> Tensor:
        self.asked.add("norms")
        return norms(Matrices.gramian(self, place))

    def product(self, place: Place, weights: Tensor) -> Tensor:
        self.asked.add("product")
        return times(Matrices.gramian(self, place), weights)


@each_case()
def test_needs(case) -> None:
    """In every call at most what it said that it would need, and in some call all of it."""
    m = few(case)
    running = run(case, m)
    method = running.method
    asked: set[str] = set()
    for step, now in enumerate(path("conflicting", m, 4)):
        parts = [now, *now.further[: method.traits.batches - 1]]
        sources = [Witness(part.jacobian) for part in parts]
        tasks, clock = NAMES[:m], SpyClock.at(step)
        first, *others = (
            TaskGradients(source, part.losses, tasks=tasks, clock=clock)
            for source, part in zip(sources, parts, strict=True)
        )
        g = TaskGradients(sources[0], first.losses, tasks=tasks, clock=clock, samples=others)
        said = method.needs(running.state, clock)
        assert dearest(said, method.traits.needs) == method.traits.needs
        running(g)
        follow(running, g, now.after)
        asked_now = set().union(*(source.asked for source in sources))
        if asked_now:
            assert dearest(said, *asked_now) == said, step
        asked |= asked_now
    if method.traits.needs in ("nothing", "losses"):
        assert not asked
    else:
        assert dearest(*asked) == method.traits.needs


# Stack: independent networks along leading dimensions -----------------------------------------


@each_case()
@pytest.mark.parametrize("lead", [(3,), (2, 2)], ids=str)
def test_stack(case, lead) -> None:
    m = few(case)
    members = 3 if lead == (3,) else 4
    kinds = list(REGULAR)
    singles = [
        [moment(kinds[(k + step) % len(kinds)], m, seed=10 * k + step) for step in range(4)]
        for k in range(members)
    ]
    apart = [walk(ensemble(case, m, ()), path, stream=k) for k, path in enumerate(singles)]
    together = ensemble(case, m, lead)
    moments = [stacked(now) for now in zip(*singles, strict=True)]
    moments = [
        now.map(lambda j: j.reshape(*lead, *j.shape[1:]), lambda x: x.reshape(*lead, m))
        for now in moments
    ]
    found = walk(together, moments[:2])
    resumed = ensemble(case, m, lead)
    resumed.load_state_dict(together.state_dict())
    found += walk(resumed, moments[2:], steps=[2, 3])
    for step, result in enumerate(found):
        direction = result.direction.reshape(members, -1)
        for k in range(members):
            one = apart[k][step]
            assert far(direction[k], one.direction, one.size) <= 1e-9, f"member {k}, step {step}"
            if one.weights is not None:
                weights = result.weights.expand(*lead, m).reshape(members, m)[k]
                assert far(weights, one.weights, one.weights.norm()) <= 1e-9, f"{k}, step {step}"


def ensemble(case: Case, m: int, lead: tuple[int, ...]) -> Running:
    """The method for a stack of networks: learned weights have the shape of the stack."""
    running = run(case, m)
    running.held.expand(torch.Size(lead))
    return running


# History: whoever holds the state decides when the next one takes its place --------------------


def state(module: nn.Module) -> dict[str, Any]:
    return copy.deepcopy(dict(module.state_dict()))


@each_case()
def test_looking_changes_nothing(case) -> None:
    """A method's answer follows from its arguments, and no call writes to them."""
    m = few(case)
    running = run(case, m)
    walk(running, path("independent", m, 3))
    method, before = running.method, state(running)
    now = moment("conflicting", m)
    kept, stream = copy.deepcopy(now), torch.get_rng_state()
    g = now.view(NAMES[:m], None, SpyClock.at(3), method.traits.batches)
    first, second = (method.advance(g, running.state) for _ in range(2))
    assert same([first.value, first.state], [second.value, second.state])
    for following in (first.state, second.state):
        learned = [method.learn(g, running.state).values() for _ in range(2)]
        assert same(*map(list, learned))
        losses = TaskGradients.of(losses=now.after, tasks=NAMES[:m])
        method.after(losses, following)
    assert same([first.value, first.state], [second.value, second.state])
    assert same(state(running), before)
    assert same([now.jacobian, now.losses], [kept.jacobian, kept.losses])
    assert torch.equal(torch.get_rng_state(), stream)


@each_case()
def test_a_call_by_itself_is_a_first_call(case) -> None:
    m = few(case)
    running = run(case, m)
    g = moment("conflicting", m).view(NAMES[:m], None, SpyClock.at(0), 3)
    assert torch.equal(running.method(g), running(g))
    running.reset()
    assert same(state(running), state(run(case, m)))


# Subset: missing tasks ------------------------------------------------------------------------

COUPLED: Mapping[type[Method], str] = {
    eh.Every: "its period counts calls, whoever speaks in them",
    eh.GradNorm: "all M weights are brought to the sum M, and the next step has a fixed length",
}
"""Methods for which other tasks' calls make a difference, and why."""


def subsets(case: Case) -> list[tuple[int, int]]:
    """(all tasks M, how many of them speak): a few that the case allows."""
    return [(m, k) for m, k in ((5, 3), (3, 2), (8, 3)) if {m, k} <= {*case.tasks, 5}]


def of_some(*, of=lambda case: True, where=lambda method: True):
    """Parametrise by case, number of tasks and how many of them speak."""
    rows = [(c, m, k) for c in CASES if of(c) for m, k in subsets(c) if where(made(c, m))]
    return pytest.mark.parametrize(
        ("case", "m", "k"), rows, ids=[f"{case.name}-{k}-of-{m}" for case, m, k in rows]
    )


@of_some()
def test_the_state_of_absent_tasks_is_untouched(case, m, k) -> None:
    running = run(case, m)
    walk(running, path("independent", m, 3))
    present, absent = list(range(k)), list(range(k, m))
    before = state(running)
    learned = list(running.parameters())
    weights = torch.stack([p.detach() for p in learned]) if learned else torch.ones(m)
    now = moment("conflicting", m).take(present)
    g = now.view(NAMES[:m], present, SpyClock.at(3), running.method.traits.batches)
    running(g)
    for i, scalar in enumerate(learned):
        assert (scalar.grad is not None) == (i in present)
    follow(running, g, now.after)
    for name, value in running.state_dict().items():
        if value.ndim and value.shape[-1] == m:
            assert same(value[..., absent], before[name][..., absent]), name
    if learned:  # a normalisation of all weights may rescale them
        after = torch.stack([p.detach() for p in learned])
        ratios = after[absent] / weights[absent]
        assert far(ratios, ratios[:1].expand_as(ratios), ratios.norm()) <= 1e-6


@of_some(where=lambda method: not any(type(part) in COUPLED for part in method.modules()))
def test_calls_without_a_task_do_not_change_what_it_gets(case, m, k) -> None:
    """Groups that take turns: each goes on as if the others' calls had not been."""
    one, other = _in_turns(case, m, k)
    for alone, mixed in zip(one, other, strict=True):
        assert turned(alone, mixed) <= 1e-7


@pytest.mark.parametrize("kind", COUPLED)
def test_exceptions_to_the_law_of_turns_are_needed(kind) -> None:
    for case in CASES:
        if kind in map(type, made(case, few(case)).modules()):
            results = zip(*_in_turns(case, 5, 3), strict=True)
            assert max(turned(alone, mixed) for alone, mixed in results) > 1e-7


def _in_turns(case: Case, m: int, k: int) -> tuple[list[Result], list[Result]]:
    """What the first k tasks get in calls of their own: without and with others' calls between."""
    some, others = list(range(k)), list(range(k, m))
    if len(others) not in case.tasks:
        others = others[: max(n for n in case.tasks if n <= len(others))]
    turns = path("independent", m, 5)
    own = [now.take(some) for now in turns[::2]]
    alone = walk(run(case, m), own, speaking=[some] * 3, steps=[0, 2, 4])
    who = [some, others, some, others, some]
    moments = [now.take(speaking) for now, speaking in zip(turns, who, strict=True)]
    return alone, walk(run(case, m), moments, speaking=who)[::2]


@of_some(of=lambda case: case.name not in DRAWING, where=is_homogeneous)
def test_a_first_call_of_some_tasks_is_that_of_a_method_for_them_alone(case, m, k) -> None:
    """Up to a factor: normalisations are over all tasks."""
    some = list(range(k))
    for kind in REGULAR:
        now = moment(kind, m).take(some)
        (part,) = walk(run(case, m), [now], speaking=[some])
        (alone,) = walk(run(case, k), [now])
        assert turned(part, alone) <= noise([now]), kind


# The same laws on a network -------------------------------------------------------------------


class Rig:
    """A small network and a balancer with the case's method in a slot, trained by hand.

    On batch 1 the last task has no labels, where the case can do with one task less.
    """

    def __init__(self, case: Case, slot: str = "aggregator", *, at: Any = None) -> None:
        torch.manual_seed(0)
        self.tasks, self.sizes = NAMES[: few(case)], case.tasks
        self.network = small_network(self.tasks)
        self.method = made(case, self.tasks)
        if at is not None:
            put_at(self.method, at)
        self.running = Running(self.method, self.tasks)
        self.balancer = Balancer(**{slot: self.method}, model=self.network, tasks=self.tasks)
        parameters = [*self.network.parameters(), *self.balancer.parameters()]
        self.optimizer = OPTIMIZERS["sgd"](parameters)

    def speaking(self, batch: int) -> tuple[str, ...]:
        fewer = batch % 100 == 1 and len(self.tasks) - 1 in self.sizes
        return self.tasks[:-1] if fewer else self.tasks

    def forward(self, batch: int) -> tuple[Any, dict[str, Tensor]]:
        outputs = self.network(inputs(batch), tasks=self.speaking(batch))
        return outputs.features, losses_of(outputs, batch)

    def samples(self, batch: int) -> list[dict[str, Tensor]]:
        further = range(1, self.method.traits.batches)
        return [self.forward(100 * k + batch)[1] for k in further]

    def backward(self, batch: int, **options: Any) -> eh.Balance:
        features, losses = self.forward(batch)
        self.network.zero_grad()
        clock = SpyClock.at(batch)
        options = {"features": features, "samples": self.samples(batch), "clock": clock} | options
        return self.balancer.backward(losses, **options)

    def step(self, batch: int) -> None:
        self.backward(batch)
        self.optimizer.step()
        self.balancer.zero_grad()
        self.look_back(batch)

    def look_back(self, batch: int) -> None:
        """The losses after the update, for a method that wants them."""
        if self.method.traits.after:
            with torch.no_grad():
                self.balancer.updated(self.forward(batch)[1], SpyClock.at(batch))

    @property
    def trunk(self) -> list[nn.Parameter]:
        return list(self.network.trunk.parameters())

    def state_dict(self) -> dict[str, Any]:
        parts = {"network": self.network, "balancer": self.balancer, "optimizer": self.optimizer}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.balancer.load_state_dict(state["balancer"])
        self.optimizer.load_state_dict(state["optimizer"])


def put_at(method: Method, at: Place) -> None:
    """Let a method, and whatever it wraps, look elsewhere."""
    for part in method.modules():
        if isinstance(part, Method):
            part.at = at


def places(method: Method) -> list[str]:
    """Where the laws let a method look."""
    if not method.traits.reads_gradients or isinstance(method, Aggregator):
        return ["as made"]
    sampled = ["representation"] if method.traits.batches == 1 else []
    return ["parameters", "last_layer", "callable", *sampled]


def place_of(name: str, network: MultiTaskNetwork) -> Place | None:
    if name == "callable":
        return lambda shared: network.trunk[0].parameters()
    return None if name == "as made" else name


PLACED = [(case, at) for case in CASES for at in places(made(case, few(case)))]


# Span: what the balancer does on a network is the textbook's vector form ----------------------


WAYS = ("features", "plain", "found by features", "found", "named")
"""How a call may learn what is shared, and whether it goes through the features."""


@pytest.mark.parametrize(("case", "at"), PLACED, ids=[f"{c.name}-{at}" for c, at in PLACED])
def test_every_way_to_the_update_is_the_textbooks(case, at) -> None:
    """With features or without, sharing known, found or named: Σ w_i g_i of plain gradients."""
    last_layer = "last_layer" in (at, made(case, few(case)).at)
    for way in WAYS:
        if at == "representation" and "features" not in way:
            continue
        if last_layer and way not in ("features", "plain"):
            continue  # a MultiTaskNetwork alone tells which layer that is
        _is_the_textbooks(case, at, way)


def _is_the_textbooks(case: Case, at: str, way: str) -> None:
    rig, book = Rig(case), Rig(case)
    for each in (rig, book):
        place = place_of(at, each.network)
        if place is not None:
            put_at(each.method, place)
    if way not in ("features", "plain"):
        rig.balancer = Balancer(aggregator=rig.method, tasks=rig.tasks)
    for step in range(3):
        options: dict[str, Any] = {} if "features" in way else {"features": None}
        if way == "named":
            options["shared"] = rig.trunk
        rig.backward(step, **options)
        expected, after = _textbook(book, step)
        # Found in a graph, the coordinates come in another order, and chance with them.
        if isinstance(rig.method, Weighting) or not way.startswith("found"):
            size = expected.norm() + 1e-12
            assert far(flat_grad(rig.trunk), expected, size) <= 1e-8, f"{way}, step {step}"
        heads = [*rig.network.heads.parameters()]
        plain = plain_jacobian([sum(rig.forward(step)[1].values())], heads)[0]
        assert far(flat_grad(heads), plain, plain.norm()) <= 1e-12, f"{way}, step {step}"
        small_step(rig.balancer)
        if rig.method.traits.after:
            rig.balancer.updated(after, SpyClock.at(step))


def _textbook(
    book: Rig, step: int, factors: Mapping[str, float] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The trunk's direction from plain gradients and the method alone, and losses afterwards.

    With `factors` the losses are multiplied by them first.
    """
    at, tasks = book.method.at, book.speaking(step)
    by = torch.tensor([1.0 if factors is None else factors[t] for t in tasks]).double()

    def view(features: Tensor, losses: dict[str, Tensor], further: Sequence[TaskGradients]):
        places = {
            "parameters": book.trunk,
            "representation": [features],
            "last_layer": list(book.network.blocks().last_layer),
        }
        targets = list(at(tuple(book.trunk))) if callable(at) else places[at]
        return TaskGradients.of(
            jacobian=by.unsqueeze(1) * plain_jacobian(losses.values(), targets),
            losses=by * torch.stack([loss.detach() for loss in losses.values()]),
            tasks=tasks,
            index=torch.arange(len(tasks)),
            total=len(book.tasks),
            clock=SpyClock.at(step),
            samples=further,
        )

    features, losses = book.forward(step)
    g = view(features, losses, [view(features, s, ()) for s in book.samples(step)])
    found = book.running(g)
    jacobian = by.unsqueeze(1) * plain_jacobian(losses.values(), book.trunk)
    direction = found @ jacobian if isinstance(book.method, Weighting) else found
    after = 0.9 * g.losses * positive(len(tasks), step)
    follow(book.running, g, after)
    return direction, dict(zip(tasks, after, strict=True))


@each_case()
def test_the_aggregator_sees_the_weighted_problem(case) -> None:
    """Losses c ∘ L and the Jacobian diag(c) J; each head gets its own weighted gradient."""
    rig, book = Rig(case), Rig(case)
    factors = {task: 0.25 + 2 * i for i, task in enumerate(rig.tasks)}
    rig.balancer = Balancer(eh.Fixed(factors), rig.method, tasks=rig.tasks, model=rig.network)
    for step in range(3):
        rig.backward(step)
        expected, after = _textbook(book, step, factors)
        assert far(flat_grad(rig.trunk), expected, expected.norm() + 1e-12) <= 1e-8
        for task, loss in rig.forward(step)[1].items():
            head = [*rig.network.head(task).parameters()]
            plain = factors[task] * plain_jacobian([loss], head)[0]
            assert far(flat_grad(head), plain, plain.norm()) <= 1e-12
        small_step(rig.balancer)
        if rig.method.traits.after:  # what a balancer tells is weighted again
            raw = {task: loss / factors[task] for task, loss in after.items()}
            rig.balancer.updated(raw, SpyClock.at(step))


# Slot: the same trunk update in either slot, heads differ by exactly w ------------------------


@each_case(where=is_weighting)
def test_slot(case) -> None:
    in_both, in_trunk = Rig(case, "weighting"), Rig(case, "aggregator")
    for step in range(3):
        one, other = in_both.backward(step), in_trunk.backward(step)
        assert torch.equal(one.trunk_weights, other.trunk_weights)
        assert torch.equal(one.weights, one.trunk_weights)
        assert torch.equal(other.weights, torch.ones_like(other.weights))
        trunk, again = (flat_grad(rig.trunk) for rig in (in_both, in_trunk))
        assert far(trunk, again, trunk.norm()) <= 1e-10
        for task, weight in zip(one.tasks, one.weights, strict=True):
            scaled, plain = (
                flat_grad(rig.network.head(task).parameters()) for rig in (in_both, in_trunk)
            )
            assert far(scaled, weight * plain, plain.norm()) <= 1e-12 * max(1.0, float(weight))
        for rig in (in_both, in_trunk):
            small_step(rig.balancer)
            rig.look_back(step)


# History, on a network ------------------------------------------------------------------------


SPOILED = [
    (case, where)
    for case in CASES
    for where in ("loss", "gradient", "sample")
    if where != "sample" or made(case, few(case)).traits.batches > 1
]


@pytest.mark.parametrize(("case", "where"), SPOILED, ids=[f"{c.name}-{w}" for c, w in SPOILED])
def test_a_step_that_is_not_finite_leaves_no_trace(case, where) -> None:
    rig = Rig(case)
    for step in range(2):
        rig.step(step)
    rig.backward(2)
    rig.look_back(2)
    before, grads = state(rig.balancer), flat_grad(rig.network.parameters())
    outputs = rig.network(inputs(3))
    losses, samples = losses_of(outputs, 3), rig.samples(3)
    bad = rig.tasks[-1]
    root = (outputs[bad] - outputs[bad].detach()).abs().sqrt().sum()  # 0, of infinite slope
    match where:
        case "loss":
            losses[bad] = losses[bad] + torch.nan
        case "gradient":
            losses[bad] = losses[bad] + root
        case "sample":
            samples[0][bad] = samples[0][bad] + root
    with pytest.raises(NonFiniteError, match=f"'{bad}'") as caught:
        rig.balancer.backward(losses, samples=samples, clock=SpyClock.at(3))
    assert caught.value.tasks == (bad,)
    assert same(state(rig.balancer), before)
    assert torch.equal(flat_grad(rig.network.parameters()), grads)
    rig.step(3)


@each_slot()
def test_phases_without_the_trunk(case, slot) -> None:
    """A method that reads gradients waits, in either slot; one that reads losses goes on."""
    rig, joint = Rig(case, slot), Rig(case, slot)
    own = Phase(rig.tasks, trains=("own",))
    for step in range(2):
        for each in (rig, joint):
            each.step(step)
    before = state(rig.balancer.states)
    for step in (2, 3):
        with frozen(rig.network, own):
            balance = rig.backward(step, phase=own)
        together = joint.backward(step)
        for each in (rig, joint):
            each.look_back(step)
        assert all(p.grad is None for p in rig.trunk)
        assert balance.trunk_weights is None
        if rig.method.traits.reads_gradients:
            assert all(p.grad is None for p in rig.balancer.parameters())
            if slot == "weighting":
                last = rig.balancer.last_weights
                assert far(balance.weights, last, last.norm()) == 0
        else:
            assert far(balance.weights, together.weights, together.weights.norm()) <= 1e-12
            grads = [[p.grad for p in each.balancer.parameters()] for each in (rig, joint)]
            assert same(*grads)
            assert same(state(rig.balancer.states), state(joint.balancer.states))
    if rig.method.traits.reads_gradients:
        assert same(state(rig.balancer.states), before)


# Devices --------------------------------------------------------------------------------------


@each_slot()
def test_it_does_not_matter_where_torch_makes_tensors_by_default(case, slot) -> None:
    """What a method makes it makes on the CPU or beside its gradients, and says so."""
    usual, other = Rig(case, slot), Rig(case, slot)
    for step in range(2):
        usual.step(step)
        with torch.device("meta"):  # tensors without numbers, which cannot be mixed with others
            other.step(step)
    assert same(other.state_dict(), usual.state_dict())


# Resume ---------------------------------------------------------------------------------------


@each_slot()
def test_resume(case, slot, tmp_path) -> None:
    """k + k steps through a file are 2k steps, bit for bit."""
    through, first, second = (Rig(case, slot) for _ in range(3))
    for step in range(6):
        through.step(step)
    for step in range(3):
        first.step(step)
    checkpoint.save(first.state_dict(), tmp_path / "state")
    second.load_state_dict(checkpoint.load(tmp_path / "state"))
    assert same(second.state_dict(), first.state_dict())
    for step in range(3, 6):
        second.step(step)
    assert same(second.state_dict(), through.state_dict())


# The same laws on whole trainings -------------------------------------------------------------


def trained(
    case: Case,
    schedule: str,
    at: str,
    optimizer: str,
    *,
    slot: str = "aggregator",
    **options: Any,
) -> Training:
    """Two epochs of a small problem, with the weights of the last one."""
    problem = in_double()
    torch.manual_seed(0)
    network = problem.network(tuple(problem.tasks))
    plan = SCHEDULES[schedule]()
    balancer = Balancer(**{slot: placed(case, at, network)}, tasks=tuple(problem.tasks))
    optimizers = Optimizers(
        network.blocks(),
        lambda groups: OPTIMIZERS[optimizer](groups),
        learned=balancer.parameters(),
        groups=len(plan.groups(3)),
    )
    run = Training(problem, network, optimizers, balancer, plan, epochs=2, **options)
    for _, record in zip(range(3), run.run(), strict=False):  # at its end the best would return
        assert all(math.isfinite(loss) for loss in record.validation.values())
    return run


def placed(case: Case, at: str, network: MultiTaskNetwork) -> Weighting | Aggregator:
    method = case.make(("a", "b", "c"))
    place = place_of(at, network)
    if place is not None:
        put_at(method, place)
    return method


def fits(case: Case, schedule: str, at: str) -> bool:
    """Whether the case serves as many tasks as speak in the schedule's phases, and looks there."""
    method = case.make(("a", "b", "c")) if 3 in case.tasks else None
    if method is None or at not in places(method):
        return False
    phases = [SCHEDULES[schedule]()(Clock(epoch), ("a", "b", "c")) for epoch in range(2)]
    return {len(phase.tasks) for step in phases for phase in step} <= set(case.tasks)


FOUNDATION = ("equal", "fixed", "mgda")
PLACES = ("as made", "parameters", "representation", "last_layer", "callable")
BY_NAME = {case.name: case for case in CASES}


def products(*further: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The full product for the foundation; beyond, every pair meets (method × …, … × …)."""
    factors = (list(SCHEDULES), PLACES, list(OPTIMIZERS), *further)
    full = list(product(FOUNDATION, *factors))
    others = [name for name in BY_NAME if name not in FOUNDATION]
    rows = [*full, *pairwise(others, *factors)]
    return [row for row in rows if fits(BY_NAME[row[0]], row[1], row[2])]


def named(rows: Sequence[tuple[Any, ...]]) -> list[str]:
    return ["-".join(map(str, row)) for row in rows]


TWINS = [
    row
    for row in products(["weighting", "aggregator"])
    if not isinstance(m := BY_NAME[row[0]].make(("a", "b", "c")), Aggregator)
    or row[4] != "weighting"
    if m.traits.batches == 1 and not m.traits.learned and not m.traits.after
]


@pytest.mark.parametrize(("name", "schedule", "at", "optimizer", "slot"), TWINS, ids=named(TWINS))
def test_training_is_its_plain_twin(name, schedule, at, optimizer, slot) -> None:
    """Features, frozen parts, shared passes: nothing that makes a step cheap changes it."""
    case = BY_NAME[name]
    run = trained(case, schedule, at, optimizer, slot=slot)
    problem = in_double()
    torch.manual_seed(0)
    network = problem.network(tuple(problem.tasks))
    slots = {"weighting": None, "aggregator": None, slot: placed(case, at, network)}
    twin = PlainTraining(
        problem, network, **slots, schedule=SCHEDULES[schedule](), optimizer=OPTIMIZERS[optimizer]
    )
    twin.run(epochs=2)
    for (key, one), other in zip(
        run.network.state_dict().items(), network.state_dict().values(), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-9), key


# Frozen: what a phase does not move does not move -----------------------------------------------


class Watched(NetworkStepper):
    """A stepper that looks, before and after each phase, at what is to rest in it."""

    moved = 0

    def update(self, turn: Turn, statistics: EpochStatistics) -> None:
        phase = turn.phase
        before = self._resting_state(phase)
        trunk = snapshot(self.network.trunk.state_dict())
        super().update(turn, statistics)
        assert same(self._resting_state(phase), before)
        moved = not same(self.network.trunk.state_dict(), trunk)
        assert moved <= ("shared" in phase.trains)
        Watched.moved += moved

    def _resting_state(self, phase: Phase) -> Any:
        blocks = self.network.blocks()
        moving = set(blocks.training(phase))
        parts = [self.network.head(t) for t in self.tasks if t not in phase.tasks]
        if "own" not in phase.trains:
            parts = list(self.network.heads)
        if "shared" not in phase.trains:
            parts.append(self.network.trunk)
        optimizers = self.optimizers.named()
        still = [k for k in optimizers if k.startswith("shared.") and k != f"shared.{phase.group}"]
        moments = {
            name: [snapshot(optimizer.state[p]) for p in blocks.all if p in optimizer.state]
            for name, optimizer in optimizers.items()
            if name in still
        }
        moments["frozen"] = [
            snapshot(optimizer.state[p])
            for optimizer in optimizers.values()
            for p in blocks.all
            if p in optimizer.state and p not in moving
        ]
        return [snapshot(part.state_dict()) for part in parts], moments


RESTS = products(["eval", "train"])


@pytest.mark.parametrize(("name", "schedule", "at", "optimizer", "mode"), RESTS, ids=named(RESTS))
def test_rest(name, schedule, at, optimizer, mode, monkeypatch) -> None:
    """Parameters, buffers and moments, bit for bit."""
    Watched.moved = 0
    monkeypatch.setattr(loop, "NetworkStepper", Watched)
    trained(BY_NAME[name], schedule, at, optimizer, frozen=mode)
    assert Watched.moved


def test_looking_back_moves_no_statistics() -> None:
    """A method that wants the losses after the update gets them from a pass without a trace."""
    run = trained(BY_NAME["famo"], "jointly", "as made", "sgd")
    counts = [m.num_batches_tracked for m in run.network.modules() if hasattr(m, "running_mean")]
    assert [int(count) for count in counts] == [run.step] * len(counts) != []


# Every recipe on every small problem ----------------------------------------------------------


GOALS = (relative, total)
"""What a recipe may have in mind: every loss on its own scale, or their sum."""


SLOWER = {"cross-stitch": 1 / 3}
"""Its units multiply what the layers say, so a rate that suits one network is too large for it."""


def recipe_runs() -> list[tuple[str, str]]:
    return [(entry.name, name) for entry in RECIPES for name in PROBLEMS]


def runs_of(name: str, problem: Any, epochs: int) -> Iterator[Training]:
    """The trainings of a recipe: the first and the last, where it composes many."""
    (entry,) = (entry for entry in RECIPES if entry.name == name)
    labels = list(entry.compose(tuple(problem.tasks)))
    for label in dict.fromkeys((labels[0], labels[-1])):
        rate = 0.03 * SLOWER.get(name, 1.0)
        yield training(Job(name, label, 0, rate), problem, Settings("-", epochs=epochs))


@pytest.mark.parametrize(("name", "small"), recipe_runs())
def test_every_recipe_trains(name, small) -> None:
    for run in runs_of(name, PROBLEMS[small](), 6):
        records = list(run.run())
        assert all(math.isfinite(v) for r in records for v in r.validation.values())
        start = records[0]
        assert any(monitor(r, start) < monitor(start, start) for r in records for monitor in GOALS)


@pytest.mark.parametrize(("name", "small"), recipe_runs())
def test_every_recipe_resumes(name, small, tmp_path) -> None:
    problem = PROBLEMS[small]()
    runs = zip(*(runs_of(name, problem, n) for n in (3, 1, 3)), strict=True)
    for number, (whole, part, rest) in enumerate(runs):
        records = [_timeless(record) for record in whole.run()]
        folder = tmp_path / str(number)
        folder.mkdir()
        list(part.run(folder, checkpoint_every=1))
        resumed = [_timeless(record) for record in rest.run(folder, checkpoint_every=1)]
        assert resumed == records
        assert same(rest.state_dict(), whole.state_dict())


def _timeless(record: Record) -> str:
    return replace(record, seconds=0.0).to_json()
