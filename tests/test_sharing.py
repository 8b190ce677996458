"""Soft sharing and cross-stitch networks against formulas written out, and single networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import evenhand as eh
from evenhand import (
    Balancer,
    CrossStitchNetwork,
    MultiTaskNetwork,
    Phase,
    SquaredDistance,
    TiedNetwork,
    TraceNorm,
)
from evenhand.comparison.compare import compare
from evenhand.comparison.job import Job
from evenhand.comparison.plan import Size, sizes, training
from evenhand.comparison.request import Settings
from evenhand.comparison.weights import load_network
from evenhand.data import digits
from evenhand.data.toy import recipe_names
from evenhand.recipes import Composition, Recipe, sharing_of
from evenhand.sharing import cross_stitch, soft_sharing, trace_norm_sharing
from evenhand.sharing.base import parameters
from evenhand.sharing.stitched import stages
from evenhand.sharing.ties import FLATTENED
from evenhand.tables.examined import examined
from evenhand.tables.problem import Prepared, TableProblem
from evenhand.tables.question import Question
from evenhand.tables.reading import held
from evenhand.training.loop import Training
from evenhand.training.optimizers import Optimizers
from samplers import plain_jacobian, two_scales


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def columns(tasks: str = "ab", seed: int = 0) -> dict[str, MultiTaskNetwork]:
    """Small networks with two stages, of different weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {
            task: MultiTaskNetwork(
                nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh()),
                {task: nn.Linear(2, 1)},
            ).double()
            for task in tasks
        }


