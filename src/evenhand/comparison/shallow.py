"""scikit-learn's linear models and boosted trees on the same split, for the reference rows.

They are fitted to the labelled training rows, task by task; validation chooses the strength of the
penalty, or the number of trees, by the task's own metric. Their answers take the form of the
network's outputs: numbers, logits of classes, or one logit of a yes or no.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from evenhand.comparison.constant import empty_outputs, evaluated
from evenhand.comparison.resampling import said
from evenhand.data.problem import Problem, Split
from evenhand.network import MultiTaskNetwork
from evenhand.training.loop import evaluate

STRENGTHS = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
"""Of the linear model's penalty: λ of ridge regression, 1 / C of logistic regression."""
TREES = (5, 10, 20, 40, 80, 160)
"""Numbers of boosted trees."""
COLUMNS = 12
"""The most columns of a target to which trees are fitted, one column after the other."""
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Flat:
    """The labelled training rows of a task, and the form of its answers.

    Attributes:
        inputs: [n, d], float64.
        targets: [n] of classes, or [n, c] of numbers.
        shape: of a sample's output.
        kind: "numbers", "classes" or "yes or no".
        weights: of the rows [n], where they have some.
    """

    inputs: Array
    targets: Array
    shape: tuple[int, ...]
    kind: str
    weights: Array | None = None


Predict = Callable[[Array], Tensor]
"""Inputs [n, d] -> outputs [n, …] as a network would give them."""
Models = Callable[[Flat, int], Iterator[Predict]]
"""(task, seed) -> the models to choose from."""


