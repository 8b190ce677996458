"""Labels: which are missing, what a loss gets of the others, and how they are counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from evenhand import MultiTaskNetwork
from evenhand.comparison.job import Job
from evenhand.comparison.plan import training
from evenhand.comparison.request import Settings
from evenhand.data import LabelCount, Labelling, Problem, Split, Task
from evenhand.training.loop import evaluate
from evenhand.training.stopping import loss_of

NAN = math.nan


class Mean:
    """The mean of |prediction − target|, over everything it is shown."""

    def __init__(self) -> None:
        self.errors: list[float] = []

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.errors += (preds - target).abs().flatten().tolist()

    def compute(self) -> Tensor:
        return torch.tensor(sum(self.errors) / len(self.errors))


class Right:
    """The share of right classes; the classes are −1 and 1."""

    def __init__(self) -> None:
        self.right: list[bool] = []

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.right += (preds.sign() == target).flatten().tolist()

    def compute(self) -> Tensor:
        return torch.tensor(sum(self.right) / len(self.right))


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().mean()


def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.relu(1 - outputs * targets).mean()


class Echo(nn.Module):
    """A head that says its input again, times a parameter that is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.one * x


def echoing(tasks: Sequence[str]) -> MultiTaskNetwork:
    return MultiTaskNetwork(Echo(), {task: Echo() for task in tasks})


def of_targets(inputs: Tensor, tasks: dict[str, Task], **targets: Tensor) -> Problem:
    """A problem whose three parts are the same samples, four to a batch."""
    split = Split(inputs, targets)
    made = Problem("made", "made", "made", tasks, echoing, split, split, split)
    return replace(made, batch_size=4, epochs=2, rates=(0.01,))


# evaluate -------------------------------------------------------------------------------------


def test_a_loss_is_the_mean_over_samples_and_not_over_batches() -> None:
    """Errors 1, 2, 3 | 4, 5, 6 | 7: their mean is 4; that of the batches' means is 14/3."""
    problem = of_targets(
        torch.arange(1.0, 8.0), {"a": Task(absolute, Mean, "error", False)}, a=torch.zeros(7)
    )
    network = echoing(["a"])
    for size in (1, 3, 7, 100):
        assert evaluate(network, problem, problem.test, ["a"], size) == ({"a": 4.0}, {"a": 4.0})


def test_missing_labels_weigh_nothing_in_any_batch() -> None:
    """Of a, errors 1 | 4, 5 | – are left, of b errors 2, 3 | 6 | 7 of which one is 3 too large."""
    tasks = {
        "a": Task(absolute, Mean, "error", False),
        "b": Task(absolute, Mean, "error", False, missing=-9),
    }
    problem = of_targets(
        torch.arange(1.0, 8.0),
        tasks,
        a=torch.tensor([0.0, NAN, NAN, 0.0, 0.0, NAN, NAN]),
        b=torch.tensor([-9, 0, 0, -9, -9, -3, 0]),
    )
    losses, metrics = evaluate(echoing(["a", "b"]), problem, problem.test, ["a", "b"], 3)
    expected = {"a": pytest.approx(10 / 3), "b": pytest.approx(21 / 4)}
    assert losses == expected
    assert metrics == expected


def test_pixels_weigh_alike_in_pictures_of_many_and_of_few_labels() -> None:
    """Pictures of 3 and of 1 labelled pixels in batches of one, errors 1, 1, 1 and 5."""
    target = torch.tensor([[[0.0, 0.0], [0.0, NAN]], [[NAN, 0.0], [NAN, NAN]]])
    pictures = torch.tensor([[[1.0, 1], [1, 9]], [[9, 5], [9, 9]]])
    task = Task(absolute, Mean, "error", False, gaps="entry")
    problem = of_targets(pictures, {"a": task}, a=target)
    for size in (1, 2):
        found = evaluate(echoing(["a"]), problem, problem.test, ["a"], size)
        assert found == ({"a": 2.0}, {"a": 2.0})


