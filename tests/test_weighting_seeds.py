"""Learned weights against autograd, per-task histories, normalisation, and weightings per block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from evenhand import (
    FAMO,
    MGDA,
    Balancer,
    CentralDirection,
    Equal,
    Fixed,
    GradNorm,
    MultiTaskNetwork,
    NonFiniteError,
    Normalized,
    PerBlock,
    Phase,
    Running,
    TaskGradients,
    Tension,
    Uncertainty,
    Weighting,
)
from evenhand.ensemble.network import Stack
from evenhand.recipes import grid, recipe
from samplers import flat_grad, inputs, losses_of, plain_jacobian, same, small_network, snapshot

TASKS = ("a", "b", "c")


def given(
    jacobian: Tensor, losses: Tensor | None = None, tasks: Sequence[str] = TASKS
) -> TaskGradients:
    """A view of numbers in which some of TASKS speak."""
    index = torch.tensor([TASKS.index(task) for task in tasks])
    return TaskGradients.of(
        jacobian=jacobian, losses=losses, tasks=tasks, index=index, total=len(TASKS)
    )


def random_rows(m: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(m, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_losses(m: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


def bound(method: Weighting) -> Running:
    return Running(method, TASKS).double()


def forward(network: MultiTaskNetwork, batch: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    outputs = network(inputs(batch))
    return losses_of(outputs, batch), outputs.features


# Uncertainty ----------------------------------------------------------------------------------

KINDS = {"a": "regression", "b": "classification", "c": "regression"}


@pytest.mark.parametrize("kind", ["regression", "classification", KINDS], ids=str)
def test_uncertainty_equals_the_differentiated_objective(kind: str | Mapping[str, str]) -> None:
    losses = random_losses()
    weighting = bound(Uncertainty(kind))
    s = torch.tensor([-1.5, 0.0, 2.0], dtype=torch.float64)
    for scalar, value in zip(weighting.parameters(), s, strict=True):
        scalar.data.copy_(value)
    kinds = kind if isinstance(kind, Mapping) else dict.fromkeys(TASKS, kind)
    s.requires_grad_(True)
    terms = {
        "regression": losses / (2 * s.exp()) + s.exp().sqrt().log(),  # L / 2σ² + log σ
        "classification": losses / s.exp() + s.exp().sqrt().log(),  # L / σ² + log σ
    }
    sum(terms[kinds[task]][i] for i, task in enumerate(TASKS)).backward()
    g = TaskGradients.of(losses=losses, tasks=TASKS)
    weighting(g)
    learned = torch.stack([scalar.grad for scalar in weighting.parameters()])
    torch.testing.assert_close(learned, s.grad, rtol=0, atol=1e-12)
    factor = torch.tensor([0.5 if kinds[task] == "regression" else 1.0 for task in TASKS])
    torch.testing.assert_close(weighting(g), factor * (-s.detach()).exp())


def test_uncertainty_equals_torchjd() -> None:
    from torchjd.scalarization import UW

    oracle, weighting = UW(3).double(), bound(Uncertainty("regression"))
    ours = torch.optim.Adam(weighting.parameters(), lr=0.1)
    theirs = torch.optim.Adam(oracle.parameters(), lr=0.1)
    for step in range(20):
        losses = random_losses(seed=step).requires_grad_(True)
        ours.zero_grad()
        theirs.zero_grad()
        oracle(losses).backward()
        g = TaskGradients.of(losses=losses.detach(), tasks=TASKS)
        torch.testing.assert_close(weighting(g), losses.grad, rtol=0, atol=1e-12)
        ours.step()
        theirs.step()


def test_uncertainty_draws_each_weighted_loss_to_one_half() -> None:
    losses = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)
    g = TaskGradients.of(losses=losses, tasks=TASKS)
    for kind in ("regression", "classification"):
        weighting = bound(Uncertainty(kind))
        optimizer = torch.optim.SGD(weighting.parameters(), lr=0.1)
        for _ in range(500):
            optimizer.zero_grad()
            weighting(g)
            optimizer.step()
        torch.testing.assert_close(
            weighting(g) * losses, torch.full((3,), 0.5).double(), rtol=0, atol=1e-2
        )


def test_uncertainty_wants_a_kind_for_each_task() -> None:
    with pytest.raises(ValueError, match="kind='poisson': must be one of 'regression'"):
        Uncertainty("poisson")
    with pytest.raises(ValueError, match=r"kinds are given for a, but the tasks are a, b"):
        Uncertainty({"a": "regression"}).require(["a", "b"])


# GradNorm -------------------------------------------------------------------------------------


def objective(
    weights: Tensor, losses: Sequence[Tensor], first: Tensor, layer: Sequence[Tensor], alpha: float
) -> Tensor:
    """Σ |G_i − Ḡ r_i^α| as a graph over `weights`, its target constant."""
    norms = []
    for weight, loss in zip(weights, losses, strict=True):
        row = torch.autograd.grad(weight * loss, layer, create_graph=True)
        norms.append(torch.cat([g.reshape(-1) for g in row]).norm())
    values = torch.stack(norms)
    progress = torch.stack([loss.detach() for loss in losses]) / first
    target = values.mean() * (progress / progress.mean()) ** alpha
    return (values - target.detach()).abs().sum()


@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
@pytest.mark.parametrize("speaking", [TASKS, ("a", "c")], ids="-".join)
def test_gradnorm_equals_double_backward(alpha: float, speaking: tuple[str, ...]) -> None:
    """After some steps with other batches, so that L(0), the weights and the losses differ."""
    network = small_network(TASKS)
    gradnorm = GradNorm(alpha)
    balancer = Balancer(weighting=gradnorm, tasks=TASKS, model=network).double()
    optimizer = torch.optim.SGD([*network.parameters(), *balancer.parameters()], lr=0.02)
    for batch in range(3):
        losses, z = forward(network, batch)
        if batch == 0:
            first = torch.stack([loss.detach() for loss in losses.values()])
        optimizer.zero_grad()
        balancer.backward(losses, features=z)
        optimizer.step()
    optimizer.zero_grad()
    losses, z = forward(network, 3)
    losses = {task: losses[task] for task in speaking}
    raw = torch.stack([scalar.detach() for scalar in balancer.parameters()])
    normalised = 3 * raw / raw.sum()
    assert normalised.min() > 0
    assert (normalised - 1).abs().max() > 1e-3
    chosen = torch.tensor([TASKS.index(task) for task in speaking])
    weights = normalised[chosen].requires_grad_(True)
    layer = list(network.trunk[-2].parameters())
    criterion = objective(weights, list(losses.values()), first[chosen], layer, alpha)
    (expected,) = torch.autograd.grad(criterion, weights, retain_graph=True)
    balance = balancer.backward(losses, features=z)
    torch.testing.assert_close(balance.weights, weights.detach(), rtol=0, atol=1e-12)
    grads = [scalar.grad for scalar in balancer.parameters()]
    spoken = torch.stack([grads[TASKS.index(task)] for task in speaking])
    torch.testing.assert_close(spoken, expected, rtol=1e-10, atol=1e-12)
    absent = set(TASKS) - set(speaking)
    assert all(grads[TASKS.index(task)] is None for task in absent)


@pytest.mark.parametrize(
    ("alpha", "signs"), [(0, [-1, 1]), (0.12, [-1, 1]), (1, [-1, 1]), (1.5, [1, -1]), (3, [1, -1])]
)
def test_alpha_decides_how_much_a_slow_task_gains(alpha: float, signs: list[float]) -> None:
    """G = (1, 2) with the mean 1.5, and r = (0.7, 1.3)."""
    gradnorm = Running(GradNorm(alpha), ["a", "b"])
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    for losses in ([10.0, 1.0], [7.0, 1.3]):
        gradnorm.zero_grad()
        g = TaskGradients.of(jacobian=rows, losses=torch.tensor(losses), tasks=["a", "b"])
        gradnorm(g)
    learned = [float(scalar.grad) for scalar in gradnorm.parameters()]
    assert learned == [signs[0] * 1.0, signs[1] * 2.0]


def test_gradnorm_looks_at_the_last_shared_layer_or_where_it_is_told() -> None:
    network = small_network(TASKS)
    losses, z = forward(network)
    first, last = network.trunk[0], network.trunk[-2]
    for at, layer in (("last_layer", last), (lambda shared: first.parameters(), first)):
        gradnorm = GradNorm(at=at)
        balancer = Balancer(weighting=gradnorm, tasks=TASKS, model=network).double()
        balancer.backward(losses, features=z, retain_graph=True)
        norms = plain_jacobian(losses.values(), layer.parameters()).norm(dim=1)
        signs = (norms - norms.mean()).sign()
        learned = torch.stack([scalar.grad for scalar in balancer.parameters()])
        torch.testing.assert_close(learned, signs * norms)


def test_gradnorm_asks_for_the_layer_of_an_unknown_model() -> None:
    network = small_network(TASKS)
    losses, _ = forward(network)
    with pytest.raises(ValueError, match="the last shared layer of this model is not known"):
        Balancer(weighting=GradNorm(), tasks=TASKS).backward(losses)


def test_gradnorm_weights_sum_to_the_number_of_tasks_after_every_step() -> None:
    """Also where the optimizer pushes a weight below zero; the gradient brings it back."""
    gradnorm = bound(GradNorm())
    rows = random_rows() * torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)[:, None]
    optimizer = torch.optim.SGD(gradnorm.parameters(), lr=0.1)
    seen, slopes = [], []
    for _ in range(3):
        g = given(rows, random_losses())
        optimizer.zero_grad()
        seen.append(gradnorm(g))
        assert sum(float(w.detach()) for w in gradnorm.parameters()) == pytest.approx(3)
        slopes.append(float(gradnorm.state["scalars"]["1"].grad))
        optimizer.step()
    assert [float(weights.sum()) for weights in seen] == pytest.approx([3, 3, 3], abs=1e-12)
    assert bool((torch.stack(seen) > 0).all())
    assert slopes[0] > 10
    assert seen[1][1] < 1e-7
    assert slopes[1] < -10
    assert seen[2][1] > 0.1


def test_gradnorm_keeps_the_part_of_an_absent_task() -> None:
    gradnorm = bound(GradNorm())
    for scalar, value in zip(gradnorm.parameters(), (1.0, 2.0, 3.0), strict=True):
        scalar.data.fill_(value)
    everybody = gradnorm(given(random_rows()))
    torch.testing.assert_close(everybody, torch.tensor([0.5, 1.0, 1.5]).double())
    some = gradnorm(given(random_rows(2), tasks=("c", "a")))
    torch.testing.assert_close(some, torch.tensor([1.5, 0.5]).double())


def test_gradnorm_remembers_the_first_loss_of_each_task() -> None:
    gradnorm = bound(GradNorm())
    for losses, tasks in (([4.0, 0.0], ("a", "b")), ([2.0, 9.0], ("a", "c")), ([1.0], ("c",))):
        rows = random_rows(len(tasks))
        gradnorm(given(rows, torch.tensor(losses).double(), tasks))
    assert gradnorm.state["first_losses"].tolist() == [4.0, 1e-12, 9.0]
    gradnorm(given(random_rows(1), torch.tensor([5.0]).double(), ("b",)))
    assert gradnorm.state["first_losses"].tolist() == [4.0, 1e-12, 9.0]
    with pytest.raises(ValueError, match=r"alpha=-1"):
        GradNorm(alpha=-1)


# What both have in common ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [Uncertainty, GradNorm])
def test_learned_weights_belong_to_speaking_tasks_and_need_their_names(
    make: Callable[[], Weighting],
) -> None:
    network = small_network(TASKS)
    losses, z = forward(network)
    with pytest.raises(ValueError, match=r"name the tasks with Balancer\(\.\.\., tasks="):
        Balancer(weighting=make(), model=network).backward(losses, features=z)
    balancer = Balancer(weighting=make(), tasks=TASKS, model=network)
    del losses["b"]
    balancer.backward(losses, features=z, retain_graph=True)
    once = [scalar.grad for scalar in balancer.parameters()]
    assert [grad is None for grad in once] == [False, True, False]
    once = [None if grad is None else grad.clone() for grad in once]
    balancer.backward(losses, features=z)
    assert [scalar.grad for scalar in balancer.parameters()] == [
        None if grad is None else 2 * grad for grad in once
    ]


@pytest.mark.parametrize("make", [Uncertainty, GradNorm])
def test_a_stack_needs_learned_weights_of_its_own(make: Callable[[], Weighting]) -> None:
    members = [given(random_rows(seed=k), random_losses(seed=k)) for k in range(2)]
    stack = given(
        torch.stack([random_rows(seed=k) for k in range(2)]),
        torch.stack([random_losses(seed=k) for k in range(2)]),
    )
    shared = bound(make())
    with pytest.raises(ValueError, match=r"have shape \[\], the losses are a stack of \[2\]"):
        shared(stack)
    together, single = bound(make()), [bound(make()) for _ in members]
    for scalar in together.parameters():
        scalar.data = scalar.data.expand(2).clone()
    for _ in range(3):
        weights = together(stack)
        for k, (method, g) in enumerate(zip(single, members, strict=True)):
            torch.testing.assert_close(weights[k], method(g), rtol=0, atol=1e-12)
        for scalar, *others in zip(
            together.parameters(), *(method.parameters() for method in single), strict=True
        ):
            grads = torch.stack([other.grad for other in others])
            torch.testing.assert_close(scalar.grad, grads, rtol=0, atol=1e-12)
            for each in (scalar, *others):
                each.data.sub_(0.1 * each.grad)
                each.grad = None


# Histories ------------------------------------------------------------------------------------


def strengths(tension: Running, g: TaskGradients) -> Tensor:
    """c of the next call."""
    return tension.method._strengths(g, tension.state)[0]


def test_tension_counts_and_averages_for_each_task_by_itself() -> None:
    """A task's pull depends on the calls in which it was active, whoever else was there."""
    tension = bound(Tension(Equal(), period=2, feasibility="none"))
    alone = {task: bound(Tension(Equal(), period=2, feasibility="none")) for task in TASKS}
    calls = [TASKS, ("a",), ("a", "c"), ("b", "c"), TASKS, ("b",), TASKS]
    for step, tasks in enumerate(calls):
        rows, losses = random_rows(len(tasks), step), random_losses(len(tasks), step)
        got = strengths(tension, given(rows, losses, tasks))
        tension(given(rows, losses, tasks))
        for k, task in enumerate(tasks):
            g = given(rows[k : k + 1], losses[k : k + 1], (task,))
            torch.testing.assert_close(got[k], strengths(alone[task], g)[0], rtol=0, atol=1e-14)
            alone[task](g)
    assert tension.state["count"].tolist() == [5, 5, 5]
    assert (got > 0).tolist() == [True, True, True]


