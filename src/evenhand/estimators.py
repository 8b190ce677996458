"""Estimators for scikit-learn: one network for several targets, with `fit` and `predict`.

    MultiTaskRegressor    every target is a number
    MultiTaskClassifier   every target has classes
    MultiTaskEstimator    numbers and classes beside each other

They are `evenhand train` without files: the preparation of tables, its network, the recipes, and
the best epoch and rate chosen by validation. They need scikit-learn 1.6 or newer, an extra:
``pip install 'evenhand[sklearn]'``.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from evenhand.arguments import require_kind
from evenhand.comparison.constant import constants
from evenhand.comparison.job import APART
from evenhand.comparison.request import Settings
from evenhand.comparison.single import train_in_memory
from evenhand.comparison.skill import skill
from evenhand.data.problem import Problem
from evenhand.data.splits import Parts
from evenhand.recipes import Recipe
from evenhand.tables import arrays
from evenhand.tables.arrays import Array, Outcome, Targets
from evenhand.tables.examined import Examined
from evenhand.tables.predicting import Predictor, read_alike
from evenhand.tables.problem import Prepared, TableProblem
from evenhand.tables.question import Question
from evenhand.tables.reading import Table, is_frame, shown
from evenhand.tables.scores import SCORES
from evenhand.tables.shape import Shape
from evenhand.text import quoted

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
    from sklearn.exceptions import UndefinedMetricWarning
    from sklearn.utils import check_array, check_consistent_length, check_random_state
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f"evenhand.estimators needs scikit-learn 1.6 or newer ({error}): "
        "pip install 'evenhand[sklearn]'"
    ) from error

__all__ = ["MultiTaskClassifier", "MultiTaskEstimator", "MultiTaskRegressor"]


@dataclass(kw_only=True, eq=False, repr=False)
class MultiTaskBase(MultiOutputMixin):
    """What the three have in common; the parameters are told at `MultiTaskEstimator`.

    A mixin, so that its `score` comes before those of scikit-learn's.
    """

    recipe: str | Recipe = "sg"
    width: int | None = None
    depth: int = 2
    head: int | None = None
    dropout: float = 0.0
    activation: str = "relu"
    optimizer: str = "adam"
    learning_rate: float | Sequence[float] = (1e-3, 3e-3, 1e-2)
    batch_size: int | None = None
    epochs: int | None = None
    patience: int | None = None
    validation_fraction: float = 0.2
    metrics: str | Mapping[str, str] | None = None
    random_state: Any = None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.target_tags.required = True
        return tags

    def _kind(self, name: str, targets: Targets) -> arrays.Kind:
        """What a target is.

        Raises:
            ValueError: it is nothing that this estimator predicts.
        """
        raise NotImplementedError

    def _balanced(self) -> bool:
        """Whether classes count equally in the loss."""
        return False

    # Fitting ----------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        groups: Any = None,
        eval_set: Any = None,
    ) -> Self:
        """Train the network, or the networks of a recipe with several.

        Args:
            X: [n, d] numbers, NaN where blank; or a data frame, whose columns may also be truth
                values, categories, text and dates.
            y: [n] or [n, targets], a series or a data frame. None, NaN and pandas' NA are no
                label: the row serves the other targets.
            sample_weight: how much each row counts in losses, at least 0, [n]; their scale plays
                no part. A row of weight 0 is taken out beforehand.
            groups: which rows belong together, [n]: no group is divided between training and
                validation.
            eval_set: (X, y) to validate on; all of the other rows then train.

        Raises:
            ValueError: something has another shape or range than said, a target is always the
                same, or a part has no label of a target.
        """
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y "
                "is None."
            )
        X = self._checked(X, reset=True)
        targets = _targets(y)
        check_consistent_length(X, *targets.columns.values(), groups)
        weights = None if sample_weight is None else _weights(sample_weight, len(X))
        codes = None if groups is None else _coded(groups)
        if weights is not None and not weights.all():
            rows = np.flatnonzero(weights)
            X, targets, weights = _rows(X, rows), targets.rows(rows), weights[rows]
            codes = None if codes is None else codes[rows]
        self._names = arrays.input_names(X)
        self._outcomes = self._asked(targets)
        self._single, self._named = targets.single, targets.named
        try:
            state = check_random_state(self.random_state)
        except ValueError as error:
            raise ValueError(f"random_state={quoted(self.random_state)}: {error}") from error
        seed = int(state.randint(APART))
        problem = self._problem(X, targets, weights, codes, eval_set, seed)
        self._train(problem, seed)
        self.target_names_ = list(targets.columns)
        return self

    def _asked(self, targets: Targets) -> tuple[Outcome, ...]:
        names = list(targets.columns)
        metrics = self._metrics(names)
        found = tuple(
            arrays.MAKERS[self._kind(name, targets)](name, cells, metrics.get(name))
            for name, cells in targets.columns.items()
        )
        if len({outcome.target.title for outcome in found}) < len(found):
            raise ValueError(f"two targets would be printed alike: {names}; rename one")
        return found

    def _metrics(self, names: Sequence[str]) -> Mapping[str, str]:
        require_kind("metrics", self.metrics, str | Mapping[str, str] | None)
        if self.metrics is None or isinstance(self.metrics, str):
            return {} if self.metrics is None else dict.fromkeys(names, self.metrics)
        _require_names("metrics", self.metrics, names)
        return self.metrics

    def _problem(
        self,
        X: Any,
        targets: Targets,
        weights: Array | None,
        groups: Array | None,
        eval_set: Any,
        seed: int,
    ) -> Problem:
        """What is trained on: the rows, divided, everything fitted to those that train."""
        table = arrays.input_table(X, self._names)
        count = len(table)
        inputs = arrays.input_readings(X, table)
        labels = {o.name: o.reading(targets.columns[o.name]) for o in self._outcomes}
        if eval_set is not None:
            further, known = self._further(*_pair(eval_set))
            inputs = {
                name: arrays.joined(r, read_alike(r.kind, name, further.columns[name], r.form))
                for name, r in inputs.items()
            }
            labels = {
                o.name: arrays.joined(labels[o.name], o.reading(known.columns[o.name]))
                for o in self._outcomes
            }
            if weights is not None:  # those that validate count alike
                weights = np.concatenate([weights, np.full(len(further), weights.mean())])
        total = len(next(iter(labels.values())).values)
        examined = Examined(
            "the table of X and y",
            total,
            0,
            inputs,
            {o.name: (o.target, labels[o.name]) for o in self._outcomes},
            groups,
            weights=weights,
        )
        whole = TableProblem("", self._question(), examined)
        return whole.made(self._parts(whole, count, eval_set is not None, seed))

    def _further(self, X: Any, y: Any) -> tuple[Table, Targets]:
        """The rows that validate."""
        X = self._checked(X, reset=False)
        targets = self._same_targets(y)
        check_consistent_length(X, *targets.columns.values())
        return arrays.input_table(X, self._names), targets

    def _parts(self, whole: TableProblem, count: int, given: bool, seed: int) -> Parts:
        share = _number("validation_fraction", self.validation_fraction)
        if not 0 <= share < 1:
            raise ValueError(f"validation_fraction={share}: must be at least 0 and below 1")
        rows = torch.arange(count)
        divided = share and not given
        if whole.examined.groups is not None and not divided:
            raise ValueError(
                "groups= says which rows stay together when a part is held out for validation, and "
                f"none is: {'eval_set= is given' if given else 'validation_fraction=0'}"
            )
        if given:
            return Parts.untested(rows, torch.arange(count, whole.examined.rows))
        if not divided:  # what is monitored is the training loss
            return Parts.untested(rows, rows)
        return whole.pool.apart(share, seed)

    def _question(self) -> Question:
        shape = Shape(
            _whole("width", self.width),
            _count("depth", self.depth),
            _whole("head", self.head),
            _number("dropout", self.dropout),
            self.activation,
        )
        batch = _whole("batch_size", self.batch_size)
        if batch is not None and batch < 1:
            raise ValueError(f"batch_size={batch}: must be at least 1 row, or None")
        return Question(network=str(shape), batch=batch, balance=self._balanced())

    def _train(self, problem: Problem, seed: int) -> None:
        given = np.atleast_1d(np.asarray(self.learning_rate, dtype=object)).tolist()
        rates = tuple(_number("learning_rate", rate) for rate in given)
        if not rates or not all(0 < rate < np.inf for rate in rates):
            told = quoted(self.learning_rate)
            raise ValueError(f"learning_rate={told}: must be a positive number, or several")
        settings = Settings.suggested(
            problem,
            seeds=(seed,),
            rates=rates,
            epochs=_whole("epochs", self.epochs),
            patience=_whole("patience", self.patience),
            optimizer=self.optimizer,
            observe_every=0,
            references="none",
        )
        problem.check_labels(parts=("train",))
        try:
            self.constants_: dict[str, Tensor] = constants(problem)
        except ValueError as error:
            raise ValueError(
                f"{error}: perhaps one class alone is among them; hold out another part "
                "(random_state, validation_fraction), or give eval_set"
            ) from error
        self.trained_ = train_in_memory(settings, self.recipe)
        self.prepared_ = cast(Prepared, problem.preparation)
        self.n_iter_ = max(trained.records[-1].epoch for trained in self.trained_)

    # Using ------------------------------------------------------------------------------------

    def _checked(self, X: Any, reset: bool) -> Any:
        """The inputs as scikit-learn wants them: a data frame, or float64 [n, d]."""
        least = 2 if reset else 1  # one row cannot both train and validate
        X = arrays.unmasked(X)
        if not is_frame(X):
            return self._matrix(X, reset, least)
        validate_data(self, X=X, skip_check_array=True, reset=reset)
        if len(X) < least or not X.shape[1]:
            raise ValueError(
                f"X is a data frame of {len(X)} sample(s) and {X.shape[1]} feature(s): at least "
                f"{least} and 1 are needed"
            )
        return X

    def _matrix(self, X: Any, reset: bool, least: int) -> Any:
        options = {"ensure_all_finite": "allow-nan", "ensure_min_samples": least, "reset": reset}
        try:
            return validate_data(self, X=X, dtype=np.float64, **options)
        except (ValueError, TypeError) as error:
            # Numpy's and scikit-learn's words on what is no number.
            if "convert" in str(error) or "argument must be" in str(error):
                raise type(error)(
                    f"{error}: an array must hold numbers; text, categories and dates can be the "
                    "columns of a pandas data frame"
                ) from error
            raise

    def _same_targets(self, y: Any) -> Targets:
        """Targets as those of `fit`, under their names.

        Raises:
            ValueError: there are more or fewer, or they have other names.
        """
        targets = _targets(y)
        names = [outcome.name for outcome in self._outcomes]
        if len(targets.columns) != len(names):
            raise ValueError(f"y has {len(targets.columns)} targets; in fit it had {len(names)}")
        if self._named and targets.named and list(targets.columns) != names:
            raise ValueError(
                f"y has the targets {', '.join(map(shown, targets.columns))}; in fit it had "
                f"{', '.join(map(shown, names))}, in this order"
            )
        columns = dict(zip(names, targets.columns.values(), strict=True))
        return Targets(columns, targets.single)

    def _outputs(self, X: Any) -> dict[str, Tensor]:
        """What the networks say of each row, by target."""
        check_is_fitted(self, "trained_")
        X = self._checked(X, reset=False)
        predictors = [
            Predictor(self.prepared_, trained.network, trained.tasks) for trained in self.trained_
        ]
        readings, notes = predictors[0].readings(arrays.input_table(X, self._names))
        for note in notes:
            warnings.warn(note, UserWarning, stacklevel=3)
        found: dict[str, Tensor] = {}
        for predictor in predictors:
            found |= predictor.outputs(readings)
        return found

    def _said(self, X: Any) -> list[tuple[Outcome, Array]]:
        """By target: numbers [n], or the probability of each class [n, classes]."""
        outputs = self._outputs(X)
        found = []
        for outcome in self._outcomes:
            title = outcome.target.title
            said = self.prepared_.targets[title].said(outputs[title]).numpy()
            if outcome.target.kind == "boolean":
                said = np.concatenate([1 - said, said], axis=1)
            found.append((outcome, said[:, 0] if outcome.classes is None else said))
        return found

    def predict(self, X: Any) -> Array:
        """Numbers in the unit of their target, and classes as they came in.

        [n] where `y` was [n], else [n, targets]; of objects where targets are of several types.
        """
        answers = [
            said if outcome.classes is None else outcome.classes[said.argmax(axis=1)]
            for outcome, said in self._said(X)
        ]
        if self._single:
            return answers[0]
        if len({answer.dtype.kind for answer in answers}) == 1:
            return np.stack(answers, axis=1)
        mixed = np.empty((len(answers[0]), len(answers)), dtype=object)
        for k, answer in enumerate(answers):
            mixed[:, k] = answer.tolist()
        return mixed

    def skills(self, X: Any, y: Any, sample_weight: Any = None) -> dict[str, float]:
        """The skill in each target, in points: 0 is the best constant, 100 is perfect.

        100 · (constant − metric) / (constant − perfect), where metric and constant are both taken
        on these rows, and the constant was fitted to the training rows (`skill`). NaN where the
        metric is not defined on these rows: no label, or one class alone for the AUC.

        Raises:
            ValueError: `y` has a class that no training row has, or does not fit `X`.
        """
        outputs = self._outputs(X)
        targets = self._same_targets(y)
        check_consistent_length(X, *targets.columns.values())
        weights = None
        if sample_weight is not None:
            weights = _weights(sample_weight, len(next(iter(targets.columns.values()))))
        found = {}
        for outcome in self._outcomes:
            target = self.prepared_.targets[outcome.target.title]
            labels = target.encoded(outcome.reading(targets.columns[outcome.name]), weights)
            task = target.task(SCORES[target.metric], weights is not None)
            output = outputs[target.title]
            constant = self.constants_[target.title].expand_as(output).contiguous()
            metric, zero = task.measured(output, labels), task.measured(constant, labels)
            found[outcome.name] = skill(metric, zero, task)
        return found

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The mean over the targets of `skills`, in points: 0 is the best constant, 100 is perfect.

        Points are the unit of `evenhand.compare`, so that the numbers can stand side by side; what
        scikit-learn does with a score is the same in every unit. R² and accuracy, which have other
        zeros, are had by ``scoring=``. NaN, with a warning, where some target's skill is NaN.
        """
        found = self.skills(X, y, sample_weight)
        if undefined := [name for name, points in found.items() if math.isnan(points)]:
            warnings.warn(
                f"no score: the skill in {', '.join(map(shown, undefined))} is not defined on "
                "these rows (no label, or one class alone)",
                UndefinedMetricWarning,
                stacklevel=2,
            )
        return statistics.fmean(found.values())


