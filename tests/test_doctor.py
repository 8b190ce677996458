"""The doctor: gradients between batches, small experiments, three problems of known cause."""

from __future__ import annotations

import json
import math
import runpy
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from evenhand import MultiTaskNetwork, NonFiniteError, diagnose
from evenhand.comparison.inference import Estimate
from evenhand.comparison.request import Settings
from evenhand.data import Problem, Split, Task
from evenhand.data.splits import Parts, Pool
from evenhand.doctor import examine as examine_module
from evenhand.doctor import trials
from evenhand.doctor.agreement import agreement
from evenhand.doctor.costs import costs
from evenhand.doctor.describe import describe
from evenhand.doctor.diagnose import DivergedError
from evenhand.doctor.examine import Examination, examine
from evenhand.doctor.ladder import (
    ALL,
    HALF,
    LONGER,
    OWN,
    RUNGS,
    STANDARDISED,
    TOGETHER,
    TUNED,
    WIDER,
    Effort,
    Experiments,
    Ladder,
    Rung,
    climb,
)
from evenhand.doctor.looks import look, preconditioner
from evenhand.doctor.trials import Curves, Trial, run
from evenhand.doctor.words import HEADLINES, words

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Agreement between batches --------------------------------------------------------------------


def products(g: Tensor) -> Tensor:
    return torch.einsum("ain,bjn->aibj", g, g)


def by_hand(g: Tensor, i: int, j: int) -> float:
    """The mean of ⟨g_i(A), g_j(B)⟩ over ordered pairs of different batches."""
    k = len(g)
    pairs = [(a, b) for a in range(k) for b in range(k) if a != b]
    each = [0.5 * float(g[a, i] @ g[b, j] + g[b, i] @ g[a, j]) for a, b in pairs]
    return sum(each) / len(pairs)


def test_products_between_batches_and_their_jackknife_are_those_by_hand() -> None:
    g = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(1)).double() + 3
    found = agreement(products(g), ["a", "b"])

    def cosine(of: Tensor) -> float:
        return by_hand(of, 0, 1) / math.sqrt(by_hand(of, 0, 0) * by_hand(of, 1, 1))

    left = torch.tensor(
        [cosine(torch.cat([g[:k], g[k + 1 :]])) for k in range(6)], dtype=torch.float64
    )
    error = math.sqrt(5 / 6 * float((left - left.mean()).square().sum()))
    assert found.squares[0].mean == pytest.approx(by_hand(g, 0, 0))
    assert found.cosines["a", "b"].mean == pytest.approx(cosine(g))
    assert found.cosines["a", "b"].scale == pytest.approx(error)
    assert found.cosines["a", "b"].freedom == 5
    own = [float(functional.cosine_similarity(g[k, 0], g[k, 1], dim=0)) for k in range(6)]
    assert found.same_batch["a", "b"] == pytest.approx(sum(own) / 6)


def noisy(means: Tensor, shared: float, scale: float, seed: int, batches: int = 16) -> Tensor:
    """Gradients [K, 2, n] whose noise is correlated between the tasks."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(batches, 1, means.shape[1], generator=generator)
    own = torch.randn(batches, 2, means.shape[1], generator=generator)
    sign = torch.tensor([1.0, math.copysign(1.0, shared)]).reshape(1, 2, 1)
    mixed = math.sqrt(abs(shared)) * sign * common + math.sqrt(1 - abs(shared)) * own
    return means + scale * mixed


def test_opposite_noise_is_no_conflict_and_hides_none() -> None:
    helping = torch.stack([torch.ones(50), torch.ones(50) * torch.tensor([1.0, 0.5]).repeat(25)])
    found = agreement(products(noisy(helping, -0.95, 2.0, 0)), ["a", "b"])
    assert found.same_batch["a", "b"] < -0.3
    assert found.shared_noise["a", "b"] < -0.7
    assert found.aligned == (("a", "b"),)
    fighting = torch.stack([torch.ones(50), -torch.ones(50)])
    found = agreement(products(noisy(fighting, 0.95, 2.0, 0)), ["a", "b"])
    assert found.same_batch["a", "b"] > 0.3
    assert found.opposed == (("a", "b"),)


def test_without_a_mean_there_is_no_signal_and_no_cosine() -> None:
    found = agreement(products(noisy(torch.zeros(2, 50), -0.9, 1.0, 3)), ["a", "b"])
    assert found.signal == (False, False)
    assert not found.cosines
    assert found.noise == (math.inf, math.inf)


def test_intervals_cover_the_true_cosine() -> None:
    means = torch.stack([torch.ones(20), torch.tensor([1.0, -0.5]).repeat(10)])
    true = float(functional.cosine_similarity(means[0], means[1], dim=0))
    covered = told = 0
    for seed in range(100):
        found = agreement(products(noisy(means, -0.5, 1.5, seed)), ["a", "b"])
        if found.cosines:
            told += 1
            covered += true in found.cosines["a", "b"].interval()
    assert told > 90
    assert covered >= 0.88 * told


@pytest.mark.parametrize("shape", [(3, 2, 3, 2), (6, 2, 6, 3), (6, 2, 2, 6)])
def test_products_of_a_wrong_shape_or_of_few_batches_are_refused(shape) -> None:
    with pytest.raises(ValueError, match=r"not \[K, 2, K, 2\]|at least 4"):
        agreement(torch.ones(shape), ["a", "b"])


# Looks ----------------------------------------------------------------------------------------


class Two(nn.Module):
    """A trunk with BatchNorm and two heads, any model as far as the doctor knows."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.2))
        self.a, self.b = nn.Linear(4, 1), nn.Linear(4, 1)