def test_a_task_without_a_full_window_does_not_pull() -> None:
    tension = bound(Tension(Equal(mean=True), period=2, feasibility="none"))
    for step in range(2):
        tension(given(random_rows(2, step), tasks=("a", "b")))
    rows, losses = random_rows(3, 9), random_losses(3, 9)
    c = strengths(tension, given(rows, losses))
    weights = tension(given(rows, losses))
    assert (c > 0).tolist() == [True, True, False]
    mean = rows.mean(0)
    pulls = [(rows[k] - mean) / (rows[k] - mean).norm() for k in range(2)]
    torch.testing.assert_close(weights @ rows, mean + c[0] * pulls[0] + c[1] * pulls[1])


MAKE: Mapping[str, Callable[[], Weighting]] = {
    "tension": lambda: Tension(CentralDirection(), period=2),
    "uncertainty": Uncertainty,
    "gradnorm": GradNorm,
    "normalised": lambda: Normalized(Tension(MGDA(), period=2), by="loss", back=True),
}


class Run:
    """A small training with one method in a slot; the state of all of it."""

    def __init__(self, slot: str, make: Callable[[], Weighting]) -> None:
        torch.manual_seed(0)
        self.network = small_network(TASKS)
        self.balancer = Balancer(**{slot: make()}, tasks=TASKS, model=self.network)
        parameters = [*self.network.parameters(), *self.balancer.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=0.01)

    def step(self, batch: int) -> None:
        losses, z = forward(self.network, batch)
        if batch % 3 == 1:
            del losses["b"]
        self.optimizer.zero_grad()
        self.balancer.backward(losses, features=z)
        self.optimizer.step()

    @property
    def parts(self) -> list[nn.Module | torch.optim.Optimizer]:
        return [self.network, self.balancer, self.optimizer]


