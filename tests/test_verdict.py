"""The verdict: skill and sentences worked out by hand, and traps that must not be fallen into."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

from evenhand import MultiTaskNetwork, sources
from evenhand.app.cli import app
from evenhand.comparison import shallow
from evenhand.comparison.across import over_tables
from evenhand.comparison.assessment import Assessment, Difference, assess
from evenhand.comparison.constant import constants, evaluated
from evenhand.comparison.facts import Facts, Target, facts
from evenhand.comparison.inference import Chances, Estimate, Interval, over_splits
from evenhand.comparison.job import Job, Result
from evenhand.comparison.request import Settings, forget
from evenhand.comparison.resampling import resampled, said
from evenhand.comparison.skill import Points, skill, spread
from evenhand.comparison.statistics import Row
from evenhand.comparison.verdict import percent, signed, verdict
from evenhand.data import Problem, Source, Split, Task
from evenhand.data.splits import Parts, Pool


class SquaredError:
    def __init__(self) -> None:
        self.sum, self.seen = 0.0, 0

    def update(self, preds, target):
        self.sum += float((preds - target).square().sum())
        self.seen += target.numel()

    def compute(self):
        return torch.tensor(self.sum / self.seen)


class AbsoluteError(SquaredError):
    def update(self, preds, target):
        self.sum += float((preds - target).abs().sum())
        self.seen += target.numel()


class Accuracy(SquaredError):
    def update(self, preds, target):
        said = preds.argmax(-1) if preds.dim() > target.dim() else (preds > 0).long()
        self.sum += float((said == target).sum())
        self.seen += len(target)


NUMBER = Task(functional.mse_loss, SquaredError, "MSE", False)
YES = Task(
    lambda o, t: functional.binary_cross_entropy_with_logits(o, t.float()),
    Accuracy,
    "accuracy",
    True,
)
CLASS = Task(functional.cross_entropy, Accuracy, "accuracy", True)


def problem(
    x: Tensor,
    targets: Mapping[str, Tensor],
    tasks: Mapping[str, Task],
    name: str = "table",
    strata: Tensor | None = None,
    groups: Tensor | None = None,
    times: Tensor | None = None,
    width: int = 8,
    **more,
) -> Problem:
    """A table of these rows, whose parts can be drawn anew; a network of one hidden layer."""

    def scaled(wanted: Sequence[str], factor: float) -> MultiTaskNetwork:
        units = max(1, round(factor * width))
        trunk = nn.Sequential(nn.Linear(x.shape[1], units), nn.Tanh())
        heads = {}
        for task in wanted:
            whole = not targets[task].is_floating_point() and tasks[task] is CLASS
            outputs = int(targets[task].max()) + 1 if whole else 1
            last = nn.Linear(units, outputs)
            heads[task] = last if whole else nn.Sequential(last, nn.Flatten(0))
        return MultiTaskNetwork(trunk, heads)

    def make(parts: Parts) -> Problem:
        train, validation, test = (
            Split(x[part], {task: target[part] for task, target in targets.items()})
            for part in (parts.train, parts.validation, parts.test)
        )
        return Problem(
            name=name,
            summary="a table made for the test",
            citation="made for the test",
            tasks=tasks,
            network=lambda wanted: scaled(wanted, 1.0),
            train=train,
            validation=validation,
            test=test,
            batch_size=32,
            epochs=8,
            optimizer="adam",
            rates=(0.03,),
            scaled=scaled,
            **more,
        )

    pool = Pool(len(x), make, strata=strata, groups=groups, times=times)
    return pool.problem()


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Skill ----------------------------------------------------------------------------------------


def test_skill_by_hand() -> None:
    assert skill(0.041, 0.041, YES) == 0
    assert skill(0.75, 0.5, YES) == pytest.approx(50)
    assert skill(0.4, 0.5, YES) == pytest.approx(-20)
    assert skill(1.0, 4.0, NUMBER) == pytest.approx(75)
    assert skill(6.0, 4.0, NUMBER) == pytest.approx(-50)
    bounded = replace(NUMBER, perfect=2.0)
    assert skill(3.0, 4.0, bounded) == pytest.approx(50)
    likelihood = Task(functional.mse_loss, SquaredError, "log-likelihood", True, unit=2.0)
    assert skill(-3.0, -4.0, likelihood) == pytest.approx(50)
    assert math.isnan(skill(1.0, 1.0, YES))
    assert math.isnan(skill(math.nan, 0.5, YES))
    with pytest.raises(ValueError, match="unit=0"):
        skill(0.5, 0.4, replace(likelihood, unit=0.0))


def test_the_constant_is_the_best_by_the_metric_on_training_rows() -> None:
    x = drawn(0, 100, 2)
    skewed = drawn(1, 100).exp()
    rare = (torch.arange(100) % 10 == 0).long()
    three = torch.tensor([2] * 50 + [0] * 30 + [1] * 20)[
        torch.randperm(100, generator=torch.Generator().manual_seed(2))
    ]
    absolute = Task(functional.mse_loss, AbsoluteError, "MAE", False)
    made = problem(
        x,
        {"mean": skewed, "median": skewed, "rare": rare, "three": three},
        {"mean": NUMBER, "median": absolute, "rare": YES, "three": CLASS},
    )
    found = constants(made)
    train = made.train.targets
    assert float(found["mean"]) == pytest.approx(float(train["mean"].mean()), rel=1e-4)
    lower = train["median"].sort().values
    assert lower[29] <= found["median"] <= lower[30]
    assert found["rare"] <= 0  # a logit that says no
    assert int(found["three"].argmax()) == int(train["three"].bincount().argmax()) == 2


def test_missing_labels_are_no_part_of_a_constant_or_a_count(tmp_path: Path) -> None:
    y = drawn(3, 100)
    y[::2] = math.nan
    made = problem(drawn(0, 100, 2), {"y": y}, {"y": NUMBER})
    known = made.train.targets["y"]
    known = known[~known.isnan()]
    assert float(constants(made)["y"]) == pytest.approx(float(known.mean()), abs=1e-4)
    counted = facts(made)
    assert counted.training["y"] == len(known)
    assert counted.test["y"].count == int((~made.test.targets["y"].isnan()).sum())
    assert counted.rows == (60, 20, 20)
    assert counted.ratio == pytest.approx(0.25)
    file = tmp_path / "facts.json"
    file.write_text(counted.to_json())
    assert Facts.read(file) == counted


def test_groups_are_counted_instead_of_rows() -> None:
    made = problem(
        drawn(0, 90, 2), {"y": drawn(1, 90)}, {"y": NUMBER}, groups=torch.arange(90) // 9
    )
    assert facts(made).units == (8, 2)


def test_rows_are_resampled_alike_for_every_network_and_by_group() -> None:
    groups = torch.arange(90) // 9
    made = problem(drawn(0, 90, 2), {"y": drawn(1, 90)}, {"y": NUMBER}, groups=groups)
    nets = []
    for seed in range(2):
        torch.manual_seed(seed)
        nets.append(made.network(("y",)))
    first, again = (resampled(nets[0], made, ("y",), 0)["y"] for _ in range(2))
    assert first == again
    assert resampled(nets[0], made, ("y",), 1)["y"] != first
    # two groups of nine rows: a draw is one of them twice, or both
    errors = []
    for group in made.test_groups.unique():
        rows = made.test_groups == group
        said = nets[0](made.test.inputs[rows], tasks=("y",))["y"].detach()
        errors.append(float((said - made.test.targets["y"][rows]).square().mean()))
    expected = {round(e, 4) for e in (*errors, sum(errors) / 2)}
    assert {round(value, 4) for value in first} == expected


def test_what_was_said_is_scored_on_the_rows_of_its_part() -> None:
    """Validation has 25 rows and test has 15; each part is scored by what was said of it."""
    made = problem(drawn(0, 100, 2), {"y": drawn(1, 100)}, {"y": NUMBER})
    order = torch.arange(100)
    made = made.pool.make(Parts(order[:60], order[60:85], order[85:]))
    spoken = {"validation": drawn(2, 25), "test": drawn(3, 15)}
    network, scored = said(made, {"y": (spoken["validation"], spoken["test"])})
    for part, outputs in spoken.items():
        found = evaluated(network, scored, getattr(scored, part), ("y",))["y"]
        truth = getattr(made, part).targets["y"]
        assert found == pytest.approx(float((outputs - truth).square().mean()))


def test_as_many_rows_are_drawn_as_there_are_independent_things() -> None:
    """Pictures of the same few objects: the spread of a mean is that of so few draws."""
    made = problem(drawn(0, 1000, 2), {"y": drawn(1, 1000)}, {"y": NUMBER})
    torch.manual_seed(0)
    network = made.network(("y",))
    with torch.no_grad():
        errors = (network(made.test.inputs)["y"] - made.test.targets["y"]).square()
    for units, number in ((None, 200), ((800, 50), 50)):
        found = resampled(network, replace(made, units=units), ("y",), 0)["y"]
        assert statistics.stdev(found) == pytest.approx(float(errors.std()) / number**0.5, rel=0.15)


@pytest.mark.parametrize(
    ("rarest", "values", "count", "told"),
    [
        (41, 2, 1000, "nothing beats a constant (41 positives in 1,000 test rows)"),
        (1, 2, 48, "nothing beats a constant (1 positive in 48 test rows)"),
        (45, 10, 800, "nothing beats a constant"),  # ten classes of about equal size
        (3, 10, 800, "nothing beats a constant (3 of class 7 in 800 test rows)"),
    ],
)
def test_what_is_rare_is_told_where_nothing_is_learned(rarest, values, count, told) -> None:
    low = made_row("sg", {"up": [0.6, 0.61, 0.62], "down": [4.1, 3.9, 4.05]})
    made = replace(
        problem(drawn(0, 20, 2), {t: drawn(1, 20) for t in TASKS}, dict.fromkeys(TASKS, NUMBER)),
        tasks=TASKS,
    )
    target = Target(count, values, rarest, "1" if values == 2 else "7")
    counted = replace(COUNTED, test={"down": target})
    found = assess([low], [CONSTANT], made, Settings("-", seeds=(0,), splits=3), [counted] * 3)
    assert found.unjudged == {"down": told}


# scikit-learn's rows --------------------------------------------------------------------------


def test_a_linear_model_is_ridge_regression_on_the_labelled_rows() -> None:
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    x = drawn(20, 100, 3)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 * drawn(21, 100)
    y[::3] = math.nan
    made = problem(x, {"y": y}, {"y": NUMBER})
    validation, test = shallow.predictions(made, shallow.linear_models, 0)["y"]
    assert (len(validation), len(test)) == (20, 20)
    known = ~made.train.targets["y"].isnan()
    inputs = made.train.inputs[known].double().numpy()
    scaler = StandardScaler().fit(inputs)
    candidates = []
    for strength in shallow.STRENGTHS:
        model = Ridge(alpha=strength).fit(
            scaler.transform(inputs), made.train.targets["y"][known].double().numpy()
        )
        said = [
            torch.from_numpy(model.predict(scaler.transform(part.inputs.double().numpy())))
            for part in (made.validation, made.test)
        ]
        truth = made.validation.targets["y"]
        error = (said[0] - truth)[~truth.isnan()].square().mean()
        candidates.append((float(error), said[1].float()))
    assert torch.allclose(test, min(candidates, key=lambda pair: pair[0])[1], atol=1e-5)


def test_the_first_trees_are_a_smaller_model() -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor

    x = drawn(22, 200, 3).double().numpy()
    y = (x[:, 0] ** 2 + x[:, 1]).reshape(-1, 1)
    flat = shallow.Flat(x, y, (), "numbers")
    for number, predict in zip(shallow.TREES, shallow.tree_models(flat, 0), strict=True):
        alone = HistGradientBoostingRegressor(
            max_iter=number, early_stopping=False, random_state=0
        ).fit(x, y[:, 0])
        assert torch.allclose(predict(x), torch.from_numpy(alone.predict(x)).float(), atol=1e-5)


def test_answers_take_the_form_of_the_networks_outputs() -> None:
    x = drawn(23, 150, 2)
    three = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()  # of four classes
    yes = (x[:, 0] > 0).long()
    made = problem(x, {"three": three, "yes": yes}, {"three": CLASS, "yes": YES})
    for models in (shallow.linear_models, shallow.tree_models):
        said = shallow.predictions(made, models, 0)
        assert said["three"][1].shape == (30, 4)
        assert said["yes"][1].shape == (30,)
        assert ((said["yes"][1] > 0) == (made.test.targets["yes"] == 1)).float().mean() > 0.9
        assert (said["three"][1].argmax(1) == made.test.targets["three"]).float().mean() > 0.8
    seen = shallow.Flat(x.double().numpy(), yes.numpy() * 2, (4,), "classes")
    logits = next(shallow.linear_models(seen, 0))(x.double().numpy())
    assert (logits[:, [1, 3]] == -30).all()
    assert torch.allclose(logits.exp().sum(dim=1), torch.ones(150), atol=1e-5)


# An assessment by hand ------------------------------------------------------------------------


def made_row(name: str, tests: Mapping[str, Sequence[float]], epoch: int = 1) -> Row:
    """A row with these metrics, one per split."""
    splits = len(next(iter(tests.values())))
    results = tuple(
        Result(
            Job(name, "", 0, 0.1, split),
            tuple(tests),
            "finished",
            epoch,
            0.5,
            test={task: values[split] for task, values in tests.items()},
            parameters=300 if name == "single-task" else 100,
            flops=2e6,
            processor=2.0 if name == "single-task" else 1.0,
        )
        for split in range(splits)
    )
    return Row(name, results, {task: tuple(values) for task, values in tests.items()}, {"": 0.1})


COUNTED = Facts((600, 200, 200), (800, 200), {"up": 600, "down": 600}, {})


def assessed(
    rows: Sequence[Row], beside: Sequence[Row], tasks: Mapping[str, Task], **more
) -> Assessment:
    splits = len(beside[0].chosen)
    settings = Settings("-", seeds=(0,), splits=splits, **more)
    made = replace(
        problem(drawn(0, 20, 2), {t: drawn(1, 20) for t in tasks}, dict.fromkeys(tasks, NUMBER)),
        tasks=tasks,
    )
    return assess(rows, beside, made, settings, [COUNTED] * splits)


TASKS = {"up": YES, "down": NUMBER}
CONSTANT = made_row("constant", {"up": [0.5, 0.5, 0.5], "down": [4.0, 4.0, 4.0]})
# skill in up 20, 22, 24 and in down 50, 50, 53: means 35, 36, 38.5
SINGLE = made_row("single-task", {"up": [0.6, 0.61, 0.62], "down": [2.0, 2.0, 1.88]})
# skill in up 40, 40, 46 and in down 52, 54, 54: means 46, 47, 50
SUM = made_row("sg", {"up": [0.7, 0.7, 0.73], "down": [1.92, 1.84, 1.84]})
# skill in up 20, 30, 40 and in down 30, 20, 22: means 25, 25, 31
OTHER = made_row("mgda", {"up": [0.6, 0.65, 0.7], "down": [2.8, 3.2, 3.12]})


def test_an_assessment_worked_out_by_hand() -> None:
    found = assessed([SINGLE, SUM, OTHER], [CONSTANT], TASKS)
    assert found.judged == ("up", "down")
    assert found.constant == {"up": 0.5, "down": 4.0}
    means = {line.name: line.skill.values for line in found.lines}
    assert means["constant"] == {0: 0.0, 1: 0.0, 2: 0.0}
    assert means["single-task"] == pytest.approx({0: 35.0, 1: 36.0, 2: 38.5})
    assert means["sg"] == pytest.approx({0: 46.0, 1: 47.0, 2: 50.0})
    assert means["mgda"] == pytest.approx({0: 25.0, 1: 25.0, 2: 31.0})
    assert found.headline is not None
    assert found.headline.points.values == pytest.approx({0: 11.0, 1: 11.0, 2: 11.5})
    # S² = (1/36 + 1/36 + 1/9) / 2 = 1/12, variance 1/12 (1/3 + 1/4), t(.975, 2) = 4.302653
    assert found.headline.interval.low == pytest.approx(67 / 6 - 4.302653 * 7**0.5 / 12, abs=1e-4)
    against = found.against_sum["mgda"]
    assert against.points.values == pytest.approx({0: -21.0, 1: -22.0, 2: -19.0})
    # S² = ((1/3)² + (4/3)² + (5/3)²) / 2 = 7/3, variance 7/3 (1/3 + 1/4)
    half = 4.302653 * math.sqrt(7 / 3 * (1 / 3 + 1 / 4))
    assert against.interval is not None
    assert against.interval.high == pytest.approx(-62 / 3 + half, abs=1e-4)
    # two rows against single-task at once: t(1 − .05 / 4, 2) = 6.205347
    versus = found.line("mgda").versus
    assert versus.points.values == pytest.approx({0: -10.0, 1: -11.0, 2: -7.5})
    # S² = ((.5)² + (1.5)² + 2²) / 2 = 3.25
    half = 6.205347 * math.sqrt(3.25 * (1 / 3 + 1 / 4))
    assert versus.interval.low == pytest.approx(-9.5 - half, abs=1e-4)
    # the tasks share the error as well
    assert found.by_task["up"].points.values == pytest.approx({0: 20.0, 1: 18.0, 2: 22.0})
    up = 6.205347 * math.sqrt(4.0 * (1 / 3 + 1 / 4))
    assert found.by_task["up"].interval.high == pytest.approx(20 + up, abs=1e-4)
    assert found.line("sg").parameters == 100


def test_its_sentences() -> None:
    said = verdict(assessed([SINGLE, SUM, OTHER], [CONSTANT], TASKS))
    assert said.headline == "TOGETHER, for both tasks."
    assert said.sentences[0].endswith("+11.2 points of skill (95 %: +10.2 to +12.1).")
    assert "Shown to gain together: up +20.0 (+10.5 to +29.5)." in said.sentences
    assert (
        "The one network has a third of the parameters, 1 x the operations and 0.5 x the processor "
        "time."
    ) in said.sentences
    assert "mgda is not shown to beat the sum; mgda (over 99 %) looks worse." in said.sentences
    assert any(line.startswith("The plain sum is enough") for line in said.sentences)
    assert said.advice == "keep one network, the sum."


def test_seeds_are_averaged_within_a_split() -> None:
    doubled = tuple(
        replace(r, job=replace(r.job, seed=seed), test={t: v + d for t, v in r.test.items()})
        for r in SUM.chosen
        for seed, d in ((0, -0.02), (1, 0.02))
    )
    spread = replace(SUM, chosen=doubled)
    found = assessed([SINGLE, spread], [CONSTANT], TASKS)
    assert found.headline.points.values == pytest.approx({0: 11.0, 1: 11.0, 2: 11.5})


def test_more_seeds_separate_the_sources_of_the_spread() -> None:
    """By hand: accuracies 0.05 to both sides are skills 10 to both sides, s² = 10² + 10² = 200.

    Without the seeds the splits differ by 20, 18 and 22: S² = 4, less 200 / 2 is below zero. With
    seeds 0.005 to both sides s² = 2, and 4 − 2 / 2 = 3 is left between splits.
    """

    def seeds(row: Row, off: float) -> Row:
        two = tuple(
            replace(r, job=replace(r.job, seed=seed), test={t: r.test[t] + d for t in r.test})
            for r in row.chosen
            for seed, d in ((0, -off), (1, off))
        )
        return replace(row, chosen=two)

    only = {"up": YES}
    found = spread(seeds(SUM, 0.05), seeds(SINGLE, 0.0), CONSTANT, only, 3)
    assert (found.splits, found.seeds) == pytest.approx((0.0, math.sqrt(200)))
    found = spread(seeds(SUM, 0.005), seeds(SINGLE, 0.0), CONSTANT, only, 3)
    assert (found.splits, found.seeds) == pytest.approx((math.sqrt(3), math.sqrt(2)))
    assert spread(SUM, SINGLE, CONSTANT, only, 3) is None  # one seed


def test_a_task_that_nothing_learns_is_left_out_for_all_rows() -> None:
    low = made_row("single-task", {"up": [0.6, 0.61, 0.62], "down": [4.1, 3.9, 4.05]})
    joint = made_row("sg", {"up": [0.7, 0.7, 0.73], "down": [2.0, 4.4, 4.4]})
    found = assessed([low, joint], [CONSTANT], TASKS)
    assert found.judged == ("up",)
    told = "nothing is shown to beat a constant (best skill 10.0, its interval reaches zero)"
    assert found.unjudged == {"down": told}
    level = replace(joint, chosen=made_row("sg", {**joint.test, "down": [4.1, 4.0, 4.1]}).chosen)
    found = assessed([low, level], [CONSTANT], TASKS)
    assert found.unjudged == {"down": "nothing beats a constant"}
    assert found.line("sg").skill.values == pytest.approx({0: 40.0, 1: 40.0, 2: 46.0})
    assert "down cannot be judged." in verdict(found).headline


def test_the_signs_of_both_kinds_of_metric() -> None:
    """Better is positive whether a metric should be high or low."""
    worse = made_row("sg", {"up": [0.55, 0.56, 0.57], "down": [2.4, 2.4, 2.3]})
    found = assessed([SINGLE, worse], [CONSTANT], TASKS)
    assert all(d.mean < 0 for d in found.by_task.values())
    assert found.headline.mean < 0


@pytest.mark.parametrize(
    ("chances", "word"),
    [
        ((0.01, 0.02, 0.97), "TOGETHER"),
        ((0.01, 0.13, 0.86), "TOGETHER, PROBABLY"),
        ((0.97, 0.02, 0.01), "APART"),
        ((0.86, 0.13, 0.01), "APART, PROBABLY"),
        ((0.01, 0.97, 0.02), "EITHER WAY"),
        ((0.06, 0.88, 0.06), "EITHER WAY, PROBABLY"),
        ((0.04, 0.46, 0.50), "TOGETHER IS NO WORSE"),
        ((0.50, 0.46, 0.04), "APART IS NO WORSE"),
        ((0.30, 0.40, 0.30), "CANNOT TELL"),
        ((0.051, 0.15, 0.799), "CANNOT TELL"),
    ],
)
def test_words_follow_numbers(chances, word) -> None:
    found = assessed([SINGLE, SUM], [CONSTANT], TASKS)
    estimate = Estimate(
        4.0 * (1 if chances[2] > chances[0] else -1), 1.0, 4
    )  # ± 2.8: not over zero
    points = Points({0: 1.0, 1: 1.5, 2: 2.0}, {})
    headline = Difference(points, estimate, estimate.interval(), Chances(*chances))
    made = replace(found, headline=headline, by_task={})
    assert verdict(made).word == word
    enough = any("is enough" in sentence for sentence in verdict(made).sentences)
    assert enough == (chances[0] < 0.05)
    over_zero = replace(headline, interval=Interval(-0.1, 8.0))
    qualified = f"{word}, PROBABLY" if word in ("TOGETHER", "APART") else word
    assert verdict(replace(made, headline=over_zero)).word == qualified


def test_the_same_difference_in_every_split_is_no_certainty() -> None:
    """Of few test rows a coarse metric says the same by chance: no interval, and no word."""
    tasks = {"up": YES}
    constant = made_row("constant", {"up": [0.5] * 5})
    single = made_row("single-task", {"up": [0.7, 0.8, 0.7, 0.8, 0.7]})
    two = {"up": YES, "other": YES}
    for ahead in (0.0, 0.2):
        joint = made_row("sg", {"up": [x + ahead for x in (0.7, 0.8, 0.7, 0.8, 0.7)]})
        beside = [replace(row, chosen=_twice(row.chosen)) for row in (constant, single, joint)]
        found = assessed(beside[1:], beside[:1], two)
        assert found.headline.mean == pytest.approx(200 * ahead)
        assert found.headline.estimate is None
        assert found.headline.chances is None
        assert math.isnan(found.visible)
        said = verdict(found)
        assert said.word == "CANNOT TELL"
        assert "it is the same every time" in said.sentences[0]
        assert not any("is enough" in s or "95 %" in s for s in said.sentences)
        assert said.advice.startswith("more test rows, or a metric that moves with each of them")
        assert "±" not in said.advice
    assert assessed([single], [constant], tasks).judged == ("up",)


def test_two_splits_declare_nothing() -> None:
    """By chance two of them are nearly the same, and a t of one degree of freedom is sure of it."""
    two = [
        made_row(row.recipe, {t: v[1:] for t, v in row.test.items()})
        for row in (CONSTANT, SINGLE, SUM, OTHER)
    ]
    found = assessed(two[1:], two[:1], TASKS)
    assert found.headline.points.values == pytest.approx({0: 11.0, 1: 11.5})
    said = verdict(found)
    assert said.word == "CANNOT TELL"
    assert "two splits say next to nothing of a spread" in said.sentences[0]
    assert not any("Shown to" in s or "looks worse" in s for s in said.sentences)
    assert said.advice == "splits=5 says how sure this is."
    assert any("one degree of freedom" in note for note in said.footnotes)


def _twice(results: Sequence[Result]) -> tuple[Result, ...]:
    """The same metric in a second task."""
    return tuple(replace(r, test={"up": r.test["up"], "other": r.test["up"]}) for r in results)


def test_of_one_task_nothing_is_declared() -> None:
    constant = made_row("constant", {"up": [0.5, 0.5, 0.5]})
    single, joint, other = (
        made_row(name, {"up": values})
        for name, values in {
            "single-task": [0.6, 0.61, 0.62],
            "sg": [0.6, 0.61, 0.62],
            "mgda": [0.6, 0.61, 0.62],
        }.items()
    )
    said = verdict(assessed([single, joint, other], [constant], {"up": YES}))
    assert said.word == "ONE TASK"
    assert "sg and single-task are one and the same" in said.headline
    assert said.sentences == ()
    assert said.advice == ""


def test_three_groups_have_two_degrees_of_freedom_however_often_they_are_divided() -> None:
    rows = [made_row(r.recipe, {t: (*v, *v[1:]) for t, v in r.test.items()}) for r in (SINGLE, SUM)]
    zero = made_row("constant", {t: [v[0]] * 5 for t, v in CONSTANT.test.items()})
    settings = Settings("-", seeds=(0,), splits=5)
    made = replace(
        problem(drawn(0, 20, 2), {t: drawn(1, 20) for t in TASKS}, dict.fromkeys(TASKS, NUMBER)),
        tasks=TASKS,
    )
    many, few = (
        assess(rows, [zero], made, settings, [replace(COUNTED, units=units)] * 5)
        for units in ((40, 20), (2, 1))
    )
    assert many.design.ratio == few.design.ratio
    assert (many.design.freedom, few.design.freedom) == (4, 2)
    halves = [found.headline.estimate.half_width() for found in (many, few)]
    assert halves[1] / halves[0] == pytest.approx(4.302653 / 2.776445, abs=1e-5)
    assert any("2 degrees of freedom" in note for note in verdict(few).footnotes)


def test_enough_is_said_only_where_no_recipe_may_be_better() -> None:
    good = made_row("mgda", {"up": [0.7, 0.71, 0.72], "down": [1.9, 1.8, 1.9]})
    found = assessed([SINGLE, SUM, good], [CONSTANT], TASKS)
    assert found.against_sum["mgda"].chances.better > 0.05
    assert not any("is enough" in sentence for sentence in verdict(found).sentences)


def test_a_balancing_method_that_makes_one_network_as_good_is_advised() -> None:
    """The sum is behind, four methods are level with single-task, the one behind keeps its name."""
    poor = made_row("sg", {"up": [0.52, 0.53, 0.52], "down": [3.0, 3.1, 3.0]})
    level = {"up": [0.6, 0.61, 0.62], "down": [2.0, 2.0, 1.88]}
    names = ("mgda", "central", "uncertainty", "si")
    rows = [made_row(name, {**level, "down": [2.0 - k / 50] * 3}) for k, name in enumerate(names)]
    worse = made_row("ate-sg", {"up": [0.51, 0.52, 0.5], "down": [3.8, 3.9, 3.7]})
    said = verdict(assessed([SINGLE, poor, *rows, worse], [CONSTANT], TASKS))
    assert said.word == "APART"
    assert said.advice == "one network per task, or one balanced by si."
    leads = [s.split(" ")[0] for s in said.sentences if "is shown to beat the sum" in s]
    assert leads == ["si", "uncertainty", "central"]
    assert "1 more is shown to beat it: mgda." in said.sentences
    assert "ate-sg (over 99 %) looks worse." in said.sentences
    assert sum("looks worse" in s for s in said.sentences) == 1


def test_who_was_still_improving_is_told_before_deciding() -> None:
    last = replace(SUM, chosen=tuple(replace(r, epoch=8) for r in SUM.chosen))
    said = verdict(assessed([SINGLE, last], [CONSTANT], TASKS))
    assert "sg was still improving at the last epoch: more may change this." in said.sentences
    assert said.advice.startswith("train longer (epochs=...) before deciding; keep one network")
    early = verdict(assessed([SINGLE, SUM], [CONSTANT], TASKS))
    assert not any("improving" in sentence for sentence in early.sentences)


def test_where_size_is_the_cause_a_larger_network_is_named() -> None:
    small = made_row("sg", {"up": [0.52, 0.53, 0.52], "down": [3.0, 3.1, 3.0]})
    wide = made_row("sg-wide", {"up": [0.6, 0.61, 0.62], "down": [2.0, 2.0, 1.88]})
    said = verdict(assessed([SINGLE, small], [CONSTANT, wide], TASKS))
    assert said.word == "APART"
    assert said.advice == "one network per task, or one as large as all of them."
    assert any("as large as all networks together is at +0.0" in s for s in said.sentences)
    alone = verdict(assessed([SINGLE, small], [CONSTANT], TASKS))
    assert alone.advice == "one network per task."


def test_numbers_as_text() -> None:
    assert [signed(x) for x in (2.06, -0.4, -0.04, 0.0)] == ["+2.1", "−0.4", "+0.0", "+0.0"]
    assert [percent(p) for p in (0.0, 0.004, 0.13, 0.997, 1.0)] == [
        "0 %",
        "below 1 %",
        "13 %",
        "over 99 %",
        "100 %",
    ]


def test_a_task_that_goes_against_the_headline_is_named() -> None:
    mixed = made_row("sg", {"up": [0.9, 0.91, 0.92], "down": [2.6, 2.6, 2.52]})
    said = verdict(assessed([SINGLE, mixed], [CONSTANT], TASKS))
    assert said.headline == "TOGETHER, for up. But down does better apart."
    assert said.advice == "keep one network, the sum; down in a network of its own."


# Over many tables -----------------------------------------------------------------------------


def test_ten_tables_and_no_fewer() -> None:
    tables = {
        f"t{k}": {"sg": 40.0, "mgda": 40.0 - k - 1, "ius": 40.0 + (-1) ** k * (k + 1)}
        for k in range(10)
    }
    mgda, ius = over_tables(tables)
    assert (mgda.name, mgda.tables, mgda.better, mgda.worse) == ("mgda", 10, 0, 10)
    assert mgda.p == pytest.approx(2 / 1024)
    assert mgda.adjusted == pytest.approx(4 / 1024)
    assert ius.p > 0.5
    with pytest.raises(ValueError, match="9 tables: signed ranks need 10"):
        over_tables(dict(list(tables.items())[:9]))


# Traps ----------------------------------------------------------------------------------------


def _noise(seed: int) -> Problem:
    """Subjects of whom the inputs say nothing: the untrained network does as well as any."""
    subject = torch.arange(200) // 10
    level = drawn(5, 20)[subject]
    targets = {"a": level + 0.1 * drawn(6, 200), "b": -level + 0.1 * drawn(7, 200)}
    made = problem(
        drawn(4, 200, 30), targets, dict.fromkeys(targets, NUMBER), "noise", groups=subject
    )
    return made.pool.problem("hold-out", 1, seed)


def _empty(seed: int) -> Problem:
    """One task is learned; the other has hardly a positive, and in some test parts none."""
    x = drawn(8, 240, 4)
    rare = torch.zeros(240, dtype=torch.int64)
    rare[Pool(240, lambda parts: None).parts("hold-out", 1, 0).train[:2]] = 1
    made = problem(x, {"sum": x.sum(dim=1), "rare": rare}, {"sum": NUMBER, "rare": YES}, "empty")
    return made.pool.problem("hold-out", 1, seed)


def _rare(seed: int) -> Problem:
    """One task is learned; the other has some positives, of which the inputs say nothing."""
    x = drawn(15, 240, 12)
    rare = (drawn(16, 240) > 1.7).float()
    made = problem(
        x,
        {"sum": x[:, :2].sum(dim=1), "rare": rare},
        {"sum": NUMBER, "rare": NUMBER},
        "rare",
        strata=rare.long(),
    )
    return made.pool.problem("hold-out", 1, seed)


def _twins(seed: int) -> Problem:
    """Two noisy targets of few rows: whatever differs between recipes is the split's noise."""
    x = drawn(9, 150, 6)
    common = x[:, 0] + x[:, 1]
    targets = {"a": common + 1.5 * drawn(10, 150), "b": common + 1.5 * drawn(11, 150)}
    names = {"a": "$x^2_i$", "b": "_b%\\frac{"}
    made = problem(
        x,
        {names[t]: y for t, y in targets.items()},
        dict.fromkeys(names.values(), NUMBER),
        "twins",
    )
    return made.pool.problem("hold-out", 1, seed)


