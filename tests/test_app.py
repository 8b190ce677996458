"""The tool: what it prints, what it refuses, what it leaves behind, and how it is interrupted."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from evenhand import Balancer, MultiTaskNetwork, data, sources
from evenhand.app import (
    config,
    diagnostics,
    figures,
    findings,
    intervals,
    landscape,
    methods,
    progress,
    table,
)
from evenhand.app.cli import app
from evenhand.app.findings import Findings, Run
from evenhand.comparison.compare import Comparison, finished
from evenhand.comparison.folder import RESULT
from evenhand.comparison.job import Job, Result
from evenhand.comparison.plan import training
from evenhand.comparison.request import Settings, forget, load_problem
from evenhand.comparison.running import run_jobs
from evenhand.comparison.statistics import Row, rows
from evenhand.comparison.verdict import joined
from evenhand.data import LabelCount, Problem, Source, Split, Task
from evenhand.recipes import RECIPES, recipe
from evenhand.training.epoch_statistics import EpochStatistics
from evenhand.training.records import Record

RECIPES_ASKED = "single-task,sg,mgda,ate-sg,uncertainty,db-mtl"
ASKED = (
    f"compare tiny --recipes {RECIPES_ASKED} --splits 2 --seeds 2 --lr 1e-2,1e-1 --epochs 12 "
    "--out out --workers 1"
)


class Accuracy:
    def __init__(self) -> None:
        self.right = self.seen = 0

    def update(self, preds, target):
        self.right += int((preds.argmax(-1) == target).sum())
        self.seen += len(target)

    def compute(self):
        return torch.tensor(self.right / self.seen)


class SquaredError:
    def __init__(self) -> None:
        self.sum, self.seen = 0.0, 0

    def update(self, preds, target):
        self.sum += float((preds - target).square().sum())
        self.seen += target.numel()

    def compute(self):
        return torch.tensor(self.sum / self.seen)


def _network(tasks: Sequence[str]) -> MultiTaskNetwork:
    outputs = {"side": 2, "height": 1, "reach": 1}
    trunk = nn.Sequential(nn.Linear(3, 6), nn.Tanh())
    return MultiTaskNetwork(trunk, {task: nn.Linear(6, outputs[task]) for task in tasks})


def _split(samples: int, seed: int) -> Split:
    x = torch.randn(samples, 3, generator=torch.Generator().manual_seed(seed))
    targets = {
        "side": (x[:, 0] > 0).long(),
        "height": x[:, :1] - x[:, 1:2],
        "reach": x.square().sum(-1, keepdim=True),
    }
    return Split(x, targets)


def _tiny(seed: int) -> Problem:
    return Problem(
        name="tiny",
        summary="points in space",
        citation="made for the test",
        tasks={
            "side": Task(functional.cross_entropy, Accuracy, "accuracy", True),
            "height": Task(functional.mse_loss, SquaredError, "MSE", False),
            "reach": Task(functional.mse_loss, SquaredError, "MSE", False),
        },
        network=_network,
        train=_split(64, 3 * seed),
        validation=_split(40, 3 * seed + 1),
        test=_split(40, 3 * seed + 2),
        batch_size=32,
        epochs=3,
    )


@pytest.fixture(scope="module", autouse=True)
def _tiny_source() -> Iterator[None]:
    module = ModuleType("tiny_problem")
    module.load = _tiny
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tiny_problem", module)
        source = Source("tiny", "tiny_problem", "points in space", "made for the test")
        patch.setattr(sources, "SOURCES", (*sources.SOURCES, source))
        yield
    forget()


def _run(command: str):
    return CliRunner().invoke(app, shlex.split(command))


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a comparison, and what it printed."""
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = _run(ASKED)
    assert result.exit_code == 0, result.output
    return folder, result.stdout


@pytest.fixture
def copied(done, tmp_path, monkeypatch) -> str:
    """A copy of the folder, current; what was printed."""
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return done[1]


@pytest.fixture
def found(copied) -> Findings:
    return Findings.of(finished(Path("out")), load_problem("tiny"))


# compare --------------------------------------------------------------------------------------


def test_ends_with_the_path_of_the_report(copied) -> None:
    assert copied.splitlines()[-1] == "out/report.html"
    assert Path("out/report.html").is_file()


def test_prints_a_row_per_recipe_with_every_column(copied) -> None:
    for title in ("accuracy ↑", "MSE ↓", "skill", "vs single-task", "× sg", "Σw", "chosen"):
        assert title in copied
    for name in (*RECIPES_ASKED.split(","), "constant", "linear model", "boosted trees"):
        assert re.search(rf"^ {name} .*\d", copied, re.MULTILINE), name


def test_the_verdict_comes_first(copied) -> None:
    lines = [line for line in copied.splitlines() if not line.startswith("[")]
    at = next(k for k, line in enumerate(lines) if line.startswith("tiny: 144 rows, 3 tasks"))
    assert lines[at].split("; ")[1].strip() == "2 splits (hold-out) x 2 seeds"
    assert re.match(r"[A-Z, ]+(,|:)", lines[at + 1])
    assert lines[at + 2].startswith("  One network (plain sum) against one per task: ")
    table = next(k for k, line in enumerate(lines) if line.startswith(" row "))
    assert at < table
    assert not any("±" in line for line in lines[table:])


def test_output_of_a_pipe_is_plain_text(copied) -> None:
    assert "\x1b" not in copied
    assert "[70/70]" in copied


def test_says_how_many_recipes_train_their_runs_as_one(copied) -> None:
    assert "the runs of 8 of 8 networks are each trained as one" in copied


