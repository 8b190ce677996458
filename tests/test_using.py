"""One network, trained and kept: it predicts new rows in their unit, and goes to other programs."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from evenhand.app.cli import app
from evenhand.comparison import exporting
from evenhand.comparison.request import forget
from evenhand.comparison.weights import BEST, PREPARED, read_weights
from evenhand.tables.predicting import Predictor
from evenhand.tables.reading import read

TARGETS = ("weight", "tall", "sort", "tags")


def garden(rows: int, seed: int, cities: tuple[str, ...] = ("Bern", "Oslo")) -> dict[str, list]:
    random = np.random.default_rng(seed)
    x, light = random.normal(size=rows), random.random(rows) < 0.5
    height = 100 + 20 * x + 5 * light
    return {
        "nr": [f"n{k}" for k in range(rows)],
        "x": ["" if k % 11 == 0 else f"{v:.6f}" for k, v in enumerate(x)],
        "light": ["yes" if v else "no" for v in light],
        "city": random.choice(cities, rows).tolist(),
        "day": [f"15/{1 + k % 12:02d}/2025" for k in range(rows)],
        "weight": [f"{h + n:.3f}" for h, n in zip(height, random.normal(size=rows), strict=True)],
        "tall": ["true" if h > 104 else "false" for h in height],
        "sort": [("ash", "birch", "cedar")[int(np.digitize(v, [-0.4, 0.4]))] for v in x],
        "tags": [
            ";".join(t for t, on in (("big", v > 0), ("sunny", s)) if on) or "none"
            for v, s in zip(x, light, strict=True)
        ],
    }


def write(file: Path, columns: dict[str, list]) -> Path:
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return file


def run(*words: str, code: int = 0) -> Result:
    forget()
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, (result.output, result.exception)
    return result


def mine(folder: Path) -> Path:
    """The starting file."""
    file = folder / "mine.py"
    run("new", "problem", file)
    return file


TRAINED = ["--epochs", "12", "--lr", "0.01,0.03", "--recipe", "mgda"]
WORDS = [word for name in TARGETS for word in ("--target", name)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A trained network, the table beside it."""
    where = tmp_path_factory.mktemp("using")
    table = write(where / "garden.csv", garden(150, 0))
    out = where / "run"
    result = run("train", table, *WORDS, "--kind", "tags=labels", *TRAINED, "--out", out)
    lines = result.stdout.splitlines()
    assert lines[-1] == str(out)
    assert any("weight: RMSE" in line and "best constant" in line for line in lines)
    return out


def predicted(folder: Path, columns: dict[str, list], *words: str) -> tuple[dict, str]:
    table = write(folder.parent / "new.csv", columns)
    result = run("predict", folder, table, *words)
    rows = list(csv.reader(io.StringIO(result.stdout)))
    return dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True)), result.stderr


def test_new_rows_are_predicted_in_their_unit(folder) -> None:
    new = garden(60, 1)
    said, told = predicted(folder, new, "--keep", "nr")
    assert not told
    assert list(said["nr"]) == new["nr"]
    weights = np.array(said["weight"], dtype=float)
    truth = np.array(new["weight"], dtype=float)
    seen = np.array([cell != "" for cell in new["x"]])
    assert np.sqrt(((weights - truth)[seen] ** 2).mean()) < 0.7 * truth.std()
    assert set(said["tall"]) <= {"true", "false"}
    sure = np.array([float(p) > 0.5 for p in said["tall: P(true)"]])
    assert (sure == (np.array(said["tall"]) == "true")).all()
    assert np.mean(np.array(said["sort"]) == np.array(new["sort"])) > 0.6
    each = np.array([said[f"sort: P({name})"] for name in ("ash", "birch", "cedar")], dtype=float)
    np.testing.assert_allclose(each.sum(axis=0), 1, atol=1e-6)
    assert "tags: P(sunny)" in said


def test_the_order_of_columns_and_what_else_there_is_plays_no_part(folder) -> None:
    new = garden(20, 2)
    one, _ = predicted(folder, new)
    turned = dict(reversed(new.items())) | {"more": ["?"] * 20}
    for target in TARGETS:
        del turned[target]
    other, _ = predicted(folder, turned)
    assert one == other