@pytest.mark.parametrize("slot", ["weighting", "aggregator"])
@pytest.mark.parametrize("name", MAKE)
def test_resuming_in_the_middle_goes_on_bit_for_bit(name: str, slot: str) -> None:
    whole, half, rest = (Run(slot, MAKE[name]) for _ in range(3))
    for batch in range(7):
        whole.step(batch)
    for batch in range(4):
        half.step(batch)
    for source, target in zip(half.parts, rest.parts, strict=True):
        target.load_state_dict(source.state_dict())
    for batch in range(4, 7):
        rest.step(batch)
    for one, other in zip(whole.parts, rest.parts, strict=True):
        assert same(one.state_dict(), other.state_dict())
    assert not same(half.network.state_dict(), rest.network.state_dict())


@pytest.mark.parametrize("name", ["tension", "gradnorm", "normalised"])
def test_a_step_that_is_skipped_leaves_no_trace(name: str) -> None:
    run = Run("weighting", MAKE[name])
    for batch in range(3):
        run.step(batch)
    run.optimizer.zero_grad()
    before = snapshot(run.balancer.state_dict())
    losses, z = forward(run.network, 5)
    broken = (z.sum() * 0).sqrt() * losses["c"]  # its value is finite, its gradient is not
    losses["c"] = losses["c"] + broken
    with pytest.raises(NonFiniteError, match="'c'"):
        run.balancer.backward(losses, features=z)
    assert same(before, run.balancer.state_dict())
    losses, z = forward(run.network, 5)
    run.balancer.backward(losses, features=z)
    assert not same(before, run.balancer.state_dict())


