"""Metrics of tables: in the column's unit, weighted where rows have weights.

Answers and labels are collected and scored at once by scikit-learn, since a mean over batches is
not the metric for most of them. What is not defined (no positive among the labels) is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
Function = Callable[[Array, Array, Array | None], float]
"""(labels [n, ...], answers [n, ...], weights [n] or None) -> the metric."""


@dataclass(frozen=True)
class Score:
    """A metric.

    Attributes:
        title: in tables.
        higher_is_better: whether a larger one is better.
        functions: how it is computed, for each kind of target that has it.
        in_unit: whether it has the unit of the column.
    """

    title: str
    higher_is_better: bool
    functions: Mapping[str, Function]
    in_unit: bool = False


class Collected:
    """A metric over all that it is shown.

    Args:
        function: what scores labels and answers.
        answer: turns a network's outputs into answers.
        weighted: whether the last column of a target is the weight of its row.
        factor: what the metric is multiplied with: the column's unit.
    """

    def __init__(
        self,
        function: Function,
        answer: Callable[[Tensor], Tensor],
        weighted: bool = False,
        factor: float = 1.0,
    ) -> None:
        self._function, self._answer = function, answer
        self._weighted, self._factor = weighted, factor
        self._answers: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Show outputs [b, ...] and targets [b, ...]."""
        self._answers.append(self._answer(preds.detach().double()).cpu())
        self._labels.append(target.cpu())

    def compute(self) -> Tensor:
        """The metric, float64; NaN where it is not defined."""
        labels = torch.cat(self._labels).numpy()
        answers = torch.cat(self._answers).numpy()
        weights = None
        if self._weighted:
            labels, weights = labels[:, :-1], labels[:, -1]
        if not np.isfinite(answers).all():
            return torch.tensor(torch.nan, dtype=torch.float64)
        value = self._factor * self._function(labels, answers, weights)
        return torch.tensor(value, dtype=torch.float64)


# Numbers ----------------------------------------------------------------------------------------


def _rmse(labels: Array, answers: Array, weights: Array | None) -> float:
    return float(np.sqrt(np.average((answers[:, 0] - labels[:, 0]) ** 2, weights=weights)))


def _mae(labels: Array, answers: Array, weights: Array | None) -> float:
    return float(np.average(np.abs(answers[:, 0] - labels[:, 0]), weights=weights))


def _r2(labels: Array, answers: Array, weights: Array | None) -> float:
    mean = np.average(labels[:, 0], weights=weights)
    spread = np.average((labels[:, 0] - mean) ** 2, weights=weights)
    wrong = np.average((answers[:, 0] - labels[:, 0]) ** 2, weights=weights)
    return float(1 - wrong / spread) if spread > 0 else float("nan")


# Yes or no: answers are probabilities [n, 1] ------------------------------------------------------


def _both(labels: Array) -> bool:
    return bool((labels == 0).any() and (labels == 1).any())


def _binary_auc(labels: Array, answers: Array, weights: Array | None) -> float:
    from sklearn.metrics import roc_auc_score

    if not _both(labels):
        return float("nan")
    return float(roc_auc_score(labels[:, 0], answers[:, 0], sample_weight=weights))


def _binary_ap(labels: Array, answers: Array, weights: Array | None) -> float:
    from sklearn.metrics import average_precision_score

    if not (labels == 1).any():
        return float("nan")
    return float(average_precision_score(labels[:, 0], answers[:, 0], sample_weight=weights))


def _binary_accuracy(labels: Array, answers: Array, weights: Array | None) -> float:
    return float(np.average((answers[:, 0] > 0.5) == (labels[:, 0] == 1), weights=weights))


def _binary_balanced(labels: Array, answers: Array, weights: Array | None) -> float:
    return _recalls(labels[:, 0], (answers[:, 0] > 0.5).astype(float), weights)


def _binary_f1(labels: Array, answers: Array, weights: Array | None) -> float:
    said, true = answers[:, 0] > 0.5, labels[:, 0] == 1
    w = np.ones(len(true)) if weights is None else weights
    both, either = w[said & true].sum(), w[said].sum() + w[true].sum()
    return float(2 * both / either) if either > 0 else float("nan")


def _binary_log(labels: Array, answers: Array, weights: Array | None) -> float:
    right = np.where(labels[:, 0] == 1, answers[:, 0], 1 - answers[:, 0])
    return float(np.average(-np.log(right.clip(1e-15)), weights=weights))


