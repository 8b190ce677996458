"""Tables: read, looked at, prepared, compared; and whatever is wrong with one is said in a line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from typer.testing import CliRunner

from evenhand.app import config
from evenhand.app.cli import app
from evenhand.asking import option
from evenhand.comparison.budget import Cost, fitted
from evenhand.comparison.constant import constants
from evenhand.comparison.folder import read_manifest
from evenhand.comparison.request import Settings, forget
from evenhand.tables import arff, kinds
from evenhand.tables.arrays import input_readings, input_table
from evenhand.tables.examined import examined
from evenhand.tables.kinds import found
from evenhand.tables.predicting import read_alike
from evenhand.tables.preparation import Column, applied
from evenhand.tables.problem import Prepared, TableProblem, table_problem
from evenhand.tables.question import Question
from evenhand.tables.reading import Table, held, plain, read
from evenhand.tables.scores import SCORES, Collected
from evenhand.tables.shape import Shape
from evenhand.tables.targets import Target


def column(values) -> np.ndarray:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def write(file: Path, columns: dict[str, list], **how) -> Path:
    text = io.StringIO(newline="")
    writer = csv.writer(text, **how)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    file.write_text(text.getvalue(), newline="")
    return file


def patients(rows: int = 120, seed: int = 0) -> dict[str, list]:
    random = np.random.default_rng(seed)
    age, bmi = random.integers(20, 80, rows), random.normal(27, 4, rows).round(1)
    smoker = random.random(rows) < 0.4
    pressure = 90 + 0.5 * age + bmi + 8 * smoker + random.normal(0, 4, rows)
    ill = random.random(rows) < 1 / (1 + np.exp(-(pressure - 145) / 6))
    grade = np.digitize(bmi, [24, 29])
    return {
        "age": age.tolist(),
        "bmi": ["" if k % 9 == 0 else b for k, b in enumerate(bmi)],
        "smoker": ["yes" if s else "no" for s in smoker],
        "city": random.choice(["Bern", "Köln", "Oslo"], rows).tolist(),
        "seen": [f"2025-{1 + k % 12:02d}-{1 + k % 28:02d}" for k in range(rows)],
        "pressure": ["" if k % 5 == 0 else round(p, 1) for k, p in enumerate(pressure)],
        "ill": [int(i) for i in ill],
        "grade": [("low", "mid", "high")[g] for g in grade],
    }


TARGETS = ("pressure", "ill", "grade")


# Reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_told_from_the_lines(tmp_path, separator) -> None:
    file = write(tmp_path / "a.csv", {"x": [1, 2], "a, b; c": ["p", "q r"]}, delimiter=separator)
    table = read(file)
    assert list(table.columns) == ["x", "a, b; c"]
    assert table.columns["a, b; c"].tolist() == ["p", "q r"]
    with file.open("a") as opened:
        opened.write("\n   \n")  # a line of spaces is no row
    assert len(read(file)) == 2


def test_every_format_gives_the_same_table(tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    text = "x,c\n1.5,a\n,b\n-2,NA\n"
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "t.tsv").write_text(text.replace(",", "\t"))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "t.arff").write_text(
        "@relation t\n@attribute x numeric\n@attribute c {a,b}\n@data\n1.5,a\n?,b\n-2,?\n"
    )
    held_there = pyarrow.table({"x": [1.5, None, -2.0], "c": ["a", "b", None]})
    parquet.write_table(held_there, tmp_path / "t.parquet")
    for file in sorted(tmp_path.iterdir()):
        table = read(file)
        x, c = (found(name, table.columns[name]) for name in ("x", "c"))
        np.testing.assert_array_equal(x.values, [1.5, np.nan, -2])
        assert c.values.tolist() == ["a", "b", None], file


HEAD = """% of Weka
@RELATION 'some people'
@attribute 'a b' REAL
@attribute b{u,'v w',"x'y"}
@attribute s string
@attribute d date 'dd/MM/yyyy'
@data
"""


def test_arff_with_quotes_and_sparse_rows() -> None:
    rows = (
        "1,u,'it\\'s, so',13/12/1970",
        "% a comment",
        ' -2e1 , "x\'y" , two words , ? ',
        "?,'v w',?,02/01/1970",
        "{2 zz, 3 01/01/1970, 1 'v w'}",
    )
    read_there = dict(arff.columns(HEAD + "\r\n".join(rows)))
    np.testing.assert_array_equal(read_there["a b"], [1, -20, np.nan, 0])
    assert read_there["b"] == ["u", "x'y", "v w", "v w"]
    assert read_there["s"] == ["it's, so", "two words", None, "zz"]
    days = read_there["d"].astype("datetime64[D]").astype(int)
    assert days[[0, 2, 3]].tolist() == [346, 1, 0]
    assert np.isnat(read_there["d"][1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "1,u,x", "line 8: 3 cells, but there are 4 attributes"),
        (HEAD + "1,u,x,?,", "line 8: 5 cells"),
        (HEAD + "1,q,x,?", "line 8: 'q' is no value of 'b'"),
        (HEAD + "1_0,u,x,?", "line 8: '1_0' is no number, as 'a b' has"),
        (HEAD + "1,u,x,1970-01-01", "line 8: time data"),
        (HEAD + "1,u,'x,?", "line 8: quotes do not match"),
        (HEAD + "{0 1}", "line 8: a sparse row leaves out 's', which is a string"),
        (HEAD + "{4 1}", "line 8: '4 1' must be the number of an attribute"),
        ("@attribute a relational\n@data", "line 1: the attribute 'a' has the type"),
        ("@attribute a date yyyyyyyy\n@data", "line 1: dates written as 'yyyyyyyy'"),
        ("@attribute a date 'yyyy yyyy'\n@data", "line 1: dates written as"),
        ("@attribute a real", "it has no @data"),
    ],
)
def test_arff_that_cannot_be_read_is_told_with_its_line(text, said) -> None:
    with pytest.raises(ValueError, match=said):
        arff.columns(text)


def test_simple_arff_is_read_as_scipy_reads_it() -> None:
    from scipy.io.arff import loadarff

    lines = [f"{k / 7:.6f},{'uv'[k % 2]},2020-01-{1 + k % 28:02d}" for k in range(50)]
    head = (
        "@relation r",
        "@attribute x real",
        "@attribute b {u,v}",
        "@attribute d date yyyy-MM-dd",
    )
    text = "\n".join([*head, "@data", *lines])
    theirs, _ = loadarff(io.StringIO(text))
    ours = dict(arff.columns(text))
    assert ours["x"].tolist() == theirs["x"].tolist()
    assert ours["b"] == [cell.decode() for cell in theirs["b"]]
    assert (ours["d"] == theirs["d"].astype("datetime64[s]")).all()


@given(st.text(alphabet="@attribute da{},'\"?%0 1\n\\e", max_size=60), st.booleans())
def test_whatever_arff_says_is_read_or_refused(text, headed) -> None:
    with suppress(ValueError):
        arff.columns((HEAD if headed else "") + text)


def test_what_a_column_cannot_be_can_be_left_out(tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = range(40)
    odd = {"x": [k % 7 for k in rows], "l": [[k] for k in rows], "y": [k % 5 + 0.5 for k in rows]}
    odd["price"] = [Decimal(k) / 8 if k else None for k in rows]
    parquet.write_table(pyarrow.table(odd), tmp_path / "t.parquet")
    for file in (str(tmp_path / "t.parquet"), ""):
        table = read(Path(file)) if file else held(odd, strict=False)
        with pytest.raises(ValueError, match=r"'l' holds a list.*'drop': \['l'\]\} leaves it out"):
            examined(table, Question.of({"targets": ["y"]}))
        for column in ("group", "weight"):
            with pytest.raises(ValueError, match="'l' holds a list"):
                examined(table, Question.of({"targets": ["y"], column: "l"}))
        both = Question.of({"targets": ["y"], "drop": ["l"]})
        inputs = examined(table, both, table).inputs
        assert list(inputs) == ["x", "price"]
        np.testing.assert_array_equal(inputs["price"].values[:3], [np.nan, 0.125, 0.25])
    with pytest.raises(TypeError, match="'l' holds a list"):
        held(odd)


def test_a_frame_is_read_as_its_file_is(tmp_path) -> None:
    pandas = pytest.importorskip("pandas")
    file = write(tmp_path / "p.csv", patients())
    frame = pandas.read_csv(file)
    frame["city"] = frame["city"].astype("category")
    frame["seen"] = pandas.to_datetime(frame["seen"])
    ours, theirs = read(file), held({name: frame[name].tolist() for name in frame})
    for name in ours.columns:
        one, other = found(name, ours.columns[name]), found(name, theirs.columns[name])
        assert one.kind == other.kind, name
        assert kinds.present(one.values).tolist() == kinds.present(other.values).tolist()
        there = kinds.present(one.values)
        assert one.values[there].tolist() == other.values[there].tolist()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"\n  \n", "is empty"),
        (b"a,b\n", "has a header and no row"),
        (b"a,b\n1,2\n3\n", "line 3: 1 cells, but the header has 2"),
        (b"a,b\n1,2\n3,4,5\n", "line 3: 3 cells, but the header has 2"),
        (b"a,a\n1,2\n", "two columns are called 'a'"),
        (b'a,b\n0,0\n"1,2\n3,4\n', "line 3: a quote is opened and not closed"),
        (b'a,b\n"1"2,3\n', "line 2: ',' expected after '\"'"),
        ("a,ö\n1,2\n".encode("latin-1"), "line 1: this is not utf-8"),
        (b"a,b\n1,\0\n", "zero bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_a_line(tmp_path, content, said) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        read(file)
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path) -> None:
    for name, content, said in (
        ("t.xlsx", b"PK", "must end in one of .csv"),
        ("t.csv.gz", b"no gzip", "cannot read"),
        ("t.arff", b"hello", "is no ARFF file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=said):
            read(tmp_path / name)
    with pytest.raises(ValueError, match="No such file"):
        read(tmp_path / "none.csv")
    (tmp_path / "l.csv").write_bytes("a,ö\n1,ü\n".encode("latin-1"))
    assert read(tmp_path / "l.csv", encoding="latin-1").columns["ö"].tolist() == ["ü"]
    with pytest.raises(ValueError, match="no such encoding"):
        read(tmp_path / "l.csv", encoding="klingon")


# Kinds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["1", "-2.5e3", None], "numeric", [1, -2500, np.nan]),
        (["1,5", "2", "-,5"], "numeric", [1.5, 2, -0.5]),
        (["1,5", "2,125"], "numeric", [1.5, 2.125]),
        (["0", "1", None], "boolean", [0, 1, np.nan]),
        (["yes", "No", "y"], "boolean", [1, 0, 1]),
        (["a", "b", None], "category", ["a", "b", None]),
        (["01", "007"], "numeric", [1, 7]),
        (["1970-01-02", None], "date", [86400, np.nan]),
        (["1970-01-01 00:00:10", "1970-01-01T01:00:00+01:00"], "date", [10, 0]),
        (["31.01.1970", "01.02.1970"], "date", [30 * 86400, 31 * 86400]),
        (["13/01/1970", "01/02/1970"], "date", [12 * 86400, 31 * 86400]),
        (["01/13/1970", "02/01/1970"], "date", [12 * 86400, 31 * 86400]),
        ([None, None], "empty", [None, None]),
    ],
)
def test_a_columns_kind_is_found(cells, kind, values) -> None:
    reading = found("c", column(cells))
    assert reading.kind == kind
    np.testing.assert_array_equal(reading.values, np.array(values, dtype=reading.values.dtype))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["1", "2", "abc"], r"mixes numbers and text: 'abc' in row 3 \(1 of 3"),
        (["1,5", "2.5", "3"], "mixes numbers and text: '2.5'"),
        (["1.5", "2.5", "3,5"], r"mixes numbers and text: '3,5' in row 3 \(1 of 3"),
        ([f"{k},234.50" for k in range(1, 12)], "marks between thousands, such as '1,234.50'"),
        ([f"{k}.234,50" for k in range(1, 12)], "marks between thousands, such as '1.234,50'"),
        ([f"{k} 234" for k in range(1, 12)], "marks between thousands, such as '1 234'"),
        ([f"{k}.234.567" for k in range(1, 12)], "marks between thousands, such as '1.234.567'"),
        ([*(f"-${k}.5" for k in range(11)), "6"], r"signs .*, such as '-\$0.5': write digits"),
        ([*(f"{k} %" for k in range(11)), "x"], "numbers with signs .*, such as '0 %'"),
        ([*(f"{k}€" for k in range(11)), *"12345"], "numbers with signs .*, such as '0€'"),
        (["1,234", "5", "12,345"], "'1,234' may be a thousand or a fraction"),
        (["1", "inf", "2"], "holds inf in row 2"),
        (["1", "1e300", "2"], r"holds 1e\+300 in row 2"),
        (["03/04/2025", "05/06/2025"], "day and month cannot be told apart"),
        ([f"a long story about {k} that never ends {k}" for k in range(9)], "is free text"),
    ],
)
def test_a_column_that_cannot_be_told_is_refused(cells, said) -> None:
    with pytest.raises(ValueError, match=said):
        found("c", column(cells))


@pytest.mark.parametrize("pattern", ["A {}", "{}-{}", "{} kg", "{}+", "{}:00", "({})", "1.{}.2"])
def test_words_with_numbers_in_them_are_words(pattern) -> None:
    assert found("c", column(["10%", "20%", "10%"])).kind == "category"
    cells = [pattern.format(k, k + 1) for k in range(12)]
    assert found("c", column(cells)).kind == "category"


def test_a_kind_that_is_asked_for_is_held_to() -> None:
    assert kinds.read_as("category", "c", np.array([1.0, np.nan, 2.5])).values.tolist() == [
        "1",
        None,
        "2.5",
    ]
    labels = kinds.read_as("labels", "c", column(["a; b", None, "b;b", ""])).values
    assert labels.tolist() == [("a", "b"), None, ("b",), ()]
    for kind, said in (("numeric", "mixes"), ("boolean", "no yes or no"), ("date", "is no date")):
        with pytest.raises(ValueError, match=said):
            kinds.read_as(kind, "c", column(["a", "1"]))
    with pytest.raises(ValueError, match="must be one of"):
        kinds.read_as("colour", "c", column(["a"]))


# Preparation ----------------------------------------------------------------------------------


def test_preparation_is_scikit_learns(tmp_path) -> None:
    random = np.random.default_rng(3)
    n = 400
    numbers = random.normal(3, 50, n)
    numbers[random.random(n) < 0.1] = np.nan
    flags = (random.random(n) < 0.3).astype(float)
    still = np.full(n, 0.1)
    few = random.choice(["b", "a", "ö"], n).astype(object)
    few[random.random(n) < 0.1] = None
    many = np.array([f"v{int(k)}" for k in random.exponential(30, n)], dtype=object)
    train, rest = np.arange(250), np.arange(n)
    readings = {
        "numbers": kinds.Reading("numeric", numbers),
        "flags": kinds.Reading("boolean", flags),
        "still": kinds.Reading("numeric", still),
        "few": kinds.Reading("category", few),
        "many": kinds.Reading("category", many),
    }
    fitted = [Column.of(name, reading, train) for name, reading in readings.items()]
    again = [Column.from_dict(json.loads(json.dumps(c.to_dict()))) for c in fitted]
    assert again == fitted
    ours = applied(again, readings)[rest]

    numeric = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    one_hot = OneHotEncoder(
        max_categories=50, handle_unknown="infrequent_if_exist", sparse_output=False
    )
    theirs = ColumnTransformer([("numeric", numeric, [0, 1, 2]), ("few", one_hot, [3])])
    x = np.stack([numbers, flags, still, few], axis=1).astype(object)
    expected = theirs.fit(x[train]).transform(x[rest])
    common = OneHotEncoder(
        max_categories=50, handle_unknown="infrequent_if_exist", sparse_output=False
    )
    tail = common.fit(many[train][:, None]).transform(many[rest][:, None])
    blanks = np.isnan(numbers).astype(float)[:, None]
    expected = np.concatenate([expected[:, :1], blanks, expected[:, 1:], tail], axis=1)
    assert tail.shape[1] == 50
    np.testing.assert_allclose(ours, expected.astype(np.float32), atol=1e-6)


def test_dates_become_days_and_places_on_circles() -> None:
    day = 86400.0
    seconds = np.array([0.0, 7 * day, np.nan, 14 * day + 21600])
    fitted = Column.of("t", kinds.Reading("date", seconds), np.arange(4))
    inputs = applied([fitted], {"t": kinds.Reading("date", seconds)})
    assert len(fitted.titles()) == inputs.shape[1] == 2 + 6
    days = np.array([0, 7, 7, 14.25])
    np.testing.assert_allclose(inputs[:, 0], (days - days.mean()) / days.std(), atol=1e-6)
    assert inputs[:, 1].tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(inputs[[0, 1], 4:6], [[0, 1], [0, 1]], atol=1e-6)  # one week on
    np.testing.assert_allclose(inputs[3, 6:], [1, 0], atol=1e-5)  # six o'clock: a quarter turn


def test_preparation_sees_the_training_rows_of_its_split_alone(tmp_path) -> None:
    make = table_problem(str(write(tmp_path / "p.csv", patients())), {"targets": TARGETS})
    one, other = make(0), make(1)
    assert one.preparation != other.preparation
    for problem in (one, other):
        ages = problem.train.inputs[:, problem.preparation.titles().index("age")]
        assert abs(ages.mean()) < 1e-6
        assert abs(ages.std(correction=0) - 1) < 1e-5
        pressure = problem.train.targets["pressure"]
        assert abs(pressure[~pressure.isnan()].mean()) < 1e-6
        assert abs(problem.test.inputs[:, 0].mean()) > 1e-4
    # A cell of the test part changes nothing that is fitted.
    columns = patients()
    table = held(columns)
    question = Question.of({"targets": ["ill"]})
    parts = TableProblem("", question, examined(table, question)).pool.parts("hold-out", 1, 0)
    columns["age"][int(parts.test[0])] = 500
    changed = held(columns)
    before, after = (
        TableProblem("", question, examined(t, question))(0).preparation for t in (table, changed)
    )
    assert before.columns[0] == after.columns[0]
    columns["age"][int(parts.train[0])] = 500
    moved = TableProblem("", question, examined(held(columns), question))(0).preparation
    assert before.columns[0] != moved.columns[0]


def test_what_was_fitted_is_kept_as_json(tmp_path) -> None:
    problem = table_problem(str(write(tmp_path / "p.csv", patients())), {"targets": TARGETS})(0)
    prepared = problem.preparation
    again = Prepared.from_json(prepared.to_json())
    assert again == prepared
    torch.manual_seed(0)
    one = prepared.network(("ill", "grade"))
    torch.manual_seed(0)
    other = again.network(("ill", "grade"))
    assert str(one) == str(other)
    assert {column.form for column in again.columns} == {"", "iso"}
    odd = prepared.to_json().replace('"form": "iso"', '"form": "%Q"')
    for wrong in ("[]", "{}", '{"format": "other"}', "no json", odd):
        with pytest.raises(ValueError, match=r"preparation of a table|has the format"):
            Prepared.from_json(wrong)


# Targets and metrics --------------------------------------------------------------------------


def test_targets_are_what_losses_compare() -> None:
    numbers = Target("n", "numeric", "rmse").fitted(
        kinds.Reading("numeric", np.array([1.0, 3.0, np.nan, 100.0])), np.arange(3), False
    )
    assert (numbers.mean, numbers.scale) == (2.0, 1.0)
    encoded = numbers.encoded(kinds.Reading("numeric", np.array([1.0, np.nan, 5.0])), None)
    assert encoded[[0, 2], 0].tolist() == [-1.0, 3.0]
    assert encoded[1].isnan().all()
    classes = Target("c", "category", "accuracy", ("a", "b", "z"))
    assert classes.encoded(kinds.Reading("category", column(["z", None, "a"])), None).tolist() == [
        2,
        -1,
        0,
    ]
    task = classes.task(SCORES["accuracy"], False)
    assert task.missing == -1
    labels = Target("l", "labels", "ap", ("p", "q"))
    several = labels.encoded(kinds.Reading("labels", column([("q",), None, ()])), None)
    assert several[[0, 2]].tolist() == [[0, 1], [0, 0]]
    assert several[1].isnan().all()


def test_answers_come_back_in_the_columns_unit() -> None:
    numbers = Target("n", "numeric", "rmse", mean=100.0, scale=20.0)
    assert numbers.answers(torch.tensor([[0.5], [-1.0]])) == {"n": [110.0, 80.0]}
    truth = Target("b", "boolean", "auc", ("no", "yes"))
    said = truth.answers(torch.tensor([[0.0], [2.0]]))
    assert said["b"] == ["no", "yes"]
    assert said["b: P(yes)"] == pytest.approx([0.5, 0.880797])
    classes = Target("c", "category", "accuracy", ("a", "b", "z"))
    said = classes.answers(torch.tensor([[0.0, 1.0, 0.0]]))
    assert said["c"] == ["b"]
    assert sum(said[f"c: P({name})"][0] for name in "abz") == pytest.approx(1)
    labels = Target("l", "labels", "ap", ("p", "q"))
    assert labels.answers(torch.tensor([[3.0, 1.0], [-1.0, 2.0]]))["l"] == ["p;q", "q"]


@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_are_scikit_learns(weighted) -> None:
    random = np.random.default_rng(0)
    n = 60
    w = random.integers(0, 4, n) + 0.5 if weighted else None

    def ours(name, kind, outputs, labels, answer):
        metric = Collected(SCORES[name].functions[kind], answer, weighted, 1.0)
        target = labels if w is None else np.concatenate([labels.reshape(n, -1), w[:, None]], 1)
        for part in (slice(0, 20), slice(20, n)):  # in batches
            metric.update(torch.from_numpy(outputs[part]), torch.from_numpy(target[part]))
        return float(metric.compute())

    y, said = random.normal(size=(n, 1)), random.normal(size=(n, 1))
    same = lambda t: t  # noqa: E731
    for name, theirs in (
        ("rmse", root_mean_squared_error),
        ("mae", mean_absolute_error),
        ("r2", r2_score),
    ):
        assert ours(name, "numeric", said, y, same) == pytest.approx(
            theirs(y, said, sample_weight=w)
        )
    yes = (random.random((n, 1)) < 0.3).astype(float)
    p = 1 / (1 + np.exp(-said))
    for name, theirs in (
        ("auc", lambda a, b: roc_auc_score(a, b, sample_weight=w)),
        ("ap", lambda a, b: average_precision_score(a, b, sample_weight=w)),
        ("f1", lambda a, b: f1_score(a, b > 0.5, sample_weight=w)),
        ("balanced-accuracy", lambda a, b: balanced_accuracy_score(a, b > 0.5, sample_weight=w)),
        ("log-loss", lambda a, b: log_loss(a, b, sample_weight=w)),
        ("brier", lambda a, b: np.average((a - b) ** 2, weights=w)),
        ("accuracy", lambda a, b: np.average(a == (b > 0.5), weights=w)),
    ):
        expected = theirs(yes[:, 0], p[:, 0])
        assert ours(name, "boolean", said, yes, torch.sigmoid) == pytest.approx(expected), name
    c, logits = random.integers(0, 3, n), random.normal(size=(n, 3))
    q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for name, theirs in (
        ("accuracy", lambda: np.average(q.argmax(1) == c, weights=w)),
        ("balanced-accuracy", lambda: balanced_accuracy_score(c, q.argmax(1), sample_weight=w)),
        ("auc", lambda: roc_auc_score(c, q, multi_class="ovr", sample_weight=w)),
        ("log-loss", lambda: log_loss(c, q, sample_weight=w)),
    ):
        mine = ours(name, "category", logits, c, lambda t: t.softmax(1))
        assert mine == pytest.approx(theirs()), name
    tags, scores = (random.random((n, 4)) < 0.4).astype(float), random.normal(size=(n, 4))
    for name, theirs in (("ap", average_precision_score), ("auc", roc_auc_score)):
        assert ours(name, "labels", scores, tags, torch.sigmoid) == pytest.approx(
            theirs(tags, scores, average="macro", sample_weight=w)
        )


def test_metrics_that_are_not_defined_are_nan() -> None:
    for name in ("auc", "ap", "f1"):
        metric = Collected(SCORES[name].functions["boolean"], torch.sigmoid)
        metric.update(torch.tensor([[-1.0], [-2.0]]), torch.zeros(2, 1))
        assert torch.isnan(metric.compute()), name


def test_a_metric_has_the_columns_unit(tmp_path) -> None:
    table = write(tmp_path / "p.csv", patients())
    problem = table_problem(str(table), {"targets": ["pressure"]})(0)
    answers = constants(problem)
    metric = problem.tasks["pressure"].metric()
    labels = problem.test.targets["pressure"]
    labels = labels[~labels.isnan()][:, None]
    metric.update(answers["pressure"].expand(len(labels), 1), labels)
    prepared = problem.preparation.targets["pressure"]
    raw = labels[:, 0].double().numpy() * prepared.scale + prepared.mean
    said = float(answers["pressure"]) * prepared.scale + prepared.mean
    assert float(metric.compute()) == pytest.approx(np.sqrt(((raw - said) ** 2).mean()), rel=1e-5)
    assert 5 < float(metric.compute()) < 40


def test_classes_can_count_equally_in_the_loss() -> None:
    reading = kinds.Reading("boolean", np.array([0.0] * 9 + [1.0]))
    target = Target("b", "boolean", "auc", ("0", "1")).fitted(reading, np.arange(10), True)
    assert target.weights == pytest.approx((10 / 18, 10 / 2))
    task = target.task(SCORES["auc"], False)
    output, labels = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [1.0]])
    expected = (10 / 18 * np.log(2) + 10 / 2 * np.log1p(np.exp(-2))) / 2
    assert float(task.loss(output, labels)) == pytest.approx(expected)
    classes = Target("c", "category", "accuracy", ("a", "b"), weights=(0.5, 2.0))
    output, labels = torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
    loss = classes.task(SCORES["accuracy"], False).loss(output, labels)
    expected = (0.5 * np.log(2) + 2.0 * np.log1p(np.exp(-2))) / 2
    assert float(loss) == pytest.approx(expected)


def test_rows_count_by_their_weight(tmp_path) -> None:
    columns = patients()
    columns["w"] = [0 if k % 10 == 0 else 1 + k % 3 for k in range(len(columns["age"]))]
    file = str(write(tmp_path / "p.csv", columns))
    problem = table_problem(file, {"targets": TARGETS, "weight": "w"})(0)
    assert "w" not in problem.preparation.titles()
    raw = np.array(columns["w"])
    parts = table_problem(file, {"targets": TARGETS, "weight": "w"}).pool.parts("hold-out", 1, 0)
    w = torch.from_numpy(raw / raw[parts.train].mean())[parts.train]
    torch.testing.assert_close(problem.train.targets["ill"][:, -1], w)
    used = problem.label_counts()["ill"]["train"].used
    assert used == int((w > 0).sum()) < len(w)
    # The loss is the mean over rows of weight times loss, for each kind of target.
    for name, size in (("pressure", 1), ("ill", 1), ("grade", 3)):
        labels = problem.train.targets[name][:50]
        output = torch.randn(50, size, generator=torch.Generator().manual_seed(1))
        kept = ~labels.isnan().any(dim=1)
        x, y, each = output[kept], labels[kept, 0], labels[kept, 1]
        if name == "pressure":
            losses = (x[:, 0] - y) ** 2
        elif name == "ill":
            losses = -torch.where(y == 1, x[:, 0].sigmoid(), 1 - x[:, 0].sigmoid()).log()
        else:
            losses = -x.log_softmax(1)[torch.arange(len(y)), y.long()]
        expected = (losses * each).mean()
        found_loss = problem.losses({name: output}, {name: labels})[name]
        assert float(found_loss) == pytest.approx(float(expected), rel=1e-5)
    assert set(constants(problem)) == set(TARGETS)


# What is odd about a table --------------------------------------------------------------------


def look(columns, **asked):
    table = columns if isinstance(columns, Table) else held(columns)
    return examined(table, Question.of({"targets": ["y"], **asked}))


def base(rows: int = 60) -> dict[str, list]:
    random = np.random.default_rng(1)
    return {"x": random.normal(size=rows).tolist(), "y": random.normal(size=rows).tolist()}


def test_likely_identifiers_are_left_out_unless_their_kind_is_given() -> None:
    columns = base() | {
        "nr": list(range(60)),
        "patient_id": [7 * k % 997 for k in range(60)],
        "code": [f"p-{k}" for k in range(60)],
        "blank": [None] * 60,
        "same": ["a"] * 60,
    }
    table = look(columns)
    assert list(table.inputs) == ["x"]
    assert sum("likely an identifier" in note for note in table.notes) == 3
    kept = look(columns, kinds={"nr": "numeric", "code": "category"})
    assert list(kept.inputs) == ["x", "nr", "code"]


def test_copies_of_a_target_are_left_out_unless_their_kind_is_given() -> None:
    columns = base()
    columns["fahrenheit"] = [1.8 * y + 32 for y in columns["y"]]
    table = look(columns)
    assert list(table.inputs) == ["x"]
    assert any("copies the target 'y'" in note for note in table.notes)
    assert "fahrenheit" in look(columns, kinds={"fahrenheit": "numeric"}).inputs
    words = base() | {"y": ["a", "b", "c"] * 20, "code": ["A", "B", "C"] * 20}
    assert list(look(words).inputs) == ["x"]


def test_what_is_odd_is_said() -> None:
    twice = base() | {"again": [2 * x for x in base()["x"]]}
    assert any("say the same" in note for note in look(twice).notes)
    rows = {name: values + values for name, values in base().items()}
    assert any("inputs are those of another row: 60 of 120" in n for n in look(rows).notes)
    subjects = base() | {"subject": [f"s{k % 6}" for k in range(60)]}
    group = "table={'group': 'subject'}"
    assert any(group in note for note in look(subjects).notes)
    rare = base() | {"y": ["a"] * 59 + ["b"]}
    assert any("'b' is rare (1 of 60" in note for note in look(rare).notes)
    counts = base() | {"y": [0, 1, 2] * 20}
    table = look(counts)
    assert table.targets["y"][0].kind == "category"
    assert any("taken for classes" in note for note in table.notes)
    assert look(counts, kinds={"y": "numeric"}).targets["y"][0].kind == "numeric"


@pytest.mark.parametrize(
    ("change", "asked", "said"),
    [
        ({}, {"targets": ["Y"]}, r"has no column 'Y'; did you mean 'y'"),
        ({}, {"targets": []}, r"name the columns to predict"),
        ({}, {"targets": ["y", "y"]}, "named twice"),
        ({}, {"drop": ["y"]}, r"is a target: it cannot be in table=\{'drop'"),
        ({}, {"inputs": ["y"]}, r"is a target: it cannot be in table=\{'inputs'"),
        ({}, {"group": "y"}, r"is a target: it cannot be in table=\{'group'"),
        ({}, {"drop": ["z"]}, r"table=\{'drop': ...\}: table has no column 'z'"),
        ({}, {"drop": ["x"]}, "no column is left to predict from$"),
        ({"x": [1] * 60}, {}, r"no column is left to predict from \(column 'x' is left out: every"),
        ({}, {"kinds": {"x": "colour"}}, "'colour' must be one of numeric"),
        ({}, {"metrics": {"y": "auc"}}, "'auc' must be one of rmse, mae, r2"),
        ({}, {"metrics": {"x": "mae"}}, "'x' is no target"),
        ({}, {"weight": "x"}, "is blank or below 0"),
        ({}, {"network": "cnn"}, "a table has mlp"),
        ({}, {"network": "mlp(depth=0)"}, "must be an integer from 1 to"),
        ({}, {"batch": 0}, "must be at least 1"),
        ({}, {"group": "x", "time": "x"}, "have one of the two"),
        ({"g": ["a"] * 60}, {"group": "g"}, "there are 1 groups"),
        ({"g": ["a", None] * 30}, {"group": "g"}, "row 2 is blank"),
        ({"t": ["a", "b"] * 30}, {"time": "t"}, "must be dates or numbers"),
        ({"t": [1, 2] * 30}, {"time": "t"}, "fewer than 10 different times"),
        ({"y": [None] * 60}, {}, "is blank in every row"),
        ({"y": [1.5] * 60}, {}, "is 1.5 in every row"),
        ({"y": ["a"] * 60}, {}, "'a' in every row"),
        ({"y": [f"k{k % 40}" for k in range(60)]}, {}, "40 different values in 60 labels"),
        ({"y": ["2025-01-01", "2025-01-02"] * 30}, {}, "is a date"),
        ({"y": [f"k{k}" for k in range(60)] * 5, "x": [1.0, 2.0] * 150}, {"kinds": {}}, ""),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(change, asked, said) -> None:
    if not said:
        change = {"y": [f"k{k % 300}" for k in range(900)], "x": [1.0, 2.0] * 450}
        said = "300 different values: more than 200 classes"
    with pytest.raises(ValueError, match=said) as error:
        look(base() | change, **asked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("asked", "python", "typed"),
    [
        ({"drop": ["y"]}, "be in table={'drop': ...} too", "be in --drop too"),
        ({"group": "g g"}, "table={'group': 'g g'}: row 2", "--group 'g g': row 2"),
        ({"time": "m"}, "table={'missing': ...}), or make it", "(--missing), or make it"),
        ({}, "table={'kinds': {'m': 'category'}})", "(--kind m=category)"),
    ],
)
def test_settings_are_spelled_as_the_one_who_asks_does(asked, python, typed, tmp_path) -> None:
    columns = base() | {"g g": ["a", None] * 30, "m": ["12x", *map(str, range(59))]}
    with pytest.raises(ValueError, match=re.escape(python)):
        look(columns, **asked)
    words = [
        f"--{name}={said if isinstance(said, str) else said[0]}" for name, said in asked.items()
    ]
    file = str(write(tmp_path / "t.csv", columns))
    result = CliRunner().invoke(app, ["compare", file, "--target", "y", *words, "--plan"])
    assert result.exit_code == 2
    assert typed in result.stderr
    assert option("splits", 5) == "splits=5"  # as it was, after the command


def test_a_data_frames_columns_are_told_as_pandas_has_them() -> None:
    frame = pytest.importorskip("pandas").DataFrame({"m": ["12x", *map(str, range(59))]})
    with pytest.raises(ValueError, match=re.escape("category (X['m'].astype('category'))")):
        input_readings(frame, input_table(frame, ["m"]))
    with pytest.raises(ValueError, match=r"are no numbers\): correct them$"):
        read_alike("numeric", "m", frame["m"].to_numpy(object))


def test_letters_composed_otherwise_are_the_same_name(tmp_path) -> None:
    apart, whole = "gro\u0308\u00dfe", "gr\u00f6\u00dfe"
    columns = {apart: base()["x"], "y": base()["y"]}
    assert list(read(write(tmp_path / "t.csv", columns)).columns) == [whole, "y"]
    for name in (apart, whole):
        asked = Question.of({"targets": [name], "kinds": {name: "numeric"}})
        assert list(examined(held(columns), asked).targets) == [whole]
    with pytest.raises(ValueError, match="two columns are called"):
        held(columns | {whole: base()["x"]})


def test_a_parquet_file_that_is_damaged_inside_is_named(tmp_path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"x": [1.5] * 99, "y": [2.5] * 99})
    file = tmp_path / "t.parquet"
    parquet.write_table(table, file)
    content = file.read_bytes()
    file.write_bytes(content[:10] + b"\xff" * 40 + content[50:])
    with pytest.raises(ValueError, match=r"^t\.parquet is no Parquet file"):
        read(file)
    twice = table.rename_columns(["x", "x"])
    parquet.write_table(twice, file)
    with pytest.raises(ValueError, match="two columns are called 'x'"):
        read(file)


def test_cells_that_are_masked_are_blank_and_imaginary_ones_refused() -> None:
    masked = np.ma.masked_array([1.5, 2.5], [False, True])
    assert np.isnan(held({"x": masked}).columns["x"]).tolist() == [False, True]
    with pytest.raises(TypeError, match="'x' holds a complex"):
        held({"x": np.array([1j, 2.0])})
    money = held({"x": [Decimal("1.50"), None, Decimal("NaN")]}).columns["x"]
    assert money[0] == 1.5
    assert np.isnan(money[1:]).all()
    with pytest.raises(ValueError, match="'x' holds a whole number above"):
        held({"x": [10**400, 1]})
    for wrong in (3, "abc"):
        with pytest.raises(TypeError, match=r"'x' is a \w+: give a list"):
            held({"x": wrong})


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"kinds": ["x"]}, r"kinds=\['x'\]: must be a mapping"),
        ({"group": 3}, "group=3: must be a str or None"),
        ({"drop": 3}, "drop=3: must be several"),
        ({"balance": "no"}, "balance='no': must be True or False"),
        ({"batch": 1.5}, r"batch=1\.5: must be an integer or None"),
    ],
)
def test_what_a_table_is_told_is_of_the_right_kind(said, told) -> None:
    with pytest.raises(TypeError, match=told):
        Question.of({"targets": ["y"], **said})


def test_many_columns_that_say_the_same_are_counted() -> None:
    columns = base() | {f"again{k}": [k * x for x in base()["x"]] for k in range(2, 8)}
    notes = [note for note in look(columns).notes if "say the same" in note]
    assert len(notes) == 11
    assert notes[-1] == "11 more pairs of columns say the same"


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="9 rows: at least 10"):
        look(base(9))


# Splits ---------------------------------------------------------------------------------------


def test_groups_stay_on_one_side_and_times_go_forward(tmp_path) -> None:
    columns = patients() | {"subject": [f"s{k % 12}" for k in range(120)]}
    file = str(write(tmp_path / "p.csv", columns))
    make = table_problem(file, {"targets": ["ill"], "group": "subject"})
    problem = make(0)
    assert problem.units is not None
    assert sum(problem.units) == 12
    codes = make.examined.groups
    parts = make.pool.parts("hold-out", 1, 0)
    sides = [set(codes[part].tolist()) for part in (parts.train, parts.validation, parts.test)]
    assert sum(len(side) for side in sides) == len(set.union(*sides)) == 12
    settings = Settings.suggested(file, options={"targets": ["ill"], "time": "seen"})
    assert settings.design == "time"
    forget()
    make = table_problem(file, {"targets": ["ill"], "time": "seen"})
    parts = make.pool.parts("time", 5, 2)
    times = make.examined.times
    assert times[parts.train].max() <= times[parts.validation].min()
    assert times[parts.validation].max() < times[parts.test].min()


def test_an_official_test_set_stays(tmp_path) -> None:
    file = str(write(tmp_path / "p.csv", patients(90)))
    test = str(write(tmp_path / "q.csv", patients(30, seed=5)))
    make = table_problem(file, {"targets": TARGETS, "test": test})
    one, other = make(0), make(1)
    assert one.official_test
    assert len(one.test) == len(other.test) == 30
    raw = [p.test.targets["ill"].flatten().tolist() for p in (one, other)]
    assert raw[0] == raw[1] == patients(30, seed=5)["ill"]
    assert not torch.equal(one.train.targets["ill"], other.train.targets["ill"])
    assert len(one.train) + len(one.validation) == 90
    ill = [int(make(k).validation.targets["ill"].nansum()) for k in range(4)]
    assert max(ill) - min(ill) <= 1  # classes have their share in what is drawn beside it
    lacking = {k: v for k, v in patients(30).items() if k != "age"}
    for rest in ({"drop": ["age"]}, {"inputs": ["bmi"]}):  # what is not asked of is not needed
        beside = str(write(tmp_path / "q2.csv", lacking))
        assert len(table_problem(file, {"targets": ["ill"], "test": beside} | rest)(0).test) == 30
    asked = {"targets": TARGETS, "test": str(write(tmp_path / "q2.csv", lacking))}
    with pytest.raises(ValueError, match=r"q2.csv has no column 'age'"):
        table_problem(file, asked)(0)
    both = patients(90) | {"g": [f"s{k % 9}" for k in range(90)]}
    write(tmp_path / "a.csv", both)
    write(tmp_path / "b.csv", patients(30) | {"g": ["s1"] * 30})
    asked = {"targets": ["ill"], "test": str(tmp_path / "b.csv"), "group": "g"}
    with pytest.raises(ValueError, match=r"1 groups, such as 's1', stand both"):
        table_problem(str(tmp_path / "a.csv"), asked)(0)
    blank = patients(30) | {"ill": [""] * 30}
    write(tmp_path / "c.csv", blank)
    with pytest.raises(ValueError, match="'ill' has no label in the test set"):
        table_problem(file, {"targets": ["ill"], "test": str(tmp_path / "c.csv")})(0)


def test_the_network_grows_with_the_data() -> None:
    assert [Shape().sized(n).width for n in (10, 150, 3000, 10**6)] == [16, 16, 64, 256]
    assert str(Shape.of("mlp(depth=1,head=0)").sized(3000)).startswith(
        "mlp(width=64,depth=1,head=0"
    )


# The command ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fresh() -> None:
    forget()


def run(command: list[str], code: int = 0, stdin: bytes | None = None) -> str:
    result = CliRunner().invoke(app, command, input=stdin)
    assert result.exit_code == code, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


QUICK = ["--splits", "2", "--epochs", "3", "--lr", "0.01", "--workers", "1"]


def test_a_table_is_compared(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "patients.csv", patients())
    asked = ["compare", "patients.csv", "--targets", "pressure,ill", "--target", "grade"]
    output = run([*asked, *QUICK, "--recipes", "single-task,sg", "--drop", "seen"])
    assert "patients.csv: 120 rows, 3 tasks; 2 splits (hold-out)" in output
    assert "RMSE" in output
    assert "linear model" in output
    folder = tmp_path / "evenhand-patients"
    kept = read_manifest(folder)["settings"]
    assert kept["options"] == {"targets": [*TARGETS[:2], "grade"], "drop": ["seen"]}
    assert (folder / "sg/split1/seed0-lr0.01/preparation.json").exists()
    monkeypatch.chdir(tmp_path.parent)  # a folder holds wherever one works
    forget()
    again = run(["report", str(folder)])
    assert "patients.csv: 120 rows" in again
    page = (folder / "report.html").read_text()
    told = re.search(r"evenhand compare [^<]*--target pressure --target ill", page)
    assert told is not None
    run(
        [
            *asked[:1],
            str(tmp_path / "patients.csv"),
            *asked[2:],
            *QUICK,
            "--drop",
            "seen",
            "--recipes",
            "single-task,sg",
            "--out",
            str(folder),
            "--resume",
        ]
    )
    write(tmp_path / "patients.csv", patients(seed=1))
    forget()
    output = run(
        [
            *asked[:1],
            str(tmp_path / "patients.csv"),
            *asked[2:],
            *QUICK,
            "--drop",
            "seen",
            "--recipes",
            "single-task,sg",
            "--out",
            str(folder),
            "--resume",
        ],
        code=2,
    )
    assert "are not those that" in output


def test_a_table_is_read_from_the_standard_input(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EVENHAND_DATA", str(tmp_path))
    content = write(tmp_path / "p.csv", patients()).read_bytes()
    output = run(
        [
            "compare",
            "-",
            "--target",
            "ill",
            "--recipes",
            "sg",
            "--references",
            "none",
            *QUICK,
            "--out",
            str(tmp_path / "out"),
        ],
        stdin=content,
    )
    assert "120 rows" in output
    (kept,) = (tmp_path / "stdin").iterdir()
    assert kept.read_bytes() == content
    assert "input is empty" in run(["compare", "-", "--target", "ill"], code=2, stdin=b"")


def test_a_plan_shows_columns_labels_and_cost_and_trains_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p.csv", patients() | {"nr": list(range(120))})
    asked = ["compare", "p.csv", "--targets", ",".join(TARGETS), "--recipes", "single-task,sg,mgda"]
    output = run([*asked, "--plan", "--epochs", "2", "--lr", "0.01", "--workers", "1"])
    for said in ("120 rows, 5 inputs, 3 targets", "pressure  number", "96 of 120"):
        assert said in output, said
    assert re.search(r"grade +classes +accuracy", output)
    assert re.search(r"96 of 120 +\d+/\d+/\d+", output)
    assert re.search(r"single-task +3 +[\d,]+ +[\d.]+ KiB *\nsg +1 +[\d,]+ +[\d.]+ KiB", output)
    assert "column 'nr' is left out: likely an identifier" in output
    assert re.search(r"about [\d.]+ (s|min) with 1 processes", output)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p.csv"]


def test_what_is_wrong_is_said_in_a_line(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p.csv", patients())
    for words, said in (
        (["p.csv"], "name the columns to predict"),
        (["p.csv", "--target", "il"], "did you mean 'ill'"),
        (["p.csv", "--target", "ill", "--kind", "age"], "write --kind COLUMN=WORD"),
        (["p.csv", "--target", "ill", "--budget", "soon"], "write a time"),
        (["none.csv", "--target", "ill"], "No such file"),
        (["digits", "--target", "ill"], "only a table has such options"),
        (["p.cvs", "--target", "ill"], "a table's file ends in"),
        (["p.csv", "--target", "ill", "--design", "time"], "the samples have no times"),
    ):
        output = run(["compare", *words], code=2)
        assert said in output
        assert output.count("\n") == 1


def test_hostile_names_are_harmless(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    names = ["a\nb", "<script>alert(1)</script>", "$x^2_", "\u202eright", "../../up", "q\"'uote"]
    names += ["עברית", "x" * 300, "[bold]no[/bold]", "\x1b[31mred", "%s{0}\\"]
    columns = {name: random.normal(size=60).tolist() for name in [*names, "input"]}
    write(tmp_path / "t.csv", columns)
    words = [word for name in names for word in ("--target", name)]
    output = run(
        [
            "compare",
            "t.csv",
            *words,
            "--recipes",
            "single-task,sg",
            "--splits",
            "2",
            "--epochs",
            "1",
            "--lr",
            "0.01",
            "--references",
            "none",
            "--workers",
            "1",
        ]
    )
    assert "\x1b[31m" not in output
    assert "\u202e" not in output
    page = (tmp_path / "evenhand-t/report.html").read_text()
    assert "<script>alert" not in page
    assert "\u202e" not in page
    inside = [path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")]
    assert set(inside) == {"t.csv", "evenhand-t"}
    assert plain("\x1b[31mred") == "\\x1b[31mred"


# A budget -------------------------------------------------------------------------------------

MEASURED = Cost(
    runs=0,
    each={"single-task": 4.0, "sg": 2.0, "mgda": 3.0, "ate-sg": 1.0, "trees": 2.0, "constant": 0.0},
    splits=5,
    workers=2,
    epochs=40,
)
ASKED = Settings("t.csv", seeds=(0,), splits=5, references="cheap")
NAMES = ("single-task", "sg", "mgda", "ate-sg")


@pytest.mark.parametrize(
    ("seconds", "held", "splits", "recipes", "epochs", "references"),
    [
        # A split takes 12 processor seconds, 6 of wall time by two workers; starting takes 5.
        (1e6, (), 20, NAMES, None, "cheap"),
        (47.5, (), 7, NAMES, None, "cheap"),
        (23.5, (), 3, NAMES, None, "cheap"),
        (22.9, (), 3, NAMES[:3], None, "cheap"),
        (17.5, (), 3, NAMES[:2], None, "cheap"),
        (14.5, (), 3, NAMES[:2], None, "none"),
        # Three splits of the two take 9 s; 5.0 s are left for them, so 22 of 40 epochs.
        (10.0, (), 3, NAMES[:2], 22, "none"),
        (1e6, ("splits",), 5, NAMES, None, "cheap"),
        (33.0, ("splits",), 5, NAMES[:3], None, "cheap"),
        (20.5, ("recipes", "references"), 3, NAMES, 34, "cheap"),
    ],
)
def test_a_budget_is_kept(seconds, held, splits, recipes, epochs, references) -> None:
    made = fitted(seconds, NAMES, ASKED, MEASURED, frozenset(held))
    assert made.settings.splits == splits
    assert made.recipes == recipes
    assert made.settings.epochs == epochs
    assert made.settings.references == references
    assert made.seconds <= seconds
    told = ", ".join(made.given_up)
    assert (", ".join(name for name in NAMES if name not in recipes)) in told
    assert ("epochs" in told) == (epochs is not None)
    assert ("reference rows" in told) == (references == "none")
    assert ("of 5 splits" in told) == (splits < 5)


def test_a_budget_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 splits of single-task, sg take about 7.2 s"):
        fitted(6.0, NAMES, ASKED, MEASURED)
    assert [config.read_duration(text) for text in ("90s", "10m", "1.5 h", "2", "3min")] == [
        90,
        600,
        5400,
        120,
        180,
    ]


# Whatever comes -------------------------------------------------------------------------------

CELLS = st.one_of(
    st.sampled_from(["", "NA", "0", "1", "yes", "no", "inf", "-1e999", "1,5", "2025-01-31", "a;b"]),
    st.integers(-9, 9).map(str),
    st.floats().map(str),
    st.text(max_size=12),
)
TITLES = st.one_of(st.sampled_from(["y", "x", "", "y ", "\u202e", "a\nb"]), st.text(max_size=6))


@st.composite
def tables(draw) -> bytes:
    names = draw(st.lists(TITLES, min_size=1, max_size=4))
    kind = draw(st.sampled_from([CELLS, st.integers(0, 3).map(str), st.floats(-5, 5).map(str)]))
    rows = draw(st.lists(st.lists(kind, min_size=len(names), max_size=len(names)), max_size=24))
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=draw(st.sampled_from(",;\t"))).writerows([names, *rows])
    content = bytearray(text.getvalue().encode("utf-8", "surrogatepass"))
    for place in draw(st.lists(st.integers(0, max(0, len(content) - 1)), max_size=2)):
        if content:
            content[place % len(content)] = draw(st.sampled_from(b'",;\n\r\0\xff1a'))
    return bytes(content)


OPTIONS = st.fixed_dictionaries(
    {"targets": st.lists(st.sampled_from(["y", "x", "column 1", "z"]), max_size=2)},
    optional={
        "kinds": st.dictionaries(st.sampled_from("xyz"), st.sampled_from([*kinds.AS, "no"])),
        "drop": st.lists(st.sampled_from("xz"), max_size=1),
        "group": st.sampled_from("xz"),
        "time": st.sampled_from("xz"),
        "weight": st.sampled_from("xz"),
        "balance": st.booleans(),
        "network": st.sampled_from(["mlp", "mlp(width=3)", "mlp(", "mlp(dropout=2)"]),
    },
)


@given(tables(), OPTIONS)
@example(b"y,x\n" + b"".join(b"%d,%d\n" % (k % 2, k) for k in range(12)), {"targets": ["y"]})
@settings(max_examples=100)
def test_no_table_and_no_option_is_more_than_a_refusal(tmp_path_factory, content, options) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "t.csv"
    file.write_bytes(content)
    try:
        problem = table_problem(str(file), options)(0)
        problem.check_labels()
    except ValueError as error:
        refused = str(error)
        assert refused.splitlines() == [refused]
        return
    assert problem.train.inputs.isfinite().all()
    network = problem.network(tuple(problem.tasks))
    inputs, targets = problem.train.take(torch.arange(min(8, len(problem.train))))
    losses = problem.losses(network(inputs), targets)
    assert all(loss.isfinite() for loss in losses.values())
    assert Prepared.from_json(problem.preparation.to_json()) == problem.preparation