@pytest.mark.parametrize("name", ["tension", "gradnorm"])
def test_history_rests_with_the_trunk(name: str) -> None:
    run = Run("weighting", MAKE[name])
    for batch in range(3):
        run.step(batch)
    before = snapshot(run.balancer.states.state_dict())
    losses, z = forward(run.network, 5)
    run.optimizer.zero_grad()
    run.balancer.backward(losses, features=z, phase=Phase(TASKS, trains=("own",)))
    assert same(before, run.balancer.states.state_dict())
    assert all(scalar.grad is None for scalar in run.balancer.parameters())


@pytest.mark.parametrize("feasibility", ["auto", "pass", "projection", "none"])
@pytest.mark.parametrize("m", [2, 3])
def test_a_stack_of_tensions_is_the_stack_of_single_ones(m: int, feasibility: str) -> None:
    """Base weights on the segment in one member only, so that "auto" has both to do."""
    tasks = [f"t{i}" for i in range(m)]

    def make() -> Running:
        base = Normalized(MGDA(), by="loss", back=True)
        return Running(Tension(base, 0.3, 1, feasibility), tasks)

    together, single = make(), [make() for _ in range(4)]
    for step in range(4):
        rows = torch.stack([random_rows(m, 10 * step + k) for k in range(4)])
        rows[:, 1] = 0.3 * rows[:, 1] - rows[:, 0]
        losses = torch.stack([random_losses(m, 10 * step + k) for k in range(4)])
        losses[0] = 1  # no normalisation: min-norm weights, which sum to 1
        g = TaskGradients.of(jacobian=rows, losses=losses, tasks=tasks)
        weights = together(g)
        for k, tension in enumerate(single):
            one = TaskGradients.of(jacobian=rows[k], losses=losses[k], tasks=tasks)
            torch.testing.assert_close(weights[k], tension(one), rtol=0, atol=1e-12)
    assert together.state["window"].shape == (4, 1, m)


