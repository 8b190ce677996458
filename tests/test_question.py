"""The question asked of any source, the way on, and what is said when somebody's code fails."""

from __future__ import annotations

import csv
import json
import math
import pickle
import runpy
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from evenhand import theirs
from evenhand.app import cli, doctor_report, report
from evenhand.app.cli import app
from evenhand.comparison.across import Across
from evenhand.comparison.request import Settings, forget
from evenhand.data import Split
from evenhand.data.labels import LabelCount
from evenhand.doctor import examine as examining
from evenhand.doctor.budget import affordable
from evenhand.doctor.describe import Description, TaskFacts, _unexplained, describe
from evenhand.doctor.ladder import HALF, TOGETHER, Effort, Ladder, climbed
from evenhand.doctor.words import words
from evenhand.tables.problem import table_problem

ROWS = 120
TARGETS = ["pressure", "ill", "grade"]
WORDS = [word for name in TARGETS for word in ("--target", name)]
QUICK = ["--epochs", "2", "--lr", "0.01"]


def run(*words: object, code: int = 0, stdin: bytes | None = None) -> Result:
    forget()
    result = CliRunner().invoke(app, list(map(str, words)), input=stdin)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def refused(*words: object) -> str:
    result = run(*words, code=2)
    assert not result.stdout
    assert result.stderr.count("\n") == 1, result.stderr
    return str(result.stderr)


def patients() -> dict[str, list]:
    """Thirty people, four rows of each; a fifth of the pressures is blank."""
    random = np.random.default_rng(0)
    person = np.arange(ROWS) // 4
    age = random.normal(50, 12, ROWS).round(1)
    pressure = 100 + age + random.normal(0, 9, ROWS)
    severe = random.random(ROWS) + (age - 50) / 40
    return {
        "person": person.tolist(),
        "number": person.tolist(),
        "age": age.tolist(),
        "w": random.integers(1, 4, ROWS).tolist(),
        "pressure": ["" if k % 5 == 0 else round(v, 1) for k, v in enumerate(pressure)],
        "ill": ["yes" if s > 0.6 else "no" for s in severe],
        "grade": [("low", "mid", "top")[int(np.digitize(s, [0.3, 1.0]))] for s in severe],
    }