def test_a_task_without_a_label_is_in_neither() -> None:
    tasks = dict.fromkeys("ab", Task(absolute, Mean, "error", False))
    problem = of_targets(torch.ones(3), tasks, a=torch.zeros(3), b=torch.full((3,), NAN))
    found = evaluate(echoing(["a", "b"]), problem, problem.test, ["a", "b"])
    assert found == ({"a": 1.0}, {"a": 1.0})


def test_evaluation_leaves_every_module_in_its_mode() -> None:
    problem = of_targets(
        torch.ones(3), {"a": Task(absolute, Mean, "error", False)}, a=torch.zeros(3)
    )
    network = echoing(["a"])
    network.train()
    network.head("a").eval()
    evaluate(network, problem, problem.test, ["a"])
    assert network.training
    assert not network.head("a").training


# What is missing ------------------------------------------------------------------------------


def test_classes_may_be_called_minus_one_and_one() -> None:
    """Predictions of one sign are right for half of them, and not for all that are above zero."""
    task = Task(hinge, Right, "accuracy", True)
    y = torch.tensor([-1, 1, -1, 1])
    problem = of_targets(torch.full((4,), 0.5), {"a": task}, a=y)
    assert evaluate(echoing(["a"]), problem, problem.test, ["a"]) == ({"a": 1.0}, {"a": 0.5})


def test_what_is_called_minus_one_is_counted() -> None:
    y = torch.tensor([[-1], [1], [-1], [0]])
    assert Labelling().count(y) == LabelCount(4, 4, 4)
    assert Labelling(missing=-1).count(y) == LabelCount(4, 2, 2)
    assert Labelling().taken(y, y)[1].flatten().tolist() == [-1, 1, -1, 0]


def test_a_void_pixel_leaves_no_picture_out() -> None:
    """The loss passes over −1 itself; two pictures, of which one has no class but void."""
    loss = partial(functional.cross_entropy, ignore_index=-1)
    scores = torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1).expand(2, 2, 1, 2)
    y = torch.tensor([[[0, -1]], [[-1, -1]]])
    expected = math.log(1 + math.exp(-3))
    plain = Task(loss, Mean, "accuracy", True)
    problem = of_targets(torch.zeros(2), {"a": plain}, a=y)
    found = problem.losses({"a": scores}, {"a": y})
    assert float(found["a"]) == pytest.approx(expected)
    assert problem.label_counts()["a"]["train"] == LabelCount(2, 2, 4)
    told = replace(problem, tasks={"a": replace(plain, missing=-1, gaps="loss")})
    assert float(told.losses({"a": scores}, {"a": y})["a"]) == pytest.approx(expected)
    assert told.label_counts()["a"]["train"] == LabelCount(2, 1, 1, 1)
    assert not told.losses({"a": scores[1:]}, {"a": y[1:]})
    by_entry = replace(
        problem,
        tasks={"a": replace(plain, loss=functional.cross_entropy, missing=-1, gaps="entry")},
    )
    assert float(by_entry.losses({"a": scores}, {"a": y})["a"]) == pytest.approx(expected)
    assert by_entry.label_counts()["a"]["train"] == LabelCount(2, 1, 1, 1)


def test_columns_are_left_out_one_by_one_where_the_task_says_so() -> None:
    y = torch.tensor([[1.0, NAN], [NAN, NAN], [3.0, 5.0]])
    outputs = torch.zeros(3, 2, requires_grad=True)
    whole, single = (
        Task(functional.mse_loss, Mean, "e", False, gaps=g) for g in ("sample", "entry")
    )
    problem = of_targets(torch.zeros(3), {"a": single}, a=y)
    loss = problem.losses({"a": outputs}, {"a": y})["a"]
    assert loss.item() == pytest.approx((1 + 9 + 25) / 3)
    loss.backward()
    assert outputs.grad.tolist() == [
        [pytest.approx(-2 / 3), 0],
        [0, 0],
        [-2, pytest.approx(-10 / 3)],
    ]
    assert problem.label_counts()["a"]["test"] == LabelCount(3, 2, 3, 1)
    whole = replace(problem, tasks={"a": whole})
    assert whole.losses({"a": outputs}, {"a": y})["a"].item() == pytest.approx((9 + 25) / 2)
    assert whole.label_counts()["a"]["test"] == LabelCount(3, 1, 2)


