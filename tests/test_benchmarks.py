"""What the documents quote of the benchmarks is what their results say; bugs can be planted."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

import evenhand as eh

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "table", "page"),
    [
        ("step", "table", "README.md"),
        ("alternation", "page_table", "docs/schedules.md"),
        ("matrix", "table", "docs/versions.md"),
        ("intervals", "page_table", "docs/verdict.md"),
        ("trainers", "table", "docs/howto/trainer.md"),
    ],
)
def test_tables_are_those_of_the_results(name, table, page, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))
    results = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    block = f"{script['BEGIN']}\n{script[table](results)}\n{script['END']}"
    assert block in (ROOT / page).read_text()


def test_times_on_a_gpu_are_those_of_the_results(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "step.py"))
    page, file, table, begin, end = script["PAGES"][-1]
    results = json.loads(file.read_text())
    assert all(case["card"] for case in results["cases"].values())
    assert f"{begin}\n{table(results)}\n{end}" in page.read_text()


def test_intervals_cover_and_words_are_not_said_of_nothing() -> None:
    """What is promised of the verdict, in the committed results of the simulation."""
    results = json.loads((ROOT / "benchmarks" / "results" / "intervals.json").read_text())
    assert {study["family"].split(",")[0] for study in results["studies"]} >= {
        "twins",
        "strengths",
        "low rank",
        "full rank",
        "classes",
        "groups",
    }
    for study in results["studies"]:
        assert study["tables"] >= 1000
        assert study["coverage"]["corrected t"] >= 0.93
        if study["null"]:
            assert study["together_at_all"] <= 0.05
    found = {(study["family"], study["splits"]): study for study in results["studies"]}
    strong = found["full rank, less noise", 5]  # the power that the page states
    assert strong["truth"] < -7
    assert strong["apart_at_all"] > 0.9


def test_every_bug_on_the_list_can_be_planted_and_has_its_test() -> None:
    """The places where bugs are planted move with the source; the list must follow."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "mutants.py"))
    assert len(script["planted"]()) >= 35
    assert len(script["drawn"](6, 0, list(script["ROOMS"]))) == 6


def test_checks_on_a_gpu_are_those_that_the_page_tells() -> None:
    about, *lines = map(
        json.loads, (ROOT / "benchmarks/results/on_device.jsonl").read_text().splitlines()
    )
    assert all(line["holds"] for line in lines)
    page = (ROOT / "docs" / "versions.md").read_text()
    assert f"{len(lines)} of its" in page
    assert about["card"].removesuffix(" 80GB HBM3") in page
    waits = {line["check"]: line["waits"] for line in lines if line["part"] == "waits"}
    assert {waits["mgda, weighting"], waits["mgda, aggregator"]} == {5, 6}
    assert waits["min-norm+tension, aggregator"] == 14
    (exact, bound) = (line["peak bytes"] for line in lines if line["part"] == "memory")
    told = exact["backward"], bound["backward"], exact["sum"]
    assert all(f"{round(peak / 1e6)} MB" in page for peak in told)