def two_losses(model: Two, x: Tensor) -> dict[str, Tensor]:
    z = model.trunk(x)
    a = (model.a(z) - x[:, :1]).square().mean()
    return {"a": a, "b": (model.b(z) + x[:, :1] + x[:, 1:2]).square().mean()}


def two() -> tuple[Two, Tensor]:
    torch.manual_seed(0)
    return Two(), torch.randn(6, 16, 3)


def test_a_look_changes_nothing() -> None:
    model, batches = two()
    model.a.weight.grad = torch.ones_like(model.a.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stream = torch.get_rng_state()
    look(model, two_losses, list(batches))
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.a.weight.grad, torch.ones_like(model.a.weight))
    assert model.trunk[0].weight.grad is None
    assert model.training


def test_a_looks_gradients_are_autograds() -> None:
    model, batches = two()
    model.eval()
    found = look(model, two_losses, list(batches))
    shared = list(model.trunk.parameters())
    rows = []
    for batch in batches:
        said = two_losses(model, batch)
        each = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in said.values()]
        rows.append(torch.stack([torch.cat([g.flatten() for g in row]) for row in each]))
    expected = agreement(products(torch.stack(rows).double()), ["a", "b"])
    assert found.whole.squares[1].mean == pytest.approx(expected.squares[1].mean, rel=1e-4)
    assert found.whole.same_batch["a", "b"] == pytest.approx(
        expected.same_batch["a", "b"], rel=1e-4
    )
    weight, bias = (slice(0, 12), slice(12, 16))
    layer = torch.cat([torch.stack(rows)[..., weight], torch.stack(rows)[..., bias]], -1).double()
    first = agreement(products(layer), ["a", "b"])
    assert list(found.layers) == ["trunk.0", "trunk.1"]
    assert found.layers["trunk.0"].squares[0].mean == pytest.approx(first.squares[0].mean, rel=1e-4)
    assert found.metric is None


def test_a_looks_cosine_in_the_optimizers_metric_is_that_by_hand() -> None:
    model, batches = two()
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for batch in batches:
        adam.zero_grad()
        sum(two_losses(model, batch).values()).backward()
        adam.step()
    model.eval()
    shared = list(model.trunk.parameters())
    roots = [(adam.state[p]["exp_avg_sq"] / (1 - 0.999**6)).sqrt() + 1e-8 for p in shared]
    divisor = torch.cat([root.flatten() for root in roots]).double()
    rows = []
    for batch in batches:
        said = two_losses(model, batch).values()
        each = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in said]
        rows.append(torch.stack([torch.cat([g.flatten() for g in row]) for row in each]))
    g = torch.stack(rows).double()
    expected = agreement(torch.einsum("ain,bjn->aibj", g / divisor, g), ["a", "b"])
    found = look(model, two_losses, list(batches), optimizer=adam).metric
    for one, other in zip(found.squares, expected.squares, strict=True):
        assert one.mean == pytest.approx(other.mean, rel=1e-3)
        assert one.scale == pytest.approx(other.scale, rel=1e-3)
    assert found.same_batch["a", "b"] == pytest.approx(expected.same_batch["a", "b"], rel=1e-3)