class MultiTaskRegressor(MultiTaskBase, RegressorMixin, BaseEstimator):
    """One network for several targets that are numbers.

    Parameters, attributes and methods are those of `MultiTaskEstimator`, without `target_kinds`
    and `balance`. `predict` gives float64 [n, targets], [n] where `y` is [n].

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(200, 3))
        >>> Y = X @ np.array([[1.0, 2.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> model = MultiTaskRegressor(learning_rate=0.02, epochs=20, random_state=0)
        >>> model.fit(X[:150], Y[:150]).predict(X[150:]).shape
        (50, 2)
        >>> model.score(X[150:], Y[150:]) > 80
        True
    """

    def _kind(self, name: str, targets: Targets) -> arrays.Kind:
        if name in targets.categories:
            raise ValueError(
                f"target {shown(name)} is a category: MultiTaskClassifier predicts classes, "
                "MultiTaskEstimator numbers and classes"
            )
        return "numeric"


@dataclass(kw_only=True, eq=False, repr=False)
class MultiTaskClassifier(MultiTaskBase, ClassifierMixin, BaseEstimator):
    """One network for several targets that have classes.

    Parameters, attributes and methods are those of `MultiTaskEstimator`, without `target_kinds`.

    Attributes:
        classes_: the classes of the target, sorted; a list of arrays where `y` is [n, targets].
    """

    balance: bool = False

    def _kind(self, name: str, targets: Targets) -> arrays.Kind:
        return "category"

    def _balanced(self) -> bool:
        return self.balance

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        groups: Any = None,
        eval_set: Any = None,
    ) -> Self:
        """As `MultiTaskEstimator.fit`."""
        super().fit(X, y, sample_weight, groups, eval_set)
        classes = [outcome.classes for outcome in self._outcomes]
        self.classes_ = classes[0] if self._single else classes
        return self

    def predict_proba(self, X: Any) -> Array | list[Array]:
        """The probability of each class, [n, classes], in the order of `classes_`.

        A list with an array for each target where `y` is [n, targets].
        """
        said = [probabilities for _, probabilities in self._said(X)]
        return said[0] if self._single else said