def test_entries_come_in_one_row_whether_some_are_missing_or_none() -> None:
    labels = Labelling(gaps="entry")
    y = torch.arange(12.0).reshape(2, 2, 3)
    scores = torch.stack([y, -y], dim=1)
    found, targets = labels.taken(scores, y)
    assert found.shape == (12, 2)
    assert found[:, 0].tolist() == targets.tolist() == list(range(12))
    with pytest.raises(ValueError, match=r"outputs of the targets' shape \[2, 2, 3\]"):
        labels.taken(torch.zeros(2, 5), y)


def test_what_a_task_says_of_its_labels_is_checked() -> None:
    with pytest.raises(ValueError, match="gaps='pixel': must be one of sample, entry, loss"):
        Task(absolute, Mean, "error", False, gaps="pixel")
    with pytest.raises(TypeError, match="missing='none': must be a number"):
        Task(absolute, Mean, "error", False, missing="none")


# Training -------------------------------------------------------------------------------------


def halves(validation: bool = True) -> Problem:
    """Eight samples in order; a has labels in the first half, b in the second."""
    y = torch.zeros(8)
    tasks = dict.fromkeys("ab", Task(absolute, Mean, "error", False))
    a, b = (torch.where(torch.arange(8) < 4, *v) for v in ((y, NAN), (NAN, y)))
    problem = of_targets(torch.ones(8), tasks, a=a, b=b)
    if not validation:
        without = Split(torch.ones(8), {"a": a, "b": torch.full((8,), NAN)})
        return replace(problem, validation=without)
    return problem


def run_of(problem: Problem, recipe: str, label: str = "", **settings):
    made = training(Job(recipe, label, 0, 0.01), problem, Settings("made", **settings))
    made.stream._permutation = lambda samples, epoch: torch.arange(samples)
    return made


def test_batches_without_a_label_of_the_only_task_are_passed_over() -> None:
    run = run_of(halves(), "single-task", "a", observe_every=1)
    _, one, two = run.run()
    assert one.trains == ("shared", "own")
    assert (one.step, two.step) == (2, 4)
    assert set(one.changes) == {"shared+own|a"}
    assert one.path > 0
    # Of the first step alone: the second is none.
    assert one.losses == {"a": 1.0}
    assert run.network.trunk.one.item() < 1


def test_work_is_counted_by_the_tasks_that_have_labels() -> None:
    """The first batch has none: its work is not taken for that of the others."""

    def linear(tasks: Sequence[str]) -> MultiTaskNetwork:
        return MultiTaskNetwork(nn.Linear(1, 1), {task: nn.Linear(1, 1) for task in tasks})

    problem = halves()
    sides = {
        side: Split(torch.ones(8, 1), {t: problem.train.targets[t][order] for t in "ab"})
        for side, order in (("first", torch.arange(8)), ("last", torch.arange(7, -1, -1)))
    }
    work = {}
    for side, split in sides.items():
        made = replace(problem, network=linear, train=split, validation=split, test=split)
        records = list(run_of(made, "single-task", "a").run())
        work[side] = records[1].flops
    assert work["first"] == work["last"] > 0


def test_a_task_without_validation_labels_is_told_before_training() -> None:
    run = run_of(halves(validation=False), "sg")
    with pytest.raises(ValueError, match="no label of b in the validation part"):
        next(run.run())
    assert run.step == 0


def test_a_part_without_a_label_of_a_task_is_told() -> None:
    halves().check_labels()
    with pytest.raises(ValueError, match=r"task 'b' has no label in the validation part \(8 sam"):
        halves(validation=False).check_labels()


def test_a_task_without_training_labels_is_told_before_training() -> None:
    problem = halves()
    bare = Split(torch.ones(8), {"a": problem.train.targets["a"]})
    run = run_of(replace(problem, train=bare), "sg")
    with pytest.raises(ValueError, match="'b' has no label in the train part"):
        next(run.run())
    alone = run_of(replace(problem, train=bare), "single-task", "a")
    assert next(alone.run()).epoch == 0


def test_a_monitor_of_a_task_needs_no_other() -> None:
    run = replace(run_of(halves(), "sg"), monitor=loss_of("b"))
    assert next(run.run()).monitored == 1.0
