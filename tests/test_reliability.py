"""Whatever happens around a run: processes, files, locks, and one line about it."""

from __future__ import annotations

import csv
import errno
import gzip
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
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from evenhand import MultiTaskNetwork, files
from evenhand.app import config, door, report, table
from evenhand.app.cli import app
from evenhand.app.findings import Findings
from evenhand.comparison import budget
from evenhand.comparison.compare import compare, finished, prepare
from evenhand.comparison.folder import MANIFEST, RESULT
from evenhand.comparison.job import Job, Result
from evenhand.comparison.plan import units
from evenhand.comparison.request import Given, Settings
from evenhand.comparison.statistics import rows
from evenhand.data import Problem, Split, Task
from evenhand.text import plain, quoted
from evenhand.training import checkpoint
from evenhand.training.records import Mark, Record, RecordFile
from rights import without_rights
from samplers import same
from test_resume import made

# Files that are written and read ------------------------------------------------------------------


def test_a_draft_follows_no_link_and_leaves_nothing(tmp_path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    (tmp_path / "link").symlink_to(victim)
    files.write_atomically(tmp_path / "link", "ours")
    assert victim.read_text() == "theirs"
    assert not (tmp_path / "link").is_symlink()
    with pytest.raises(OSError, match="folder"):
        files.write_atomically(tmp_path / "none" / "folder", "ours")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError) as found:  # noqa: PT011
        files.write_atomically(tmp_path / "taken", "ours")
    assert found.value.filename == str(tmp_path / "taken")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "taken", "victim"]


def test_records_are_not_appended_through_a_link(tmp_path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    (tmp_path / "records.jsonl").symlink_to(victim)
    with pytest.raises(OSError) as found:  # noqa: PT011
        RecordFile(tmp_path / "records.jsonl").append(Record(0, 0))
    assert found.value.errno == errno.ELOOP
    assert victim.read_text() == "theirs"


def test_strays_are_swept_and_count_as_nothing(tmp_path) -> None:
    (tmp_path / "deep").mkdir()
    strays = [tmp_path / ".evenhand-0123.draft", tmp_path / "deep" / ".result.json.77.tmp"]
    for stray in strays:
        stray.write_text("cut off")
    assert not files.is_empty(tmp_path)
    files.sweep(tmp_path)
    assert not any(stray.exists() for stray in strays)
    (tmp_path / "deep").rmdir()
    strays[0].write_text("cut off")
    assert files.is_empty(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "bytes", "large"])
def test_what_is_no_text_is_told(kind, tmp_path) -> None:
    path = tmp_path / "file"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.write_bytes(b"\xff\xfe" if kind == "bytes" else b"x" * 11)
    with pytest.raises(ValueError, match=str(path)):
        files.read_text(path, 10)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"epoch": "3"}, "epoch must be int, and is '3'"),
        ({"epoch": True}, "epoch must be int, and is True"),
        ({"epoch": 1 << 64}, "epoch must be int"),
        ({"seconds": "nan"}, "seconds must be float"),
        ({"test": {"a": 10**400}}, "test.a must be float"),
        ({"resampled": {"a": [1.0, None]}}, "resampled.a.1 must be float, and is None"),
        ({"job": {"recipe": "sg"}}, "job.label must be str"),
        ({"tasks": "ab"}, "tasks must be tuple"),
    ],
)
def test_a_file_says_what_does_not_fit(change, told) -> None:
    result = Result(Job("sg", "", 0, 0.1), ("a\ud800",), "finished", test={"a\ud800": float("nan")})
    text = result.to_json()
    assert files.parsed(Result, text, "x").tasks == result.tasks
    values = {**json.loads(text), **change}
    with pytest.raises(ValueError, match=f"^here: {told}"):
        files.parsed(Result, json.dumps(values), "here")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\0", "9" * 5000, '{"job": 1}', "[]"])
def test_what_is_no_json_is_told(text) -> None:
    with pytest.raises(ValueError, match=r"^here: "):
        files.parsed(Result, text, "here")