TRAPS: Mapping[str, Callable[[int], Problem]] = {
    "noise": _noise,
    "empty": _empty,
    "rare": _rare,
    "twins": _twins,
}


@pytest.fixture(scope="module", autouse=True)
def _tables() -> Iterator[None]:
    module = ModuleType("tables_of_the_tests")
    for name, maker in TRAPS.items():
        setattr(module, name, maker)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tables_of_the_tests", module)
        added = [Source(name, "tables_of_the_tests", "-", "-", maker=name) for name in TRAPS]
        patch.setattr(sources, "SOURCES", (*sources.SOURCES, *added))
        forget()
        yield
    forget()


def _printed(command: str, folder: Path, monkeypatch) -> str:
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, shlex.split(f"{command} --workers 1 --out out"))
    assert result.exit_code == 0, result.output
    return " ".join(
        " ".join(line.split()) for line in result.stdout.splitlines() if not line.startswith("[")
    )


def _literature(folder: Path, name: str, tasks: Sequence[str]) -> list[float]:
    """Δm of a row in each split, as the literature has it, whatever single-task has learned.

    Every metric here should be low.
    """
    found: dict[str, dict[tuple[str, str], float]] = {}
    for line in csv.DictReader((folder / "out/results.csv").read_text().splitlines()):
        found.setdefault(line["row"], {})[line["split"], line["task"]] = float(line["metric"])
    single, own = found["single-task"], found[name]
    return [
        statistics.fmean(100 * (1 - own[split, task] / single[split, task]) for task in tasks)
        for split in sorted({split for split, _ in own})
    ]