def test_the_metric_is_what_adam_divides_by() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 1.0]))
    adam = torch.optim.Adam([parameter], lr=0.1)
    with pytest.raises(ValueError, match="has taken no step"):
        preconditioner(adam, parameter)
    for gradient in ([1.0, 10.0], [3.0, 10.0]):
        parameter.grad = torch.tensor(gradient)
        adam.step()
    v = (0.001 * 0.999 * 1 + 0.001 * 9) / (1 - 0.999**2)
    expected = torch.tensor([math.sqrt(v), 10.0], dtype=torch.float64)
    assert torch.allclose(preconditioner(adam, parameter), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="Adadelta is not known"):
        preconditioner(torch.optim.Adadelta([parameter]), parameter)


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (partial(torch.optim.Adam, betas=(0.0, 0.9)), 4),
        (partial(torch.optim.Adam, betas=(0.0, 0.9), amsgrad=True), 4),
        (partial(torch.optim.AdamW, betas=(0.0, 0.9), amsgrad=True, weight_decay=0), 4),
        (partial(torch.optim.NAdam, betas=(0.0, 0.9)), 4),
        (partial(torch.optim.RAdam, betas=(0.0, 0.9)), 3),
        (partial(torch.optim.RAdam, betas=(0.0, 0.9)), 9),
        (partial(torch.optim.RMSprop, centered=True), 4),
        (torch.optim.RMSprop, 4),
        (torch.optim.Adagrad, 4),
        (torch.optim.SGD, 4),
    ],
)
def test_the_metric_is_what_a_step_shows(make, steps) -> None:
    """Without momentum a step is g / divisor, up to one factor for all coordinates."""
    parameter = nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    own = make([parameter], lr=1e-2)
    for step in range(steps):
        gradient = torch.tensor([1.0, 30 * 0.5**step, 0.1 * 3 ** (step % 2)], dtype=torch.float64)
        before, parameter.grad = parameter.detach().clone(), gradient
        own.step()
    shown = gradient / (before - parameter.detach())
    divisor = preconditioner(own, parameter)
    torch.testing.assert_close(divisor / divisor[0], shown / shown[0], rtol=1e-5, atol=0)


def test_an_optimizer_of_which_the_metric_is_not_known_is_looked_at_in_the_plain_one() -> None:
    model, batches = two()
    train = partial(torch.optim.Adamax, lr=1e-2)
    found = diagnose(model, two_losses, batches, train=train, steps=4, looks=2)
    assert [at.metric for at in found.looks] == [None, None]
    assert [at.step for at in found.looks] == [0, 4]


def test_the_look_ahead_of_linear_losses_is_exact() -> None:
    theta = nn.Parameter(torch.tensor([3.0, 4.0]))
    model = nn.ParameterList([theta])
    slopes = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([-3.0, 4.0])}

    def losses(model: nn.ParameterList, batch: float) -> dict[str, Tensor]:
        return {task: batch * (slope @ model[0]) for task, slope in slopes.items()}

    found = look(model, losses, [1.0, 2.0, 1.0, 2.0], reach=0.01).ahead.fall
    length = 0.01 * 5
    assert found["a", "a"].mean == pytest.approx(100 * length / 3, rel=1e-4)
    assert found["a", "b"].mean == pytest.approx(100 * length * -3 / 7, rel=1e-4)
    assert found["b", "a"].mean == pytest.approx(100 * length * -0.6 / 3, rel=1e-4)
    assert found["b", "b"].scale == pytest.approx(0, abs=1e-4)
    below = look(model, losses, [-1.0, -2.0, -1.0, -2.0], reach=0.01).ahead.fall
    assert below["a", "a"].mean == pytest.approx(100 * length / 3, rel=1e-4)  # a loss below zero