def test_words_from_outside_fit_a_line() -> None:
    assert plain("a\x1b[2J\n\ud800\u202eb") == r"a\x1b[2J\n\ud800\u202eb"
    assert plain("Δm ↑ 表") == "Δm ↑ 表"
    assert plain("x" * 10**6, 5) == "xxxx…"
    assert len(quoted("x" * 10**6)) == len(quoted(["x"] * 10**4)) == 80


# Locks --------------------------------------------------------------------------------------------


def test_a_folder_is_held_by_one(tmp_path) -> None:
    folder = tmp_path / "a" / "b"
    with files.held(folder):
        mine = rf"{folder} .* process {os.getpid()} on "
        with pytest.raises(files.BusyError, match=mine), files.held(folder):
            pass
        assert folder.exists()
    assert not (tmp_path / "a").exists()
    with files.held(folder):
        (folder / "kept").touch()
    assert [p.name for p in folder.iterdir()] == ["kept"]


def test_the_lock_of_a_process_that_was_killed_holds_nobody_up(tmp_path) -> None:
    code = "import sys, time; from pathlib import Path; from evenhand.files import held\n"
    code += "with held(Path(sys.argv[1])): print(flush=True); time.sleep(600)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(files.BusyError, match=f"process {child.pid} on"), files.held(tmp_path):
            pass
        child.kill()
    assert (tmp_path / files.LOCK).exists()
    with files.held(tmp_path):
        pass


def test_two_runs_do_not_share_a_folder(tmp_path) -> None:
    going = made("tension", 3).run(tmp_path)
    next(going)
    with pytest.raises(files.BusyError, match="is being written to"):
        list(made("tension", 3).run(tmp_path))
    going.close()
    assert len(list(made("tension", 3).run(tmp_path))) == 4


# Checkpoints, records and runs know each other ----------------------------------------------------


def _kept(folder: Path, **changes: Any) -> list[Record]:
    training = made("tension", 4)
    for name, value in changes.items():
        setattr(training, name, value)
    return list(training.run(folder, checkpoint_every=2))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"seed": 4}, "seed was 3, here it is 4"), ({"replacement": False}, "batches")],
)
def test_another_runs_checkpoint_is_refused(changes, told, tmp_path) -> None:
    _kept(tmp_path)
    with pytest.raises(ValueError, match=told):
        _kept(tmp_path, **changes)


def test_another_methods_checkpoint_is_refused(tmp_path) -> None:
    list(made("sampled", 2).run(tmp_path))
    with pytest.raises(ValueError, match="is of another run: its weighting was FAMO"):
        list(made("learned", 2).run(tmp_path))


def test_records_of_another_run_are_refused(tmp_path) -> None:
    _kept(tmp_path / "a")
    _kept(tmp_path / "b")
    file = tmp_path / "a" / "records.jsonl"
    for spoilt in (
        (tmp_path / "b" / "records.jsonl").read_text(),  # other seconds
        file.read_text().replace('"step": ', '"step": 1', 1),
        file.read_text()[:-2],
        "",
    ):
        whole = file.read_text()
        file.write_text(spoilt)
        with pytest.raises(ValueError, match=r"does not hold the 5 records .* delete both"):
            _kept(tmp_path / "a")
        file.write_text(whole)
    file.unlink()
    with pytest.raises(ValueError, match="delete both"):
        _kept(tmp_path / "a")


def test_lines_beyond_the_checkpoint_are_dropped_whatever_they_say(tmp_path) -> None:
    whole = _kept(tmp_path)
    file = tmp_path / "records.jsonl"
    with file.open("a") as more:
        more.write('{"epoch": "no record"}\nnor this\n\x00')
    assert _kept(tmp_path) == whole
    assert list(RecordFile(file)) == whole


def test_a_checkpoint_with_another_bit_is_refused_and_another_beginning_gives_the_same(
    tmp_path,
) -> None:
    whole = _kept(tmp_path)
    saved = tmp_path / "checkpoint.safetensors"
    content = bytearray(saved.read_bytes())
    content[-5] ^= 1  # in the tensors, where safetensors sees nothing
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r"checksum is another\): delete it"):
        _kept(tmp_path)
    saved.unlink()
    again = _kept(tmp_path)
    assert [replace(r, seconds=0) for r in again] == [replace(r, seconds=0) for r in whole]