# Normalisation --------------------------------------------------------------------------------


def test_normalised_hands_the_scaled_problem_on_for_learning() -> None:
    rows, losses = random_rows(), random_losses()
    normalised = bound(Normalized(Uncertainty(), by="loss"))
    normalised(given(rows, losses))
    for scalar in normalised.parameters():  # every scaled loss is 1, every weight ½
        torch.testing.assert_close(scalar.grad, torch.zeros(()).double())


def test_normalised_scales_the_losses_after_the_update_as_those_before() -> None:
    before, after = random_losses(seed=0), random_losses(seed=1)
    plain, normalised = bound(FAMO()), bound(Normalized(FAMO(), by="loss"))
    plain(TaskGradients.of(losses=torch.ones(3).double(), tasks=TASKS))
    normalised(TaskGradients.of(losses=before, tasks=TASKS))
    for method, losses in ((plain, after / before), (normalised, after)):
        method.after(TaskGradients.of(losses=losses, tasks=TASKS))
    assert not same(plain.state_dict(), bound(FAMO()).state_dict())
    for name, value in plain.state.items():
        torch.testing.assert_close(normalised.state["base"][name], value)


def test_wrappers_declare_what_they_and_their_base_need() -> None:
    assert Normalized(Equal(), by="l2").traits.needs == "norms"
    assert Normalized(MGDA(), by="loss").traits.needs == "gramian"
    assert Tension(Equal()).traits.needs == "gramian"
    assert Tension(MGDA(at="representation")).at == "representation"
    assert Normalized(FAMO(), by="loss").traits.after
    assert Tension(Normalized(GradNorm())).traits.learned