def test_the_look_ahead_is_scored_on_another_batch() -> None:
    model = nn.ParameterList([nn.Parameter(torch.tensor([3.0, 4.0]))])

    def losses(model: nn.ParameterList, batch: int) -> dict[str, Tensor]:
        return {"a": model[0][batch], "b": model[0].sum()}

    found = look(model, losses, [0, 1, 0, 1], reach=0.01).ahead.fall
    assert found["a", "a"].mean == 0  # what the step of one batch moves, the next does not see
    assert found["a", "b"].mean == pytest.approx(100 * 0.05 / 7, rel=1e-4)
    low, high = 100 * 0.05 / math.sqrt(2) / 4, 100 * 0.05 / math.sqrt(2) / 3
    assert found["b", "a"].mean == pytest.approx((low + high) / 2, rel=1e-4)
    error = math.sqrt(4 * ((high - low) / 2) ** 2 / 3) / math.sqrt(4)  # deviation / √4
    assert found["b", "a"].scale == pytest.approx(error, rel=1e-4)


def test_diagnose_trains_a_copy_and_gives_the_metric() -> None:
    model, batches = two()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train = partial(torch.optim.Adam, lr=1e-2)
    found = diagnose(model, two_losses, batches, train=train, steps=20, looks=3)
    assert [at.step for at in found.looks] == [0, 10, 20]
    assert found.looks[0].metric is None
    assert found.looks[1].metric is not None
    assert found.looks[2].losses["a"] < found.looks[0].losses["a"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "after 20 steps" in str(found)


def test_a_training_that_diverges_is_told_with_its_time() -> None:
    model, batches = two()
    wild = partial(torch.optim.SGD, lr=1e30)
    with pytest.raises(DivergedError, match="after 3 steps of the plain sum the gradients of 'a'"):
        diagnose(model, two_losses, batches, train=wild, steps=6, looks=3)
    with torch.no_grad():
        model.a.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError):  # not the training's fault
        diagnose(model, two_losses, batches, train=wild, steps=6, looks=3)


def test_an_examination_goes_on_where_the_plain_sum_diverges() -> None:
    wild = Settings.suggested(small(), optimizer="sgd", rates=(1e30,), epochs=2)
    found = examine(wild, verify=False)
    assert found.diagnosis is None
    assert "take a smaller rate" in found.unseen
    assert any("Gradients were not looked at: after" in line for line in words(found).evidence)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"number": 3}, "at least 4"),
        ({"steps": 5}, "belong together"),
        ({"steps": 5, "train": torch.optim.SGD, "looks": 1}, "looks >= 2"),
        ({"reach": 0.0}, "must be positive"),
    ],
)
def test_what_cannot_be_diagnosed_is_told(wrong, message) -> None:
    model, batches = two()
    with pytest.raises(ValueError, match=message):
        diagnose(model, two_losses, batches, **wrong)


def test_too_few_batches_with_all_labels_and_one_task_are_refused() -> None:
    model, drawn = two()
    batches = list(drawn)

    def seldom(model: Two, x: Tensor) -> Mapping[str, Tensor | None]:
        said = two_losses(model, x)
        return said if x is batches[0] else {"a": said["a"], "b": None}

    with pytest.raises(ValueError, match="1 of 6 batches have labels of all of a, b"):
        diagnose(model, seldom, batches)
    with pytest.raises(ValueError, match="needs two"):
        diagnose(model, lambda m, x: {"a": two_losses(m, x)["a"]}, batches)


# Small experiments ----------------------------------------------------------------------------


class Nothing:
    def update(self, preds: Tensor, target: Tensor) -> None:
        pass

    def compute(self) -> Tensor:
        return torch.zeros(())


def network(tasks, width: float = 1.0) -> MultiTaskNetwork:
    units = round(6 * width)
    outputs = {"<b>a": 1, "b": 1, "c": 3}
    return MultiTaskNetwork(
        nn.Sequential(nn.Linear(4, units), nn.Tanh()),
        {t: nn.Linear(units, outputs[t]) for t in tasks},
    )


def logistic(said: Tensor, true: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(said, true)


def whole(rows: int = 200) -> Split:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(5))
    b = (x[:, 1:2] > 0).float()
    b[::3] = math.nan
    return Split(
        x, {"<b>a": x[:, :1] * 2, "b": b, "c": (x[:, 2] > 0).long() + (x[:, 3] > 1).long()}
    )


