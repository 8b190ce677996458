"""The estimators for scikit-learn: its own checks, numbers worked by hand, and what users try."""

from __future__ import annotations

import inspect
import math
import pickle
import sys
import warnings

import numpy as np
import pandas
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError, UndefinedMetricWarning
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import evenhand
from evenhand import (
    MGDA,
    MultiTaskClassifier,
    MultiTaskEstimator,
    MultiTaskRegressor,
)
from evenhand.data.splits import Pool
from evenhand.recipes import Recipe
from evenhand.tables import arrays
from evenhand.tables.problem import TableProblem

SMALL = {
    "width": 16,
    "depth": 1,
    "head": 0,
    "epochs": 3,
    "learning_rate": 0.03,
    "batch_size": 32,
    "random_state": 0,
}
ESTIMATORS = (MultiTaskRegressor, MultiTaskClassifier, MultiTaskEstimator)


def inputs(rows: int = 80, columns: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns))


X80 = inputs(80)


def frame(rows: int = 80) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Inputs and targets of every type that a data frame has, with blanks."""
    random = np.random.default_rng(1)
    X = pandas.DataFrame(
        {
            "a": random.normal(size=rows),
            "count": pandas.array(random.integers(0, 5, rows), dtype="Int64"),
            "colour": random.choice(["red", "green", "blue"], rows),
            "code": pandas.Categorical(random.integers(7, 10, rows)),
            "on": random.random(rows) < 0.5,
            "seen": pandas.date_range("2025-01-01", periods=rows),
        }
    )
    Y = pandas.DataFrame(
        {
            "height": 2 * X["a"] + X["on"],
            "sign": np.where(X["a"] > 0, "up", "down"),
            "grade": pandas.Categorical(np.digitize(X["a"], [-0.5, 0.5])),
            "on": X["on"],
        }
    )
    X.loc[::9, "count"], X.loc[::7, "colour"] = pandas.NA, None
    Y.loc[7, "height"], Y.loc[9, "sign"] = np.nan, None
    return X, Y


# scikit-learn's own checks ----------------------------------------------------------------------

EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": (
        "a row of weight k is no k rows: rows are dealt into batches and into a part for "
        "validation, and medians, means and deviations of the columns count each row once; that a "
        "row of weight 0 is no row holds to the bit, see test_a_row_of_weight_0_is_no_row"
    )
}
SKIPPED = {"check_array_api_input"}  # wants SCIPY_ARRAY_API=1 before scipy is imported


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_scikit_learns_checks_pass(kind) -> None:
    made = kind(**{**SMALL, "random_state": None, "batch_size": 16, "epochs": 2})
    if kind is MultiTaskClassifier:
        made.set_params(metrics="accuracy", learning_rate=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(made, expected_failed_checks=EXPECTED, on_skip=None, on_fail=None)
    by_status: dict[str, set[str]] = {}
    for result in found:
        by_status.setdefault(result["status"], set()).add(result["check_name"])
    assert by_status.pop("xfail") == set(EXPECTED)
    assert by_status.pop("skipped", SKIPPED) <= SKIPPED
    assert len(by_status.pop("passed")) > 40
    assert not by_status, [r["exception"] for r in found if r["status"] == "failed"]


def test_what_is_masked_is_blank() -> None:
    masked = np.ma.masked_array([[1.0, 2.0]], [[False, True]])
    assert np.isnan(arrays.unmasked(masked)).tolist() == [[False, True]]
    texts = np.ma.masked_array(["a", "b"], [True, False])
    assert arrays.unmasked(texts).tolist()[1] == "b"
    assert arrays.nothing(arrays.unmasked(texts)[0])
    assert arrays.unmasked("x") == "x"


# By hand ----------------------------------------------------------------------------------------


def test_a_linear_target_is_found_and_its_skill_is_that_of_the_formula() -> None:
    X = inputs(120)
    Y = X @ np.array([[1.0, 20.0], [0.5, 0.0], [0.0, -30.0]]) + [5.0, 100.0]
    model = MultiTaskRegressor(
        width=32, depth=1, head=0, epochs=60, learning_rate=0.02, random_state=0
    )
    model.fit(X[:80], Y[:80], eval_set=(X[80:100], Y[80:100]))
    said, true = model.predict(X[100:]), Y[100:]
    rmse = np.sqrt(((said - true) ** 2).mean(axis=0))
    constant = np.sqrt(((Y[:80].mean(axis=0) - true) ** 2).mean(axis=0))
    by_hand = 100 * (1 - rmse / constant)
    assert (by_hand > 85).all()
    assert list(model.skills(X[100:], true).values()) == pytest.approx(by_hand, abs=1e-3)
    assert model.score(X[100:], true) == pytest.approx(by_hand.mean(), abs=1e-3)


def test_skill_worked_by_hand() -> None:
    # Training labels 0 and 2 have the mean 1. A network that says 2 everywhere is off by 1 and 1
    # where 1 and 3 are true: RMSE 1. The constant is off by 0 and 2: RMSE √2.
    X = np.array([[0.0], [1.0]])
    model = MultiTaskRegressor(**{**SMALL, "validation_fraction": 0}).fit(X, [0.0, 2.0])
    saying(model, 1.0)  # one deviation above the mean: 1 + 1 · 1
    assert model.predict(X) == pytest.approx([2.0, 2.0])
    points = 100 * (1 - 1 / math.sqrt(2))
    assert model.score(X, [1.0, 3.0]) == pytest.approx(points)  # 29.3
    # Of weights 3 and 1: √(1) for the network, √(4 / 4) = 1 for the constant.
    assert model.score(X, [1.0, 3.0], sample_weight=[3, 1]) == pytest.approx(0.0, abs=1e-5)
    # A blank is left out: the network is off by 1, the constant by 2.
    assert model.score(X, [np.nan, 3.0]) == pytest.approx(50.0)


def test_accuracy_is_scored_above_the_commonest_class() -> None:
    # The commonest class of the training rows has accuracy 1/3 here; the network, which says "b"
    # everywhere, 2/3: half of the way from 1/3 to 1.
    X = np.arange(6.0)[:, None]
    model = MultiTaskClassifier(**SMALL, metrics="accuracy", validation_fraction=0)
    model.fit(X, ["a", "a", "a", "b", "b", "c"])
    saying(model, 0.0, 5.0, -5.0)
    assert model.score(X[:3], ["a", "b", "b"]) == pytest.approx(50.0)
    no, yes, never = np.exp([0.0, 5.0, -5.0]) / np.exp([0.0, 5.0, -5.0]).sum()
    assert model.predict_proba(X[:1])[0] == pytest.approx([no, yes, never])


def test_a_logit_is_the_second_classs() -> None:
    X = np.arange(6.0)[:, None]
    model = MultiTaskClassifier(**SMALL, validation_fraction=0).fit(X, ["no", "yes"] * 3)
    saying(model, 2.0)
    yes = 1 / (1 + math.exp(-2.0))
    assert model.predict_proba(X)[0] == pytest.approx([1 - yes, yes])
    assert set(model.predict(X)) == {"yes"}


def saying(model, *answer: float) -> None:
    """Let a network with linear heads answer the same everywhere."""
    (trained,) = model.trained_
    with torch.no_grad():
        for head in trained.network.heads:
            head.weight.zero_()
            head.bias.copy_(torch.tensor(answer))


def test_each_target_can_have_a_metric_of_its_own() -> None:
    X = inputs(60)
    Y = np.stack([X[:, 0], np.exp(X[:, 1])], axis=1)
    model = MultiTaskRegressor(**SMALL, metrics={"y1": "mae"})
    model.fit(X[:41], Y[:41], eval_set=(X[41:], Y[41:]))
    said, true = model.predict(X[41:]), Y[41:]
    wrong = np.sqrt(((said - true) ** 2).mean(axis=0))[0], np.abs(said - true).mean(axis=0)[1]
    mean, median = Y[:41, 0].mean(), np.median(Y[:41, 1])
    zero = np.sqrt(((true[:, 0] - mean) ** 2).mean()), np.abs(true[:, 1] - median).mean()
    by_hand = [100 * (1 - w / z) for w, z in zip(wrong, zero, strict=True)]
    assert list(model.skills(X[41:], true).values()) == pytest.approx(by_hand, abs=1e-3)


def test_classes_are_balanced_on_request() -> None:
    y = np.repeat(["a", "b", "c"], [48, 24, 8])
    model = MultiTaskClassifier(**SMALL, balance=True, validation_fraction=0).fit(X80, y)
    weights = model.prepared_.targets["y0"].weights
    assert weights == pytest.approx([80 / (3 * 48), 80 / (3 * 24), 80 / (3 * 8)])


@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_is_that_of_the_masked_and_weighted_losses(weighted) -> None:
    # One step of SGD on all rows at once, against autograd on losses written here.
    X = inputs(24)
    Y = np.stack([X[:, 0] * 3 + 1, X[:, 1] - X[:, 2]], axis=1)
    Y[::3, 0] = np.nan
    Y[1::4, 1] = np.nan
    weights = np.random.default_rng(2).uniform(0.5, 2, size=24) if weighted else None
    model = MultiTaskRegressor(
        width=8,
        depth=1,
        head=0,
        activation="tanh",
        optimizer="sgd(momentum=0)",
        learning_rate=0.05,
        epochs=1,
        batch_size=24,
        validation_fraction=0,
        random_state=3,
    ).fit(X, Y, sample_weight=weights)
    (trained,) = model.trained_
    assert trained.records[-1].best  # else the weights are those before the step
    torch.manual_seed(trained.job.run_seed)
    network = model.prepared_.network(("y0", "y1"))
    x = torch.tensor((X - X.mean(axis=0)) / X.std(axis=0), dtype=torch.float32)
    w = torch.ones(24) if weights is None else torch.tensor(weights / weights.mean()).float()
    outputs, total = network(x), torch.zeros(())
    for k, task in enumerate(("y0", "y1")):
        there = ~np.isnan(Y[:, k])
        label = (Y[there, k] - Y[there, k].mean()) / Y[there, k].std()
        wrong = outputs[task][there, 0] - torch.tensor(label).float()
        total = total + (w[there] * wrong**2).mean()
    gradients = torch.autograd.grad(total, list(network.parameters()))
    for old, gradient, new in zip(
        network.parameters(), gradients, trained.network.parameters(), strict=True
    ):
        torch.testing.assert_close(new, old - 0.05 * gradient, rtol=1e-4, atol=1e-6)


# Rows -------------------------------------------------------------------------------------------


def test_every_blank_is_the_same_blank() -> None:
    X = inputs(40)
    labels = [None if k % 5 == 0 else float(v) for k, v in enumerate(X[:, 0])]
    several = [
        np.array([np.nan if v is None else v for v in labels]),
        labels,
        pandas.Series(labels, dtype="Float64"),
        np.array(labels, dtype=object),
    ]
    said = [MultiTaskRegressor(**SMALL).fit(X, y).predict(X) for y in several]
    for other in said[1:]:
        np.testing.assert_array_equal(other, said[0])
    words = [None if v is None else "NA" if v > 0 else "" for v in labels]
    assert MultiTaskClassifier(**SMALL).fit(X, words).classes_.tolist() == ["", "NA"]


def test_a_row_of_weight_0_is_no_row() -> None:
    X, Y = frame()
    kept = np.arange(80) % 4 != 0
    groups = np.arange(80) // 2
    weights = np.where(kept, 1.5, 0.0)
    one = MultiTaskEstimator(**SMALL).fit(X, Y, sample_weight=weights, groups=groups)
    two = MultiTaskEstimator(**SMALL).fit(
        X[kept], Y[kept], sample_weight=weights[kept], groups=groups[kept]
    )
    np.testing.assert_array_equal(one.predict(X), two.predict(X))
    assert one.skills(X, Y) == two.skills(X, Y)


@pytest.fixture
def divided(monkeypatch):
    """The parts that fits have asked for, one after the other."""
    found = []
    made = TableProblem.made
    monkeypatch.setattr(TableProblem, "made", lambda self, p: found.append(p) or made(self, p))
    return found


def test_groups_are_never_on_both_sides(divided) -> None:
    X = inputs(60)
    groups = np.array([f"g{k}" for k in np.random.default_rng(0).integers(0, 12, 60)])
    for seed in range(3):
        MultiTaskRegressor(**{**SMALL, "random_state": seed}).fit(X, X[:, 0], groups=groups)
    assert len({tuple(p.validation.tolist()) for p in divided}) == 3
    for parts in divided:
        train, validation = (set(groups[part]) for part in (parts.train, parts.validation))
        assert not train & validation
        assert len(train | validation) == 12
        assert len(validation) == 2  # a fifth of twelve
        assert len(parts.train) + len(parts.validation) == 60


def test_what_validates_is_what_was_said(divided) -> None:
    X, y = inputs(50), np.repeat([0, 1], [40, 10])
    MultiTaskClassifier(**SMALL).fit(X, y)
    MultiTaskClassifier(**SMALL, validation_fraction=0.5).fit(X, y)
    MultiTaskClassifier(**SMALL, validation_fraction=0).fit(X, y)
    MultiTaskClassifier(**SMALL).fit(X[5:], y[5:], eval_set=(X[:5], [0, 0, 1, 1, None]))
    sizes = [(len(p.train), len(p.validation)) for p in divided]
    assert sizes == [(40, 10), (25, 25), (50, 50), (45, 5)]
    assert [int(y[p.validation].sum()) for p in divided[:2]] == [2, 5]  # stratified


def test_rows_that_validate_count_alike_whatever_the_others_weigh() -> None:
    X, w = inputs(60), np.random.default_rng(0).uniform(1, 9, 40)
    y = X[:, 0] + 4
    model = MultiTaskRegressor(**SMALL).fit(
        X[:40], y[:40], sample_weight=w, eval_set=(X[40:], y[40:])
    )
    wrong = (model.predict(X[40:]) - y[40:]) / y[:40].std()
    best = [record for record in model.trained_[0].records if record.best][-1]
    assert best.validation["y0"] == pytest.approx((wrong**2).mean(), rel=1e-4)


def test_parts_without_a_test_leave_nothing_out() -> None:
    pool = Pool(10, make=lambda parts: parts, groups=torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4]))
    parts = pool.apart(0.2, 7)
    assert sorted([*parts.train.tolist(), *parts.validation.tolist()]) == list(range(10))
    assert len(parts.validation) == 2
    with pytest.raises(ValueError, match="1 groups cannot be divided"):
        Pool(2, make=lambda parts: parts, groups=torch.zeros(2).long()).apart(0.2, 0)


def test_a_fit_is_the_same_again_and_leaves_the_global_streams_alone() -> None:
    X, Y = frame()
    first = MultiTaskEstimator(**{**SMALL, "dropout": 0.2}).fit(X, Y)
    np.random.seed(5)  # noqa: NPY002  # the stream that must be left alone
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    second = clone(first).fit(X, Y)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    np.testing.assert_array_equal(first.predict(X), second.predict(X))
    third = clone(first).set_params(random_state=1).fit(X, Y)
    assert not np.array_equal(first.predict(X), third.predict(X))
    again = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(first.predict(X), again.predict(X))


# Shapes and types -------------------------------------------------------------------------------


def test_answers_have_the_shape_and_the_type_of_what_came_in() -> None:
    X = inputs(40)
    for y in (X[:, 0], X[:, :1], X[:, :2]):
        said = MultiTaskRegressor(**SMALL).fit(X, y).predict(X)
        assert (said.shape, said.dtype) == (y.shape, np.float64)
    words = np.where(X > 0, "yes", "no")
    ones = (X > 0).astype(np.int8)
    for y in (words[:, 0], words[:, :2], ones[:, 0], ones[:, :1], ones > 0):
        model = MultiTaskClassifier(**SMALL).fit(X, y)
        said, chances = model.predict(X), model.predict_proba(X)
        assert (said.shape, said.dtype) == (y.shape, y.dtype)
        if y.ndim == 1:
            assert model.classes_.tolist() == sorted(set(y.tolist()))
            np.testing.assert_array_equal(said, model.classes_[chances.argmax(axis=1)])
        else:
            assert [c.tolist() for c in model.classes_] == [sorted(set(c.tolist())) for c in y.T]
            assert [c.shape for c in chances] == [(40, 2)] * y.shape[1]
        for each in [chances] if y.ndim == 1 else chances:
            assert each.sum(axis=1) == pytest.approx(np.ones(40))


def test_a_data_frame_is_what_its_types_say() -> None:
    X, Y = frame()
    model = MultiTaskEstimator(**SMALL).fit(X, Y)
    assert model.feature_names_in_.tolist() == list(X)
    assert model.target_names_ == list(Y)
    kinds = {column.name: column.kind for column in model.prepared_.columns}
    assert kinds == {
        "a": "numeric",
        "count": "numeric",
        "colour": "category",
        "code": "category",
        "on": "boolean",
        "seen": "date",
    }
    titles = model.prepared_.titles()
    assert {"code=7", "code=8", "code=9", "colour=red"} <= set(titles)
    assert model.target_kinds_ == {
        "height": "numeric",
        "sign": "category",
        "grade": "category",
        "on": "category",
    }
    assert {k: v.tolist() for k, v in model.classes_.items()} == {
        "sign": ["down", "up"],
        "grade": [0, 1, 2],
        "on": [False, True],
    }
    said = model.predict(X)
    assert [type(value) for value in said[0]] == [float, str, int, bool]
    assert {k: v.shape for k, v in model.predict_proba(X).items()} == {
        "sign": (80, 2),
        "grade": (80, 3),
        "on": (80, 2),
    }
    with pytest.warns(UserWarning, match=r"'colour': 80 rows have values .* violet \(80\)"):
        model.predict(X.assign(colour="violet"))


def test_what_a_target_is_can_be_said() -> None:
    X = inputs(40)
    counts = np.arange(40) % 3
    with pytest.warns(UserWarning, match="'y0' has 3 whole numbers .*: they are taken for numbers"):
        model = MultiTaskEstimator(**SMALL).fit(X, counts)
    assert model.target_kinds_ == {"y0": "numeric"}
    assert not hasattr(model, "predict_proba")
    model.set_params(target_kinds={"y0": "category"}).fit(X, counts)
    assert model.predict_proba(X).shape == (40, 3)
    assert model.classes_.tolist() == [0, 1, 2]
    model.set_params(target_kinds={"y0": "numeric"}).fit(X, counts)
    assert model.predict(X).dtype == np.float64
    lists = [[float(a), "up" if b > 0 else "down"] for a, b in X[:, :2]]
    assert MultiTaskEstimator(**SMALL).fit(X, lists).target_kinds_["y1"] == "category"


def test_classes_of_several_types_stay_what_they_are() -> None:
    X, Y = frame()
    said = MultiTaskClassifier(**SMALL).fit(X, Y[["on", "sign"]]).predict(X)
    assert [type(value) for value in said[0]] == [bool, str]


# In scikit-learn's company ----------------------------------------------------------------------


def test_a_pipeline_with_columns_of_every_kind() -> None:
    X, Y = frame()
    X, Y = X.drop(columns=["count", "seen"]), Y[["height"]].fillna(0)
    front = make_column_transformer(
        (OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["colour", "code"]),
        (StandardScaler(), ["a"]),
        verbose_feature_names_out=False,
    )
    model = make_pipeline(front, MultiTaskRegressor(**SMALL)).set_output(transform="pandas")
    model.fit(X, Y)
    assert model[-1].feature_names_in_.tolist()[-1] == "a"
    assert model.score(X, Y) > 10
    assert model.predict(X).shape == (80, 1)


def test_recipes_are_searched() -> None:
    X = inputs(60)
    Y = np.stack([X[:, 0], X[:, 1] + X[:, 2]], axis=1)
    Y[::6, 0] = np.nan
    mine = Recipe.of("mine", aggregator=MGDA)
    grid = {"recipe": ["single-task", "ate-sg(shared=2,own=1)", mine], "width": np.array([4, 8])}
    search = GridSearchCV(MultiTaskRegressor(**SMALL), grid, cv=2, error_score="raise").fit(X, Y)
    scores = search.cv_results_["mean_test_score"]
    assert len(set(scores)) == 6
    assert search.best_score_ == max(scores)
    assert search.score(X, Y) == search.best_estimator_.score(X, Y)
    alone = MultiTaskRegressor(**SMALL).set_params(recipe="single-task").fit(X, Y)
    assert [trained.tasks for trained in alone.trained_] == [("y0",), ("y1",)]
    assert alone.predict(X).shape == (60, 2)


def test_validation_chooses_a_rate() -> None:
    X = inputs(60)
    model = MultiTaskRegressor(**{**SMALL, "learning_rate": (1e-6, 0.03)}).fit(X, X[:, :2])
    assert [trained.job.rate for trained in model.trained_] == [0.03]
    assert model.n_iter_ == 3
    stopped = MultiTaskRegressor(**{**SMALL, "learning_rate": 1.0, "epochs": 60}, patience=1)
    assert stopped.fit(X, X[:, :2]).n_iter_ < 60


def test_cross_validation_with_groups_and_blanks() -> None:
    X = inputs(60)
    Y = (X[:, :2] > 0).astype(float)
    groups = np.arange(60) // 5
    Y[::6, 0] = np.nan
    few = MultiTaskClassifier(**SMALL)
    assert np.isfinite(cross_val_score(few, X, Y, cv=KFold(3))).all()
    scores = cross_val_score(few, X, Y, groups=groups, cv=GroupKFold(3), params={"groups": groups})
    assert np.isfinite(scores).all()
    known = (X[:, :2] > 0).astype(int)
    chances = cross_val_predict(few, X, known, cv=2, method="predict_proba")
    assert [each.shape for each in chances] == [(60, 2), (60, 2)]


# Refusals ---------------------------------------------------------------------------------------

XF, YF = frame()
WORDS = np.where(X80[:, 0] > 0, "up", "down")


@pytest.mark.parametrize(
    ("kind", "parameters", "X", "y", "error", "said"),
    [
        (MultiTaskRegressor, {}, X80[:, 0], X80[:, 1], ValueError, "Expected 2D array, got 1D"),
        (MultiTaskRegressor, {}, XF["a"], X80[:, 1], ValueError, "Expected a 2-dimensional"),
        (MultiTaskRegressor, {}, WORDS[:, None], X80, ValueError, "columns of a pandas data frame"),
        (MultiTaskRegressor, {}, XF[:1], X80[:1], ValueError, r"1 sample\(s\)"),
        (MultiTaskRegressor, {}, XF.assign(a=np.inf), X80, ValueError, "'a' holds inf in row 1"),
        (MultiTaskRegressor, {}, X80 - np.inf, X80, ValueError, "X contains infinity"),
        (MultiTaskRegressor, {}, X80, X80[:70], ValueError, "inconsistent numbers of samples"),
        (MultiTaskRegressor, {}, X80, X80[:, :, None], ValueError, r"shape \(80, 3, 1\)"),
        (MultiTaskRegressor, {}, X80, X80[:, :0], ValueError, r"shape \(80, 0\)"),
        (MultiTaskRegressor, {}, X80, None, ValueError, "y is None"),
        (MultiTaskRegressor, {}, X80, WORDS, ValueError, "'y0' is text, such as (up|down)"),
        (MultiTaskRegressor, {}, X80, YF["grade"], ValueError, "'grade' is a category"),
        (MultiTaskRegressor, {}, X80, np.ones(80), ValueError, "'y0' is 1 in every row"),
        (MultiTaskRegressor, {}, X80, np.full(80, np.nan), ValueError, "blank in every row"),
        (MultiTaskRegressor, {}, np.ones((80, 2)), X80, ValueError, "no input varies"),
        (MultiTaskClassifier, {}, X80, X80, ValueError, "'y0' is continuous"),
        (MultiTaskClassifier, {}, X80, np.full(80, "a"), ValueError, "one class, .*'a'"),
        (MultiTaskClassifier, {}, X80, [[1, 2], [1]] * 40, ValueError, "must be a single value"),
        (MultiTaskClassifier, {}, X80, ["a", 1] * 40, ValueError, "mix numbers and text"),
        (MultiTaskClassifier, {}, X80, [True, 2] * 40, ValueError, "mix numbers and truth values"),
        (MultiTaskClassifier, {}, X80, XF["seen"], ValueError, "holds a Timestamp: classes are"),
        (MultiTaskEstimator, {}, X80, XF["seen"], ValueError, "'seen' is a date"),
        (MultiTaskEstimator, {}, X80, np.array([1, np.inf] * 40), ValueError, "'y0' holds inf"),
        (MultiTaskRegressor, {"recipe": "mgd"}, X80, X80, ValueError, "did you mean mgda"),
        (MultiTaskRegressor, {"width": 0}, X80, X80, ValueError, "width=0"),
        (MultiTaskRegressor, {"width": 2.5}, X80, X80, TypeError, "width=2.5: must be an integer"),
        (MultiTaskRegressor, {"depth": None}, X80, X80, TypeError, "depth=None"),
        (MultiTaskRegressor, {"dropout": "x"}, X80, X80, TypeError, "dropout='x'"),
        (MultiTaskRegressor, {"activation": "x"}, X80, X80, ValueError, "activation=x"),
        (MultiTaskRegressor, {"learning_rate": "x"}, X80, X80, TypeError, "learning_rate='x'"),
        (MultiTaskRegressor, {"learning_rate": -1}, X80, X80, ValueError, "learning_rate=-1"),
        (MultiTaskRegressor, {"learning_rate": ()}, X80, X80, ValueError, r"learning_rate=\(\)"),
        (MultiTaskRegressor, {"batch_size": 0}, X80, X80, ValueError, "batch_size=0"),
        (MultiTaskRegressor, {"optimizer": "lbfgs"}, X80, X80, ValueError, "optimizer='lbfgs'"),
        (MultiTaskRegressor, {"epochs": 0}, X80, X80, ValueError, "epochs=0"),
        (MultiTaskRegressor, {"recipe": 3}, X80, X80, TypeError, "recipe=3: must be a str or"),
        (MultiTaskRegressor, {"validation_fraction": 1}, X80, X80, ValueError, "fraction=1"),
        (MultiTaskRegressor, {"metrics": "auc"}, X80, X80, ValueError, "rmse, mae, r2"),
        (MultiTaskRegressor, {"metrics": {"z": "mae"}}, X80, X80, ValueError, "no target 'z'"),
        (MultiTaskEstimator, {"target_kinds": {"y0": "x"}}, X80, X80, ValueError, "'y0' is 'x'"),
        (MultiTaskEstimator, {"target_kinds": {"z": "x"}}, X80, X80, ValueError, "no target 'z'"),
    ],
)
def test_what_cannot_be_learnt_is_refused(kind, parameters, X, y, error, said) -> None:
    with pytest.raises(error, match=said):
        kind(**SMALL | parameters).fit(X, y)


@pytest.mark.parametrize("name", inspect.signature(MultiTaskRegressor).parameters)
def test_a_parameter_of_another_kind_is_named(name) -> None:
    for value in (object(), {1}):
        with pytest.raises((TypeError, ValueError), match=name):
            MultiTaskRegressor(**SMALL | {name: value}).fit(X80, X80)


@pytest.mark.parametrize(
    ("further", "error", "said"),
    [
        ({"sample_weight": -np.ones(80)}, ValueError, "negative weights, such as -1"),
        ({"sample_weight": np.zeros(80)}, ValueError, "every row has weight zero"),
        ({"sample_weight": np.ones(79)}, ValueError, r"must be \(80,\)"),
        ({"groups": [None, *range(79)]}, ValueError, "groups: row 0 is blank"),
        ({"groups": np.zeros(80)}, ValueError, "1 groups cannot be divided"),
        ({"groups": np.zeros(79)}, ValueError, "inconsistent numbers of samples"),
        ({"eval_set": (X80, X80), "groups": X80[:, 0]}, ValueError, "eval_set= is given"),
        ({"eval_set": X80}, ValueError, r"one pair \(X, y\)"),
        ({"eval_set": [(X80, X80), (X80, X80)]}, ValueError, "y has 2 targets|inhomogeneous|dim"),
        ({"eval_set": (X80[:, :2], X80)}, ValueError, "X has 2 features"),
        ({"eval_set": (X80, X80[:, :2])}, ValueError, "y has 2 targets; in fit it had 3"),
        ({"eval_set": (X80, X80 * np.nan)}, ValueError, "no label of y0"),
    ],
)
def test_what_goes_with_the_rows_is_looked_at(further, error, said) -> None:
    with pytest.raises(error, match=said):
        MultiTaskRegressor(**SMALL).fit(X80, X80, **further)


def test_sparse_data_are_refused() -> None:
    sparse = OneHotEncoder().fit_transform(XF[["on"]])
    with pytest.raises(TypeError, match="Sparse data was passed for X"):
        MultiTaskRegressor(**SMALL).fit(sparse, X80)
    with pytest.raises(TypeError, match=r"y is sparse.*y.toarray\(\)"):
        MultiTaskRegressor(**SMALL).fit(X80, sparse)


def test_other_columns_and_classes_are_refused_after_fit() -> None:
    for method in ("predict", "score"):
        with pytest.raises(NotFittedError):
            getattr(MultiTaskClassifier(), method)(*([X80, WORDS][: 1 + (method == "score")]))
    X, Y = XF[["a", "on"]], YF[["height", "sign"]]
    model = MultiTaskEstimator(**SMALL).fit(X, Y)
    with pytest.raises(ValueError, match="must be in the same order"):
        model.predict(X[["on", "a"]])
    with pytest.raises(ValueError, match="'sign', 'height'; in fit it had 'height', 'sign'"):
        model.score(X, Y[["sign", "height"]])
    with pytest.raises(ValueError, match="class 'away' in row 1, and no training row has it"):
        model.score(X, Y.assign(sign="away"))
    with pytest.warns(UndefinedMetricWarning, match="the skill in 'sign' is not defined"):
        assert math.isnan(model.score(X, Y.assign(sign="up")))


# The extra --------------------------------------------------------------------------------------


def test_without_scikit_learn_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "evenhand.estimators")
    with pytest.raises(ImportError, match=r"pip install 'evenhand\[sklearn\]'"):
        evenhand.MultiTaskRegressor  # noqa: B018  # asking for it imports it
    assert "MultiTaskRegressor" in dir(evenhand)
    assert "MultiTaskRegressor" not in evenhand.__all__  # so that import * needs no extra


def test_a_fit_needs_no_other_extra(monkeypatch) -> None:
    for name in ("torchmetrics", "safetensors", "safetensors.torch", "pydantic", "h5py", "typer"):
        monkeypatch.setitem(sys.modules, name, None)
    model = MultiTaskRegressor(**SMALL).fit(X80, X80)
    assert math.isfinite(model.score(X80, X80))