# Per block ------------------------------------------------------------------------------------


LAYERS = (0, 3)
"""Where the linear layers of the small network's trunk are."""


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_per_block_is_the_method_on_each_block(features: bool, order: tuple[int, int]) -> None:
    network = small_network(TASKS)
    losses, z = forward(network)
    layers = [network.trunk[LAYERS[k]] for k in order]
    rows = [plain_jacobian(losses.values(), layer.parameters()) for layer in layers]
    expected = [MGDA()(TaskGradients.of(jacobian=block)) @ block for block in rows]
    per_block = PerBlock(MGDA, {"one": layers[0], "other": list(layers[1].parameters())})
    balancer = Balancer(aggregator=per_block, model=network)
    balance = balancer.backward(losses, **({"features": z} if features else {}))
    for layer, v in zip(layers, expected, strict=True):
        got = torch.cat([p.grad.reshape(-1) for p in layer.parameters()])
        torch.testing.assert_close(got, v, rtol=0, atol=1e-12)
    assert balance.trunk_weights is None
    both = torch.cat(rows, dim=1)
    joint = MGDA()(TaskGradients.of(jacobian=both)) @ both
    assert (torch.cat(expected) - joint).norm() > 1e-3
    assert per_block.traits.feasible
    assert bool((both @ torch.cat(expected) >= -1e-12).all())