def made(parts: Parts) -> Problem:
    train, validation, test = (
        Split(*whole().take(part)) for part in (parts.train, parts.validation, parts.test)
    )
    return Problem(
        name="small",
        summary="three tasks",
        citation="made here",
        tasks={
            "<b>a": Task(functional.mse_loss, Nothing, "none", False),
            "b": Task(logistic, Nothing, "none", False),
            "c": Task(functional.cross_entropy, Nothing, "none", False),
        },
        network=network,
        scaled=network,
        train=train,
        validation=validation,
        test=test,
        batch_size=16,
        epochs=2,
        optimizer="adam",
        rates=(1e-2,),
    )


def small() -> Problem:
    return Pool(200, made).problem("hold-out", 1, 0)


@pytest.mark.parametrize("blocks", [1, 4])
def test_trials_trained_as_one_are_those_trained_alone(blocks, monkeypatch) -> None:
    pool = Pool(200, made)
    problems = {split: pool.problem("hold-out", 2, split) for split in range(2)}
    # One with a shorter test part, so that parts of several lengths stand in one stack.
    short = problems[1].test
    problems[1] = replace(problems[1], test=Split(*short.take(torch.arange(len(short) - 4))))
    asked = [
        Trial(0, (1.0, 1.0, 1.0), 1e-2),
        Trial(1, (1.0, 1.0, 1.0), 3e-2),
        Trial(1, (0.0, 1.0, 0.0), 1e-2),
        Trial(0, (2.0, 0.5, 0.5), 1e-2, share=0.5),
        Trial(0, (1.0, 1.0, 1.0), 1e-2, width=2.0),
    ]
    assert trials.obstacle(problems, asked[:3]) == ""
    together = run(problems, asked, [3, 9], blocks)
    monkeypatch.setattr(trials, "obstacle", lambda problems, trials: "one by one")
    alone = run(problems, asked, [3, 9], blocks)
    assert list(together) == list(alone)
    for trial, curves in alone.items():
        assert torch.allclose(together[trial].validation, curves.validation, rtol=1e-4)
        if blocks == 1:
            assert torch.allclose(together[trial].test, curves.test, rtol=1e-4)
        assert together[trial].test.shape == (2, blocks, 3)
    assert not torch.allclose(
        alone[asked[0]].validation[1], alone[asked[4]].validation[1], rtol=1e-2
    )


def test_large_stacks_are_several(monkeypatch) -> None:
    problems = {0: small()}
    asked = [Trial(0, (1.0, 1.0, 1.0), rate) for rate in (1e-3, 1e-2, 1e-1)]
    whole = run(problems, asked, [4])
    parameters = sum(p.numel() for p in network(tuple(problems[0].tasks)).parameters())
    monkeypatch.setattr(trials, "PARAMETERS", 2 * parameters)
    monkeypatch.setattr(trials, "NUMBERS_OF_STACK", 4 * 2 * 7)  # seven samples at a time
    sizes = []
    as_one = trials._as_one
    monkeypatch.setattr(
        trials, "_as_one", lambda p, t, *rest: sizes.append(len(t)) or as_one(p, t, *rest)
    )
    parts = run(problems, asked, [4])
    assert sizes == [2, 1]
    for trial in asked:
        assert torch.allclose(parts[trial].test, whole[trial].test, rtol=1e-5)
    monkeypatch.setattr(trials, "HELD", 4 * len(problems[0].train) - 1)
    assert "too large" in trials.obstacle(problems, asked)


def test_what_cannot_be_stacked_is_told() -> None:
    problem = small()
    asked = [Trial(0, (1.0, 1.0, 1.0), 1e-2)]
    loose = replace(problem, penalty=lambda network: torch.zeros(()))
    assert "penalty" in trials.obstacle({0: loose}, asked)
    dropping = replace(
        problem,
        network=lambda tasks: MultiTaskNetwork(
            nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1)), {t: nn.Linear(3, 1) for t in tasks}
        ),
    )
    assert "dropout" in trials.obstacle({0: dropping}, asked)
    decayed = replace(problem, optimizer="adamw(weight_decay=0.5)")
    assert trials.obstacle({0: decayed}, asked) == "AdamW has no stacked form"
    with pytest.raises(ValueError, match="has no width"):
        run({0: replace(problem, scaled=None)}, [replace(asked[0], width=2.0)], [1])