def test_predictions_are_those_of_the_network_on_its_own_test_rows(folder) -> None:
    """The table's test part by the problem, and the same rows read from the file."""
    from evenhand.comparison.folder import read_manifest
    from evenhand.comparison.request import Settings
    from evenhand.training.loop import evaluate

    asked = read_manifest(folder)["settings"]
    settings = Settings(**{**asked, "seeds": (0,), "rates": tuple(asked["rates"])})
    problem = settings.problem()
    predictor = Predictor.of(folder)
    _, metrics = evaluate(predictor.network, problem, problem.test, TARGETS)
    table = read(folder.parent / "garden.csv")
    answers, _ = predictor.predicted(table)
    rows = settings.resolved().pool.parts("hold-out", 1, 0).test.numpy()
    truth = np.array(garden(150, 0)["weight"], dtype=float)[rows]
    error = np.sqrt(((np.array(answers["weight"])[rows] - truth) ** 2).mean())
    assert error == pytest.approx(metrics["weight"], rel=1e-5)
    right = np.array(answers["sort"])[rows] == np.array(garden(150, 0)["sort"])[rows]
    assert right.mean() == pytest.approx(metrics["sort"])


def test_what_is_unknown_or_blank_is_told(folder) -> None:
    new = garden(30, 3, ("Bern", "Paris"))
    new["light"] = ["" if k < 4 else v for k, v in enumerate(new["light"])]
    new["day"] = [""] * 30
    said, told = predicted(folder, new)
    count = new["city"].count("Paris")
    assert f"'city': {count} rows have values that training did not tell apart, Paris" in told
    assert "'light' is blank in 4 rows, and never was in training" in told
    assert "'day' is blank in every row" in told
    assert np.isfinite(np.array(said["weight"], dtype=float)).all()


def test_dates_are_read_as_in_training_where_they_could_be_read_in_two_ways(folder) -> None:
    new = garden(6, 5)
    days = {"own": "03/04/2025", "iso": "2025-04-03", "swapped": "2025-03-04"}
    said = {}
    for name, day in days.items():
        said[name], told = predicted(folder, new | {"day": [day] * 6})
        how = "'day': dates read as iso, in training as %d/%m/%Y"
        assert told == ("" if name == "own" else f"evenhand: column {how}\n")
    assert said["own"] == said["iso"] != said["swapped"]


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        ({"x": None, "X": ["1"] * 30}, (), "no column 'x', from which the network predicts; did"),
        ({"x": ["1"] * 29 + ["a"]}, (), "mixes numbers and text: 'a' in row 30"),
        ({"light": ["perhaps"] * 30}, (), "'perhaps' is none of 0/1"),
        ({}, ("--keep", "nrr"), "no column 'nrr'; did you mean 'nr'"),
        ({}, ("--keep", "weight"), "the answers have that name"),
        ({}, ("--out", "/no/folder/p.csv"), "there is no folder"),
    ],
)
def test_a_table_that_cannot_be_predicted_is_refused_in_a_line(folder, change, words, said) -> None:
    columns = {k: v for k, v in (garden(30, 4) | change).items() if v is not None}
    table = write(folder.parent / "wrong.csv", columns)
    result = run("predict", folder, table, *words, code=2)
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_weights_that_serve_some_tasks_predict_these_alone(folder, tmp_path) -> None:
    """As a reference keeps them whose tasks have epochs of their own."""
    weights, about = read_weights(folder)
    run_folder = tmp_path / "run"
    for epoch, serves in ((3, ["weight", "sort"]), (12, ["tall", "tags"])):
        inside = run_folder / f"epoch{epoch}"
        inside.mkdir(parents=True)
        told = {"evenhand": json.dumps({**about, "serves": serves, "epoch": epoch})}
        save_file(weights, inside / BEST, metadata=told)
        shutil.copy(folder / PREPARED, inside)
    whole, _ = predicted(folder, garden(9, 6))
    table = write(tmp_path / "new.csv", garden(9, 6))
    rows = list(csv.reader(io.StringIO(run("predict", run_folder / "epoch3", table).stdout)))
    said = dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))
    assert [name for name in said if ":" not in name] == ["weight", "sort"]
    assert said == {name: whole[name] for name in said}
    message = run("predict", run_folder, table, code=2).stderr
    assert "epoch3 for 'weight, sort'" in message
    assert "epoch12 for 'tall, tags'" in message


def test_predictions_as_json_and_in_a_file(folder, tmp_path) -> None:
    table = write(tmp_path / "new.csv", garden(5, 5))
    lines = run("predict", folder, table, "--json").stdout.splitlines()
    first = json.loads(lines[0])
    assert len(lines) == 5
    assert isinstance(first["weight"], float)
    out = tmp_path / "said.csv"
    assert run("predict", folder, table, "--out", out).stdout.strip() == str(out)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert float(rows[0]["weight"]) == pytest.approx(first["weight"])


