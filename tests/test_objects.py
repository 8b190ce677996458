"""A comparison on a problem and recipes of one's own, given as objects instead of names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import evenhand as eh
from evenhand import MultiTaskNetwork, Traits
from evenhand.app import report
from evenhand.app.findings import Findings, columns
from evenhand.comparison.compare import compare, finished, prepare
from evenhand.comparison.folder import read_manifest
from evenhand.comparison.request import Given, Settings
from evenhand.comparison.weights import load_network
from evenhand.data import Problem, Split, Task
from evenhand.recipes import Recipe, recipe


class Error:
    def __init__(self) -> None:
        self.sum, self.seen = 0.0, 0

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.sum += float((preds - target).square().sum())
        self.seen += target.numel()

    def compute(self) -> Tensor:
        return torch.tensor(self.sum / self.seen)


def network(tasks: Sequence[str]) -> MultiTaskNetwork:
    trunk = nn.Sequential(nn.Linear(2, 4), nn.Tanh())
    return MultiTaskNetwork(trunk, {task: nn.Linear(4, 1) for task in tasks})


def part(samples: int, seed: int) -> Split:
    x = torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed))
    return Split(x, {"sum": x.sum(1, keepdim=True), "gap": x[:, :1] - x[:, 1:]})


def mine(split: int = 0) -> Problem:
    tasks = dict.fromkeys(("sum", "gap"), Task(functional.mse_loss, Error, "MSE", False))
    parts = [part(size, 3 * split + k) for k, size in enumerate((24, 12, 12))]
    made = Problem("my points", "points", "made for the test", tasks, network, *parts)
    return replace(made, batch_size=12, epochs=3, rates=(0.1,))


class Halves(eh.Weighting):
    """Twice the first task, half of the others."""

    traits = Traits(needs="nothing")

    def weigh(self, g: eh.TaskGradients) -> Tensor:
        weights = torch.full_like(g.losses, 0.5)
        weights[..., 0] = 2.0
        return weights


HALVES = Recipe.of("halves", weighting=Halves, summary="twice the first")


def test_each_part_of_a_recipe_of_ones_own_goes_to_its_place() -> None:
    own = Recipe.of(
        "own",
        weighting=Halves,
        aggregator=eh.MGDA,
        schedule=lambda: eh.alternate_epochs(2, 3),
        own_moments=True,
        replacement=True,
        citation="nobody, 2026",
    )
    (made,) = own.compose(("a", "b")).values()
    assert (type(made.weighting), type(made.aggregator)) == (Halves, eh.MGDA)
    assert made.tasks == ("a", "b")
    assert repr(made.schedule) == repr(eh.alternate_epochs(2, 3))
    assert made.own_moments
    assert made.replacement
    assert (own.name, own.citation) == ("own", "nobody, 2026")
    (bare,) = Recipe.of("bare").compose(("a", "b")).values()
    assert (bare.weighting, bare.aggregator) == (None, None)
    assert not bare.own_moments
    assert not bare.replacement


def test_a_problem_and_recipes_are_compared_and_reported(tmp_path) -> None:
    problem = mine()
    local = Recipe.of("local", aggregator=lambda: eh.CAGrad(c=0.25))
    comparison = compare(problem, ["single-task", "sg", HALVES, local, recipe("mgda")], tmp_path)
    assert comparison.recipes == ("single-task", "sg", "halves", "local", "mgda")
    assert comparison.settings.source == "my points"
    assert comparison.settings.splits == 1
    (run,) = next(row for row in comparison.rows if row.recipe == "halves").chosen
    assert comparison.records(run)[1].weights == {"sum": 2.0, "gap": 0.5}
    findings = Findings.of(comparison, problem)
    assert len(columns(findings)[0].cells) >= 5
    page = report.write(findings).read_text()
    assert "twice the first" in page
    assert "my points" in page
    assert load_network(tmp_path / run.job.folder, problem).tasks == ("sum", "gap")


def test_a_comparison_with_objects_wants_them_again(tmp_path) -> None:
    one = compare(mine(), [HALVES], tmp_path)
    told = read_manifest(tmp_path)["objects"]
    assert told["problem"] is True
    assert "Halves()" in told["recipes"]["halves"][""]
    with pytest.raises(ValueError, match=r"no names here \(its problem, halves\)"):
        finished(tmp_path)
    again = finished(tmp_path, Given(mine(), {"halves": HALVES}))
    assert again.results == one.results
    settings, names = Settings.suggested(mine()).taking([HALVES])
    prepare(settings, names, tmp_path, resume=True)
    other = Recipe.of("halves", weighting=eh.Equal)
    settings, names = Settings.suggested(mine()).taking([other])
    with pytest.raises(ValueError, match="another comparison: objects was"):
        prepare(settings, names, tmp_path, resume=True)


def test_a_function_divides_the_data_anew_for_each_split(tmp_path) -> None:
    settings = Settings.suggested(mine, splits=2, references="none")
    comparison = compare(settings, ["sg"], tmp_path)
    tested = [r.test for r in comparison.results if r.job.recipe == "sg"]
    assert len(tested) == 2
    assert tested[0] != tested[1]
    with pytest.raises(ValueError, match="was given divided; give a function"):
        compare(Settings.suggested(mine(), splits=2), ["sg"], tmp_path / "2")


def test_objects_go_to_worker_processes_if_they_can(tmp_path) -> None:
    settings = Settings.suggested(mine, splits=1, references="none", stack="never")
    local = Recipe.of("local", aggregator=lambda: eh.CAGrad(c=0.25))
    with pytest.raises(ValueError, match="cannot be sent to worker processes"):
        compare(settings, [local], tmp_path / "1", workers=2)
    assert not (tmp_path / "1").exists()


def test_names_are_checked(tmp_path) -> None:
    with pytest.raises(ValueError, match="another recipe called 'sg'"):
        compare(mine(), [Recipe.of("sg", aggregator=eh.MGDA)], tmp_path)
    with pytest.raises(ValueError, match="another recipe called 'halves'"):
        compare(mine(), [HALVES, Recipe.of("halves", aggregator=eh.MGDA)], tmp_path)
    with pytest.raises(ValueError, match=r"cannot be called 'a/b'"):
        Recipe.of("a/b")
    with pytest.raises(ValueError, match="no recipe is called 'halves'"):
        Settings("my points").recipe("halves")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": ()}, "seeds="),
        ({"seeds": (0, 0)}, "must be different integers"),
        ({"seeds": (-1, 0)}, "must be integers from 0"),
        ({"rates": ()}, "must be positive numbers"),
        ({"rates": (0.0, 0.1)}, "must be positive numbers"),
        ({"rates": (math.inf,)}, "must be positive numbers"),
        ({"rates": (0.1, 0.10000001)}, "must differ within six digits"),
        ({"optimizer": "lbfgs"}, "must be one of torch's"),
        ({"epochs": 0}, "epochs=0"),
        ({"patience": 0}, "patience=0"),
        ({"weights_rate": 0.0}, "weights_rate=0.0"),
        ({"observe_every": -1}, "observe_every=-1"),
        ({"stack": "maybe"}, "stack='maybe'"),
        ({"splits": 0}, "splits=0"),
        ({"design": "jackknife"}, "design='jackknife'"),
        ({"references": "some"}, "references='some'"),
        ({"matters": -1.0}, "matters=-1.0"),
        ({"matters": math.nan}, "matters=nan"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message) -> None:
    Settings("digits", seeds=(0, 2), rates=(0.1, 0.2), epochs=1, patience=1, matters=0.0)
    with pytest.raises(ValueError, match=re.escape(message)):
        Settings("digits", **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": 3}, "seeds=3: must be several"),
        ({"rates": 0.1}, "rates=0.1: must be several"),
        ({"epochs": "3"}, "epochs='3': must be an integer or None"),
        ({"splits": True}, "splits=True: must be an integer"),
        ({"optimizer": torch.optim.SGD}, "must be a str"),
    ],
)
def test_settings_of_another_kind_are_refused_by_name(wrong, message) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        Settings("digits", **wrong)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"recipes": [3]}, TypeError, "recipes=[3]: must be several"),
        ({"recipes": []}, ValueError, "one or more different names"),
        ({"workers": 0}, ValueError, "workers=0: must be at least 1"),
        ({"table": {"test": "none.csv"}}, ValueError, "cannot read none.csv"),
    ],
)
def test_what_no_comparison_can_be_asked_is_told_by_name(wrong, error, message) -> None:
    columns = {"x": [k * 1.5 + k % 3 for k in range(30)], "y": [k % 5 * 1.5 for k in range(30)]}
    with pytest.raises(error, match=re.escape(message)):
        eh.compare(columns, **{"targets": ["y"], **wrong})