@dataclass(kw_only=True, eq=False, repr=False)
class MultiTaskEstimator(MultiTaskBase, BaseEstimator):
    """One network for several targets, numbers and classes beside each other.

    A target is what its type says: text, truth values, categories, and numbers that are 0 or 1,
    are classes; other numbers are numbers.

    Args:
        recipe: what balances the tasks: a recipe's name, with options or without
            (``"mgda"``, ``"ate-sg(shared=10,own=10)"``), or a `Recipe`. ``"single-task"`` trains a
            network for each target.
        width: of the hidden layers that the targets share; None: from the number of rows.
        depth: how many they are.
        head: the width of each target's own hidden layer, 0 for none; None: half of `width`.
        dropout: after each hidden layer, at least 0 and below 1.
        activation: relu, tanh, gelu, silu or elu.
        optimizer: one of torch.optim, with options or without: ``"adamw(weight_decay=0.01)"``.
        learning_rate: a rate, or several, of which validation chooses one.
        batch_size: rows per batch; None: from the number of rows.
        epochs: the most epochs; None: from the number of rows, 15 to 100. The weights of the epoch
            of the lowest validation loss are kept (the mean over the targets of each loss relative
            to its value before training).
        patience: epochs without improvement after which training stops; None: it does not stop.
        validation_fraction: the part of the rows (of the groups, where there are groups) held out
            for validation where no `eval_set` is given, stratified by classes; 0 holds out none,
            and the epoch of the lowest training loss is kept.
        metrics: what `score` is made of, by target or one for all: rmse, mae, r2; auc, accuracy,
            balanced-accuracy, log-loss, and for two classes also ap, f1, brier. None: rmse for
            numbers, auc for two classes, accuracy for more.
        random_state: of the initial weights, the order of the rows and the part held out. With an
            integer, two fits on one machine are equal bit for bit.
        balance: whether classes count equally in the loss, whatever their numbers.
        target_kinds: "numeric" or "category", by target, where it is not what its type says.

    Attributes:
        n_features_in_: how many inputs there are.
        feature_names_in_: their names, where `X` was a data frame.
        target_names_: the targets, y0, y1, … where `y` had no names.
        target_kinds_: "numeric" or "category", by target.
        classes_: the classes, by target that has classes; an array where `y` is [n].
        trained_: the networks, see `single.Trained`: one, or one for each target.
        prepared_: what makes their inputs of rows and answers of their outputs.
        constants_: the best constant output of each target, fitted to the training rows.
        n_iter_: how many epochs were trained.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> Y = [[a + b, "up" if a > b else "down"] for a, b in X]
        >>> model = MultiTaskEstimator(learning_rate=0.02, epochs=20, random_state=0).fit(X, Y)
        >>> model.target_kinds_
        {'y0': 'numeric', 'y1': 'category'}
        >>> model.predict([[2.0, -2.0]])[0, 1], model.predict_proba(X)["y1"].shape
        ('up', (200, 2))
    """

    balance: bool = False
    target_kinds: Mapping[str, str] | None = None

    def _kind(self, name: str, targets: Targets) -> arrays.Kind:
        said = self.target_kinds or {}
        _require_names("target_kinds", said, list(targets.columns))
        if name in said:
            for kind in arrays.MAKERS:
                if kind == said[name]:
                    return kind
            raise ValueError(
                f"target_kinds: {shown(name)} is {said[name]!r}: must be one of "
                f"{', '.join(arrays.MAKERS)}"
            )
        if name in targets.categories:
            return "category"
        found, word = arrays.kind_by_type(name, targets.columns[name])
        if word:
            warnings.warn(word, UserWarning, stacklevel=2)
        return found

    def _balanced(self) -> bool:
        return self.balance

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        groups: Any = None,
        eval_set: Any = None,
    ) -> Self:
        super().fit(X, y, sample_weight, groups, eval_set)
        classes = {o.name: o.classes for o in self._outcomes if o.classes is not None}
        self.classes_ = classes[self._outcomes[0].name] if self._single and classes else classes
        self.target_kinds_ = {
            o.name: "numeric" if o.classes is None else "category" for o in self._outcomes
        }
        return self

    def _has_classes(self) -> bool:
        return "category" in vars(self).get("target_kinds_", {"": "category"}).values()

    @available_if(_has_classes)  # type: ignore[untyped-decorator]  # scikit-learn has no types
    def predict_proba(self, X: Any) -> Array | dict[str, Array]:
        """The probability of each class, [n, classes], by target that has classes.

        An array where `y` is [n]. There is no such method once all targets are numbers.
        """
        said = {o.name: found for o, found in self._said(X) if o.classes is not None}
        return next(iter(said.values())) if self._single else said