def test_what_is_no_run_of_a_table_is_refused(folder, tmp_path) -> None:
    table = folder.parent / "garden.csv"
    assert "has no best.safetensors" in run("predict", tmp_path, table, code=2).stderr
    out = tmp_path / "mine"
    run("train", f"{mine(tmp_path)}:problem", "--epochs", "1", "--out", out)
    assert "was not trained on a table" in run("predict", out, table, code=2).stderr
    result = run("train", table, *WORDS[:4], "--recipe", "single-task", code=2)
    assert "makes 2 networks, one for each task" in result.stderr
    result = run("train", table, "--config", tmp_path / "none.toml", code=2)
    assert "cannot read" in result.stderr


def test_training_goes_on_and_says_what_it_found_as_json(tmp_path) -> None:
    table = write(tmp_path / "garden.csv", garden(60, 0))
    words = ["train", table, "--target", "weight", "--epochs", "2", "--lr", "0.01", "--json"]
    one = json.loads(run(*words, "--out", tmp_path / "out").stdout)
    assert one["tasks"]["weight"]["metric"] == "RMSE"
    other = json.loads(run(*words, "--out", tmp_path / "out", "--resume").stdout)
    assert other == one


def test_a_configuration_is_printed_and_read_again(tmp_path) -> None:
    table = write(tmp_path / "garden.csv", garden(40, 0))
    words = ["--target", "weight", "--target", "tall", "--kind", "city=category", "--drop", "nr"]
    words += ["--recipe", "ate-sg(shared=2,own=1)", "--optimizer", "adamw(weight_decay=0.1)"]
    said = run("train", table, *words, "--print-config").stdout
    (tmp_path / "c.yaml").write_text(said)
    assert run("train", "--config", tmp_path / "c.yaml", "--print-config").stdout == said
    toml = 'source = "garden.csv"\ntargets = ["weight"]\nlr = [0.01]\n[kinds]\ncity = "category"\n'
    (tmp_path / "c.toml").write_text(toml)
    said = run("compare", "--config", tmp_path / "c.toml", "--print-config").stdout
    assert "city: category" in said
    (tmp_path / "c.toml").write_text("source = [")
    assert "is not TOML" in run("compare", "--config", tmp_path / "c.toml", code=2).stderr


# Export ---------------------------------------------------------------------------------------


def test_what_is_exported_gives_the_networks_answers(folder, tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    files = run("export", folder, "--out", tmp_path).stdout.split()
    assert [Path(file).name for file in files] == ["network.pt2", "network.onnx"]
    predictor = Predictor.of(folder)
    table = read(folder.parent / "garden.csv")
    answers, _ = predictor.predicted(table)
    readings, _ = predictor.readings(table)
    inputs = predictor.prepared.inputs(readings)
    with torch.no_grad():
        said = torch.export.load(tmp_path / "network.pt2").module()(inputs)
    model = onnx.load(tmp_path / "network.onnx")
    assert [entry.value for entry in model.metadata_props] == list(TARGETS)
    also = ReferenceEvaluator(model).run(None, {"inputs": inputs.numpy()})
    for found in (said, map(torch.from_numpy, also)):
        weight, tall, sort, tags = found
        np.testing.assert_allclose(weight[:, 0], answers["weight"], rtol=1e-4)
        np.testing.assert_allclose(tall[:, 0], answers["tall: P(true)"], atol=1e-5)
        np.testing.assert_allclose(sort[:, 2], answers["sort: P(cedar)"], atol=1e-5)
        np.testing.assert_allclose(tags[:, 0], answers["tags: P(big)"], atol=1e-5)
    assert (tmp_path / "preparation.json").read_text() == (folder / "preparation.json").read_text()
    assert "different ones" in run("export", folder, "--format", "onnx,onnx", code=2).stderr
    assert "different ones" in run("export", folder, "--format", "", code=2).stderr
    assert "must be one of torch, onnx" in run("export", folder, "--format", "h5", code=2).stderr


def test_an_export_that_gives_other_numbers_is_refused(folder, tmp_path, monkeypatch) -> None:
    def wrong(module, inputs, tasks, file):
        return tuple(said + 0.01 for said in module(inputs))

    monkeypatch.setattr(exporting, "WRITERS", {"torch": wrong})
    result = run("export", folder, "--out", tmp_path, "--format", "torch", code=2)
    assert "gives other numbers than the network" in result.stderr


def test_a_network_of_a_function_is_exported_with_its_outputs(tmp_path) -> None:
    out = tmp_path / "run"
    run("train", f"{mine(tmp_path)}:problem", "--epochs", "1", "--out", out)
    (file,) = run("export", out, "--format", "torch").stdout.split()
    module = torch.export.load(file).module()
    assert [list(said.shape) for said in module(torch.zeros(3, 8))] == [[3, 2], [3, 1]]