def test_an_untrained_network_wins_nothing(tmp_path, monkeypatch) -> None:
    """Repeated measurements split by subject: the tasks are not learnable from these inputs.

    By Δm the untrained sum wins: by 40 % in one split, by the mean over splits, and a constant by
    as much.
    """
    words = _printed(
        "compare noise --recipes single-task,sg,mgda --epochs 4", tmp_path, monkeypatch
    )
    assert "NOTHING TO COMPARE: no row is shown to beat a constant in any task." in words
    for task in ("a", "b"):  # some mean may be above the margin by chance, and is not shown
        assert re.search(rf"\b{task}\b[^.]*: nothing (beats|is shown to beat) a constant", words)
    assert "No training beat no training: by validation the best epoch is 0 for" in words
    assert "20 independent units" in words
    runs = csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines())
    assert {line["epoch"] for line in runs if line["row"] == "sg"} == {"0"}
    won = _literature(tmp_path, "sg", ("a", "b"))
    assert max(won) > 19
    assert statistics.fmean(won) > 5
    assert statistics.fmean(_literature(tmp_path, "constant", ("a", "b"))) > 5
    table = list(csv.DictReader((tmp_path / "out/table.csv").read_text().splitlines()))
    assert [row["versus"] for row in table] == [""] * len(table)
    assert "TOGETHER" not in words
    assert "APART" not in words