@pytest.fixture
def table(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return written(tmp_path / "p.csv", patients())


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Reports without figures, which take longest."""
    monkeypatch.setattr(report, "plates", lambda findings: iter(()))
    monkeypatch.setattr(doctor_report, "plates", lambda found: iter(()))


def written(file: Path, columns: dict[str, list]) -> Path:
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return file


# The doctor and its sources -------------------------------------------------------------------


def test_the_doctor_takes_a_table_with_all_that_is_said_of_it(table) -> None:
    asked = [*WORDS, "--group", "person", "--weight", "w", "--metric", "pressure=mae", *QUICK]
    result = run("doctor", "p.csv", *asked, "--kind", "number=category", "--json")
    said = json.loads(result.stdout)
    assert said == json.loads(Path("evenhand-doctor-p/doctor.json").read_text())
    assert said["tasks"] == TARGETS
    assert said["description"]["groups"] == 30
    labels = said["description"]["tasks"]["pressure"]["labels"]
    assert [sum(part[k] for part in labels.values()) for k in ("samples", "used")] == [ROWS, 96]
    assert said["extent"]["looks"] == 3
    assert said["sampled"] == []
    assert any("pressure has no label in some samples" in s for s in said["evidence"])
    page = Path("evenhand-doctor-p/report.html").read_text()
    assert "--group person" in page
    assert f"{labels['train']['used']} of {labels['train']['samples']}" in page


def test_what_was_decided_of_columns_is_told(table, undrawn) -> None:
    columns = patients() | {"nr": [f"n{k}" for k in range(ROWS)]}
    written(table, columns)
    result = run("doctor", "p.csv", *WORDS, *QUICK)
    note = "column 'nr' is left out: likely an identifier"
    assert note in " ".join(result.stderr.split())
    assert result.stdout.splitlines()[-1] == "evenhand-doctor-p/report.html"
    assert any(
        note in said
        for said in json.loads(Path("evenhand-doctor-p/doctor.json").read_text())["notes"]
    )
    assert "left out: likely an identifier" in Path("evenhand-doctor-p/report.html").read_text()


def test_the_ladders_splits_keep_groups_together(table, monkeypatch) -> None:
    """The number of the person is an input too, so that it can be read off the parts."""
    seen = []

    def climb_nothing(experiments, say, left):
        seen.append(experiments)
        raise ValueError("enough")

    monkeypatch.setattr(examining, "climbed", climb_nothing)
    options = {"targets": ["pressure", "ill"], "group": "person", "drop": ["grade", "w", "age"]}
    forget()
    settings = Settings.suggested("p.csv", options=options, epochs=1, rates=(0.01,))
    with pytest.raises(ValueError, match="enough"):
        examining.examine(settings, verify=True)
    (experiments,) = seen
    assert len(experiments.problems) == 5
    assert experiments.ratio == pytest.approx(6 / 24)  # groups, not rows
    for problem in experiments.problems.values():
        learnt = {*problem.train.inputs[:, 0].tolist(), *problem.validation.inputs[:, 0].tolist()}
        assert len(learnt) == 24
        assert not learnt & {*problem.test.inputs[:, 0].tolist()}


def test_the_doctor_takes_functions_and_the_standard_input(
    table, monkeypatch, tmp_path, undrawn
) -> None:
    run("new", "problem", "mine.py")
    said = json.loads(run("doctor", "mine.py:problem", *QUICK, "--json").stdout)
    assert said["tasks"] == ["side", "height"]
    monkeypatch.setenv("EVENHAND_DATA", str(tmp_path))
    config = run("doctor", "-", *WORDS, "--print-config", "--json", stdin=table.read_bytes())
    kept = Path(json.loads(config.stdout)["source"])
    assert kept.read_bytes() == table.read_bytes()


def test_what_the_doctor_cannot_be_asked_is_said_in_a_line(table) -> None:
    Path("full").mkdir()
    Path("full/file").write_text("")
    Path("c.yaml").write_text("source: p.csv\nrecipes: sg\n")
    assert "name the columns to predict" in refused("doctor", "p.csv")
    assert "did you mean 'ill'" in refused("doctor", "p.csv", "--target", "il")
    assert "has one task" in refused("doctor", "p.csv", "--target", "ill")
    assert "only a table has such options" in refused("doctor", "digits", "--target", "ill")
    assert "write a time" in refused("doctor", "p.csv", *WORDS, "--budget", "soon")
    assert "full holds something else" in refused("doctor", "p.csv", *WORDS, "--out", "full")
    assert "one of hold-out" in refused("doctor", "p.csv", *WORDS, "--design", "thirds")
    assert "have no times" in refused("doctor", "p.csv", *WORDS, "--design", "time")
    assert "lr=-1" in refused("doctor", "p.csv", *WORDS, "--lr", "-1")
    assert "no option 'recipes'" in refused("doctor", "--config", "c.yaml", *WORDS)
    assert sorted(p.name for p in Path().iterdir()) == ["c.yaml", "full", "p.csv"]


def test_targets_are_described_by_their_names_and_without_their_weights() -> None:
    rare = ["c"] * 2 + ["a"] * 50 + ["b"] * 68
    random = np.random.default_rng(1)
    columns = patients() | {
        "sort": random.permutation(rare).tolist(),
        "tags": ["big;new" if k % 40 == 0 else "big" if k % 2 else "old" for k in range(ROWS)],
    }

    def facts(folder_file: Path, weight: bool):
        options = {"targets": ["sort", "tags", "ill"], "kinds": {"tags": "labels"}}
        made = table_problem(str(folder_file), options | ({"weight": "w"} if weight else {}))(0)
        return describe(made).tasks

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = written(Path(folder) / "t.csv", columns)
        plain, weighted = facts(file, False), facts(file, True)
    assert plain["sort"].rarest is not None
    assert plain["sort"].rarest[0] == "c"
    assert plain["tags"].rarest[0] == "new"
    assert plain["ill"].rarest[0] in ("yes", "no")
    assert weighted["sort"].rarest == plain["sort"].rarest
    assert weighted["ill"].rarest == plain["ill"].rarest
    assert not weighted["ill"].constant


def test_the_variance_among_equal_inputs_is_that_of_labels_alone() -> None:
    """By hand: groups (1, 3), (5, 9) and a single 7, of total variance 10: (2 + 8) / 2 / 10."""
    labels, same = torch.tensor([1.0, 3, 5, 9, 7]), torch.tensor([4, 4, 8, 8, 9])
    assert _unexplained(labels, same) == (None, 2)  # too few
    many = labels.repeat(20), (same.repeat(20) + 10 * torch.arange(20).repeat_interleave(5))
    share, freedom = _unexplained(*many)
    assert freedom == 40
    assert share == pytest.approx(5 / (10 * 80 / 99))
    classes = torch.tensor([0, 1, 2, 2, 0]).repeat(20)  # one pair of two disagrees
    share, _ = _unexplained(classes, many[1])
    gini = 1 - (0.4**2 + 0.2**2 + 0.4**2)
    assert share == pytest.approx(20 / 40 / (gini * 100 / 99))
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    signal = torch.arange(4000) // 2 % 7
    mixed = signal + 2.0 * noise[:, 0]  # variance 4 of noise, 4 of signal
    assert _unexplained(mixed, torch.arange(4000) // 2)[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.9, "it is noise"), (0.02, "they are too few"), (0.3, "do not tell"), (None, "do not tell")],
)
def test_noise_and_few_labels_are_told_apart_where_equal_inputs_tell(share, said) -> None:
    from test_doctor import CASES

    facts = TaskFacts({"train": LabelCount(90, 90, 90)}, False, None, share, 30)
    description = Description({"a": facts, "b": facts}, {}, None, ())
    ladder = CASES["labels"]
    effort = Effort(8, 1, (0.1,))
    found = examining.Examination("s", description, None, "no", (), ladder, effort)
    assert said in words(found).advice
    told = [sentence for sentence in words(found).evidence if "repeat the inputs" in sentence]
    assert len(told) == (0 if share is None else 2)


@pytest.mark.parametrize("rows", [13, 70, 200])
def test_looks_are_at_batches_without_common_samples(rows) -> None:
    """Samples in two batches would bring their noise into the products between them."""
    from test_doctor import small

    problem = small()
    part = Split(*problem.train.take(torch.arange(rows) % len(problem.train)))
    numbered = Split(torch.arange(4.0 * rows).reshape(rows, 4), part.targets)
    looking = examining._Looking(
        Settings.suggested(problem), replace(problem, train=numbered, batch_size=16), 3
    )
    assert len(looking.seen) == looking.wanted.batches == {13: 4, 70: 4, 200: 12}[rows]
    drawn = torch.cat([inputs[:, 0] for inputs, _ in looking.seen])
    assert len(drawn.unique()) == len(drawn)


def test_too_few_samples_to_look_at_are_told() -> None:
    from test_doctor import small

    problem = small()
    few = Split(*problem.train.take(torch.tensor([1, 2, 4])))
    found = examining.examine(replace(problem, train=few, pool=None))
    assert found.diagnosis is None
    assert "3 batches without common samples have labels of every task" in found.unseen


# Within its time ------------------------------------------------------------------------------


def test_a_large_source_is_looked_at_in_part_and_the_part_is_told(table, monkeypatch) -> None:
    monkeypatch.setattr(examining._Looking, "step_seconds", lambda self, most: 0.05)
    problem = replace(table_problem("p.csv", {"targets": ["pressure", "ill"]})(0), epochs=100)
    found = examining.examine(problem, budget=10.0)
    # 7 s to look: 3 looks at 4 batches take 2 + 3 steps a batch, 3 s; the rest are 80 steps.
    assert [at.step for at in found.diagnosis.looks] == [0, 40, 80]
    assert {at.whole.batches for at in found.diagnosis.looks} == {4}
    told = "To look for no longer than 10 s it took 80 of 500 steps of training."
    assert found.sampled == (told,)
    monkeypatch.setattr(examining._Looking, "step_seconds", lambda self, most: 100.0)
    monkeypatch.setattr(examining, "_stacked_step", lambda problem, effort, step: step)
    found = examining.examine(problem, budget=10.0, verify=True)
    assert found.diagnosis is None
    assert "a single look takes about" in found.unseen
    assert found.ladder is None
    assert found.costs == ()
    assert [s.split(":")[0] for s in found.sampled] == [
        "What methods cost was not measured",
        "Held-out losses were not asked",
    ]


def test_short_steps_take_one_thread() -> None:
    from test_doctor import small

    problem, threads = small(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for units, inside in ((4, 1), (2**20, 2)):
            with examining._threads(problem, torch.nn.Linear(units, 1)):
                assert torch.get_num_threads() == inside
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_an_effort_gives_up_rates_then_splits_then_epochs() -> None:
    wanted = Effort(5, 30, (1e-3, 3e-3, 1e-2))

    def seconds(effort: Effort) -> float:
        return float(effort.splits * effort.epochs * len(effort.rates))

    assert affordable(wanted, seconds, 4 * 450) == (wanted, ())
    kept, gave = affordable(wanted, seconds, 4 * 450 - 1)
    assert (kept.rates, kept.splits, kept.epochs) == ((3e-3,), 5, 30)
    assert gave == ("2 of 3 rates",)
    kept, gave = affordable(wanted, seconds, 4 * 30)
    assert (kept.splits, kept.epochs) == (3, 10)
    assert gave == ("2 of 3 rates", "2 of 5 splits", "20 of 30 epochs")
    assert affordable(wanted, seconds, 4 * 20)[0].splits == 2
    assert affordable(wanted, seconds, 4 * 20 - 1) == (None, ())


def test_rungs_without_time_are_untested_and_conflict_is_not_claimed() -> None:
    from test_doctor import rung

    class Known:
        """Experiments of which every rung finds the same harm."""

        def rung(self, name):
            return rung(name, 20, 12)

        def learned(self):
            return {}

        def stages(self):
            return [(name, "") for name in Ladder({}, {}).rungs or ("tuned", "wider", HALF)]

        def seconds(self, name):
            return 10.0 if name == "wider" else 1.0

    found = climbed(Known(), left=lambda: 5.0)
    assert set(found.rungs) == {TOGETHER, "tuned", HALF}
    assert list(found.untested) == ["wider"]
    assert "no time left" in found.untested["wider"]
    assert found.cause == "cannot tell"
    assert climbed(Known(), left=lambda: 50.0).cause == "conflict"


def test_splits_by_time_say_nothing_of_chance(table, monkeypatch) -> None:
    columns = patients() | {
        "day": [f"2024-{1 + k // 10:02d}-{1 + k % 10:02d}" for k in range(ROWS)]
    }
    written(table, columns)
    options = {"targets": ["pressure", "ill"], "time": "day"}
    settings = Settings.suggested("p.csv", options=options, epochs=1, rates=(0.01,), splits=2)
    assert settings.design == "time"
    found = examining.examine(settings, verify=True)
    harm = found.ladder.rungs[TOGETHER].harm["ill"]
    assert math.isfinite(harm.mean)
    assert math.isinf(harm.scale)
    assert found.ladder.cause == "cannot tell"
    said = words(found)
    assert any("follow one another in time" in sentence for sentence in said.evidence)
    assert "hold-out" in said.change
    assert "nan" not in " ".join(said.evidence)


# Somebody's own code --------------------------------------------------------------------------

FAULTS = {
    "loading": ("    x, targets = samples()", "    x, targets = samples()\n    targets['age']"),
    "a network": ('    outputs = {"side"', '    tasks.heads\n    outputs = {"side"'),
    "a shape": ("nn.Linear(8, hidden)", "nn.Linear(7, hidden)"),
    "a loss": ("Task(functional.mse_loss,", "Task(lambda a, b: a.error(b),"),
    "a metric": ("MulticlassAccuracy(2,", "MulticlassAccuracy(2, top=3,"),
}
SAID = {
    "loading": "evenhand: mine.py:65, in divided: KeyError: 'age'\n",
    "a network": "the network fails: mine.py:42, in network: AttributeError: 'tuple' object",
    "a shape": "the network fails: RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    "a loss": "the loss of task 'height' fails: mine.py:56, in <lambda>: AttributeError:",
    "a metric": "the metric of task 'side' fails: mine.py:51, in accuracy: ValueError:",
}


def mine(fault: str) -> None:
    """The starting file with a fault in it."""
    file = Path("mine.py")
    file.unlink(missing_ok=True)
    run("new", "problem", file)
    old, new = FAULTS[fault]
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_in_ones_own_file_is_told_with_its_place(fault, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine(fault)
    for command in ("compare", "train", "doctor") if fault == "loading" else ("doctor",):
        assert SAID[fault] in refused(command, "mine.py:problem")
    assert [p.name for p in Path().iterdir() if p.suffix != ".py"] in ([], ["__pycache__"])
    shown = run("doctor", "mine.py:problem", "--debug", code=2).stderr
    assert "Traceback (most recent call last)" in shown
    assert SAID[fault] in shown


def test_code_that_fails_at_work_is_told_and_what_is_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("new", "problem", "mine.py")
    late = "SEEN = []\n\n\ndef late(a, b):\n    SEEN.append(1)\n"
    late += "    if len(SEEN) > 9:\n        return SEEN['x']\n"
    late += "    return functional.mse_loss(a, b)\n\n\nTASKS = {"
    text = Path("mine.py").read_text().replace("TASKS = {", late, 1)
    Path("mine.py").write_text(text.replace("Task(functional.mse_loss", "Task(late", 1))
    asked = ["--recipes", "sg", "--splits", "2", "--references", "none", "--workers", "1", *QUICK]
    result = run("compare", "mine.py:problem", *asked, code=1)
    assert "mine.py:60, in late: TypeError" in result.stderr
    assert "a defect of ours" not in result.stderr
    assert "0 of 4 runs are finished and kept" in result.stderr


def test_an_error_keeps_its_place_on_its_way_from_a_worker(tmp_path) -> None:
    file = tmp_path / "other.py"
    file.write_text("def broken():\n    return {}['x']\n\n\nraise_here = broken\n")
    from evenhand.data.functions import _of_file

    module = _of_file(file)
    with pytest.raises(KeyError) as caught:
        module.broken()
    theirs.carry(caught.value)
    sent = pickle.loads(pickle.dumps(caught.value))
    assert theirs.named(sent) == "other.py:2, in broken: KeyError: 'x'"
    with pytest.raises(ZeroDivisionError) as ours:
        math.fsum([1 / 0])
    assert theirs.place(ours.value) == ""


# Every command --------------------------------------------------------------------------------

COMMANDS = {
    **typer.main.get_command(app).commands,
    **{f"new {k}": v for k, v in typer.main.get_command(app).commands["new"].commands.items()},
}
COMMANDS.pop("new")
WRONG = {
    "compare": "nothing",
    "train": "nothing",
    "predict": "none none.csv",
    "export": "none",
    "resume": "none",
    "methods": "--recipes nothing",
    "doctor": "nothing",
    "datasets": "--nothing",
    "data": "nothing",
    "report": "none",
    "new problem": "mine.txt",
}


def test_every_command_is_known_here() -> None:
    assert set(WRONG) == set(COMMANDS)


@pytest.mark.parametrize("command", WRONG)
def test_every_command_has_json_and_refuses_with_two_on_the_standard_error(
    command, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert any("--json" in option.opts for option in COMMANDS[command].params)
    result = run(*command.split(), *WRONG[command].split(), "--json", code=2)
    assert not result.stdout
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr
    assert not list(Path().iterdir())


def test_a_plan_is_told_as_json(table) -> None:
    asked = ["compare", "p.csv", *WORDS, "--recipes", "single-task,sg", *QUICK, "--workers", "1"]
    result = run(*asked, "--drop", "number", "--plan", "--json")
    said = json.loads(result.stdout)
    assert said["targets"]["pressure"] == {
        "column": "pressure",
        "kind": "numeric",
        "metric": "rmse",
        "labels": 96,
        "blank": 24,
        "classes": None,
    }
    assert sum(said["targets"]["grade"]["classes"].values()) == ROWS
    assert said["inputs"]["age"] == {"kind": "numeric", "blank": 0}
    parts = said["labels"]["pressure"].values()
    assert sum(part["used"] for part in parts) == 96
    assert said["recipes"] == ["single-task", "sg"]
    # Five splits of three single-task networks, the sum, and what stands beside them.
    beside = said["processor_seconds"].keys() - {"single-task", "sg"}
    assert said["runs"] == 5 * (3 + 1 + len(beside))
    assert said["seconds"] > 0
    assert [said["sizes"][name]["networks"] for name in said["recipes"]] == [3, 1]
    assert [p.name for p in Path().iterdir()] == ["p.csv"]


def test_json_of_the_small_commands(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert json.loads(run("new", "problem", "a.py", "--json").stdout) == {"file": "a.py"}
    assert {"name": "digits"}.items() <= json.loads(run("datasets", "--json").stdout)[0].items()
    asked = ["compare", "digits", "--recipes", "sg", "--print-config"]
    Path("c.json").write_text(run(*asked, "--json").stdout)
    again = run("compare", "--config", "c.json", "--print-config").stdout
    assert again == run(*asked).stdout


# The way on -----------------------------------------------------------------------------------


def test_a_folder_says_how_to_go_on(table, undrawn, monkeypatch) -> None:
    asked = ["p.csv", *WORDS, "--recipes", "sg", "--references", "none", "--splits", "2", *QUICK]
    run("compare", *asked, "--workers", "1", "--out", "out")
    results = sorted(Path("out").glob("sg/split*/*/result.json"))
    assert len(results) == 2
    before = [json.loads(file.read_text())["test"] for file in results]
    shutil.rmtree(results[0].parent)
    (results[1].parent / "left").write_text("untouched")
    assert "evenhand resume out goes on" in refused("report", "out")
    said = json.loads(run("resume", "out", "--workers", "1", "--json").stdout)
    assert said == json.loads(Path("out/verdict.json").read_text())
    assert [json.loads(file.read_text())["test"] for file in results] == before
    assert (results[1].parent / "left").exists()
    # Of several folders there is a row for each recipe; ten are needed, which takes too long here.
    row = Across("mgda", 10, 1.5, 8, 2, 0.02, math.nan)
    monkeypatch.setattr(cli, "_across", lambda folders, comparisons: [row])
    (told,) = json.loads(run("report", "out", "out", "--json").stdout)
    assert told == {**asdict(row), "adjusted": None}


def test_a_training_goes_on_and_keeps_its_network(table) -> None:
    first = json.loads(run("train", "p.csv", *WORDS, *QUICK, "--out", "run", "--json").stdout)
    kept = Path("run/best.safetensors").read_bytes()
    Path("run/best.safetensors").unlink()
    for file in Path("run").glob("sg/*/*/*"):
        file.unlink()
    again = json.loads(run("resume", "run", "--workers", "1", "--json").stdout)
    assert again == first
    assert Path("run/best.safetensors").read_bytes() == kept


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("evenhand res", ["resume"]),
        ("evenhand compare --tar", ["--target", "--targets"]),
        ("evenhand compare --recipes sg,pcg", ["sg,pcgrad"]),
        ("evenhand doctor quad", ["quadrants"]),
    ],
)
def test_a_shell_is_offered_what_fits(words, offered) -> None:
    shell = {
        "_EVENHAND_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    result = CliRunner().invoke(app, [], env=shell, prog_name="evenhand")
    assert result.stdout.split() == offered


# What the page says of the times --------------------------------------------------------------


def test_the_page_has_the_times_and_they_are_kept(monkeypatch) -> None:
    """Two cores' processor seconds are the most that a promised time has."""
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    script = runpy.run_path(str(root / "benchmarks" / "table_times.py"))
    results = json.loads((root / "benchmarks/results/table_times.json").read_text())
    assert set(results) <= set(script["COMMANDS"])
    block = f"{script['BEGIN']}\n{script['page'](results)}\n{script['END']}"
    assert block in (root / "docs/doctor.md").read_text()
    for name in results:
        asked, may = script["COMMANDS"][name]
        assert results[name]["command"] == " ".join(["evenhand", *asked])
        assert results[name]["processor"] < script["CORES"] * may
