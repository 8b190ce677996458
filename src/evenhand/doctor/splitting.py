"""Does it help to split where the gradients say so? Only if it beats splitting elsewhere.

Where a conflict is found there are two ways to share less: to give each task its own copy of a
layer, and to train tasks in groups. Gradients propose: the layer in which the corrected cosine is
lowest (in the manner of Shi et al., ICLR 2023, who split the layers with most negative cosines),
and the groups of tasks whose steps help each other most in the look-ahead (Fifty et al., NeurIPS
2021). A proposal counts for something only if it leaves less harm than others of its kind, drawn at
random: other single layers, other groups of the same sizes. Both are scored on held-out losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import torch
from torch import Tensor

from evenhand.comparison.inference import Estimate
from evenhand.comparison.verdict import joined
from evenhand.doctor.diagnose import Diagnosis
from evenhand.doctor.ladder import Experiments
from evenhand.doctor.trials import layers
from evenhand.schedules import mixed_seed

T = TypeVar("T")
OTHERS = 3
"""How many proposals are drawn at random beside the one that gradients make."""


@dataclass(frozen=True)
class Splitting:
    """One way of sharing less, against others of its kind.

    Attributes:
        kind: "layer" or "groups".
        chosen: what gradients propose, in words.
        others: what was drawn at random.
        left: the harm that the proposal leaves, the mean over tasks, in points.
        left_by_others: the same of the others, their mean.
        gain: how much less the proposal leaves, paired by split.
    """

    kind: str
    chosen: str
    others: tuple[str, ...]
    left: Estimate
    left_by_others: Estimate
    gain: Estimate

    @property
    def pays(self) -> bool:
        """Whether the proposal surely leaves less harm than the others."""
        return self.gain.interval().low > 0


def splittings(
    experiments: Experiments, diagnosis: Diagnosis, say: Callable[[str], None]
) -> tuple[Splitting, ...]:
    """Every way of sharing less that this problem allows; none where there is no choice."""
    found = []
    for split in (_by_layer, _by_groups):
        tried = split(experiments, diagnosis, say)
        if tried is not None:
            found.append(tried)
    return tuple(found)


# Layers ---------------------------------------------------------------------------------------


def _by_layer(
    experiments: Experiments, diagnosis: Diagnosis, say: Callable[[str], None]
) -> Splitting | None:
    with torch.random.fork_rng(devices=[]):
        known = layers(experiments.problem.network(experiments.tasks))
    scores = {position: _lowest_cosine(diagnosis, name) for position, name in known.items()}
    if len(known) < 2 or all(math.isinf(score) for score in scores.values()):
        return None
    chosen = min(scores, key=scores.__getitem__)
    rest = _drawn([position for position in known if position != chosen])
    say("one layer of each task's own")
    left = {position: _of_layer(experiments, position) for position in (chosen, *rest)}
    return _compared(
        experiments,
        "layer",
        known[chosen],
        [known[k] for k in rest],
        left[chosen],
        [left[k] for k in rest],
    )


def _lowest_cosine(diagnosis: Diagnosis, layer: str) -> float:
    """Over pairs and looks; infinite where there is no signal."""
    return min(
        (
            estimate.mean
            for look in diagnosis.looks
            for name, agreement in look.layers.items()
            if name == layer or name.startswith(f"{layer}.")
            for estimate in agreement.cosines.values()
            if math.isfinite(estimate.scale)
        ),
        default=math.inf,
    )


def _of_layer(experiments: Experiments, position: int) -> Tensor:
    trials = experiments.each([experiments.ones], own=(position,))
    experiments.trained(trials, False)
    return torch.stack(
        [
            experiments.points(
                split, experiments.chosen(split, [t for t in trials if t.split == split])
            )
            for split in experiments.problems
        ]
    )


# Groups ---------------------------------------------------------------------------------------


Groups = tuple[tuple[int, ...], tuple[int, ...]]


def _by_groups(
    experiments: Experiments, diagnosis: Diagnosis, say: Callable[[str], None]
) -> Splitting | None:
    count = len(experiments.tasks)
    if count < 3 or diagnosis.tasks != experiments.tasks:
        return None
    every = _partitions(count)
    scores = {groups: _affinity(diagnosis, groups) for groups in every}
    chosen = max(every, key=scores.__getitem__)
    sizes = sorted(map(len, chosen))
    rest = _drawn([g for g in every if g != chosen and sorted(map(len, g)) == sizes])
    if not rest:
        return None
    say("tasks in two groups")
    left = {groups: _of_groups(experiments, groups) for groups in (chosen, *rest)}
    names = [_named(experiments.tasks, groups) for groups in (chosen, *rest)]
    return _compared(
        experiments, "groups", names[0], names[1:], left[chosen], [left[g] for g in rest]
    )


def _partitions(count: int) -> list[Groups]:
    """All ways to make two groups of few tasks; of many, those of a random thousand."""
    tasks = range(count)
    if count > 10:
        generator = torch.Generator().manual_seed(mixed_seed(count, *b"groups"))
        sides = torch.randint(0, 2, (1000, count), generator=generator).tolist()
        drawn = list(dict.fromkeys(tuple(k for k in tasks if side[k]) for side in sides))
    else:
        drawn = [c for size in range(1, count) for c in combinations(tasks, size) if 0 in c]
    return [(one, tuple(k for k in tasks if k not in one)) for one in drawn if 0 < len(one) < count]


def _affinity(diagnosis: Diagnosis, groups: Groups) -> float:
    """The mean over tasks of what the others of its group do to its loss, over all looks."""
    tasks = diagnosis.tasks
    total = 0.0
    for group in groups:
        for judged in group:
            falls = [
                look.ahead.fall[tasks[mover], tasks[judged]].mean
                for look in diagnosis.looks
                for mover in group
                if mover != judged
            ]
            total += math.fsum(falls) / len(falls) if falls else 0.0
    return total


def _of_groups(experiments: Experiments, groups: Groups) -> Tensor:
    rows = []
    for split in experiments.problems:
        test: Tensor | None = None
        for group in groups:
            trials = experiments.each([experiments.only(*group)])
            experiments.trained(trials, False)
            of_split = [t for t in trials if t.split == split]
            said = experiments.chosen(split, of_split, tasks=group)
            test = said.clone() if test is None else test
            test[:, list(group)] = said[:, list(group)]
        if test is None:
            raise ValueError("there are no groups")
        rows.append(experiments.points(split, test))
    return torch.stack(rows)


def _named(tasks: Sequence[str], groups: Groups) -> str:
    return " | ".join(joined([tasks[k] for k in group]) for group in groups)


# Chosen against drawn -------------------------------------------------------------------------


def _drawn(candidates: Sequence[T]) -> list[T]:
    generator = torch.Generator().manual_seed(mixed_seed(len(candidates), *b"others"))
    order = torch.randperm(len(candidates), generator=generator).tolist()
    return [candidates[k] for k in order[:OTHERS]]


def _compared(
    experiments: Experiments,
    kind: str,
    chosen: str,
    others: Sequence[str],
    left: Tensor,
    left_by: Sequence[Tensor],
) -> Splitting:
    """From points [splits, blocks, m] of each."""
    mine, theirs = left.mean(-1), torch.stack(list(left_by)).mean(0).mean(-1)
    return Splitting(
        kind,
        chosen,
        tuple(others),
        experiments.estimate(mine),
        experiments.estimate(theirs),
        experiments.estimate(theirs - mine),
    )