def test_blocks_may_be_chosen_among_the_shared_parameters() -> None:
    network = small_network(TASKS)
    losses, z = forward(network)
    chosen = {"first": lambda shared: shared[:2], "rest": lambda shared: shared[2:]}
    named = {"first": network.trunk[LAYERS[0]], "rest": network.trunk[LAYERS[1]]}
    grads = []
    for blocks in (chosen, named):
        network.zero_grad()
        aggregator = PerBlock(MGDA, blocks)
        Balancer(aggregator=aggregator, model=network).backward(
            losses, features=z, retain_graph=True
        )
        grads.append([p.grad.clone() for p in network.trunk.parameters()])
    assert same(*grads)


def test_one_block_of_everything_is_the_method_itself() -> None:
    rows = random_rows()
    per_block = PerBlock(MGDA, {"all": lambda shared: shared})
    torch.testing.assert_close(per_block(given(rows)), MGDA()(given(rows)) @ rows)
    stack = torch.stack([rows, random_rows(seed=1)])
    torch.testing.assert_close(per_block(given(stack, torch.ones(2, 3)))[0], per_block(given(rows)))


def test_blocks_of_a_stacked_ensemble_are_those_of_its_members() -> None:
    networks = [small_network(TASKS) for _ in range(2)]
    stack = Stack(networks)
    x = torch.stack([inputs(0), inputs(1)])
    outputs = stack(x)
    losses = {t: 4.0**k * y.square().mean((1, 2)) for k, (t, y) in enumerate(outputs.items())}
    blocks = {"first": lambda shared: shared[:2], "rest": lambda shared: shared[2:]}
    together = Balancer(aggregator=PerBlock(MGDA, blocks), leading=(2,), model=stack)
    shared = stack.blocks().shared
    together.backward(losses, features=outputs.features, shared=shared, own=stack.blocks().own)
    for k, network in enumerate(networks):
        outputs = network(x[k])
        losses = {task: 4.0**i * y.square().mean() for i, (task, y) in enumerate(outputs.items())}
        single = Balancer(aggregator=PerBlock(MGDA, blocks), model=network)
        single.backward(losses, features=outputs.features)
        for one, p in zip(shared, network.blocks().shared, strict=True):
            torch.testing.assert_close(one.grad[k], p.grad, rtol=0, atol=1e-12)


def test_every_block_takes_its_rows_from_the_same_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network(TASKS)
    losses, z = forward(network)
    passes = []
    plain = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(a) or plain(*a, **k))
    Balancer(aggregator=MGDA(), model=network).backward(losses, features=z, retain_graph=True)
    whole = len(passes)
    layers = {str(k): network.trunk[k] for k in LAYERS}
    Balancer(aggregator=PerBlock(MGDA, layers), model=network).backward(losses, features=z)
    assert len(passes) == 2 * whole


def test_blocks_have_histories_and_learned_weights_of_their_own() -> None:
    network = small_network(TASKS)
    layers = {str(k): network.trunk[k] for k in LAYERS}
    tension = PerBlock(lambda at: Tension(MGDA(at=at), period=2), layers)
    balancer = Balancer(aggregator=tension, model=network)
    losses, z = forward(network)
    balancer.backward(losses, features=z, retain_graph=True)
    rows = [plain_jacobian(losses.values(), layer.parameters()) for layer in layers.values()]
    states = balancer.states.tree()["aggregator"]
    for state, block in zip(states.values(), rows, strict=False):  # the last is the rest's
        torch.testing.assert_close(state["window"][-1], block.norm(dim=1))
        assert state["count"].tolist() == [1, 1, 1]
    learning = PerBlock(lambda at: GradNorm(at=at), layers)
    assert learning.traits.learned
    balancer = Balancer(aggregator=learning, tasks=TASKS, model=network)
    assert len(list(balancer.parameters())) == 9  # two layers, and what is in none
    balancer.backward(losses, features=z)
    assert sum(scalar.grad is not None for scalar in balancer.parameters()) == 6


