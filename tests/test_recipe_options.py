"""Recipes and optimizers with options: spelled, validated before work, trained as they say."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torchmetrics import MeanSquaredError
from typer.testing import CliRunner

from evenhand import MultiTaskNetwork
from evenhand.app.cli import app
from evenhand.comparison.compare import compare
from evenhand.comparison.folder import read_manifest
from evenhand.comparison.job import Job
from evenhand.comparison.plan import training
from evenhand.comparison.request import Given, Settings, optimizer
from evenhand.data import Problem, Split, Task
from evenhand.recipes import RECIPES, recipe
from evenhand.spelling import Spelled, split_list

TASKS = ("a", "b", "c", "d")


def composed(name: str, tasks: tuple[str, ...] = TASKS):
    (parts,) = recipe(name).compose(tasks).values()
    return parts


@pytest.mark.parametrize(
    ("name", "slot", "said"),
    [
        ("ate-sg(shared=10,own=3)", "schedule", "alternate_epochs(shared=10, own=3)"),
        ("io-groups(size=3)", "schedule", "in_groups(3, redraw='never')"),
        ("ate-adaptive(longest=4)", "schedule", "alternate_adaptively(longest=4, memory="),
    ],
)
def test_an_option_reaches_its_part(name, slot, said) -> None:
    assert said in repr(getattr(composed(name), slot))


def test_an_option_of_what_is_wrapped_or_wraps_reaches_it() -> None:
    aggregator = composed("central+tension(alpha=0.2,period=5)").aggregator
    assert (aggregator.alpha, aggregator.period) == (0.2, 5)
    both = composed("ate-sg+tension(shared=2,alpha=0.7)")
    assert both.aggregator.alpha == 0.7
    assert "shared=2, own=1" in repr(both.schedule)
    inner = composed("mgda-l2(at=representation,back=true)").aggregator
    assert inner.back is True
    assert inner.base.at == "representation"
    assert composed("mgda(at=representation)").aggregator.at == "representation"
    assert composed("pbi(theta=0.25)").weighting.theta == 0.25
    assert composed("pbi").weighting.theta == 0.5
    assert set(recipe("grid(steps=1)").compose(("a", "b"))) == {"1-2", "2-1"}
    assert composed("trimmed-mean(off=1)").aggregator.trim == 1


ALIKE = {("imtl", "at")}
"""Options that both slots have: neither can be meant."""


def test_every_option_of_every_recipe_can_be_said_as_it_is() -> None:
    for entry in RECIPES:
        for option, value in entry.options().items():
            if not isinstance(value, int | float | str):
                continue
            spelled = str(Spelled(entry.name, {option: value}))
            if (entry.name, option) in ALIKE:
                with pytest.raises(ValueError, match="weighting and aggregator alike"):
                    recipe(spelled)
                continue
            varied = recipe(spelled)
            made = varied.compose(TASKS)
            assert varied.name == spelled
            assert repr(dict(made)) == repr(dict(entry.compose(TASKS))), spelled


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ate-sgg(shared=1)", "no recipe is called 'ate-sgg'; did you mean ate-sg"),
        ("ate-sg(shraed=1)", "no option 'shraed'; there are .*; did you mean shared"),
        ("ate-sg(shared=x)", "shared must be an integer"),
        ("ate-sg(shared=1.5)", "shared must be an integer"),
        ("ate-sg(replacement=1)", "replacement must be true or false"),
        ("central+tension(alpha=true)", "alpha must be a number"),
        ("ate-sg(shared)", "'shared' must be option=value"),
        ("ate-sg(shared=1,shared=2)", "'shared' is given twice"),
        ("ate-sg(shared=1", "parentheses do not match|write name"),
        ("single-task(shared=1)", "no option 'shared'"),
        ("stch(preference=(1,2))", "preference takes one value, not 2"),
    ],
)
def test_a_recipe_that_cannot_be_varied_so_is_refused(name, said) -> None:
    with pytest.raises(ValueError, match=said):
        recipe(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("central+tension(alpha=2)", r"central\+tension\(alpha=2\): alpha=2: must be between"),
        ("ate-sg(shared=-1)", r"ate-sg\(shared=-1\): .*epoch counts are >= 0"),
        ("sg(own_rate=0)", "own_rate=0: must be a positive number"),
        ("sg(plateau=-2)", "plateau=-2: must be at least 1"),
        ("sg(plateau=3,factor=1)", "factor=1: must lie between 0 and 1"),
        ("mgda(at=nowhere)", r"mgda\(at=nowhere\): "),
    ],
)
def test_a_value_out_of_range_is_told_with_its_recipe(name, said) -> None:
    with pytest.raises(ValueError, match=said):
        recipe(name).compose(TASKS)


def test_spelling_is_one_for_one_thing() -> None:
    assert split_list("a(b=1,c=2), d") == ["a(b=1,c=2)", "d"]
    assert recipe("ate-sg( shared = 10 , own=10 )").name == "ate-sg(shared=10,own=10)"
    assert recipe("ate-sg()") is recipe("ate-sg")
    for wrong in ("a(b", "a)b(", "a(b))"):
        with pytest.raises(ValueError, match="parentheses"):
            split_list(wrong)


@given(st.text(alphabet="ab(),=1. \n", max_size=20))
def test_whatever_is_typed_is_read_or_refused(text) -> None:
    try:
        spelled = Spelled.of(text)
    except ValueError:
        return
    assert Spelled.of(str(spelled)) == spelled


# Trained --------------------------------------------------------------------------------------


def tiny() -> Problem:
    x = torch.randn(120, 2, generator=torch.Generator().manual_seed(0))
    targets = {"sum": x.sum(1, keepdim=True), "gap": x[:, :1] - x[:, 1:]}
    parts = [
        Split(x[k : k + 40], {task: y[k : k + 40] for task, y in targets.items()})
        for k in (0, 40, 80)
    ]
    tasks = dict.fromkeys(targets, Task(functional.mse_loss, MeanSquaredError, "MSE", False))
    return Problem("tiny", "", "", tasks, network, *parts, epochs=2, rates=(0.1,))


def network(tasks) -> MultiTaskNetwork:
    trunk = nn.Sequential(nn.Linear(2, 4), nn.Tanh())
    return MultiTaskNetwork(trunk, {task: nn.Linear(4, 1) for task in tasks})


def settings(**asked) -> Settings:
    given = Given(tiny())
    return Settings("tiny", seeds=(0,), rates=(0.1,), epochs=2, stack="never", given=given, **asked)


def test_two_rates_and_a_plateau_are_the_trainings() -> None:
    made = settings()
    problem = made.problem()
    run = training(Job("sg(own_rate=0.1,plateau=2)", "", 0, 0.1), problem, made)
    rates = run.optimizers.rates()
    assert rates["shared"] == 0.1
    assert rates["own"] == pytest.approx(0.01)
    assert (run.plateau.patience, run.plateau.factor) == (2, 0.5)
    plain = training(Job("sg", "", 0, 0.1), problem, made)
    assert plain.plateau is None
    assert set(plain.optimizers.rates().values()) == {0.1}


def test_options_are_in_manifest_folder_and_table(tmp_path) -> None:
    names = ["sg", "ate-sg(shared=2,own=1)"]
    made = settings()
    found = compare(made, names, tmp_path)
    assert [row.recipe for row in found.rows] == names
    assert read_manifest(tmp_path)["recipes"] == names
    moved = [record.trains for record in found.records(found.rows[1].chosen[0])[1:]]
    assert moved == [("shared",), ("shared",)]
    folder = tmp_path / "ate-sg(shared=2,own=1)/split0/seed0-lr0.1"
    assert (folder / "best.safetensors").exists()


def test_the_command_splits_at_commas_outside_parentheses(tmp_path) -> None:
    words = ["compare", "quadrants", "--recipes", "sg,ate-sg(shared=x)"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "shared must be an integer" in result.output
    words = ["compare", "quadrants", "--recipes", "sg,central+tension(alpha=2)"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "must be between 0 and 1" in result.output
    assert not (tmp_path / "out").exists()


def test_the_options_of_a_recipe_are_listed() -> None:
    words = ["methods", "--recipes", "ate-sg(shared=3),central+tension,imtl", "--json"]
    shown = json.loads(CliRunner().invoke(app, words).stdout)
    assert shown[0]["name"] == "ate-sg(shared=3)"
    assert shown[0]["options"] == {
        "shared": 3,
        "own": 1,
        "own_moments": False,
        "replacement": False,
        "own_rate": 1.0,
        "plateau": 0,
        "factor": 0.5,
    }
    assert shown[1]["options"]["alpha"] == 0.3
    names = [entry["name"] for entry in json.loads(_datasets())]
    assert {"digits", "quadrants"} <= set(names)


def _datasets() -> str:
    return CliRunner().invoke(app, ["datasets", "--json"]).stdout


# Optimizers -----------------------------------------------------------------------------------


def test_any_optimizer_of_torch_can_be_named() -> None:
    parameter = [torch.zeros(1, requires_grad=True)]
    made = optimizer("adamw(weight_decay=0.2,amsgrad=true)")(parameter, lr=0.3)
    assert type(made) is torch.optim.AdamW
    (group,) = made.param_groups
    assert (group["weight_decay"], group["amsgrad"], group["lr"]) == (0.2, True, 0.3)
    (group,) = optimizer("sgd")(parameter, lr=0.3).param_groups
    assert group["momentum"] == 0.9
    (group,) = optimizer("sgd(momentum=0.5,nesterov=true)")(parameter, lr=0.3).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.5, True)
    (group,) = optimizer("adam(betas=(0.8,0.95))")(parameter, lr=0.3).param_groups
    assert group["betas"] == (0.8, 0.95)
    (group,) = optimizer("adafactor(eps=(none,0.1))")(parameter, lr=0.3).param_groups
    assert group["eps"] == (None, 0.1)
    made = settings(optimizer="rmsprop(alpha=0.5)")
    run = training(Job("sg", "", 0, 0.1), made.problem(), made)
    assert len(list(run.run())) == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adamm", "must be one of torch's: .*adam"),
        ("lbfgs", "must be one of torch's"),
        ("adamw(lr=1)", "no option 'lr'"),
        ("adamw(weight=1)", "no option 'weight'; there are"),
        ("adamw(weight_decay=-1)", "Invalid weight_decay"),
        ("adam(betas=0.9)", r"betas must be 2 numbers, such as betas=\(0.9,0.999\)"),
        ("adam(betas=(0.9,x))", "betas must be 2 numbers"),
        ("adam(eps=(1,2))", "eps must be a number"),
        ("adam(amsgrad=3)", "amsgrad must be true or false"),
        ("sgd(maximize=true)", "no option 'maximize'"),
    ],
)
def test_an_optimizer_that_cannot_be_had_is_refused(name, said) -> None:
    with pytest.raises(ValueError, match=said):
        optimizer(name)