def test_says_how_many_labels_each_task_has(copied) -> None:
    words = " ".join(copied.split())
    assert "labels (train/validation/test): side 64/40/40; height 64/40/40; reach" in words


def test_labels_left_out_are_told() -> None:
    counts = {
        "a": {"train": LabelCount(9, 7, 7), "test": LabelCount(5, 5, 5)},
        "b": {"train": LabelCount(9, 9, 16, 2), "test": LabelCount(5, 5, 10)},
    }
    assert progress.told_labels(counts) == (
        "labels (train/test): a 7/5 (2/0 without a label left out); b 9/5 (2/0 entries without one)"
    )
    assert "read from files" in progress.told_labels({"a": {}})


def test_out_is_a_fresh_folder_by_default(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = "compare tiny --recipes sg --splits 2 --lr 0.1 --epochs 1 --workers 1"
    assert _run(command).stdout.splitlines()[-1] == "evenhand-tiny/report.html"
    assert _run(command).stdout.splitlines()[-1] == "evenhand-tiny-2/report.html"


def test_seeds_are_counted_from_zero() -> None:
    assert config.read(None, {"source": "tiny", "seeds": "3"}).settings().seeds == (0, 1, 2)


def test_every_split_has_its_own_data_seed_rate_and_epoch(found) -> None:
    settings = found.comparison.settings
    assert (settings.splits, settings.seeds) == (2, (0, 1))
    first, second = (settings.problem(split) for split in range(2))
    assert not torch.equal(first.train.inputs, second.train.inputs)
    for row in found.comparison.rows:
        assert {r.job.split for r in row.chosen} == {0, 1}
        for split in range(2):
            runs = [
                r
                for r in found.comparison.results
                if (r.job.recipe, r.job.split) == (row.recipe, split)
            ]
            for tasks in {r.tasks for r in runs}:
                means = {
                    rate: sum(r.monitored for r in runs if (r.tasks, r.job.rate) == (tasks, rate))
                    for rate in settings.rates
                }
                rate = min(means, key=means.__getitem__)
                chosen = [r for r in row.chosen if (r.tasks, r.job.split) == (tasks, split)]
                assert {r.job.rate for r in chosen} == {rate}
                assert [r.job.seed for r in chosen] == [0, 1]
    drawn = [training(Job("sg", "", 0, 0.1, split), first, settings) for split in range(2)]
    weights = [next(run.network.parameters()) for run in drawn]
    assert not torch.equal(*weights)
    orders = [run.stream.index(0) for run in drawn]
    assert not torch.equal(*orders)


def test_validation_alone_chooses(copied) -> None:
    comparison = finished(Path("out"))
    spoilt = [replace(r, test=dict.fromkeys(r.test, 0.5)) for r in comparison.results]
    again = rows(spoilt, comparison.recipes, load_problem("tiny"))
    assert [row.rates for row in again] == [row.rates for row in comparison.rows]


def test_several_workers_give_the_same_numbers(tmp_path) -> None:
    settings = Settings("quadrants", seeds=(0,), rates=(0.1,), epochs=1)
    todo = [Job("sg", "", 0, 0.1), Job("mgda", "", 0, 0.1)]
    heard: list[tuple[Job, Record | Result]] = []
    together = run_jobs(
        todo, settings, tmp_path / "2", lambda job, event: heard.append((job, event)), workers=2
    )
    alone = run_jobs(todo, settings, tmp_path / "1", lambda job, event: None)
    assert [r.test for r in together] == [r.test for r in alone]
    for job in todo:
        kinds = [type(event) for whose, event in heard if whose == job]
        assert kinds == [Record, Record, Result]


# Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("compare tiny --recipes mgd", "no recipe is called 'mgd'; did you mean mgda"),
        ("compare tiny --recipes sg,sg", "different names"),
        ("compare tiny --recipes sg-tuned", "no recipe: a comparison with --references all has"),
        ("train tiny --recipe sg-own-epochs", "sg-own-epochs is a reference row and no recipe"),
        ("compare digit", "no data set is called 'digit'; did you mean digits?"),
        ("compare", "name a data set: one of digits"),
        ("compare tiny --seeds 0", "seeds=0: must be greater than or equal to 1"),
        ("compare tiny --splits 0", "splits=0: must be greater than or equal to 1"),
        ("compare tiny --design thirds", "must be one of hold-out, k-fold, time"),
        ("compare tiny --design k-fold", "tiny is divided by its loader"),
        ("compare digits --design time", "have no times"),
        ("compare digits --design k-fold --splits 2", "at least 3"),
        ("compare tiny --references some", "must be one of none, cheap, all"),
        ("compare tiny --matters -1", "matters=-1: must be greater than or equal to 0"),
        ("compare tiny --seeds two", "seeds=two: must be a valid integer"),
        ("compare tiny --lr 0.1,-1", "lr=-1: must be greater than 0"),
        ("compare tiny --lr 0.1,x", "lr=x: must be a valid number"),
        ("compare tiny --lr 0.1,0.1", "must differ"),
        ("compare tiny --lr nan", "lr=nan: must be a finite number"),
        ("compare tiny --lr ,", "at least 1"),
        ("compare tiny --epochs 0", "epochs=0"),
        ("compare tiny --patience 0", "patience=0"),
        ("compare tiny --optimizer rms", "must be one of torch's"),
        ("compare tiny --workers 0", "workers=0"),
        ("compare tiny --stack maybe", "must be one of auto, never, always"),
        ("compare tiny --jacobian fast", "must be 'looped', 'batched', 'measured' or the number"),
        ("compare tiny --stack always --recipes ius-groups", "cannot be one"),
        ("compare tiny --resume", "name it with --out"),
        ("compare tiny --resume --out full", "full holds no comparison"),
        ("compare tiny --out full", "full is not empty"),
        ("compare tiny --out full/file", "full/file is a file"),
        ("compare --config none.yaml", "cannot read none.yaml"),
        ("compare --config full/file", "must hold keys and values"),
        ("report full", "full holds no comparison"),
        ("methods --recipes mgd", "no recipe is called 'mgd'"),
        ("methods --figure picture", "picture: the suffix must be one of"),
        ("methods --figure none/p.png", "there is no folder none"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    command, message, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/file").write_text("not a mapping")
    result = _run(command)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout
    assert sorted(map(str, Path().rglob("*"))) == ["full", "full/file"]


def test_resuming_with_other_options_is_refused(copied) -> None:
    result = _run(ASKED.replace("--splits 2", "--splits 3") + " --resume")
    assert result.exit_code == 2
    assert "splits was 2, now 3" in result.stderr


@pytest.mark.parametrize("command", ["", "compare", "methods", "datasets", "report"])
def test_help_fits_a_terminal(command) -> None:
    result = _run(f"{command} --help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", ["", "new"])
def test_who_asks_nothing_gets_the_help(command) -> None:
    result = _run(command)
    assert result.exit_code == 2
    assert result.stderr == _run(f"{command} --help").stdout


def test_help_names_every_default() -> None:
    words = " ".join(_run("compare --help").stdout.split())
    for default in (
        "5; 3",
        "1",
        "hold-out",
        "cheap",
        "the data set's own",
        "never",
        "one per core",
        "single-task,sg,mgda",
    ):
        assert f"[default: {default}" in words


def test_rates_and_optimizer_are_the_data_sets_own_unless_given() -> None:
    settings = Settings.suggested("digits")
    assert (settings.optimizer, settings.rates) == ("adam", (1e-3, 3e-3, 1e-2))
    assert Settings.suggested("digits", optimizer="sgd", rates=None).optimizer == "sgd"
    asked = config.read(None, {"source": "tiny", "lr": "0.5"}).settings()
    assert (asked.optimizer, asked.rates) == ("sgd", (0.5,))


def test_version() -> None:
    assert re.fullmatch(r"evenhand \d+\.\d+\.\d+\n", _run("--version").stdout)


# Config files ---------------------------------------------------------------------------------


def test_options_win_over_the_file(tmp_path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("source: tiny\nlr: [1e-3, 1.0e-2]\nseeds: 2\nrecipes: sg\nepochs: 4\n")
    read = config.read(file, {"seeds": "5", "epochs": None})
    assert read.lr == (1e-3, 1e-2)
    assert read.recipes == ("sg",)
    assert (read.seeds, read.epochs) == (5, 4)


def test_the_file_has_the_options_of_the_command() -> None:
    words = _run("compare --help").stdout
    options = set(re.findall(r"^  --([a-z-]+)", words, re.MULTILINE))
    options -= {"config", "print-config", "json", "help"}
    several = {"target": "targets", "input": "inputs", "kind": "kinds", "metric": "metrics"}
    keys = {several.get(option, option) for option in options}
    assert keys | {"source"} == set(config.Config.model_fields)


def test_an_unknown_key_names_the_nearest(tmp_path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("source: tiny\nseed: 2\n")
    with pytest.raises(ValueError, match=r"no option 'seed'; did you mean seeds\?"):
        config.read(file, {})
    file.write_text("a: [1")
    with pytest.raises(ValueError, match=r"c\.yaml is not YAML"):
        config.read(file, {})


def test_all_is_every_recipe() -> None:
    assert config.read(None, {"source": "tiny", "recipes": "all"}).recipes == tuple(
        entry.name for entry in RECIPES
    )


def test_the_command_asks_for_what_was_asked() -> None:
    asked = config.read(None, {"source": "tiny", "lr": "3e-4,1", "patience": "7", "epochs": "9"})
    words = shlex.split(config.command(asked.settings(), asked.recipes, Path("a b")))
    options = {
        key.removeprefix("--"): value for key, value in zip(words[3::2], words[4::2], strict=True)
    }
    again = config.read(None, {"source": words[2], **options})
    assert again.settings() == asked.settings()
    assert again.out == Path("a b")


# Interruption and resuming --------------------------------------------------------------------


def test_resume_makes_what_is_missing_and_touches_nothing_else(copied) -> None:
    files = sorted(Path("out").rglob(RESULT))
    lost, kept = files[0], files[1:]
    before = json.loads(lost.read_text())
    times = [file.stat().st_mtime_ns for file in kept]
    shutil.rmtree(lost.parent)
    refused = _run("report out")
    assert refused.exit_code == 2
    assert f"1 of the {len(files)} runs in out are not finished" in refused.stderr
    result = _run(f"{ASKED} --resume")
    assert result.exit_code == 0
    after = json.loads(lost.read_text())
    for clock in ("seconds", "processor"):
        assert before.pop(clock) > 0
        assert after.pop(clock) > 0
    assert after == before
    assert [file.stat().st_mtime_ns for file in kept] == times


# A job in the background ignores Ctrl-C, and so do its children: here it is a terminal's again.
CONSOLE = """
import signal
from evenhand.app.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_keeps_finished_runs_and_says_how_to_go_on(workers, tmp_path) -> None:
    command = (
        "compare quadrants --recipes sg --splits 1 --seeds 2000 --lr 0.1 --epochs 1 --out out "
        "--references none"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", CONSOLE, *command.split(), "--workers", str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        while line and not line.startswith("[1/2001]"):
            line = process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all of the group
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, errors
    message, again = errors.splitlines()
    kept = len(list((tmp_path / "out").rglob(RESULT)))
    assert kept >= 1
    assert f"stopped; {kept} of 2001 runs are finished and kept" in message
    assert f"--out out --workers {workers} --resume" in again


# What is shown meanwhile ----------------------------------------------------------------------

JOB = Job("mgda", "", 0, 0.1)
RECORD = Record(2, 10, validation={"side": 0.123456})


def _shown(terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with progress.shown(console, [JOB, JOB], epochs=5) as listener:
        listener(JOB, RECORD)
        listener(JOB, Result(JOB, ("side",), "finished", 2))
        listener(JOB, RECORD)
    return console.file.getvalue()


def test_a_terminal_gets_bars_with_losses() -> None:
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", _shown(terminal=True))
    assert re.search(r"all runs +[━╸╺]+ 1/2 runs", text)
    assert re.search(r"mgda, seed 0, rate 0.1 +[━╸╺]+ 2/5 epochs +side 0.123", text)


def test_anything_else_gets_lines(monkeypatch) -> None:
    assert _shown(terminal=False) == "[1/2] mgda, seed 0, rate 0.1: best epoch 2\n"
    monkeypatch.setattr(progress, "EVERY", -1.0)
    line = "mgda, seed 0, rate 0.1: epoch 2, side 0.123\n"
    assert _shown(terminal=False).count(line) == 2


# The table ------------------------------------------------------------------------------------


def _columns(found: Findings) -> dict[str, dict[str, str]]:
    """The cells of each column, by row."""
    names, *others = findings.columns(found, delta=True)
    rows = [cell.text.removesuffix(" (plain sum)") for cell in names.cells]
    return {c.title: dict(zip(rows, (cell.text for cell in c.cells), strict=True)) for c in others}


def _made_row(name: str, tests: dict[str, list[float]], rate: float = 0.1) -> Row:
    """A row of a recipe with these metrics, one per split."""
    splits = len(next(iter(tests.values())))
    chosen = tuple(
        Result(
            Job(name, "", 0, rate, split),
            tuple(tests),
            "finished",
            epoch=1,
            monitored=0.5,
            test={task: values[split] for task, values in tests.items()},
        )
        for split in range(splits)
    )
    return Row(name, chosen, {t: tuple(v) for t, v in tests.items()}, {"": rate})


NOTHING = {"side": [0.5] * 3, "height": [1.0] * 3, "reach": [4.0] * 3}


def _with(found: Findings, *made: Row, rates: tuple[float, ...] = (0.01, 0.1)) -> Findings:
    splits = max(len(row.chosen) for row in made) or 3
    settings = replace(found.comparison.settings, rates=rates, splits=splits)
    names = tuple(row.recipe for row in made)
    constant = _made_row("constant", {t: v[:splits] for t, v in NOTHING.items()}, 0.0)
    facts = found.comparison.facts[:1] * splits
    out = found.comparison.out
    comparison = Comparison(settings, names, made, (), out, (constant,), facts)
    return Findings(comparison, found.problem, dict.fromkeys(names, ()))


SINGLE = {"side": [0.8, 0.81, 0.8], "height": [0.5, 0.51, 0.5], "reach": [2.0, 2.0, 2.02]}
JOINT = {"side": [0.9, 0.91, 0.92], "height": [0.4, 0.41, 0.42], "reach": [1.0, 1.0, 1.04]}


def test_cells_show_means_and_what_is_shown(found) -> None:
    made = _with(found, _made_row("single-task", SINGLE), _made_row("sg", JOINT))
    columns = _columns(made)
    assert columns["side"] == {"constant": "0.500", "single-task": "0.803", "sg": "0.910"}
    assert columns["height"] == {"constant": "1.00", "single-task": "0.50", "sg": "0.41"}
    # skill of single-task: 60.67, 49.67 and 49.83; of the sum: 82, 59 and 74.67
    assert columns["skill"] == {"constant": "0.0", "single-task": "53.4", "sg": "71.9"}
    assert columns["vs single-task"]["sg"].startswith("+18.5 (")
    assert columns["worse/same/"]["sg"] == "0/0/100"
    (cells,) = (c.cells for c in findings.columns(made) if c.title == "vs single-task")
    assert [cell.shown for cell in cells] == [0, 0, 1]


def test_delta_m_is_there_on_request_and_where_it_says_something(found) -> None:
    made = _with(found, _made_row("single-task", SINGLE), _made_row("sg", JOINT))
    assert "Δm" not in {c.title for c in findings.columns(made)}
    rows_made = rows(
        [r for row in made.comparison.rows for r in row.chosen],
        made.comparison.recipes,
        found.problem,
    )
    made = replace(made, comparison=replace(made.comparison, rows=rows_made))
    # (13.28 + 18.54 + 49.50) / 3
    assert _columns(made)["Δm"] == {"constant": "–", "single-task": "+0.0", "sg": "+27.1"}
    untrained = {**SINGLE, "reach": [4.2, 4.2, 4.2]}
    poor = rows(
        [r for row in (_made_row("single-task", untrained), rows_made[1]) for r in row.chosen],
        made.comparison.recipes,
        found.problem,
    )
    made = replace(made, comparison=replace(made.comparison, rows=poor))
    assert set(_columns(made)["Δm"].values()) == {"–"}


def test_sum_of_weights_is_of_the_trunk_alone(found) -> None:
    weights = _columns(found)["Σw"]
    assert (weights["sg"], weights["ate-sg"], weights["mgda"]) == ("3", "3", "1")
    assert weights["db-mtl"] == weights["constant"] == "–"


def test_single_task_is_the_reference_and_sg_the_clock(found) -> None:
    columns = _columns(found)
    assert columns["vs single-task"]["single-task"] == "reference"
    assert columns["processor"]["sg"] == columns["operations"]["sg"] == "1.00"
    assert float(columns["operations"]["single-task"]) > 1


def test_a_rate_is_told_with_the_label_that_was_chosen_with_it(found) -> None:
    """A label among many is told; of networks that complete each other the rates are enough."""
    joint = _made_row("grid", JOINT)
    alone = tuple(replace(r, tasks=(t,)) for r, t in zip(joint.chosen, JOINT, strict=True))
    for rates, chosen, told in (
        ({"1-2": 0.01}, joint.chosen, "0.01 (1-2)"),
        ({"": 0.01}, joint.chosen, "0.01"),
        ({"side": 0.1, "height": 0.1, "reach": 0.1}, alone, "0.1"),
        ({"side": 0.1, "height": 0.01, "reach": 0.1}, alone, "0.1, 0.01, 0.1"),
        ({"1-2": 0.1, "2-1": 0.01}, joint.chosen, "0.01–0.1"),
    ):
        row = replace(joint, rates=rates, chosen=chosen)
        assert _columns(_with(found, row))["rate"]["grid"] == told


def test_notes_on_rates_and_what_is_missing(found) -> None:
    low, high = (Row(n, (), {}, {"": r}) for n, r in (("mgda", 0.01), ("ius", 0.1)))
    text = " ".join(findings.notes(_with(found, low, high)))
    assert "The smallest rate (0.01) was chosen for mgda:" in text
    assert "The largest rate (0.1) was chosen for ius:" in text
    assert "Without single-task among the recipes nothing says together or apart." in text
    assert "Without sg among the recipes there is no plain sum to compare with." in text
    notes = findings.notes(_with(found, high, rates=(0.1,)))
    assert any(note.startswith("Only one learning rate (0.1)") for note in notes)


def test_notes_on_runs_that_were_still_improving(found) -> None:
    last = [run for runs in found.runs.values() for run in runs if run.result.epoch == 12]
    assert any(
        "Still improving at the last epoch (12)" in n for n in findings.notes(found)
    ) == bool(last)


def test_who_improves_to_the_end_in_most_runs_is_named(found) -> None:
    """Two of four are no majority; three are."""
    for last, told in ((2, False), (3, True)):
        runs = tuple(
            replace(run, result=replace(run.result, epoch=12 if k < last else 5))
            for k, run in enumerate(found.runs["sg"])
        )
        notes = findings.notes(replace(found, runs={"sg": runs}))
        assert any(note.startswith("Still improving at the last epoch") for note in notes) == told


def test_notes_name_the_tasks_that_learned_nothing(found) -> None:
    assert not any("Starved" in note for note in findings.notes(found))
    runs = {
        name: tuple(
            replace(run, records=tuple(map(_as_before_training(run), run.records))) for run in runs
        )
        for name, runs in found.runs.items()
        if name == "sg"
    }
    made = replace(found, runs=runs)
    skills = {line.name: line.tasks["side"].mean for line in made.assessment.lines}
    starved = [note for note in findings.notes(made) if "Starved" in note]
    worse = skills["single-task"] - skills["sg"] > 1
    assert len(starved) == worse
    joint = made.comparison.rows[1]
    low = tuple(replace(r, test={**r.test, "side": 0.3}) for r in joint.chosen)
    rows_made = list(made.comparison.rows)
    rows_made[1] = replace(joint, chosen=low)
    behind = replace(made, comparison=replace(made.comparison, rows=tuple(rows_made)))
    (note,) = (n for n in findings.notes(behind) if "Starved" in n)
    assert "with sg side (−" in note


def test_notes_on_losses_that_differ_by_far_and_on_what_is_rare(found) -> None:
    assert not any("differ by a factor" in note for note in findings.notes(found))
    apart = {"side": 0.5, "height": 300.0, "reach": 2.0}
    runs = {
        "sg": tuple(
            replace(run, records=(replace(run.records[0], validation=apart), *run.records[1:]))
            for run in found.runs["sg"]
        )
    }
    notes = findings.notes(replace(found, runs=runs))
    (note,) = (n for n in notes if "differ by a factor" in n)
    assert "a factor of 600 (height 300, side 0.5)" in note
    advice = replace(found, runs=runs).verdict.advice
    told = "standardise the targets, or divide each loss by the constant's"
    assert advice == f"{told}; {found.verdict.advice}"
    assert told not in found.verdict.advice
    few = [n for n in notes if n.startswith("Fewer than 100 training labels")]
    assert few == ["Fewer than 100 training labels: side (64), height (64) and reach (64)."]
    tests = [found.comparison.settings.problem(k).test.targets["side"] for k in range(2)]
    rarest = min(int(t.bincount().min()) for t in tests)
    expected = [f"side ({rarest} of 40)"] if rarest < 20 else []
    rare = [n for n in notes if n.startswith("The rarest class")]
    assert len(rare) == len(expected)
    assert all(text in rare[0] for text in expected)


def test_untrained_winners_are_named(found) -> None:
    assert not any("No training beat" in note for note in findings.notes(found))
    first, *others = found.runs["sg"]
    untrained = replace(first, result=replace(first.result, epoch=0))
    runs = {"sg": (untrained, *others)}
    (note,) = (n for n in findings.notes(replace(found, runs=runs)) if "No training beat" in n)
    assert "the best epoch is 0 for sg (1 of 4 runs)" in note


def test_tables_for_other_programs(copied, found) -> None:
    lines = list(csv.DictReader(Path("out/table.csv").read_text().splitlines()))
    made = found.assessment
    assert [line["row"] for line in lines] == [line.name for line in made.lines]
    for line, expected in zip(lines, made.lines, strict=True):
        assert float(line["skill"]) == pytest.approx(expected.skill.mean)
        for task in found.problem.tasks:
            values = found.rows[expected.name].test[task]
            assert float(line[f"metric:{task}"]) == pytest.approx(sum(values) / len(values))
    sg = next(line for line in lines if line["row"] == "sg")
    assert float(sg["versus"]) == pytest.approx(made.line("sg").versus.mean)
    assert sg["low"] == sg["better"] == ""  # two splits have no interval
    runs = list(csv.DictReader(Path("out/results.csv").read_text().splitlines()))
    assert len(runs) == sum(len(r.test) for row in found.rows.values() for r in row.chosen)
    for run in runs[:20]:
        row = found.rows[run["row"]]
        (value,) = (
            r.test[run["task"]]
            for r in row.chosen
            if (r.job.label, r.job.split, r.job.seed)
            == (run["network"], int(run["split"]), int(run["seed"]))
            and run["task"] in r.test
        )
        assert float(run["metric"]) == value
    told = json.loads(Path("out/verdict.json").read_text())
    assert told["verdict"]["headline"] == found.verdict.headline
    assert found.verdict.headline.split(".")[0] in " ".join(copied.split())


def _as_before_training(run: findings.Run) -> Callable[[Record], Record]:
    start = run.records[0].validation["side"]
    return lambda r: replace(r, validation={**r.validation, "side": start})


def test_a_recipe_that_diverges_at_every_rate_is_a_row_of_dashes(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = (
        "compare tiny --recipes single-task,sg --splits 2 --lr 1e6 --epochs 9 --out out "
        "--references none"
    )
    result = _run(f"{command} --workers 1")
    assert result.exit_code == 0, result.output
    assert re.search(r"^ sg \(plain sum\)( +–)+ *$", result.stdout, re.MULTILINE)
    words = " ".join(result.stdout.split())
    assert "sg: 2 of 2 runs diverged (at rate 1e+06: the" in words
    assert "NOTHING TO COMPARE: no row is shown to beat a constant in any task." in words


def test_the_memory_of_moments_is_told_before_training(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run(
        "compare tiny --recipes sg,mgda,io --splits 2 --lr 1e-2 --epochs 1 --workers 1 "
        "--references none"
    )
    (line,) = (x for x in result.stdout.splitlines() if x.startswith("optimizer state"))
    usual, io = re.fullmatch(
        r"optimizer state per network: (\S+) bytes; io (\S+) bytes", line
    ).groups()
    blocks = _tiny(0).network(tuple(_tiny(0).tasks)).blocks()
    trunk, heads = (
        4 * sum(p.numel() for p in block) for block in (blocks.shared, blocks.own_of(blocks.own))
    )
    assert int(usual) == trunk + heads  # a momentum for each parameter
    assert int(io) == len(blocks.own) * trunk + heads


def test_many_names_are_cut() -> None:
    assert joined(["a"]) == "a"
    assert joined(["a", "b", "c"]) == "a, b and c"
    assert joined(list("abcdefghij")) == "a, b, c, d, e, f, g and 3 more"


# The report -----------------------------------------------------------------------------------


def test_the_report_needs_nothing_else(copied) -> None:
    page = Path("out/report.html").read_text()
    assert page.count("<svg") == 8
    for loads in ("<script", "<link", "<img", "src=", "@import", "url(http", 'href="http'):
        assert loads not in page
    assert len(page) < 800_000


def test_the_report_has_the_cells_of_the_terminal(copied, found) -> None:
    page = Path("out/report.html").read_text()
    for column in findings.columns(found):
        for cell in column.cells:
            assert f">{cell.text}<" in page
    for name in RECIPES_ASKED.split(","):
        assert recipe(name).summary in page


def test_report_makes_the_same_again(copied) -> None:
    before = Path("out/report.html").read_text()
    Path("out/report.html").unlink()
    result = _run("report out")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "out/report.html"
    assert Path("out/report.html").read_text() == before


def test_the_ink_is_the_page_s(copied) -> None:
    page = Path("out/report.html").read_text()
    assert figures.INK not in page
    assert "currentColor" in page


# Figures --------------------------------------------------------------------------------------


def _made(values: dict[int, float], moves: tuple[str, ...] = ("shared", "own")) -> Run:
    records = [Record(e, e, trains=moves, validation={"side": x}) for e, x in values.items()]
    return Run(Result(JOB, ("side",), "finished"), tuple(records))


def _series(*runs: Run) -> figures.Series:
    return figures.Series.of(runs, lambda record: record.validation, "side")


def test_series_end_where_the_first_seed_stopped() -> None:
    series = _series(_made({0: 4.0, 1: 2.0, 2: 1.0}), _made({0: 6.0, 1: 3.0}))
    assert series.epochs == [0, 1]
    assert series.mean == [5.0, 2.5]
    assert (series.low, series.high) == ([4.0, 2.0], [6.0, 3.0])


def test_an_epoch_at_rest_is_a_gap_and_one_unobserved_is_not() -> None:
    records = (
        Record(1, 1, trains=("shared",), norms={"side": 1.0}),
        Record(2, 2, trains=("shared",)),
        Record(3, 3, trains=("own",)),
        Record(4, 4, trains=("shared",), norms={"side": 2.0}),
    )
    run = Run(Result(JOB, ("side",), "finished"), records)
    series = figures.Series.of([run], lambda record: record.norms, "side")
    assert series.epochs == [1, 3, 4]
    assert series.mean[::2] == [1.0, 2.0]
    assert math.isnan(series.mean[1])


def test_rests_are_told(found) -> None:
    assert figures.frozen(found) == {"ate-sg": [(epoch, 1) for epoch in range(1, 12, 2)]}


def test_only_as_many_colours_as_can_be_told_apart(found) -> None:
    names = [entry.name for entry in RECIPES]
    made = [
        _made_row(
            name, {"side": [0.6 + 0.001 * k] * 3, **{t: NOTHING[t] for t in JOINT if t != "side"}}
        )
        for k, name in enumerate(names)
    ]
    look = figures.looks(_with(found, *made))
    coloured = {name for name, kind in look.items() if kind.color != figures.GREY}
    assert len(coloured) == len(figures.PALETTE)
    assert {"single-task", "sg", names[-1], names[-5]} <= coloured
    assert len({(look[n].color, look[n].dashes, look[n].marker) for n in coloured}) == len(coloured)


def test_weights_are_drawn_where_they_vary(found) -> None:
    with figures.style():
        figure = figures.weights(found)
    assert figure is not None
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["mgda", "uncertainty"]


def test_an_axis_is_logarithmic_if_that_helps(found) -> None:
    for values, scale in (
        ({0: 1.0, 1: 0.05}, "log"),
        ({0: 1.0, 1: 0.5}, "linear"),
        ({0: 1.0, 1: -0.05}, "linear"),
    ):
        made = replace(
            found.comparison,
            recipes=("sg",),
            rows=(Row("sg", (), {}, {}),),
        )
        with figures.style():
            figure = figures.losses(Findings(made, found.problem, {"sg": (_made(values),)}))
        assert figure.axes[0].get_yscale() == scale


def test_trade_offs_point_to_where_both_tasks_are_better(found) -> None:
    with figures.style():
        figure = figures.trade_offs(found)
    assert figure is not None
    corners = [ax.get_title(loc="right")[-1] for ax in figure.axes]
    assert corners == ["↘", "↘", "↙"]


def test_dynamics_are_the_path_the_swing_and_the_moments(found) -> None:
    swung = {"side": 0.3, "height": 0.6, "reach": 0.0}  # of so few epochs, none swings by itself
    found = replace(
        found,
        runs={
            name: tuple(
                replace(r, records=(*r.records[:-1], replace(r.records[-1], oscillation=swung)))
                for r in runs
            )
            for name, runs in found.runs.items()
        },
    )
    with figures.style():
        figure = diagnostics.dynamics(found)
    assert figure is not None
    way, swing, memory = figure.axes
    joint = [name for name, _ in figures.grey_first(found) if name != "single-task"]
    for k, name in enumerate(joint):
        path = sum(r.path or 0.0 for run in found.runs[name] for r in run.records) / 4
        assert way.lines[k].get_ydata()[-1] == pytest.approx(path)
        assert path > 0
        assert swing.lines[k].get_ydata()[-1] == pytest.approx(0.3)
    held = sorted(found.runs[name][0].records[-1].state_bytes / 1024 for name in joint)
    assert [bar.get_width() for bar in memory.patches] == held


def test_conflicts_are_a_matrix_of_means_over_everything_observed(found) -> None:
    with figures.style():
        figure = diagnostics.conflicts(found)
    assert figure is not None
    assert diagnostics.observed(found) == "sg"
    records = [record for run in found.runs["sg"] for record in run.records]
    tasks = list(found.problem.tasks)
    for ax, name in zip(figure.axes, ("cosines", "conflicts"), strict=True):
        assert len(ax.texts) == 6
        for text in ax.texts:
            column, row = text.get_position()
            pair = "|".join(tasks[k] for k in sorted((column, row)))
            seen = [getattr(r, name)[pair] for r in records if pair in getattr(r, name)]
            assert text.get_text() == f"{sum(seen) / len(seen):.2f}"
    for record in records:
        for pair, share in record.conflicts.items():
            assert 0 <= share <= 1
            if share == 0:
                assert record.cosines[pair] >= 0
            if share == 1:
                assert record.cosines[pair] < 0


def test_orthogonal_gradients_are_no_conflict() -> None:
    """Gradients (1, 0) and (0, 1) meet at a cosine of 0, (1, 0) and (−1, 1) below it."""
    weights = torch.zeros(2, requires_grad=True)
    for other, share in ((weights[1], 0.0), (weights[1] - weights[0], 1.0)):
        statistics = EpochStatistics()
        statistics.observe(Balancer().gradients({"a": weights[0] * 1, "b": other * 1}))
        assert statistics.means()["conflicts"] == {"a|b": share}


def test_phases_tell_what_each_kind_did_to_each_task(found) -> None:
    with figures.style():
        figure = diagnostics.phases(found)
    assert figure is not None
    (ax,) = figure.axes  # the others have one kind of phase
    assert ax.get_title(loc="left") == "ate-sg"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["shared", "own"]
    records = [record for run in found.runs["ate-sg"] for record in run.records]
    for text in ax.texts:
        column, row = text.get_position()
        key = f"{('shared', 'own')[row]}|{list(found.problem.tasks)[column]}"
        seen = [record.changes[key] for record in records if key in record.changes]
        assert text.get_text() == f"{sum(seen) / len(seen):+.1g}"
        (image,) = ax.images  # the colour is that of the number
        assert image.get_array()[row][column] == pytest.approx(sum(seen) / len(seen))
    assert len(ax.texts) == 6


def test_differences_are_drawn_as_the_table_prints_them(found) -> None:
    made = _with(
        found,
        _made_row("single-task", SINGLE),
        _made_row("sg", JOINT),
        _made_row("mgda", {**SINGLE, "side": [0.79, 0.82, 0.8]}),
    )
    with figures.style():
        figure = intervals.differences(made)
    assert figure is not None
    rows_drawn, tasks_drawn = figure.axes
    cells = _columns(made)["vs single-task"]
    names = [label.get_text() for label in rows_drawn.get_yticklabels()]
    assert names == ["sg (plain sum)", "mgda"]
    for place, recipe_name in enumerate(("sg", "mgda")):
        _, line, mark = (rows_drawn.lines[k] for k in (0, 1 + 2 * place, 2 + 2 * place))
        assert set(line.get_ydata()) == set(mark.get_ydata()) == {place}
        shown = [mark.get_xdata()[0], *line.get_xdata()]
        printed = re.findall(r"[+−][\d.]+\d", cells[recipe_name])
        assert [f"{x:+.1f}".replace("-", "−") for x in shown] == printed
    assert rows_drawn.lines[1].get_color() == intervals.SHOWN[1]
    declared = made.assessment.headline.interval
    assert list(rows_drawn.lines[5].get_xdata()) == [declared.low, declared.high]
    assert set(rows_drawn.lines[5].get_ydata()) == {names.index("sg (plain sum)")}
    assert rows_drawn.lines[3].get_color() == intervals.SHOWN[0]
    assert [label.get_text() for label in tasks_drawn.get_yticklabels()] == list(SINGLE)
    for k, task in enumerate(SINGLE):
        difference = made.assessment.by_task[task]
        assert list(tasks_drawn.lines[1 + 2 * k].get_xdata()) == [
            difference.interval.low,
            difference.interval.high,
        ]
    assert intervals.differences(_with(found, _made_row("sg", JOINT))) is None


def test_the_landscape_has_a_panel_per_method(tmp_path) -> None:
    said: list[str] = []
    paths = landscape.walk(["sg", "grid", "mgda"], said.append, steps=3)
    assert list(paths) == ["sg", "mgda"]
    assert "grid is left out" in said[1]
    with figures.style():
        figure = landscape.draw(paths)
        figures.save(figure, tmp_path / "toy.svg")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["sg", "mgda"]
    assert "<svg" in (tmp_path / "toy.svg").read_text()


# The lists ------------------------------------------------------------------------------------


def test_methods_lists_every_recipe_with_its_citation() -> None:
    result = _run("methods")
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    for entry in RECIPES:
        assert f" {entry.name} " in words
    assert "Sener" in words


def test_datasets_lists_every_source() -> None:
    words = " ".join(_run("datasets").stdout.split())
    for source in data.SOURCES:
        assert source.name in words
        assert source.citation in words


@pytest.mark.parametrize(
    ("name", "needs", "cost", "guarantees"),
    [
        ("single-task", "nothing", "1, in each of m networks", ()),
        ("sg", "nothing", "1", ()),
        ("mgda", "Gramian", "all heads + m trunks", ("feasible",)),
        ("mgda-ub", "Gramian of the features", "all heads + 1 trunk", ("feasible",)),
        ("uncertainty", "losses", "1", ("stateful",)),
        ("ate-sg", "nothing", "1; trunk trains 50% of the time, heads 50%", ()),
        ("ius", "nothing", "m updates a step, each 1", ()),
        ("soft", "nothing", "1, a trunk for each task", ()),
        ("grid", "nothing", "1, in each of 3, 6, … (for m = 2, 3, …) networks", ()),
    ],
)
def test_traits(name, needs, cost, guarantees) -> None:
    about = methods.traits(recipe(name))
    assert (about.needs, about.cost, about.guarantees) == (needs, cost, guarantees)


@pytest.mark.parametrize("name", [entry.name for entry in RECIPES])
def test_the_cost_named_is_the_cost_paid(name, monkeypatch) -> None:
    """On three tasks, the calls of autograd in one step are those that the table tells."""
    cost = methods.traits(recipe(name)).cost
    if ";" in cost:
        pytest.skip("phases of different kinds: the cost is of those that move everything")
    (label, *_) = recipe(name).compose(("side", "height", "reach"))
    run = training(Job(name, label, 0, 0.01), _tiny(0), Settings("tiny", observe_every=0))
    m = len(run.tasks)
    updates = {"m": m, "2": 2}[cost.split()[0]] if "updates a step" in cost else 1
    counts = re.findall(r"(all|m|1|2) (?:heads|trunks?|last layers)", cost)
    passes = sum({"m": m, "2": 2}.get(count, 1) for count in counts) if counts else 1
    further = re.search(r"m more on each of (\d)", cost)
    expected = updates * passes + (m * int(further[1]) if further else 0)
    calls = 0
    grad = torch.autograd.grad

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    next(records := run.run())
    calls = 0
    next(records)
    if further:  # such methods need not look at all gradients of the first batch
        assert calls <= expected * run.step
    else:
        assert calls == expected * run.step


@pytest.mark.parametrize("width", [60, 80, 130])
def test_nothing_is_cut_at_any_width(width, found) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(table.comparison(found, width))
    text = console.file.getvalue()
    for column in findings.columns(found):
        for cell in column.cells:
            assert cell.text in text
    assert "…" not in text
    console.print(table.recipes(RECIPES, width))
    for entry in RECIPES:
        assert f" {entry.name} " in console.file.getvalue()
    assert max(map(len, console.file.getvalue().splitlines())) <= width