def test_what_no_block_holds_is_a_block() -> None:
    network = small_network(TASKS)
    losses, z = forward(network)
    first, second = (network.trunk[k] for k in LAYERS)

    def backward(blocks: Mapping[str, nn.Module | Sequence[Tensor]]) -> None:
        aggregator = PerBlock(MGDA, blocks)
        Balancer(aggregator=aggregator, model=network).backward(
            losses, features=z, retain_graph=True
        )

    whole = {"one": first, "two": second}
    backward(whole)
    expected = flat_grad(network.parameters())
    for blocks in ({"one": first}, {"two": second}, {**whole, "three": network.head("a")}):
        network.zero_grad()
        backward(blocks)  # what no block holds is one more; what is not balanced waits
        assert torch.equal(flat_grad(network.parameters()), expected)
    with pytest.raises(ValueError, match="in block 'two' and in block 'one'"):
        backward({"one": network.trunk, "two": [second.bias]})
    with pytest.raises(ValueError, match="block 'two' has no parameters"):
        backward({"one": network.trunk, "two": []})
    with pytest.raises(ValueError, match="at least one block"):
        backward({})
    with pytest.raises(ValueError, match="hand `at` on to the method"):
        PerBlock(lambda at: MGDA(), {"one": network.trunk})


# Recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "count"), [(1, 1), (2, 3), (3, 6), (8, 36)])
def test_the_grid_has_every_vector_once(m: int, count: int) -> None:
    tasks = tuple(f"t{i}" for i in range(m))
    compositions = recipe("grid").compose(tasks)
    vectors = set()
    for composition in compositions.values():
        assert composition.tasks == tasks
        assert isinstance(composition.weighting, Fixed)
        weights = [composition.weighting.weights[task] for task in tasks]
        assert sum(weights) == pytest.approx(m)
        assert min(weights) > 0
        vectors.add(tuple(round(w * (m + 2) / m) for w in weights))
    assert len(vectors) == len(compositions) == count
    assert all(sum(vector) == m + 2 for vector in vectors)


def test_a_finer_grid() -> None:
    labels = list(grid(steps=4)(("a", "b")))
    assert labels == ["1-5", "2-4", "3-3", "4-2", "5-1"]
    with pytest.raises(ValueError, match=r"grid\(steps=0\)"):
        grid(steps=0)


@pytest.mark.parametrize(
    "name",
    [
        "uniform",
        "uncertainty",
        "gradnorm",
        "mgda-released",
        "mgda-l2",
        "mgda-loss",
        "mgda-loss+",
        "central",
        "min-norm+tension",
        "central+tension",
        "ate-sg+tension",
    ],
)
def test_recipes_are_made_afresh(name: str) -> None:
    one, other = (recipe(name).compose(TASKS)[""] for _ in range(2))
    slots = [(c.weighting, c.aggregator) for c in (one, other)]
    assert [slot is None for slot in slots[0]] == [slot is None for slot in slots[1]]
    assert all(a is None or a is not b for a, b in zip(*slots, strict=True))
    assert sum(slot is not None for slot in slots[0]) == 1


def test_the_released_mgda_scales_the_heads_too() -> None:
    network = small_network(TASKS)
    losses, z = forward(network)
    grads = {}
    for name in ("mgda", "mgda-released"):
        composition = recipe(name).compose(TASKS)[""]
        network.zero_grad()
        balancer = Balancer(composition.weighting, composition.aggregator, model=network)
        balance = balancer.backward(losses, features=z, retain_graph=True)
        grads[name] = [p.grad.clone() for p in network.parameters()]
    heads = sum(len(list(network.head(task).parameters())) for task in TASKS)
    trunk = len(grads["mgda"]) - heads
    for k in range(trunk):
        torch.testing.assert_close(grads["mgda"][k], grads["mgda-released"][k])
    for i, weight in enumerate(balance.weights):
        for k in range(trunk + i * heads // 3, trunk + (i + 1) * heads // 3):
            torch.testing.assert_close(grads["mgda"][k] * weight, grads["mgda-released"][k])
    assert (balance.weights - 1).abs().min() > 0.1