def test_a_constant_target_is_not_judged(tmp_path, monkeypatch) -> None:
    words = _printed(
        "compare empty --recipes single-task,sg --splits 3 --references none", tmp_path, monkeypatch
    )
    assert "rare cannot be judged." in words
    assert re.search(r"rare: its test targets are all the same in [12] of 3 splits\.", words)
    assert re.search(r"all the same for rare \(in [12] of 3 splits\): no metric says any", words)
    assert "more rare rows for rare" in words
    told = json.loads((tmp_path / "out/verdict.json").read_text())
    assert told["judged"] == ["sum"]
    for row in told["rows"]:
        assert row["skill"] == pytest.approx(
            sum(row["tasks"]["sum"].values()) / 3 if row["tasks"] else row["skill"]
        )


def test_what_a_constant_would_win_is_not_judged(tmp_path, monkeypatch) -> None:
    """Hardly any positives: by Δm a constant wins against networks by more than any recipe."""
    words = _printed(
        "compare rare --recipes single-task,sg --splits 3 --references none --delta",
        tmp_path,
        monkeypatch,
    )
    assert "rare cannot be judged." in words
    assert re.search(r"rare: nothing beats a constant \(\d+ positives? in 48 test rows\)\.", words)
    assert re.search(r"more positives for rare[;.]", words)
    assert "The rarest class has fewer than 20 test rows for rare (" in words
    assert min(_literature(tmp_path, "constant", ("rare",))) > 5
    assert " Δm " in words
    told = json.loads((tmp_path / "out/verdict.json").read_text())
    assert told["judged"] == ["sum"]
    table = {
        row["row"]: row
        for row in csv.DictReader((tmp_path / "out/table.csv").read_text().splitlines())
    }
    assert table["sg"]["delta_m"] == ""  # a relative gain over nothing