def _binary_brier(labels: Array, answers: Array, weights: Array | None) -> float:
    return float(np.average((answers[:, 0] - labels[:, 0]) ** 2, weights=weights))


# Classes: answers are probabilities [n, k], labels are numbers of classes, [n] or [n, 1] -------


def _flat(labels: Array) -> npt.NDArray[np.int64]:
    return labels.reshape(-1).astype(np.int64)


def _recalls(true: Array, said: Array, weights: Array | None) -> float:
    """The mean over the classes that are there of how much of each is found."""
    w = np.ones(len(true)) if weights is None else weights
    found = [w[(true == c) & (said == c)].sum() / w[true == c].sum() for c in np.unique(true)]
    return float(np.mean(found))


def _class_accuracy(labels: Array, answers: Array, weights: Array | None) -> float:
    return float(np.average(answers.argmax(axis=1) == _flat(labels), weights=weights))


def _class_balanced(labels: Array, answers: Array, weights: Array | None) -> float:
    return _recalls(_flat(labels), answers.argmax(axis=1), weights)


def _class_auc(labels: Array, answers: Array, weights: Array | None) -> float:
    """Each class against all others, the mean over the classes."""
    true = _flat(labels)
    each = [
        _binary_auc((true == c).astype(float)[:, None], answers[:, [c]], weights)
        for c in range(answers.shape[1])
    ]
    return float(np.mean(each))


def _class_log(labels: Array, answers: Array, weights: Array | None) -> float:
    right = np.take_along_axis(answers, _flat(labels)[:, None], axis=1)[:, 0]
    return float(np.average(-np.log(right.clip(1e-15)), weights=weights))


# Labels: answers are probabilities [n, k], labels 0 or 1 [n, k] -----------------------------------


def _over_labels(function: Function) -> Function:
    """The mean over the labels for which it is defined."""

    def score(labels: Array, answers: Array, weights: Array | None) -> float:
        each = [
            function(labels[:, [k]], answers[:, [k]], weights)
            for k in range(labels.shape[1])
            if _both(labels[:, k])
        ]
        return float(np.mean(each)) if each else float("nan")

    return score


def _labels_accuracy(labels: Array, answers: Array, weights: Array | None) -> float:
    right = ((answers > 0.5) == (labels == 1)).mean(axis=1)
    return float(np.average(right, weights=weights))


SCORES: Mapping[str, Score] = {
    "rmse": Score("RMSE", False, {"numeric": _rmse}, in_unit=True),
    "mae": Score("MAE", False, {"numeric": _mae}, in_unit=True),
    "r2": Score("R²", True, {"numeric": _r2}),
    "auc": Score(
        "AUC",
        True,
        {"boolean": _binary_auc, "category": _class_auc, "labels": _over_labels(_binary_auc)},
    ),
    "ap": Score("AP", True, {"boolean": _binary_ap, "labels": _over_labels(_binary_ap)}),
    "accuracy": Score(
        "accuracy",
        True,
        {"boolean": _binary_accuracy, "category": _class_accuracy, "labels": _labels_accuracy},
    ),
    "balanced-accuracy": Score(
        "balanced accuracy", True, {"boolean": _binary_balanced, "category": _class_balanced}
    ),
    "f1": Score("F1", True, {"boolean": _binary_f1, "labels": _over_labels(_binary_f1)}),
    "log-loss": Score("log loss", False, {"boolean": _binary_log, "category": _class_log}),
    "brier": Score("Brier score", False, {"boolean": _binary_brier}),
}
"""By the name that asks for them."""
USUAL: Mapping[str, str] = {
    "numeric": "rmse",
    "boolean": "auc",
    "category": "accuracy",
    "labels": "ap",
}
"""What is taken where nothing is asked, by the kind of target."""


def score(name: str, kind: str, column: str) -> Score:
    """The metric called `name` (or the usual one), for a target of this kind.

    Raises:
        ValueError: there is none, or not for such a target.
    """
    known = [key for key, entry in SCORES.items() if kind in entry.functions]
    if name not in known:
        raise ValueError(
            f"metric of {column}: {name!r} must be one of {', '.join(known)}, for a target that is "
            f"{kind}"
        )
    return SCORES[name]