def losses_of(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {task: (y - k).square().mean() for k, (task, y) in enumerate(outputs.items())}


# Penalties ------------------------------------------------------------------------------------


def test_the_distance_of_three_networks_by_hand() -> None:
    """θ = 1, 2, 4: ½ (1² + 3² + 2²) = 7; the gradients are Σ_j (θ_i − θ_j) = −4, −1, 5."""
    theta = torch.tensor([[1.0], [2.0], [4.0]], requires_grad=True)
    penalty = SquaredDistance(0.1)([theta])
    penalty.backward()
    assert penalty.item() == pytest.approx(0.7)
    assert theta.grad.flatten().tolist() == pytest.approx([-0.4, -0.1, 0.5])


def test_the_distance_is_its_formula() -> None:
    stacks = [drawn(4, 3, 2, seed=1).requires_grad_(), drawn(4, 5, seed=2).requires_grad_()]
    pairs = combinations(range(4), 2)
    written = sum(0.5 * (s[i] - s[j]).square().sum() for i, j in pairs for s in stacks)
    found = SquaredDistance(0.3)(stacks)
    torch.testing.assert_close(found, 0.3 * written)
    for ours, theirs in zip(
        torch.autograd.grad(found, stacks),
        torch.autograd.grad(0.3 * written, stacks),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("flattening", ["laf", "tucker", "tt"])
def test_trace_norms_are_those_of_the_matrices_written_out(flattening) -> None:
    """Of W [d_1, d_2, T], the networks along the last axis, with numpy's singular values."""
    stack = drawn(3, 2, 5)
    w = np.moveaxis(stack.numpy(), 0, -1)
    first, second = w.reshape(2, 15), np.moveaxis(w, 1, 0).reshape(5, 6)
    last = stack.numpy().reshape(3, 10)
    matrices = {"laf": [last], "tucker": [first, second, last], "tt": [first, w.reshape(10, 3)]}
    expected = sum(np.linalg.svd(m, compute_uv=False).sum() for m in matrices[flattening])
    found = TraceNorm(0.5, flattening)([stack])
    assert found.item() == pytest.approx(0.5 * expected, rel=1e-12)


def test_the_gradient_of_a_trace_norm_of_full_rank_is_its_closed_form() -> None:
    """(X Xᵀ)^(−½) X, and what small differences of the singular values' sum say."""
    x = drawn(3, 7).requires_grad_()
    (found,) = torch.autograd.grad(TraceNorm(2.0)([x]), x)
    values, vectors = np.linalg.eigh((x @ x.mT).detach().numpy())
    closed = 2 * vectors @ np.diag(values**-0.5) @ vectors.T @ x.detach().numpy()
    np.testing.assert_allclose(found.numpy(), closed, rtol=1e-10, atol=1e-12)
    step = 1e-6 * drawn(3, 7, seed=1)
    there, back = (
        2 * np.linalg.svd((x.detach() + sign * step).numpy(), compute_uv=False).sum()
        for sign in (1, -1)
    )
    assert (there - back) / 2 == pytest.approx((found * step).sum().item(), rel=1e-6)


@pytest.mark.parametrize("flattening", FLATTENED)
def test_equal_networks_are_pushed_alike_by_a_trace_norm(flattening) -> None:
    """X = 1 aᵀ has one direction: with last axis flattening it is 1 aᵀ / (√T ‖a‖)."""
    a = drawn(2, 3).float()
    stack = a.expand(3, 2, 3).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(TraceNorm(1.0, flattening)([stack]), stack)
    for mine in gradient[1:]:
        torch.testing.assert_close(mine, gradient[0], rtol=1e-4, atol=1e-6)
    if flattening == "laf":
        torch.testing.assert_close(gradient[0], a / (3**0.5 * a.norm()), rtol=1e-5, atol=1e-6)


def test_a_trace_norm_of_what_is_not_finite_is_nan() -> None:
    assert TraceNorm()([torch.tensor([[1.0, torch.inf]])]).isnan()
    assert TraceNorm()([torch.zeros(2, 3)]).item() == 0.0


# Tied networks --------------------------------------------------------------------------------


def by_hand(network: TiedNetwork, x: Tensor, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Of every parameter: c_i ∂L_i + λ ∂Ω, from the formula and plain autograd."""
    named = dict(network.named_parameters())
    total: Tensor = sum(weights[t] * v for t, v in losses_of(network(x)).items())
    for name, first in named.items():
        if name.startswith("trunk.columns.0."):
            other = named[name.replace("columns.0", "columns.1")]
            total = total + network.tie.weight * 0.5 * (first - other).square().sum()
    gradients = torch.autograd.grad(total, list(named.values()))
    return dict(zip(named, gradients, strict=True))


WEIGHTS = {"a": 3.0, "b": 0.5}


@pytest.mark.parametrize("phase", [None, Phase(("a", "b"))])
@pytest.mark.parametrize("weighting", [None, lambda: eh.Fixed(WEIGHTS)])
def test_a_tied_network_gets_weighted_losses_and_the_penalty_once(phase, weighting) -> None:
    network = TiedNetwork(columns(), SquaredDistance(0.3))
    balancer = Balancer(None if weighting is None else weighting(), model=network)
    x = drawn(6, 4)
    outputs = network(x)
    balancer.backward(losses_of(outputs), features=outputs, plus=network.penalty(), phase=phase)
    expected = by_hand(network, x, WEIGHTS if weighting else dict.fromkeys("ab", 1.0))
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_a_turn_of_one_task_moves_its_column_alone() -> None:
    network = TiedNetwork(columns(), SquaredDistance(0.3))
    x = drawn(6, 4)
    loss = {"a": losses_of(network(x))["a"]}
    Balancer(model=network, tasks=["a", "b"]).backward(
        loss, plus=network.penalty(), phase=Phase(("a",))
    )
    expected = by_hand(network, x, {"a": 1.0, "b": 0.0})
    for name, parameter in network.named_parameters():
        if "columns.0" in name or "heads.0" in name:
            torch.testing.assert_close(parameter.grad, expected[name], msg=name)
        else:
            assert parameter.grad is None, name


def test_nothing_of_a_tied_network_is_shared() -> None:
    blocks = TiedNetwork(columns("abc"), TraceNorm()).blocks()
    assert blocks.shared == ()
    assert {task: len(own) for task, own in blocks.own.items()} == dict.fromkeys("abc", 6)
    assert len(set(blocks.all)) == 18


def test_columns_of_tasks_that_are_not_asked_for_are_not_evaluated() -> None:
    parts = columns()
    seen = []
    for task, column in parts.items():
        column.trunk.register_forward_hook(lambda *_, task=task: seen.append(task))
    network = TiedNetwork(parts, SquaredDistance())
    assert set(network(drawn(2, 4), tasks=["b"])) == {"b"}
    assert seen == ["b"]


# Trained --------------------------------------------------------------------------------------

SETTINGS = Settings("two scales", epochs=3, optimizer="sgd")
TASKS = tuple(two_scales().tasks)


def made(composition: Composition, rate: float = 0.003) -> Training:
    return training(Job("sg", "", 5, rate), two_scales(), SETTINGS, composition)


def trained(run: Training) -> dict[str, Tensor]:
    """The weights after the last epoch."""
    for _ in range(run.epochs):
        run.train_epoch()
    return dict(run.network.state_dict())


def test_without_a_penalty_each_column_is_a_network_by_itself_bit_for_bit() -> None:
    joint = trained(made(Composition(TASKS, network=soft_sharing(0.0))))
    for place, task in enumerate(TASKS):
        for name, value in trained(made(Composition((task,)))).items():
            where = name.replace("trunk.", f"trunk.columns.{place}.")
            where = where.replace("heads.0.", f"heads.{place}.head.")
            assert torch.equal(joint[where], value), name


def test_identity_units_that_rest_leave_networks_by_themselves_bit_for_bit() -> None:
    run = made(Composition(TASKS, network=cross_stitch(1.0)))
    for name, parameter in run.network.named_parameters():
        if "units" in name or "row" in name:
            parameter.requires_grad_(False)
    run = replace(run, optimizers=Optimizers(run.network.blocks(), run.optimizers.shared))
    joint = trained(run)
    for place, task in enumerate(TASKS):
        for name, value in trained(made(Composition((task,)))).items():
            where = name.replace("trunk.0.", f"trunk.columns.{place}.0.0.")
            where = where.replace("trunk.2.", f"trunk.columns.{place}.1.0.")
            where = where.replace("heads.0.", f"heads.{place}.head.")
            assert torch.equal(joint[where], value), name


def test_a_step_of_rate_one_over_the_penaltys_curvature_goes_to_the_mean() -> None:
    """With α λ T = 1, θ_i − α (g_i + λ T (θ_i − θ̄)) = θ̄ − α g_i."""
    network = TiedNetwork(columns(), SquaredDistance(5.0))
    before = [network.trunk.columns[k][0].weight.detach().clone() for k in range(2)]
    losses = losses_of(network(drawn(6, 4)))
    rows = plain_jacobian(losses.values(), [c[0].weight for c in network.trunk.columns])
    mean, gradients = sum(before) / 2, [rows[k, 12 * k : 12 * k + 12].view(3, 4) for k in (0, 1)]
    Balancer(model=network).backward(losses, plus=network.penalty())
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    for k, column in enumerate(network.trunk.columns):
        torch.testing.assert_close(column[0].weight.detach(), mean - 0.1 * gradients[k])


def apart(state: Mapping[str, Tensor]) -> float:
    """‖θ_1 − θ_2‖ of the trunks."""
    pairs = [(v, state[n.replace("s.0", "s.1")]) for n, v in state.items() if "columns.0" in n]
    return float(torch.cat([(a - b).flatten() for a, b in pairs]).norm())


def test_the_larger_the_penalty_the_nearer_the_networks() -> None:
    """From equal starts, the losses' gradients drive them apart and the penalty holds them."""
    distances = [
        apart(trained(made(Composition(TASKS, network=soft_sharing(weight)), 3e-4)))
        for weight in (0.0, 100.0, 1000.0)
    ]
    assert distances[0] > 1.3 * distances[1] > 10 * distances[2] > 0


@pytest.mark.parametrize("schedule", ["jointly", "one_by_one"])
def test_a_training_step_descends_losses_and_penalties_once_each(schedule) -> None:
    """θ − α ∂(L_1 + L_2 + Ω + P): all at once, or first the first task's column, then the second's.

    P is the problem's own penalty. It and Ω are counted in each turn, and move in it what trains.
    """

    def decay(network: nn.Module) -> Tensor:
        return 0.5 * sum(p.square().sum() for p in network.parameters())

    problem = replace(two_scales(), batch_size=48, penalty=decay)
    parts = Composition(TASKS, network=soft_sharing(0.7, start="own"))
    run = training(Job("sg", "", 5, 0.01), problem, SETTINGS, parts)
    run = replace(run, schedule=getattr(eh, schedule)())
    twin = training(Job("sg", "", 5, 0.01), problem, SETTINGS, parts).network
    x, targets = run.stream.batch(0)
    turns = [TASKS] if schedule == "jointly" else [(task,) for task in TASKS]
    for turn in turns:
        losses = problem.losses(twin(x), targets)
        one, other = (list(column.parameters()) for column in twin.trunk.columns)
        apart = sum((a - b).square().sum() for a, b in zip(one, other, strict=True))
        total = sum(losses[task] for task in turn) + 0.7 * 0.5 * apart + decay(twin)
        moving = twin.blocks().own_of(turn)
        gradients = torch.autograd.grad(total, moving)
        with torch.no_grad():
            for parameter, gradient in zip(moving, gradients, strict=True):
                parameter -= 0.01 * gradient
    run.train_epoch()
    for found, expected in zip(run.network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_own_starts_differ_and_same_starts_are_equal() -> None:
    same, own = (
        made(Composition(TASKS, network=soft_sharing(start=start))).network.state_dict()
        for start in ("same", "own")
    )
    assert apart(same) == 0.0 < apart(own)


def test_a_checkpoint_of_another_penalty_is_refused(tmp_path) -> None:
    list(made(Composition(TASKS, network=soft_sharing(0.1))).run(tmp_path))
    with pytest.raises(ValueError, match=r"penalty was .*weight=0.1.* here it is .*weight=0.2"):
        list(made(Composition(TASKS, network=soft_sharing(0.2))).run(tmp_path))


# Cross-stitch networks ------------------------------------------------------------------------


def line(task: str, first: float, second: float, head: float) -> MultiTaskNetwork:
    """x → first x → |·| (a stage) → second x → |·| (a stage) → head x."""

    def layer(weight: float) -> nn.Linear:
        made = nn.Linear(1, 1, bias=False)
        made.weight.data.fill_(weight)
        return made

    parts = (layer(first), nn.ReLU(), layer(second), nn.ReLU())
    return MultiTaskNetwork(nn.Sequential(*parts), {task: layer(head)})


def test_two_stitched_columns_by_hand() -> None:
    """Row i of a unit is what column i takes: the wrong way round gives 65 and 156 instead.

    x = 1: stage one says 1 and 2. Column a goes on with ½·1 + 1·2 = 2.5, b with ¼·1 + 2·2 = 4.25.
    Stage two says 2.5·3 = 7.5 and 4.25·4 = 17. The heads read 1·7.5 + ½·17 = 16 and 2·7.5 + 1·17
    = 32, and say 5·16 = 80 and 6·32 = 192.
    """
    network = CrossStitchNetwork({"a": line("a", 1, 3, 5), "b": line("b", 2, 4, 6)})
    network.trunk.units[0].data = torch.tensor([[0.5, 1.0], [0.25, 2.0]])
    network.heads[0].row.data = torch.tensor([1.0, 0.5])
    network.heads[1].row.data = torch.tensor([2.0, 1.0])
    outputs = network(torch.ones(1, 1))
    assert {task: y.item() for task, y in outputs.items()} == {"a": 80.0, "b": 192.0}


def test_units_start_as_told() -> None:
    network = CrossStitchNetwork(columns("abc"), own=0.8)
    expected = torch.full((3, 3), 0.1, dtype=torch.float64) + 0.7 * torch.eye(3)
    torch.testing.assert_close(network.trunk.units[0].detach(), expected)
    torch.testing.assert_close(torch.stack([h.row.detach() for h in network.heads]), expected)
    assert CrossStitchNetwork(columns("a"), own=0.8).trunk.units[0].item() == 1.0


def test_every_loss_reaches_every_column_and_its_own_row_alone() -> None:
    network = CrossStitchNetwork(columns("abc"))
    blocks = network.blocks()
    losses = losses_of(network(drawn(6, 4)))
    for parameter in blocks.shared:
        assert (plain_jacobian(losses.values(), [parameter]).norm(dim=1) > 0).all()
    for task, own in blocks.own.items():
        reached = plain_jacobian(losses.values(), own).norm(dim=1) > 0
        assert reached.tolist() == [task == other for other in "abc"]
    assert len(blocks.last_layer) == 6


@pytest.mark.parametrize("phase", [None, Phase(("a", "b"))])
@pytest.mark.parametrize("at", ["parameters", "representation"])
def test_min_norm_weights_of_a_stitched_network_are_the_closed_form(at, phase) -> None:
    """w_1 = clip((g_2 − g_1)·g_2 / ‖g_1 − g_2‖²) of columns and units; heads get their own."""
    network = CrossStitchNetwork(columns())
    x = drawn(6, 4)
    outputs = network(x)
    blocks, losses = network.blocks(), losses_of(outputs)
    rows = plain_jacobian(losses.values(), blocks.shared)
    seen = rows if at == "parameters" else plain_jacobian(losses.values(), outputs.features)
    difference = seen[0] - seen[1]
    first = float((-(difference @ seen[1]) / (difference @ difference)).clamp(0, 1))
    own = [plain_jacobian([losses[task]], blocks.own[task])[0] for task in "ab"]
    balancer = Balancer(aggregator=eh.MGDA(at=at), model=network)
    balance = balancer.backward(losses, features=outputs, phase=phase)
    assert balance.trunk_weights.tolist() == pytest.approx([first, 1 - first], rel=1e-6)
    merged = torch.cat([p.grad.flatten() for p in blocks.shared])
    torch.testing.assert_close(merged, first * rows[0] + (1 - first) * rows[1])
    for task, expected in zip("ab", own, strict=True):
        found = torch.cat([p.grad.flatten() for p in blocks.own[task]])
        torch.testing.assert_close(found, expected)


def kinds(pieces: list[nn.Sequential]) -> list[str]:
    return [" ".join(type(m).__name__ for m in piece) for piece in pieces]


def test_stages_end_with_what_follows_a_layer() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh())
    assert kinds(stages(plain)) == ["Flatten Linear Tanh", "Linear Tanh"]
    block = nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1), nn.ReLU(), nn.MaxPool1d(2))
    nested = nn.Sequential(block, nn.Sequential(nn.Conv1d(1, 1, 1), nn.Linear(2, 2)))
    assert kinds(stages(nested)) == ["Conv1d BatchNorm1d ReLU MaxPool1d", "Conv1d Linear"]
    assert kinds(stages(nn.Sequential(nn.ReLU()))) == ["ReLU"]


# Sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", [soft_sharing, trace_norm_sharing, cross_stitch])
def test_columns_of_equal_size_have_the_parameters_of_the_problems_network(sharing) -> None:
    problem, names = digits.load(), ("left", "right", "redraw")
    hard = parameters(problem.network(names))
    equal = parameters(sharing(size="equal").network(problem, names))
    assert abs(equal / hard - 1) < 0.04
    alone = sum(parameters(problem.network((task,))) for task in names)
    units = {soft_sharing: 0, trace_norm_sharing: 0, cross_stitch: 9 + 9}[sharing]
    assert parameters(sharing().network(problem, names)) == alone + units


def test_equal_size_takes_a_width_and_draws_nothing() -> None:
    with pytest.raises(ValueError, match="two scales: its network has no width"):
        soft_sharing(size="equal").network(two_scales(), TASKS)
    problem = digits.load()
    torch.manual_seed(3)
    one = soft_sharing(size="equal").network(problem, ("left",)).state_dict()
    torch.manual_seed(3)
    expected = problem.network(("left",)).state_dict()["trunk.1.weight"]
    assert torch.equal(one["trunk.columns.0.1.weight"], expected)


def test_sizes_are_known_before_training() -> None:
    """A trunk of 94 numbers, heads of 7; SGD keeps one more for each, and four bytes are a number.

    A unit of two tasks has four numbers, and there are two.
    """
    names = ("single-task", "sg", "grid", "soft", "cross-stitch")
    found = sizes(names, two_scales(), SETTINGS)
    numbers = {"single-task": 202, "sg": 108, "grid": 108, "soft": 202, "cross-stitch": 210}
    networks = {"single-task": 2, "grid": 3}
    for name in names:
        one = 101 if name == "single-task" else numbers[name]
        assert found[name] == Size(networks.get(name, 1), numbers[name], 4 * one, 12 * one), name


@pytest.mark.parametrize("name", ["soft(size=equal)", "cross-stitch", "sg"])
def test_what_predicts_rows_of_a_table_makes_the_network_that_was_trained(name) -> None:
    columns = {key: drawn(60, seed=k).numpy() for k, key in enumerate("xyz")}
    question = Question(targets=("y", "z"), network="mlp(width=8,depth=2)")
    problem = TableProblem("", question, examined(held(columns), question))(0)
    kept = Prepared.from_json(problem.preparation.to_json())
    one, other = (
        sharing_of(name, "", ("y", "z")).network(made, ("y", "z")) for made in (problem, kept)
    )
    shapes = [{n: v.shape for n, v in network.state_dict().items()} for network in (one, other)]
    assert shapes[0] == shapes[1]


def test_what_is_no_way_of_balancing_is_not_drawn_on_the_landscape() -> None:
    assert {"soft", "soft-trace", "cross-stitch"}.isdisjoint(recipe_names())
    assert "mgda" in recipe_names()


# What cannot be -------------------------------------------------------------------------------

TIED = partial(soft_sharing, 0.1)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"aggregator": eh.MGDA()}, "MGDA balances .* no parameter of this network .TiedNetwork"),
        ({"aggregator": eh.Tension(eh.CentralDirection())}, "Tension balances"),
        ({"weighting": eh.GradNorm()}, "GradNorm balances .* never meet"),
        (
            {"schedule": eh.alternate_steps()},
            "alternate_steps.* trains the shared parameters",
        ),
        ({"schedule": eh.alternate_epochs(1, 1)}, "this network .TiedNetwork. has none"),
    ],
)
def test_what_wants_shared_parameters_is_refused_for_tied_networks(parts, said) -> None:
    run = made(Composition(TASKS, network=TIED(), **parts))
    with pytest.raises(ValueError, match=said):
        list(run.run())