def test_the_noise_of_splits_is_no_difference(tmp_path, monkeypatch) -> None:
    """From split to split the sign of Δm changes, as far as one would act upon."""
    words = _printed(
        "compare twins --recipes single-task,sg,mgda --references all --epochs 6",
        tmp_path,
        monkeypatch,
    )
    assert "No other recipe" in words or "mgda is not shown to beat the sum" in words
    for certain in ("TOGETHER, for", "APART, for"):
        assert certain not in words
    told = json.loads((tmp_path / "out/verdict.json").read_text())
    headline = told["headline"]
    assert headline["low"] < 0 < headline["high"]
    won = _literature(tmp_path, "sg", ("$x^2_i$", "_b%\\frac{"))
    assert min(won) < -5
    assert max(won) > 5
    again = over_splits(list(headline["by_split"].values()), 0.25)
    assert headline["mean"] == pytest.approx(again.mean)
    assert headline["low"] == pytest.approx(again.interval().low)
    assert headline["better"] == pytest.approx(again.chances(1.0).better)
    names = [row["name"] for row in told["rows"]]
    assert names[0] == "constant"
    assert names[4:] == [
        "linear",
        "trees",
        "single-task-narrow",
        "sg-wide",
        "sg-own-epochs",
        "sg-tuned",
    ]
    assert all(len(row["skill_by_split"]) == 5 for row in told["rows"])
    own = next(row for row in told["rows"] if row["name"] == "sg-own-epochs")
    joint = next(row for row in told["rows"] if row["name"] == "sg")
    assert own["operations"] == pytest.approx(joint["operations"])  # as many steps of one network
    sizes = {row["name"]: row["parameters"] for row in told["rows"]}
    assert sizes["single-task-narrow"] == pytest.approx(sizes["sg"], rel=0.25)
    assert sizes["sg-wide"] == pytest.approx(2 * sizes["sg"], rel=0.25)
    page = (tmp_path / "out/report.html").read_text()
    assert "$x^2_i$" in page