def predictions(problem: Problem, models: Models, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """What the model that validates best says of the validation and test rows, by task.

    A task is left out whose targets or outputs are of no kind that is known here.

    Raises:
        ValueError: the parts are not held in memory.
    """
    validation, test = (_inputs(problem, part) for part in (problem.validation, problem.test))
    found = {}
    for name, empty in empty_outputs(problem).items():
        flat = _flat(problem, name, tuple(empty.shape)) if isinstance(empty, Tensor) else None
        sign = 1.0 if problem.tasks[name].higher_is_better else -1.0
        best = -math.inf
        for predict in models(flat, seed) if flat is not None else ():
            both = predict(validation), predict(test)
            network, spoken = said(problem, {name: both})
            score = sign * evaluated(network, spoken, spoken.validation, (name,))[name]
            if score > best:
                best, found[name] = score, both
    return found


def linear_models(flat: Flat, seed: int) -> Iterator[Predict]:
    """Ridge or logistic regression on standardised inputs, one for each strength."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for strength in STRENGTHS:
        if flat.kind == "numbers":
            model = Ridge(alpha=strength)
        else:
            model = LogisticRegression(C=1 / strength, max_iter=1000)
        pipeline = make_pipeline(StandardScaler(), model)
        weighed = {f"{pipeline.steps[-1][0]}__sample_weight": flat.weights}
        with _quietly():
            pipeline.fit(flat.inputs, flat.targets, **weighed)
        yield _answering(flat, pipeline)


@contextmanager
def _quietly() -> Iterator[None]:
    """What scikit-learn warns of, a fit that has not converged or classes that hardly repeat, makes
    a poorer model, and validation sees it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")
        yield


def _answering(flat: Flat, model: Any) -> Predict:
    if flat.kind == "numbers":
        return lambda x: _numbers(flat, model.predict(x))
    return lambda x: _logits(flat, model.classes_, model.predict_proba(x))


def tree_models(flat: Flat, seed: int) -> Iterator[Predict]:
    """Boosted trees, one model for each number of trees; they are the first of the largest's."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    columns = flat.targets.shape[1] if flat.kind == "numbers" else 1
    if columns > COLUMNS:
        return
    kind = (
        HistGradientBoostingRegressor
        if flat.kind == "numbers"
        else (HistGradientBoostingClassifier)
    )
    targets = flat.targets.T if flat.kind == "numbers" else [flat.targets]
    with _quietly():
        fitted = [
            kind(max_iter=TREES[-1], early_stopping=False, random_state=seed).fit(
                flat.inputs, column, flat.weights
            )
            for column in targets
        ]
    for number in TREES:
        yield _first_trees(flat, fitted, number)


def _first_trees(flat: Flat, models: list[Any], number: int) -> Predict:
    def stage(staged: Iterator[Array]) -> Array:
        last = None
        for k, values in enumerate(staged):
            last = values
            if k + 1 == number:
                break
        return np.asarray(last)

    def predict(x: Array) -> Tensor:
        if flat.kind == "numbers":
            return _numbers(flat, np.stack([stage(m.staged_predict(x)) for m in models], axis=1))
        (model,) = models
        return _logits(flat, model.classes_, stage(model.staged_predict_proba(x)))

    return predict


# Forms of answers -----------------------------------------------------------------------------


def _numbers(flat: Flat, values: Array) -> Tensor:
    found = torch.from_numpy(np.ascontiguousarray(values)).float()
    return found.reshape(len(values), *flat.shape)


def _logits(flat: Flat, classes: Array, probabilities: Array) -> Tensor:
    """Log-probabilities of the classes that were seen, no lower than −30; of the others, −30."""
    found = torch.from_numpy(np.log(probabilities.clip(min=np.exp(-30.0)))).float()
    if flat.kind == "yes or no":
        return (found[:, 1] - found[:, 0]).reshape(-1, *flat.shape)
    full = torch.full((len(found), *flat.shape), -30.0)
    full[:, torch.from_numpy(classes)] = found
    return full


def _flat(problem: Problem, task: str, shape: tuple[int, ...]) -> Flat | None:
    """The task's labelled training rows; None if it is of no kind known here, or says one thing."""
    rows, targets = _labelled(problem, task)
    if not isinstance(problem.train, Split) or not len(rows):
        return None
    inputs = _array(problem.train.inputs[rows])
    weights = None
    if (bare := problem.tasks[task].bare) is not None:
        weights, targets = targets[:, -1].double().numpy(), bare(targets)
    inner = tuple(targets.shape[1:])
    values = set(torch.unique(targets)[:3].tolist())
    if shape == inner and math.prod(inner) == 1 and values == {0, 1}:
        return Flat(inputs, targets.reshape(-1).long().numpy(), shape, "yes or no", weights)
    if shape == inner and len(values) > 1:
        return Flat(
            inputs, targets.reshape(len(targets), -1).double().numpy(), shape, "numbers", weights
        )
    if not targets.is_floating_point() and inner == () and len(shape) == 1 and len(values) > 1:
        return Flat(inputs, targets.numpy(), shape, "classes", weights)
    return None


def _labelled(problem: Problem, task: str) -> tuple[Tensor, Tensor]:
    """Numbers and targets of the training rows that have a label of the task, as it counts them."""
    train = problem.train
    if not isinstance(train, Split):
        raise ValueError(f"{problem.name}: its training part is not held in memory")
    seen = _Seen()
    counting = replace(
        problem.tasks[task],
        metric=lambda: seen,
        loss=lambda output, target: torch.zeros(()),
        heads=None,
    )
    counted = Split(torch.arange(len(train)), {task: train.targets[task]})
    same = MultiTaskNetwork(nn.Identity(), {task: nn.Identity()})
    evaluate(same, replace(problem, tasks={task: counting}), counted, (task,))
    if not seen.rows:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    return torch.cat(seen.rows), torch.cat(seen.targets)


class _Seen:
    """A metric that keeps what it is shown."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.targets: list[Tensor] = []

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.rows.append(preds)
        self.targets.append(target)

    def compute(self) -> Tensor:
        return torch.zeros(())


def _inputs(problem: Problem, part: object) -> Array:
    if not isinstance(part, Split):
        raise ValueError(f"{problem.name}: its parts are not held in memory")
    return _array(part.inputs)


def _array(inputs: Tensor) -> Array:
    return inputs.reshape(len(inputs), -1).double().cpu().numpy()