# Arguments ----------------------------------------------------------------------------------------


def _targets(y: Any) -> Targets:
    from scipy.sparse import issparse

    if issparse(y):
        raise TypeError("y is sparse, whose blanks are zeros: give an array, y.toarray()")
    return Targets.of(arrays.unmasked(y))


def _pair(eval_set: Any) -> tuple[Any, Any]:
    """(X, y), also where it is the only one in a list.

    Raises:
        ValueError: it is something else.
    """
    found = eval_set
    if isinstance(found, list) and len(found) == 1:
        (found,) = found
    if not isinstance(found, list | tuple) or len(found) != 2:
        raise ValueError("eval_set must be one pair (X, y)")
    return found[0], found[1]


def _weights(given: Any, count: int) -> Array:
    """Weights of rows, float64 [n].

    Raises:
        ValueError: they have another shape, one is negative or blank, or all are zero.
    """
    weights: Array = check_array(
        given, ensure_2d=False, dtype=np.float64, input_name="sample_weight"
    )
    if weights.shape != (count,):
        raise ValueError(f"sample_weight has the shape {weights.shape}: must be ({count},)")
    if (weights < 0).any():
        raise ValueError(f"sample_weight has negative weights, such as {weights.min():g}")
    if not weights.any():
        raise ValueError("sample_weight: every row has weight zero")
    return weights