def test_one_split_declares_nothing(tmp_path, monkeypatch) -> None:
    words = _printed(
        "compare twins --recipes single-task,sg --splits 1 --references none", tmp_path, monkeypatch
    )
    assert "ONE SPLIT: nothing is declared." in words
    assert "another split may reverse it" in words
    assert "Intervals by a paired bootstrap over the test rows" in words
    assert "Better" not in words
    assert "--splits 5 says whether this holds" in words


def test_one_split_shows_no_task_and_no_winner() -> None:
    """Even where its test rows leave no doubt."""

    def sure(row: Row) -> Row:
        (result,) = row.chosen
        near = {t: (value, 1.0001 * value) * 9 for t, value in result.test.items()}
        return replace(row, chosen=(replace(result, resampled=near),))

    constant, single, joint = (
        sure(made_row(row.recipe, {t: v[:1] for t, v in row.test.items()}))
        for row in (CONSTANT, SINGLE, SUM)
    )
    found = assessed([single, joint], [constant], TASKS)
    assert found.headline.interval.low == pytest.approx(11.0, abs=0.1)
    assert found.headline.chances is None
    said = verdict(found)
    assert said.word == "ONE SPLIT"
    assert not any(word in " ".join(said.sentences) for word in ("hown to", "is enough"))