def test_checks_on_a_device_find_what_differs_and_end(monkeypatch, tmp_path) -> None:
    """On the CPU in place of a device, few of the checks; and with a fault in a method."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    file = tmp_path / "lines.jsonl"
    options = ["--device", "cpu", "--every", "70", "--parts", "steps", "places", "precision"]
    monkeypatch.setattr(sys, "argv", ["on_device.py", *options, "--out", str(file)])
    script = runpy.run_path(str(ROOT / "benchmarks" / "on_device.py"))
    assert script["main"]() == 0
    about, *lines = map(json.loads, file.read_text().splitlines())
    assert about["card"] == "cpu"
    assert {line["part"] for line in lines} == {"steps", "places", "precision"}
    assert all(line["holds"] for line in lines)
    check = dict(script["steps"]("cpu"))["mgda, aggregator, float64, backward"]
    assert script["judged"](check)["holds"]
    weigh = eh.MGDA.weigh
    monkeypatch.setattr(eh.MGDA, "weigh", lambda self, g: _shifted(weigh(self, g)))
    line = script["judged"](check)
    assert not line["holds"]
    assert 1e-9 < line["error"] < 1e-3
    monkeypatch.setattr(eh.MGDA, "weigh", None)
    assert script["judged"](check)["raised"].startswith("TypeError")


def _shifted(solved: eh.Solved) -> eh.Solved:
    return eh.Solved(solved.weights + 1e-6, solved.solution)


def test_times_on_paper_are_those_that_the_page_tells(monkeypatch) -> None:
    monkeypatch.syspath_prepend("replaced by the script")
    script = runpy.run_path(str(ROOT / "benchmarks" / "communication.py"))
    assert f"\n{script['on_paper']()}\n" in (ROOT / "docs" / "scaling.md").read_text()


def test_lines_of_ranks_depend_on_all_that_a_training_calls(monkeypatch, tmp_path) -> None:
    monkeypatch.syspath_prepend("replaced by the script")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script = runpy.run_path(str(ROOT / "benchmarks" / "ranks.py"))
    files = script["sources"]()
    package = Path(eh.__file__).parent
    rooms = {file.relative_to(package).parts[0] for file in files if package in file.parents}
    assert not rooms & {"app", "comparison", "data", "doctor", "tables", "training"}
    assert set(package.glob("distributed/*.py")) < set(files)
    called = set()
    sys.setprofile(lambda frame, *_: called.add((frame.f_code.co_filename, frame.f_code.co_name)))
    try:
        for method in ("mgda", "uncertainty", "moco", "modo-2", "graddrop", "central+tension"):
            variation = script["Variation"](method, "aggregator", "", "even", "plain loss")
            if method == "uncertainty":
                variation = script["replace"](variation, slot="weighting")
            script["train"](variation, 0, 1)
    finally:
        sys.setprofile(None)
    ours = {Path(file) for file, name in called if name != "<module>" and str(package) in file}
    assert package / "balancer.py" in ours
    assert ours - {package / "__init__.py"} <= set(files)

    twin = tmp_path / "evenhand" / "balancer.py"
    twin.parent.mkdir()
    twin.write_text("one")
    before = script["checksum"]([twin])
    assert script["checksum"]([twin]) == before
    twin.write_text("another")
    assert script["checksum"]([twin]) != before


def test_lines_of_ranks_are_of_one_source(monkeypatch, tmp_path) -> None:
    monkeypatch.syspath_prepend("replaced by the script")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script = runpy.run_path(str(ROOT / "benchmarks" / "ranks.py"))
    file, torch = tmp_path / "lines.jsonl", script["torch"].__version__
    for source, of in (("old", torch), ("new", torch), ("new", "1.0")):
        line = script["Line"](source + of, "aggregator", "", 2, 8, {}, 1.0, of, source)
        script["write"](file, line)
    (kept,) = script["only_of"](file, "new").values()
    assert (kept.source, kept.torch) == ("new", torch)
    assert list(script["lines"](file).values()) == [kept]


@pytest.mark.parametrize(
    ("method", "at", "far"), [("dualproj-preferring", "first layer", True), ("mgda", "", False)]
)
def test_what_rounding_moves_is_measured_and_excuses_no_error(monkeypatch, method, at, far) -> None:
    monkeypatch.syspath_prepend("replaced by the script")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script = runpy.run_path(str(ROOT / "benchmarks" / "ranks.py"))
    chosen = script["Round"](method, "weighting", at, 2)
    training = chosen.trainings()[0]
    alone = script["train"](training.alone, 0, 1)
    other = script["train"](training.alone, 0, 1, draw=100)  # a rank that has rounded otherwise

    def line(found):
        told = script["differences"]([found, found], alone)
        outcome = script["Outcome"](training, told, [found, found], alone)
        return script["line_of"](chosen, [outcome], 1.0, "source")

    told = line(other)
    assert not told.wrong
    assert bool(told.moved) == far
    assert all(1e-4 < most < 1 for most in told.moved.values())
    # The same with losses that are wrong by a millionth, in the steps that are held to 1e-10.
    module = sys.modules["ranks"]
    batch = module.batch

    def wrong(*arguments):
        losses, *others = batch(*arguments)
        return {task: loss * (1 + 1e-6) for task, loss in losses.items()}, *others

    monkeypatch.setattr(module, "batch", wrong)
    found = script["train"](training.alone, 0, 1)
    monkeypatch.setattr(module, "batch", batch)
    (what,) = line(found).wrong.values()
    assert re.match(r"rank 0 step [0-3]: ", what)