def _coded(groups: Any) -> Array:
    """A number for each row that rows of one group share.

    Raises:
        ValueError: a group is blank, or there are several numbers in a row.
    """
    values = np.asarray(groups, dtype=object)
    if values.ndim != 1:
        raise ValueError(f"groups has the shape {values.shape}: must be [n]")
    known = values.tolist()
    if blank := [row for row, value in enumerate(known) if arrays.nothing(value)]:
        raise ValueError(f"groups: row {blank[0]} is blank ({len(blank)} in all)")
    place = {value: code for code, value in enumerate(dict.fromkeys(known))}
    return np.array([place[value] for value in known], dtype=np.int64)


def _rows(X: Any, rows: Array) -> Any:
    return X.iloc[rows] if is_frame(X) else X[rows]


def _require_names(parameter: str, said: Mapping[str, Any], names: Sequence[str]) -> None:
    if unknown := [name for name in said if name not in names]:
        raise ValueError(
            f"{parameter}: there is no target {unknown[0]!r}; there are {', '.join(names)}"
        )


def _number(name: str, value: Any) -> float:
    """A number of Python's or numpy's.

    Raises:
        TypeError: it is none.
    """
    require_kind(name, value, float)
    return float(value)


def _count(name: str, value: Any) -> int:
    """An integer of Python's or numpy's.

    Raises:
        TypeError: it is none.
    """
    require_kind(name, value, int)
    return int(value)


def _whole(name: str, value: Any) -> int | None:
    """The same, or None.

    Raises:
        TypeError: it is neither.
    """
    require_kind(name, value, int | None)
    return None if value is None else int(value)