def test_by_time_each_origin_is_shown(tmp_path, monkeypatch) -> None:
    made = _twins(0)
    times = torch.arange(150)

    def timed(seed: int) -> Problem:
        pool = replace(made.pool, times=times)
        return replace(made, name="timed", pool=pool)

    module = sys.modules["tables_of_the_tests"]
    monkeypatch.setattr(module, "timed", timed, raising=False)
    source = Source("timed", "tables_of_the_tests", "-", "-", maker="timed")
    monkeypatch.setattr(sources, "SOURCES", (*sources.SOURCES, source))
    words = _printed(
        "compare timed --recipes single-task,sg --design time --splits 3 --references none",
        tmp_path,
        monkeypatch,
    )
    assert "BY TIME, 3 origins: each is shown, without interval." in words
    assert "origin by origin" in words
    told = json.loads((tmp_path / "out/verdict.json").read_text())
    assert len(told["headline"]["by_split"]) == 3
    assert told["headline"]["low"] is None


def _fixed(seed: int) -> Problem:
    """The first rows always test; the rest are divided anew into training and validation."""
    x = drawn(12, 200, 4)
    targets = {"a": x[:, 0] + 0.5 * drawn(13, 200), "b": x[:, 1] + 0.5 * drawn(14, 200)}
    made = problem(x, targets, dict.fromkeys(targets, NUMBER), "fixed", official_test=True)
    order = 40 + torch.randperm(160, generator=torch.Generator().manual_seed(seed))
    return replace(made.pool.make(Parts(order[:120], order[120:], torch.arange(40))), pool=None)