def test_a_checkpoint_keeps_every_kind_of_tensor(tmp_path) -> None:
    kinds = (torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.int8)
    state = {str(kind): torch.tensor([0, 1]).to(kind) for kind in kinds}
    state |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3)}
    checkpoint.save(state, tmp_path / "x", checkpoint.About({"a": "b"}, {"r": Mark(1, "s")}))
    found, about = checkpoint.read(tmp_path / "x")
    assert same(found, state)
    assert about == checkpoint.About({"a": "b"}, {"r": Mark(1, "s")})


# Comparisons --------------------------------------------------------------------------------------


def _network(tasks) -> MultiTaskNetwork:
    return MultiTaskNetwork(nn.Linear(3, 4), {task: nn.Linear(4, 1) for task in tasks})


class _Error:
    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        self.values.append((preds - target).square().flatten())

    def compute(self) -> torch.Tensor:
        return torch.cat(self.values).mean()


def _problem(samples: int = 24) -> Problem:
    draw = torch.Generator().manual_seed(1)
    parts = []
    for _ in range(3):
        x = torch.randn(samples, 3, generator=draw)
        parts.append(Split(x, {"a": x[:, :1].clone(), "b": x[:, 1:2].clone()}))
    task = Task(functional.mse_loss, _Error, "MSE", False)
    return Problem("small", "", "", {"a": task, "b": task}, _network, *parts, epochs=2)


def _with_tasks(**changes: Any) -> Callable[[Problem], Problem]:
    return lambda problem: replace(
        problem, tasks={name: replace(task, **changes) for name, task in problem.tasks.items()}
    )


def _settings(**changes: Any) -> Settings:
    given = {"seeds": (0, 1), "rates": (0.1,), "splits": 1, "references": "none"}
    return Settings.suggested(_problem(), **{**given, **changes})


@pytest.fixture
def done(tmp_path) -> Path:
    compare(_settings(), ("sg",), tmp_path / "out")
    return tmp_path / "out"


def _again(out: Path) -> Any:
    return compare(_settings(), ("sg",), out, resume=True)


def test_results_that_are_damaged_or_anothers_are_refused(done) -> None:
    one, other = (done / f"sg/split0/seed{k}-lr0.1" / RESULT for k in range(2))
    kept = one.read_text()
    for spoilt in (kept[:-9], "", "[]", kept.replace('"finished"', "3")):
        one.write_text(spoilt)
        with pytest.raises(ValueError, match=rf"{one} is damaged \(delete it, and resume=True"):
            _again(done)
    one.write_text(other.read_text())
    with pytest.raises(ValueError, match=r"is the result of another run \(sg/split0/seed1"):
        _again(done)
    one.unlink()
    found = _again(done).results[0]
    before = files.parsed(Result, kept, "")
    assert replace(found, seconds=0, processor=0) == replace(before, seconds=0, processor=0)


def test_records_that_are_gone_are_told(done) -> None:
    found = finished(done, Given(_problem()))
    records = done / found.results[0].job.folder / "records.jsonl"
    records.unlink()
    with pytest.raises(ValueError, match=rf"{records} has no record of the run's best epoch"):
        Findings.of(found, _problem())


