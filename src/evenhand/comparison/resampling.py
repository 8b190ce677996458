"""Test metrics on resampled rows: how far they would be off on other rows like these.

Which rows are drawn depends on the split alone, so every network of a split is scored on the same
draws and differences between them are paired. Where test samples share a subject or a picture,
subjects are drawn instead, with all their rows; where it is only known how many independent things
they are made of, as many rows are drawn as there are of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from evenhand.comparison.constant import evaluated
from evenhand.comparison.request import Settings
from evenhand.data.problem import Problem, Split, gathered
from evenhand.network import MultiTaskNetwork, leaves
from evenhand.schedules import mixed_seed

DRAWS = 200
"""How many times the test rows are drawn: a standard error to within some 5 %."""
MOST = 100_000_000
"""The most numbers of test outputs that are kept in memory for it."""


def resampled(
    network: MultiTaskNetwork, problem: Problem, tasks: Sequence[str], split: int
) -> dict[str, tuple[float, ...]]:
    """Each task's test metric on `DRAWS` draws of the test rows; nothing where that cannot be.

    It cannot where the outputs are more than memory should hold, or batches leave tasks out.
    """
    kept = _outputs(network, problem, tasks)
    if kept is None:
        return {}
    outputs, targets = kept
    said = MultiTaskNetwork(nn.Identity(), {task: _Said(outputs[task]) for task in tasks})
    apart = problem.with_own_heads()
    found: dict[str, list[float]] = {task: [] for task in tasks}
    count = len(problem.test)
    size = min(count, problem.units[1]) if problem.units is not None else count
    for draw in range(DRAWS):
        rows = _drawn(count, size, problem.test_groups, mixed_seed(split, draw, *b"rows"))
        samples = Split(rows, {task: gathered(targets[task], rows) for task in tasks})
        for task, value in evaluated(said, apart, samples, tasks).items():
            found[task].append(value)
    return {task: tuple(values) for task, values in found.items()}


def rows_resampled(problem: Problem, settings: Settings) -> bool:
    """Whether the spread over test rows is wanted: splits show it where they draw new rows."""
    return settings.splits == 1 or problem.official_test


def said(
    problem: Problem, outputs: Mapping[str, tuple[Tensor, Tensor]]
) -> tuple[MultiTaskNetwork, Problem]:
    """A network that says what was said before, and the problem whose samples are row numbers.

    It has a head of each task's name, and that is what the tasks of this problem read.

    Args:
        problem: its validation and test parts are held in memory.
        outputs: by task, of the validation and of the test rows.
    """
    network = MultiTaskNetwork(
        nn.Identity(), {task: _Said(torch.cat(both)) for task, both in outputs.items()}
    )
    parts, start = [], 0
    for part in (problem.validation, problem.test):
        if not isinstance(part, Split):
            raise ValueError(f"{problem.name}: its parts are not held in memory")
        rows = torch.arange(start, start + len(part))
        parts.append(Split(rows, part.targets))
        start += len(part)
    return network, replace(problem.with_own_heads(), validation=parts[0], test=parts[1])


class _Said(nn.Module):
    """Row numbers [b] -> what was said of these rows."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, rows: Tensor) -> Tensor:
        return gathered(self.outputs, rows)


def _drawn(count: int, size: int, groups: Tensor | None, seed: int) -> Tensor:
    """Rows drawn with replacement, int64: `size` of them, or whole groups if there are any."""
    generator = torch.Generator().manual_seed(seed)
    if groups is None:
        return torch.randint(count, (size,), generator=generator)
    names, of_row = torch.unique(groups, return_inverse=True)
    members = torch.split(torch.argsort(of_row, stable=True), torch.bincount(of_row).tolist())
    chosen = torch.randint(len(names), (len(names),), generator=generator).tolist()
    return torch.cat([members[k] for k in chosen])


@torch.no_grad()
def _outputs(
    network: MultiTaskNetwork, problem: Problem, tasks: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """Outputs and targets of all samples, on the CPU; None if they are too many, or not of all."""
    outputs: dict[str, list[Tensor]] = {task: [] for task in tasks}
    targets: dict[str, list[Tensor]] = {task: [] for task in tasks}
    network.eval()
    samples = problem.test
    for inputs, labels in samples.in_order(1024):
        heads = network(inputs, tasks=problem.heads(tasks))
        said = {task: problem.read(task, heads) for task in tasks}
        if not all(task in labels and isinstance(said[task], Tensor) for task in tasks):
            return None
        here = len(leaves(inputs)[0])
        size = sum(said[task].numel() + labels[task].numel() for task in tasks)
        if size / here * len(samples) > MOST:
            return None
        for task in tasks:
            outputs[task].append(said[task].cpu())
            targets[task].append(labels[task].cpu())
    return (
        {task: torch.cat(parts) for task, parts in outputs.items()},
        {task: torch.cat(parts) for task, parts in targets.items()},
    )