def test_a_fixed_test_set_stays_and_its_rows_are_resampled(tmp_path, monkeypatch) -> None:
    module = sys.modules["tables_of_the_tests"]
    monkeypatch.setattr(module, "fixed", _fixed, raising=False)
    source = Source("fixed", "tables_of_the_tests", "-", "-", maker="fixed")
    monkeypatch.setattr(sources, "SOURCES", (*sources.SOURCES, source))
    assert Settings.suggested("fixed").splits == 3
    words = _printed(
        "compare fixed --recipes single-task,sg --references none", tmp_path, monkeypatch
    )
    assert "3 splits (hold-out) x 1 seed" in words
    assert "The test set is fixed." in words
    told = json.loads((tmp_path / "out/verdict.json").read_text())
    assert told["judged"]
    differences = list(told["headline"]["by_split"].values())
    drawn_rows = over_splits(differences, told["design"]["validation_ratio"])
    alone = drawn_rows.interval()
    assert told["headline"]["low"] < alone.low
    assert told["headline"]["high"] > alone.high
    # once more, from the results on disk: each split's paired draws of skill
    variances = []
    for split in range(3):
        draws = {}
        for name in ("constant", "single-task-a", "single-task-b", "sg"):
            (file,) = (tmp_path / f"out/{name}/split{split}").rglob("result.json")
            draws[name] = json.loads(file.read_text())["resampled"]
        skills = [
            statistics.fmean(
                100
                * (draws[f"single-task-{t}"][t][k] - draws["sg"][t][k])
                / draws["constant"][t][k]
                for t in told["judged"]
            )
            for k in range(200)
        ]
        variances.append(statistics.variance(skills))
    scale = math.sqrt(drawn_rows.scale**2 + statistics.fmean(variances))
    half = 4.302653 * scale
    assert told["headline"]["high"] == pytest.approx(drawn_rows.mean + half, rel=1e-4)


def test_a_report_over_several_tables_wants_ten(tmp_path, monkeypatch) -> None:
    module = sys.modules["tables_of_the_tests"]
    monkeypatch.setattr(module, "fixed", _fixed, raising=False)
    source = Source("fixed", "tables_of_the_tests", "-", "-", maker="fixed")
    monkeypatch.setattr(sources, "SOURCES", (*sources.SOURCES, source))
    _printed(
        "compare fixed --recipes single-task,sg --references none",
        tmp_path,
        monkeypatch,
    )
    result = CliRunner().invoke(app, ["report", "out", "out"])
    assert result.exit_code == 2
    assert "signed ranks need 10 at least" in result.stderr
    folders = []
    for k in range(10):
        shutil.copytree("out", f"table{k}")
        folders.append(f"table{k}")
    result = CliRunner().invoke(app, ["report", *folders])
    assert result.exit_code == 0, result.output
    assert re.search(r"single-task +10 ", result.stdout)
    assert "Holm" in result.stdout
    assert "constant" in result.stdout