def test_harm_is_that_by_hand(monkeypatch) -> None:
    """Losses that are made up: what validation chooses, and harm and its error, worked out."""
    held = {  # relative to the constant's, by rate: [times, tasks]
        ("together", 0.1): [[0.9, 0.2, 0.5], [0.6, 0.6, 0.6]],
        ("together", 0.2): [[0.5, 0.5, 0.9], [0.8, 0.3, 0.4]],  # its second mean is the lowest
        ("apart", 0.1): [[0.3, 0.3, 0.3], [0.4, 0.4, 0.4]],  # its first
        ("apart", 0.2): [[0.5, 0.5, 0.5], [0.35, 0.35, 0.35]],
    }
    tested = {
        ("together", 0.1): [[5.0, 6.0, 7.0], [1.0, 1.0, 1.0]],
        ("together", 0.2): [[8.0, 8.0, 8.0], [4.0, 3.0, 2.0]],
        ("apart", 0.1): [[1.0, 1.0, 1.0], [9.0, 9.0, 9.0]],
        ("apart", 0.2): [[7.0, 7.0, 7.0], [9.0, 9.0, 9.0]],
    }

    def made_up(problems, trials, times, blocks):
        found = {}
        for trial in trials:
            kind = ("together" if min(trial.weights) > 0 else "apart", trial.rate)
            shift = float(trial.split) if kind[0] == "together" else 0.0
            validation = torch.tensor(held[kind], dtype=torch.float64) * constant
            test = torch.tensor(tested[kind], dtype=torch.float64) + shift
            found[trial] = Curves(validation, test.unsqueeze(1))
        return found

    monkeypatch.setattr("evenhand.doctor.ladder.run", made_up)
    problem = small()
    asked = Effort(2, 1, (0.1, 0.2), looks=2)
    experiments = Experiments(lambda split: problem, asked, 0.25)
    constant = torch.tensor(experiments.constant[0][0], dtype=torch.float64)
    of_test = experiments.constant[0][1]
    a = problem.train.targets["<b>a"].mean()
    by_hand = float((problem.test.targets["<b>a"] - a).square().mean())
    assert of_test[0] == pytest.approx(by_hand, rel=1e-5)
    for name, test in ((TOGETHER, [4.0, 3.0, 2.0]), (OWN, [8.0, 3.0, 2.0])):
        harm = experiments.rung(name).harm
        for task, loss, c in zip(problem.tasks, test, of_test, strict=True):
            first, second = 100 * (loss - 1) / c, 100 * (loss + 1 - 1) / c
            assert harm[task].mean == pytest.approx((first + second) / 2)
            error = (second - first) / math.sqrt(2) * math.sqrt(1 / 2 + 0.25)
            assert harm[task].scale == pytest.approx(error)
    assert experiments.learned()["b"].mean == pytest.approx(100 * (1 - 1 / of_test[1]))


def test_any_optimizer_of_torch_trains_the_small_experiments() -> None:
    """A step of Adagrad, by torch, from the same network on the same batch."""
    problem = examine_module._problem(Settings.suggested(small(), optimizer="adagrad(eps=0.01)"))
    asked = Trial(0, (1.0, 2.0, 1.0), 0.05)
    found = run({0: problem}, [asked], [1])[asked].validation[0]
    net = trials._network(problem, asked)
    own = torch.optim.Adagrad(net.parameters(), lr=0.05, eps=0.01)
    inputs, targets = trials._stream(problem, asked).batch(0)
    losses = problem.losses(net(inputs), targets)
    sum(w * loss for w, loss in zip(asked.weights, losses.values(), strict=True)).backward()
    own.step()
    held = problem.validation
    after = problem.losses(net(held.inputs), held.targets)
    assert found.tolist() == pytest.approx([loss.item() for loss in after.values()], rel=1e-5)


# The ladder's words ---------------------------------------------------------------------------


def rung(name: str, *means: float, scale: float = 0.5) -> Rung:
    harm = {task: Estimate(mean, scale, 7) for task, mean in zip("ab", means, strict=True)}
    return Rung(name, harm, Estimate(sum(means) / len(means), scale, 7))


def ladder(first: Rung, untested: Mapping[str, str] | None = None, **others: Rung) -> Ladder:
    left = {name: replace(first, name=name) for name in (*RUNGS, HALF)}
    rungs = {TOGETHER: first, **left, **{r.name: r for r in others.values()}}
    learned = {"a": Estimate(80, 1, 7), "b": Estimate(2, 1, 7)}
    return Ladder(
        {n: r for n, r in rungs.items() if n not in (untested or {})}, learned, untested or {}
    )