@pytest.mark.parametrize(
    "parts",
    [
        {"weighting": eh.Uncertainty()},
        {"schedule": eh.one_by_one()},
        {"schedule": eh.in_groups(1, redraw="epoch"), "own_moments": True},
    ],
)
def test_what_wants_none_trains_tied_networks(parts) -> None:
    records = list(made(Composition(TASKS, network=TIED(), **parts)).run())
    assert records[-1].validation["large"] < records[0].validation["large"]


@pytest.mark.parametrize(
    "parts",
    [
        {"aggregator": eh.Tension(eh.CentralDirection())},
        {"schedule": eh.alternate_steps()},
        {"schedule": eh.alternate_epochs(1, 2)},
        {"weighting": eh.GradNorm()},
    ],
)
def test_a_stitched_network_takes_whatever_a_shared_trunk_takes(parts) -> None:
    records = list(made(Composition(TASKS, network=cross_stitch(), **parts)).run())
    assert min(r.validation["large"] for r in records) < records[0].validation["large"]


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (lambda: SquaredDistance(-1.0), ValueError, "weight=-1.0: must be a number >= 0"),
        (lambda: SquaredDistance("1"), TypeError, "weight='1': must be a number"),
        (lambda: TraceNorm(1.0, "cp"), ValueError, "flattening='cp': must be one of 'laf'"),
        (lambda: soft_sharing(size="half"), ValueError, "size='half': must be 'full' or 'equal'"),
        (lambda: cross_stitch(start="cold"), ValueError, "start='cold': must be 'same' or 'own'"),
        (lambda: cross_stitch(1.5), ValueError, "own=1.5: must be from 0 to 1"),
        (lambda: TiedNetwork({}, SquaredDistance()), ValueError, "at least one task"),
        (lambda: TiedNetwork({"a": nn.Linear(1, 1)}, SquaredDistance()), TypeError, "of 'a' is no"),
        (lambda: _tied(b=MultiTaskNetwork(nn.Linear(4, 2), {"a": nn.Linear(2, 1)})), ValueError,
         "'a' and 'b' read one head, 'a'"),
        (lambda: _tied(b=MultiTaskNetwork(nn.Linear(4, 2), {"b": nn.Linear(2, 1)})), ValueError,
         "trunk of 'b' has other parameters than that of 'a'"),
        (lambda: _tied(b=MultiTaskNetwork(columns()["a"].trunk, {"b": nn.Linear(2, 1)}),
                       c=MultiTaskNetwork(SHARED, {"c": nn.Linear(2, 1)}),
                       d=MultiTaskNetwork(SHARED, {"d": nn.Linear(2, 1)})), ValueError,
         "columns of 'c' and 'd' share a parameter"),
        (lambda: CrossStitchNetwork({"a": MultiTaskNetwork(nn.Linear(1, 1), {"a": nn.ReLU()})}),
         ValueError, "nn.Sequential, and this one is a Linear"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(make, kind, said) -> None:
    with pytest.raises(kind, match=said):
        make()


SHARED = columns()["a"].trunk


def _tied(**others: MultiTaskNetwork) -> TiedNetwork:
    return TiedNetwork({"a": columns()["a"], **others}, SquaredDistance())


# In a comparison ------------------------------------------------------------------------------


def test_kept_networks_are_made_again(tmp_path) -> None:
    """Of a recipe of the list, by its name; of one's own, with it."""
    mine = Recipe.of("mine", network=partial(cross_stitch, 0.7))
    names = ["soft(weight=0.1)", "cross-stitch", mine]
    found = compare(
        replace(Settings.suggested(two_scales(), rates=(0.003,)), epochs=1), names, tmp_path
    )
    soft, stitched, own = (
        next(r for r in found.results if r.job.recipe == name)
        for name in ("soft(weight=0.1)", "cross-stitch", "mine")
    )
    tied = load_network(tmp_path / soft.job.folder, two_scales())
    assert isinstance(tied, TiedNetwork)
    assert tied.tie == SquaredDistance(0.1)
    assert isinstance(
        load_network(tmp_path / stitched.job.folder, two_scales()), CrossStitchNetwork
    )
    assert load_network(tmp_path / own.job.folder, two_scales(), mine).tasks == TASKS
    with pytest.raises(ValueError, match="give recipe="):
        load_network(tmp_path / own.job.folder, two_scales())
    assert soft.parameters == sum(parameters(two_scales().network((task,))) for task in TASKS)