def test_names_and_numbers_that_fit_nowhere_stand(tmp_path) -> None:
    plain_ones = _problem()
    names = ("x" * 20_000, "\x1b[2J</script>$\\frac{[/b]\ud800/../..")
    parts = {
        part: Split(split.inputs, dict(zip(names, split.targets.values(), strict=True)))
        for part in ("train", "validation", "test")
        if isinstance(split := getattr(plain_ones, part), Split)
    }
    tasks = dict(zip(names, plain_ones.tasks.values(), strict=True))
    problem = replace(plain_ones, name=names[1], tasks=tasks, **parts)
    asked = Settings.suggested(problem, splits=1, rates=(0.1,), references="none")
    made = compare(asked, ("single-task", "sg"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    huge = (1e308, -math.inf, math.nan)
    for value in huge:
        results = tuple(replace(r, test=dict.fromkeys(r.test, value)) for r in made.results)
        spoilt = replace(made, rows=rows(results, made.recipes, problem), results=results)
        findings = Findings.of(spoilt, problem)
        console = Console(file=io.StringIO(), width=100)
        console.print(table.comparison(findings, 100, delta=True))
        page = report.render(findings, delta=True)
        for text in (console.file.getvalue(), page):
            assert "\x1b" not in text
            assert "\ud800" not in text
            assert "</script>" not in text or text is not page
            assert max(map(len, text.split())) < 20_000


def test_a_manifest_that_is_damaged_is_refused(done) -> None:
    whole = (done / MANIFEST).read_text()
    for spoil in (
        lambda m: m.pop("recipes"),
        lambda m: m.update(recipes="sg"),
        lambda m: m["settings"].update(seeds="01"),
        lambda m: m["settings"].update(novelty=1),
        lambda m: m["settings"].pop("rates"),
        lambda m: m.update(data={"fingerprint": 3, "labels": {}}),
        lambda m: m.update(machine=[]),
    ):
        manifest = json.loads(whole)
        spoil(manifest)
        (done / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=r"is damaged: |another version"):
            _again(done)


def test_a_leftover_stack_is_removed(tmp_path) -> None:
    compare(_settings(stack="always"), ("sg",), tmp_path)
    stray = tmp_path / "sg" / "split0" / "stack.safetensors"
    stray.touch()
    compare(_settings(stack="always"), ("sg",), tmp_path, resume=True)
    assert not stray.exists()


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_sample_that_spoils_a_task_is_told_before_training(part, tmp_path) -> None:
    problem = _problem()
    getattr(problem, part).inputs[3, 0] = torch.nan
    with pytest.raises(ValueError, match=rf"{part} part .* output .* 'a' \(1\), 'b' \(1\), of 24"):
        prepare(Settings.suggested(problem, splits=1), ("sg",), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    problem = _problem()
    getattr(problem, part).targets["b"][:2] = torch.inf
    with pytest.raises(ValueError, match=rf"{part} part .* target .* task 'b' \(2\), of 24"):
        prepare(Settings.suggested(problem, splits=1), ("sg",), tmp_path / "out")


class _Repairing(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.nan_to_num())


class _Textual(_Error):
    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        raise RuntimeError("no text")


WRONG_PIECES: dict[str, tuple[Callable[[Problem], Any], str]] = {
    "test part": (
        lambda p: replace(p, test=Split(p.test.inputs[:, :2], p.test.targets)),
        r"the network \(test part\) fails: .*cannot be multiplied",
    ),
    "not a number": (_with_tasks(loss=lambda o, y: (o - y).mean() * math.nan), "'a' is NaN with"),
    "metric": (_with_tasks(metric=_Textual), "the metric of task 'a' fails: .*no text"),
    "units": (lambda p: replace(p, units=(0, 3)), r"units=\(0, 3\)"),
    "groups": (lambda p: replace(p, test_groups=torch.zeros(3)), "one for each of the 24 test"),
    "batches": (lambda p: replace(p, train=[1, 2]), "a batch of the data is 1: must be"),
    "no length": (lambda p: replace(p, train=iter([1])), "source= is a list_iterator without"),
    "penalty": (lambda p: replace(p, penalty=lambda n: "x"), "penalty= gave 'x': must give"),
    "maker": (lambda p: lambda split: 3, "source= gave a int for split 0"),
}


@pytest.mark.parametrize("name", WRONG_PIECES)
def test_a_problems_wrong_piece_is_named(name, tmp_path) -> None:
    change, told = WRONG_PIECES[name]
    with pytest.raises((TypeError, ValueError), match=told):
        compare(change(_problem()), ("sg",), tmp_path / "out")


def test_a_network_may_make_a_number_of_nan() -> None:
    problem = replace(
        _problem(),
        network=lambda tasks: MultiTaskNetwork(
            _Repairing(3, 4), {task: nn.Linear(4, 1) for task in tasks}
        ),
    )
    problem.validation.inputs[0, 0] = torch.nan
    problem.check_finite()


def test_planning_is_linear_in_the_seeds() -> None:
    settings = _settings(seeds=tuple(range(3000)), stack="never")
    todo = [Job("sg", "", seed, 0.1) for seed in settings.seeds]
    counted = 0

    class Counting(Job):
        def __hash__(self) -> int:
            nonlocal counted
            counted += 1
            return super().__hash__()

    assert len(units([Counting(j.recipe, j.label, j.seed, j.rate) for j in todo], settings)) == 3000
    assert counted <= 2 * len(todo)


def test_the_cost_of_many_seeds_is_that_of_some_in_proportion(monkeypatch) -> None:
    timed: list[int] = []

    def epoch(unit: Any, runs: Any) -> float:
        timed.append(len(runs))
        return 0.5

    monkeypatch.setattr(budget, "_epoch", epoch)
    settings = _settings(seeds=tuple(range(3000)), stack="always")
    found = budget.cost(("sg",), settings, 1)
    assert timed == [budget.MEMBERS]
    assert math.isclose(found.each["sg"], 0.5 * 3000 / budget.MEMBERS * _problem().epochs)


# A kept network of a table ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network_of_a_table(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    rows = [f"{k % 7},{'ab'[k % 2]},{k * 0.5},{'xy'[k % 3 == 0]}" for k in range(60)]
    (folder / "t.csv").write_text("\n".join(["age,town,wage,kind", *rows]))
    words = f"train {folder}/t.csv --targets wage,kind --epochs 1 --lr 0.01 --out {folder}/kept"
    result = _run(*words.split())
    assert result.exit_code == 0, result.output
    return folder


def _other_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    def spoil(kept: Path) -> None:
        file = kept / "preparation.json"
        said = json.loads(file.read_text())
        change(said)
        file.write_text(json.dumps(said))

    return spoil


def _flip(kept: Path) -> None:
    content = bytearray((kept / "best.safetensors").read_bytes())
    content[-3] ^= 16
    (kept / "best.safetensors").write_bytes(content)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "deep": (lambda kept: (kept / "preparation.json").write_text("[" * 100_000), "nested too"),
    "no finite": (_other_json(lambda s: s["inputs"][0].update(mean=math.nan)), "are not finite"),
    "no scale": (_other_json(lambda s: s["targets"][0].update(scale=0)), "are not finite"),
    "kind": (_other_json(lambda s: s["inputs"][0].update(kind="x")), "inputs.0 must be"),
    "names": (_other_json(lambda s: s["targets"][1].update(names=["x"])), "1 names, not 2"),
    "task": (_other_json(lambda s: s["targets"].pop()), "is not what the weights"),
    "median": (_other_json(lambda s: s["inputs"][0].update(median=9.0)), "is not what the weights"),
    "bit": (_flip, "its checksum is another"),
    "large": (lambda kept: os.truncate(kept / "preparation.json", 1 << 40), "at most"),
    "pipe": (lambda kept: _pipe_at(kept / "preparation.json"), "no regular file"),
    "table": (lambda kept: _pipe_at(kept.parent / "t.csv"), "no regular file"),
    "bomb": (
        lambda kept: (kept.parent / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n" * 300_000)),
        "more than 1048576 bytes",
    ),
}


def _pipe_at(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("name", SPOILT)
def test_what_a_prediction_reads_is_looked_at(name, network_of_a_table, tmp_path, monkeypatch):
    spoil, told = SPOILT[name]
    monkeypatch.chdir(shutil.copytree(network_of_a_table, tmp_path / "here"))
    monkeypatch.setattr("evenhand.tables.reading.LARGE", 1 << 20)
    spoil(Path("kept"))
    result = _run("predict", "kept", "t.csv.gz" if name == "bomb" else "t.csv")
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert told in line


def test_what_no_table_is_written_in_is_refused_at_once(network_of_a_table, monkeypatch) -> None:
    monkeypatch.chdir(network_of_a_table)
    for name in ("idna", "punycode", "rot13", "hex"):
        result = _run("compare", "t.csv", "--target", "wage", "--encoding", name, "--plan")
        assert result.exit_code == 2
        assert f"encoding='{name}': " in result.stderr or f"this is not {name}" in result.stderr


def test_a_network_is_trained_by_one_at_a_time_and_told_how_to_go_on(
    network_of_a_table, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(network_of_a_table / "t.csv", tmp_path)
    words = ["train", "t.csv", "--targets", "wage,kind", "--epochs", "2", "--out", "out"]
    words += ["--lr", "0.01234567891"]
    with files.held(Path("out")):
        assert "is being written to by" in _run(*words).stderr

    def stopped(*arguments: Any, **options: Any) -> None:
        raise door.Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("evenhand.comparison.single.run_jobs", stopped)
        result = _run(*words)
    assert result.exit_code == 128 + signal.SIGTERM
    line, again = result.stderr.splitlines()[-2:]
    assert line == "evenhand: stopped; 0 of 2 runs are finished and kept. Go on with:"
    result = _run(*shlex.split(again)[1:])
    assert result.exit_code == 0, result.output


def test_names_in_a_table_that_fit_nowhere_stand(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = ["a\x1b[2J", "b\u202e", "w\x1b]0;x\x07", "<script>alert(1)</script>"]
    classes = ["x\x1b[2J", "y\u202e<b>", "z" * 50_000]
    with Path("t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(hostile)
        writer.writerows([k % 7, "ab"[k % 2], k % 5 * 0.5, classes[k % 3]] for k in range(90))
    words = "compare t.csv --recipes sg --splits 1 --epochs 1 --lr 0.01 --references none"
    words += " --workers 1 --out out"
    asked = [word for name in hostile[2:] for word in ("--target", name)]
    result = _run(*words.split(), *asked)
    assert result.exit_code == 0, result.output
    page = Path("out/report.html").read_text()
    assert "<script>alert" not in page
    for text in (result.output, page):
        assert all(c.isprintable() or c in "\n\t" for c in text)
    assert max(map(len, result.output.splitlines())) <= 160


def test_the_lock_has_every_pin_with_its_hashes() -> None:
    """But torch's, whose builds differ from machine to machine; `.ci/lock` writes it anew."""
    root = Path(__file__).parent.parent
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (root / "constraints.txt").read_text(), re.M))
    text = (root / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:", text, re.M))

    def named(found: dict[str, str]) -> dict[str, str]:
        return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found.items()}

    assert named(locked) == {k: v for k, v in named(pins).items() if k != "torch"}


# The tool -----------------------------------------------------------------------------------------


def _run(*words: str) -> Any:
    return CliRunner().invoke(app, words)


HOSTILE = {
    "aliases": "a: &a [1, 1]\nlr: [*a, *a]\n",
    "deep": "source: " + "[" * 800 + "]" * 800,
    "twice": "source: digits\nseeds: 1\nseeds: 2\n",
    "times": "source: digits\nseeds: 1:30:00\n",
    "true": "source: digits\nlr: [0.1, true]\n",
    "tagged": "source: !!python/name:os.system ''\n",
    "empty tag": 'seeds: !!int ""\n',
    "many": "source: digits\nlr: [" + "1," * 9000 + "1]\n",
    "large": "source: digits\n#" + "x" * 70_000,
    "zero": 'source: digits\nout: "a\\0b"\n',
    "control": 'source: "\\e[2Jdigits"\n',
    "key": "? [a]\n: b\n",
    "date": "source: digits\nsplits: 2020-01-01\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_configuration_is_a_line(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(HOSTILE[name])
    result = _run("compare", "--config", "c.yaml")
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stderr) < 450
    assert result.stderr[:-1].isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


TOML = {
    "deep": ("lr = " + "[" * 30_000 + "]" * 30_000, "nested more than 3 deep"),
    "tables": ("lr = " + "{a=" * 9000 + "1" + "}" * 9000, "nested more than 3 deep"),
    "dotted": (".".join("a" * 20_000) + " = 1", "a key of more than 3 parts"),
    "twice": ("seeds = 1\nseeds = 2", "is not TOML"),
    "true": ("seeds = true", "seeds: true is no number"),
    "long": ("seeds = " + "9" * 5000, "limit"),
    "fits": (
        'recipes = ["ate-sg(a.b.c.d[[[[[{{)"] # a.b.c.d.e [[[[[',
        "parentheses do not match|a.b",
    ),
}


@pytest.mark.parametrize("name", TOML)
def test_a_hostile_configuration_in_toml_is_a_line(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, told = TOML[name]
    Path("c.toml").write_text(f'source = "digits"\n{text}\n')
    result = _run("compare", "--config", "c.toml")
    assert result.exit_code == 2, result.output
    assert re.search(told, result.stderr), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stderr) < 450


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--drop x " * 3000, "6,002 arguments: at most 5,000"),
        ("--recipes cagrad(c=nan)", "'nan' is no finite number"),
        ("--recipes pbi(theta=1e400)", "'1e400' is no finite number"),
        ("--recipes grid(steps=1000000)", "grid(steps=1000000): must be from 1 to 1,000"),
        ("--budget ٣m", "write a time"),
        ("--budget 1:30:00", "write a time"),
        ("--seeds 3e6", "valid integer"),
        ("--seeds 3000000", "less than or equal to 100000"),
        (f"--seeds 1{'0' * 20}", "less than"),
        ("--workers 5000000000", "less than or equal to 256"),
        ("--recipes all,bogus", "no recipe is called 'bogus'"),
        (f"--recipes {'sg,' * 900}", "at most 200"),
        ("--seeds 100000 --splits 1000", "500,000,000 runs"),
        (f"--epochs 1{'0' * 30}", "less than"),
        (f"--jacobian 1{'0' * 30}", "jacobian="),
        (f"--optimizer {'x' * 4000}", "must be one of torch's"),
        (f"--optimizer {'x' * 9000}", "at most 4096 characters"),
    ],
)
def test_options_are_bounded_before_they_are_expanded(options, told) -> None:
    result = _run("compare", "digits", *options.split())
    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr) < 400


def test_a_file_is_read_as_the_command_line_is(tmp_path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(b"\xef\xbb\xbfsource: digits\nlr: 0.1, 2e-1\nseeds: 010\npatience: ~\n")
    read = config.read(file, {})
    assert (read.lr, read.seeds, read.patience) == ((0.1, 0.2), 10, None)


@pytest.mark.parametrize("name", ["read-only", "file", "loop", "long", "pipe"])
def test_where_nothing_can_be_written_is_told(name, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    if name == "read-only":
        out = Path("/proc/evenhand")
    elif name == "file":
        (tmp_path / "file").touch()
        out = tmp_path / "file" / "below" / "it"
    elif name == "loop":
        out.symlink_to(out)
        out = out / "below"
    elif name == "long":
        out = tmp_path / ("x" * 300)
    else:
        os.mkfifo(out)
    result = _run("compare", "digits", "--out", str(out))
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert str(out)[:100] in line


UNREADABLE = {
    "preparation.json": "predict kept t.csv",
    "best.safetensors": "predict kept t.csv",
    "manifest.json": "resume kept",
    "t.csv": "predict kept t.csv",
    "c.yaml": "train --config c.yaml",
    "sg/split0/seed0-lr0.01/result.json": "report kept",
    "sg/split0/seed0-lr0.01/checkpoint.safetensors": "resume kept",
}
CLOSED = ("predict kept t.csv --out closed/x.csv", "export kept --out closed/x --format torch")
CLOSED += ("report closed/x", "new problem closed/x.py", "train t.csv --target wage --out closed/x")


@pytest.mark.skipif(sys.platform != "linux", reason="there are other rights elsewhere")
@pytest.mark.parametrize("name", [*UNREADABLE, *CLOSED])
def test_what_may_not_be_read_or_written_is_named(name, network_of_a_table, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(network_of_a_table, tmp_path / "here"))
    Path("c.yaml").touch()
    Path("closed").mkdir(mode=0o555)
    lost = next((p for p in (Path(name), Path("kept") / name) if p.is_file()), Path("closed/x"))
    if lost.is_file():
        lost.chmod(0)
    if lost.name == "checkpoint.safetensors":
        (lost.parent / RESULT).unlink()
    result = without_rights(lambda: _run(*UNREADABLE.get(name, name).split()))
    assert result.exit_code == 1 + (lost.name != "checkpoint.safetensors"), result.output
    told = result.stderr.splitlines()[-1 - result.stderr.count("Go on with")]
    at = lost.parent if lost.parent.name == "closed" else lost
    assert str(at) in told
    assert any(said in told for said in ("Permission denied", "not readable", "no comparison"))
    assert "Errno" not in told


STREAMS = """
import os, sys
os.close(int(sys.argv[1]))
setattr(sys, sys.argv[2], None)  # as Python begins where a shell closed it
from evenhand.app import start
start.stand_in()
print(os.fstat(int(sys.argv[1])).st_rdev == os.stat(os.devnull).st_rdev, file=sys.__stderr__)
assert getattr(sys, sys.argv[2]) is not None
"""


def test_a_closed_stream_has_the_null_device_in_its_place() -> None:
    for number, name in enumerate(("stdin", "stdout")):
        words = [sys.executable, "-c", STREAMS, str(number), name]
        run = subprocess.run(words, capture_output=True, text=True, check=True)
        assert run.stderr == "True\n"


def test_an_output_that_nobody_reads_is_an_error_and_no_silent_end(monkeypatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as unread:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", unread)
        with pytest.raises(BrokenPipeError):
            table.console().print("x" * 10**6)
        monkeypatch.undo()
        with suppress(OSError):
            unread.close()


def test_a_lock_that_cannot_be_written_is_gone_and_named(tmp_path, monkeypatch) -> None:
    def full(descriptor: int, content: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    folder = tmp_path / "new"
    with pytest.raises(OSError, match=str(folder / files.LOCK)), files.held(folder):
        pass
    assert not folder.exists()


def test_a_warning_is_a_line(tmp_path, monkeypatch) -> None:
    shown = "warnings.formatwarning('odd\\nthing \\x1b[2J', UserWarning, 'x.py', 1)"
    code = f"import sys, warnings\nsys.stderr.write({shown})\n"  # pytest has its own way to show
    (tmp_path / "mine.py").write_text(code)
    before = warnings.formatwarning
    result = _run("compare", f"{tmp_path}/mine.py:problem")
    assert result.stderr.splitlines()[0] == r"evenhand: odd thing \x1b[2J"
    assert len(result.stderr.splitlines()) == 2
    assert warnings.formatwarning is before


def test_debug_shows_the_trace() -> None:
    result = _run("report", "nowhere", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "evenhand: nowhere holds no comparison" in result.stderr.splitlines()[-1]
    assert "Traceback" not in _run("report", "nowhere").stderr


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a\n/b"), r"a\n/b: No space left"),
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "there is not enough memory"),
        (KeyboardInterrupt(), "stopped"),
        (ImportError("no h5py"), "ImportError: no h5py"),
        (ValueError("x" * 5000 + " is\n wrong"), "… is wrong"),
    ],
)
def test_a_fault_is_a_line(error, told) -> None:
    line = door.told(error)
    assert told in line
    assert len(line) <= door.WORDS
    assert len(line.splitlines()) == 1


def test_a_full_disk_in_mid_run_says_what_is_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    real, count = os.fsync, 0

    def failing(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    words = "compare quadrants --recipes sg --splits 1 --seeds 2 --lr 0.1 --epochs 1 --out out "
    words += "--references none --workers 1"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        result = _run(*words.split())
    assert result.exit_code == 1, result.output
    line, again = result.stderr.splitlines()
    assert line.startswith("evenhand: out/")
    assert "No space left on device; 1 of 3 runs are finished and kept" in line
    assert not list(tmp_path.rglob("*.draft"))
    result = _run(*again.split()[1:])
    assert result.exit_code == 0, result.output


SLEEPING = """
import sys, threading
from pathlib import Path
from evenhand.app import start
start.quiet()
print(flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_before_there_is_work_a_signal_ends_with_a_line(number) -> None:
    code = f"import signal; signal.signal({number:d}, signal.SIG_DFL)\n{SLEEPING}"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(number)
        _, errors = child.communicate()
    assert child.returncode == 128 + number
    assert errors == "evenhand: stopped\n"


def test_handlers_are_as_they_were_after_work() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(door.Stopped) as found, door.at_work(lambda: "kept"):
        signal.raise_signal(signal.SIGTERM)
    assert found.value.number == signal.SIGTERM
    assert found.value.__notes__ == ["kept"]
    assert signal.getsignal(signal.SIGTERM) is before
    thread = threading.Thread(target=lambda: door.at_work(lambda: "").__enter__())
    thread.start()
    thread.join()