CASES = {
    "none": ladder(rung(TOGETHER, 0.2, -1.0)),
    "conflict": ladder(rung(TOGETHER, 20, 12)),
    "scale": ladder(rung(TOGETHER, 20, 0), x=rung(STANDARDISED, 0.5, 0.1)),
    "own epochs": ladder(rung(TOGETHER, 20, 0), x=rung(OWN, 0.5, 0.1)),
    "time": ladder(rung(TOGETHER, 20, 0), x=rung(LONGER, 0.5, 0.1)),
    "capacity": ladder(rung(TOGETHER, 20, 0), x=rung(WIDER, 0.5, 0.1), y=rung(ALL, 0.5, 0.1)),
    "several": ladder(rung(TOGETHER, 20, 0), x=rung(ALL, 0.5, 0.1)),
    "labels": ladder(rung(TOGETHER, 10, 0), x=rung(HALF, 30, 0)),
}


@pytest.mark.parametrize("cause", CASES)
def test_causes_follow_from_rungs(cause) -> None:
    assert CASES[cause].cause == cause
    assert cause in HEADLINES


def test_conflict_is_claimed_only_where_every_rung_was_tested_and_shows_it() -> None:
    harm = rung(TOGETHER, 20, 12)
    assert ladder(harm, {WIDER: "its network has no width"}).cause == "cannot tell"
    assert ladder(harm, x=rung(TUNED, 9, 9, scale=8.0)).cause == "cannot tell"
    assert ladder(rung(TOGETHER, 4, 4, scale=3.0)).cause == "cannot tell"


def test_harm_that_moves_from_task_to_task_is_seen_in_the_average() -> None:
    moving = Rung(
        TOGETHER, {"a": Estimate(20, 30, 7), "b": Estimate(20, 30, 7)}, Estimate(20, 1, 7)
    )
    assert ladder(moving).cause == "conflict"
    assert not ladder(moving).harmed


# A whole examination --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examined() -> Examination:
    torch.set_num_threads(1)
    return examine(small(), verify=True, looks=2)


def test_an_examination_has_all_that_it_tells(examined) -> None:
    assert examined.tasks == ("<b>a", "b", "c")
    assert examined.ladder is not None
    assert examined.ladder.cause in HEADLINES
    said = words(examined)
    assert any(sentence.startswith("Together: <b>a ") for sentence in said.evidence)
    assert examined.costs[0].kind == "plain sum"
    assert all(cost.seconds > 0 and cost.memory > 0 for cost in examined.costs)
    assert examined.costs[3].memory >= examined.costs[0].memory


def test_report_and_json_are_written_and_names_do_no_harm(examined, tmp_path) -> None:
    from evenhand.app import doctor_report

    page = doctor_report.write(examined, tmp_path, "evenhand doctor small").read_text()
    assert "<b>a" not in page
    assert "&lt;b&gt;a" in page
    assert page.count("<svg") >= 3
    written = json.loads((tmp_path / "doctor.json").read_text())
    assert written["cause"] == examined.ladder.cause
    assert written["ladder"]["rungs"]["together"]["b"]["freedom"] == 4


def test_the_command_prints_the_verdict_and_leaves_a_report(tmp_path) -> None:
    from typer.testing import CliRunner

    from evenhand.app.cli import app

    out = tmp_path / "examined"
    asked = ["doctor", "digits", "--epochs", "1", "--lr", "0.01", "--out", str(out)]
    ended = CliRunner().invoke(app, asked)
    assert ended.exit_code == 0, ended.output
    assert "NO VERDICT YET" in ended.stdout
    assert ended.stdout.splitlines()[-1] == str(out / "report.html")
    page = (out / "report.html").read_text()
    assert "evenhand doctor digits --epochs 1 --lr 0.01" in page
    written = json.loads((out / "doctor.json").read_text())
    assert written["cause"] is None
    assert [at["step"] for at in written["looks"]] == [0, 12, 25]
    assert [at["metric"] is None for at in written["looks"]] == [True, False, False]


