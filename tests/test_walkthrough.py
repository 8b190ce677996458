"""The walk through tables, line by line, on the tables that it names."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evenhand.app import doctor_report, report
from evenhand.app.cli import app
from evenhand.comparison.request import forget

PAGE = (Path(__file__).parents[1] / "docs/howto/table.md").read_text()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
LESS = {"--splits": "2", "--epochs": "2", "--lr": "0.01", "--workers": "1"}
NO_TREES = {"--references": "none"}


def test_the_walk_through_runs(tmp_path, monkeypatch) -> None:
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    (made,) = re.findall(r":class: makes-the-files\n\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(made, "table.md", "exec"), {})
    assert {words[0] for words in COMMANDS} == {"evenhand"}
    known = {"compare", "doctor", "resume", "train", "predict", "export", "new"}
    assert {words[1] for words in COMMANDS} == known
    said = {}
    for words in sorted(COMMANDS, key=lambda words: "linnerud.csv" not in words):
        trees = "linnerud.csv" in words
        taken = {
            "compare": LESS | ({} if trees else NO_TREES),
            "train": {k: v for k, v in LESS.items() if k != "--splits"},
            "doctor": {k: v for k, v in LESS.items() if k in ("--epochs", "--lr")},
            "resume": {"--workers": "1"},
        }
        less = [w for o, v in taken.get(words[1], {}).items() if o not in words for w in (o, v)]
        if "linnerud.csv" not in words:  # one report is drawn, the others have no figures
            monkeypatch.setattr(report, "plates", lambda findings: iter(()))
            monkeypatch.setattr(doctor_report, "plates", lambda found: iter(()))
        forget()
        result = CliRunner().invoke(app, [*words[1:], *less])
        assert result.exit_code == 0, (words, result.output, result.exception)
        said[" ".join(words[1:3]) + (" plan" if "--plan" in words else "")] = result.output
    assert "10 inputs" not in said["compare diabetes.csv plan"]  # three of the eleven are targets
    assert "442 rows, 8 inputs, 3 targets" in said["compare diabetes.csv plan"]
    assert "linnerud.csv: 20 rows, 3 tasks" in said["compare linnerud.csv"]
    assert "ate-sg(shared=2,own=1)" in said["compare wine.csv"]
    assert "NO VERDICT YET" in said["doctor diabetes.csv"]
    assert said["resume evenhand-wine"].splitlines()[-1] == "evenhand-wine/report.html"
    assert "in 10 min: 2 splits" in said["compare cancer.csv"]
    rows = list(csv.DictReader(Path("predicted.csv").read_text().splitlines()))
    assert len(rows) == 569
    assert {row["target"] for row in rows} <= {"malignant", "benign"}
    assert 100 < sum(float(row["mean area"]) for row in rows) / 569 < 1500
    assert Path("cancer-exported/network.onnx").exists()
    assert Path("evenhand-mine-problem/report.html").exists()
