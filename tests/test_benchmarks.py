"""What the documents quote of the benchmarks is what their results say; bugs can be planted."""

import json
import runpy
from pathlib import Path

import pytest

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