def test_groups_that_are_kept_on_one_side_are_told() -> None:
    pool = Pool(200, made, groups=torch.arange(200) // 10)
    assert describe(pool.problem("hold-out", 1, 0)).groups == 20


def test_counts() -> None:
    problem = small()
    train, test = problem.train, problem.test
    inputs = torch.cat([test.inputs[:-2], train.inputs[:2]])
    constant = {**train.targets, "b": torch.ones_like(train.targets["b"])}
    rare = train.targets["c"].clone()
    rare[:] = 0
    rare[:3] = 2
    found = describe(
        replace(
            problem,
            train=Split(train.inputs, {**constant, "c": rare}),
            test=Split(inputs, test.targets),
        )
    )
    assert found.duplicates["train", "test"] == 2
    assert found.duplicates["train", "validation"] == 0
    assert found.tasks["b"].constant
    assert found.tasks["c"].rarest == (2, 3)
    assert found.tasks["c"].few
    assert found.tasks["<b>a"].rarest is None


def test_costs_grow_with_what_a_method_looks_at() -> None:
    def large(tasks):
        trunk = nn.Sequential(nn.Linear(4, 200), nn.Tanh(), nn.Linear(200, 200))
        return MultiTaskNetwork(trunk, {t: nn.Linear(200, 3 if t == "c" else 1) for t in tasks})

    problem = replace(small(), network=large, batch_size=8)
    by_kind = {cost.kind: cost.memory for cost in costs(problem, repeats=1)}
    gradient = 4 * (200 * 200 + 200 + 5 * 200)  # bytes of one task's gradient by the trunk
    assert gradient <= by_kind["plain sum"] < 2 * gradient
    assert by_kind["looks at gradients"] > by_kind["plain sum"]  # it keeps factors, not gradients
    assert by_kind["single-task"] >= 3 * gradient
    assert by_kind["looks at losses"] < 2 * gradient


# Three problems of known cause ----------------------------------------------------------------


@pytest.fixture(scope="module")
def problems():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import doctor_problems
    finally:
        sys.path.pop(0)
    return doctor_problems


@pytest.mark.parametrize(
    ("kind", "seed", "cause"),
    [("harmless", 0, "none"), ("scale", 1, "scale")],
)
def test_two_problems_of_known_cause(problems, kind, seed, cause) -> None:
    drawn = replace(problems.draw("smooth", kind, seed), rows=800, width=10, epochs=12)
    pool = drawn.table().pool
    found = climb(
        lambda split: pool.problem("hold-out", 5, split),
        Effort(5, drawn.epochs, (1e-2,), tries=1, looks=4),
        ratio=0.25,
    )
    assert found.cause == cause


def test_a_conflict_is_found_and_the_right_groups_beat_others(problems) -> None:
    """Three tasks read one number: the first and third want nearly the same, the second not."""
    drawn = replace(problems.draw("smooth", "conflict", 1), rows=800, width=10, epochs=12)
    assert not drawn.own_heads
    found = examine(drawn.table(), verify=True, looks=2)
    assert found.ladder is not None
    assert found.ladder.cause == "conflict"
    by_kind = {one.kind: one for one in found.splittings}
    assert by_kind["groups"].pays
    assert by_kind["groups"].left.mean < 0.5 * found.ladder.rungs[TOGETHER].average.mean
    assert by_kind["layer"].chosen.startswith("trunk.")
    # A copy of a layer is enough here, whichever it is: nothing is claimed for the choice.
    assert by_kind["layer"].left.mean < 10
    said = words(found)
    assert said.headline.startswith("CONFLICT")
    assert any("better than chance" in sentence for sentence in said.evidence)


def test_own_layers_are_copies_and_the_others_shared() -> None:
    torch.manual_seed(0)
    plain = network(("b", "c"))
    own = trials.with_own_layers(plain, (0,))
    x = torch.randn(5, 4)
    assert torch.equal(own(x)["c"], plain(x)["c"])
    assert not own.blocks().shared
    assert len(own.blocks().own["b"]) == 4
    with pytest.raises(ValueError, match=r"layers stand at \[0\]"):
        trials.with_own_layers(plain, (1,))


# What the page says of the benchmark ----------------------------------------------------------


def test_the_page_has_the_table_of_the_results(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "doctor.py"))
    results = script["lines"]("rough")
    block = f"{script['BEGIN']}\n{script['page'](results)}\n{script['END']}"
    assert block in (ROOT / "docs" / "doctor.md").read_text()
    assert script["score"](results)["conflict said of those"] == 0
