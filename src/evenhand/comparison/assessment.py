"""What a comparison comes to: a line per row, differences with their certainty, tasks judged.

Pure functions of the rows. One comparison is declared in advance and carries the headline, the
plain sum against single-task; all others get intervals that hold at once.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial

from evenhand.comparison.facts import Facts
from evenhand.comparison.inference import Chances, Estimate, Interval
from evenhand.comparison.references import CONSTANT, title
from evenhand.comparison.request import BASELINE, REFERENCE, Settings
from evenhand.comparison.skill import Design, Points, Spread, average, points, spread
from evenhand.comparison.statistics import Row
from evenhand.data.problem import Problem, Task


@dataclass(frozen=True)
class Difference:
    """A difference in points of skill, positive where the first is better.

    Attributes:
        points: its value in each split.
        estimate: None where the design cannot tell how sure it is.
        interval: 95 %; it holds at once with those of the same column.
        chances: of worse, no difference that matters, better; None for one split, for origins,
            and where there is no estimate.
    """

    points: Points
    estimate: Estimate | None = None
    interval: Interval | None = None
    chances: Chances | None = None

    @property
    def mean(self) -> float:
        return self.points.mean

    @property
    def shown(self) -> int:
        """1 where the interval is above zero, −1 where it is below, else 0."""
        if self.interval is None:
            return 0
        return (self.interval.low > 0) - (self.interval.high < 0)


@dataclass(frozen=True)
class Line:
    """A row of the table, on the scale of skill.

    Attributes:
        name: of the recipe or reference.
        reference: whether it stands beside the recipes.
        tasks: its skill in each task that it serves in every split.
        skill: the mean over the tasks that are judged; without values where it lacks one of them.
        versus: against single-task.
        parameters: of all its networks together; 0 where there are none.
        flops: floating-point operations of the training steps, of all its networks together, the
            mean over splits and seeds; None where they were not counted.
        processor: processor seconds, likewise; NaN where they were not measured.
        improving: whether most of its chosen runs were best at the last epoch they could train.
    """

    name: str
    reference: bool
    tasks: Mapping[str, Points]
    skill: Points
    versus: Difference | None = None
    parameters: float = 0.0
    flops: float | None = None
    processor: float = math.nan
    improving: bool = False

    @property
    def title(self) -> str:
        return title(self.name)


@dataclass(frozen=True)
class Assessment:
    """What a comparison comes to.

    Attributes:
        design: what its splits can say.
        seeds: how many in each split.
        margin: the smallest difference that matters.
        constant: each task's metric of the best constant, the mean over splits.
        judged: the tasks that something learns; means are over these.
        unjudged: the others, and why.
        lines: the constant first, then the recipes in the order asked, then the references.
        headline: the plain sum against single-task; None without one of them.
        by_task: likewise in each judged task, simultaneous over the tasks.
        against_sum: each balancing recipe, simultaneous over them, and each reference by itself,
            against the plain sum.
        spread: how much of the headline's comes from splits and how much from seeds; None where
            there is one seed.
    """

    design: Design
    seeds: int
    margin: float
    constant: Mapping[str, float]
    judged: tuple[str, ...]
    unjudged: Mapping[str, str]
    lines: tuple[Line, ...]
    headline: Difference | None
    by_task: Mapping[str, Difference]
    against_sum: Mapping[str, Difference]
    spread: Spread | None = None

    def line(self, name: str) -> Line | None:
        """The line of a recipe or reference, if there is one."""
        return next((line for line in self.lines if line.name == name), None)

    @property
    def balancing(self) -> tuple[str, ...]:
        """The recipes that are neither single-task nor the plain sum."""
        return tuple(
            line.name
            for line in self.lines
            if not line.reference and line.name not in (REFERENCE, BASELINE)
        )

    @property
    def delta_says(self) -> bool:
        """Whether Δm means anything: single-task is shown to beat the constant on every task."""
        single = self.line(REFERENCE)
        return single is not None and all(
            _learned(single.tasks.get(task), self.design) for task in self.constant
        )

    @property
    def visible(self) -> float:
        """The smallest difference of the declared comparison that this design would show."""
        if self.headline is None or self.headline.estimate is None:
            return math.nan
        return self.headline.estimate.half_width()


def assess(
    rows: Sequence[Row],
    references: Sequence[Row],
    problem: Problem,
    settings: Settings,
    facts: Sequence[Facts],
) -> Assessment:
    """Judge a comparison by its rows.

    Raises:
        ValueError: there is no row of the constant, without which there is no scale.
    """
    zero = next((row for row in references if row.recipe == CONSTANT), None)
    if zero is None:
        raise ValueError("without the best constant there is no scale of skill")
    design = Design.of(settings, problem.official_test, facts)
    tasks = problem.tasks
    everyone = [*rows, *(row for row in references if row is not zero)]
    by_row = {row.recipe: _by_task(row, zero, tasks, design) for row in everyone}
    unjudged = _unjudged(by_row, zero, tasks, design, facts, settings.matters)
    judged = tuple(task for task in tasks if task not in unjudged)
    means = {name: _mean(skills, judged) for name, skills in by_row.items()}
    differ = partial(_difference, design=design, margin=settings.matters)
    headline, by_task = _declared(means, by_row, judged, differ)
    epochs = settings.epochs or problem.epochs
    lines = _lines(rows, everyone, by_row, means, differ, epochs)
    return Assessment(
        design,
        len(settings.seeds),
        settings.matters,
        {task: _known_mean(zero.by_split(task)) for task in tasks},
        judged,
        unjudged,
        (_constant_line(zero, tasks, judged, design), *lines),
        headline,
        by_task,
        _against_sum({row.recipe for row in rows}, means, differ),
        _sources(rows, zero, {task: tasks[task] for task in judged}, design),
    )


Differ = Callable[[Points, Points, int], Difference]
"""(first, second, how many intervals hold at once) -> the first against the second."""


def _lines(
    rows: Sequence[Row],
    everyone: Sequence[Row],
    by_row: Mapping[str, Mapping[str, Points]],
    means: Mapping[str, Points],
    differ: Differ,
    epochs: int,
) -> Iterator[Line]:
    """A line for each row but the constant's; intervals against single-task hold at once."""
    names = {row.recipe for row in rows}
    compared = sum(bool(mean.values) for name, mean in means.items() if name != REFERENCE)
    for row in everyone:
        name = row.recipe
        reference = means[REFERENCE] if REFERENCE in names and name != REFERENCE else None
        versus = None if reference is None else differ(means[name], reference, compared)
        last = [result.epoch == epochs for result in row.chosen]
        improving = 2 * sum(last) > len(last)
        beside = name not in names
        yield Line(name, beside, by_row[name], means[name], versus, *_costs(row), improving)


def _declared(
    means: Mapping[str, Points],
    by_row: Mapping[str, Mapping[str, Points]],
    judged: Sequence[str],
    differ: Differ,
) -> tuple[Difference | None, dict[str, Difference]]:
    """The plain sum against single-task: in the mean, and in each judged task."""
    if not {REFERENCE, BASELINE} <= set(means):
        return None, {}
    single, joint = by_row[REFERENCE], by_row[BASELINE]
    both = [task for task in judged if task in single and task in joint]
    by_task = {task: differ(joint[task], single[task], len(judged)) for task in both}
    headline = differ(means[BASELINE], means[REFERENCE], 1)
    return (headline if headline.points.values else None), by_task


def _sources(
    rows: Sequence[Row], zero: Row, judged: Mapping[str, Task], design: Design
) -> Spread | None:
    """How much of the declared difference's spread comes from splits, and how much from seeds."""
    by_name = {row.recipe: row for row in rows}
    if not judged or not {REFERENCE, BASELINE} <= set(by_name):
        return None
    return spread(by_name[BASELINE], by_name[REFERENCE], zero, judged, design.splits)


def _against_sum(
    recipes: Set[str], means: Mapping[str, Points], differ: Differ
) -> dict[str, Difference]:
    """Every other row against the plain sum; balancing recipes at once, references each alone."""
    if BASELINE not in recipes:
        return {}
    others = {n: m for n, m in means.items() if n not in (REFERENCE, BASELINE) and m.values}
    balancing = sum(name in recipes for name in others)
    return {
        name: differ(mean, means[BASELINE], balancing if name in recipes else 1)
        for name, mean in others.items()
    }


def _by_task(row: Row, zero: Row, tasks: Mapping[str, Task], design: Design) -> dict[str, Points]:
    """The skill in each task that has one in every split."""
    found = {name: points(row, zero, name, task) for name, task in tasks.items()}
    return {name: p for name, p in found.items() if len(p.values) == design.splits}


def _mean(skills: Mapping[str, Points], judged: Sequence[str]) -> Points:
    complete = bool(judged) and all(task in skills for task in judged)
    return average([skills[task] for task in judged]) if complete else Points({}, {})


def _difference(
    first: Points, second: Points, comparisons: int, design: Design, margin: float
) -> Difference:
    between = first - second
    estimate = design.estimate(between)
    if estimate is None:
        return Difference(between)
    sure = design.kind in ("splits", "trainings")
    return Difference(
        between,
        estimate,
        estimate.interval(max(1, comparisons)),
        estimate.chances(margin) if sure else None,
    )


def _known_mean(values: Mapping[int, float]) -> float:
    return statistics.fmean(values.values()) if values else math.nan


def _constant_line(
    zero: Row, tasks: Mapping[str, Task], judged: Sequence[str], design: Design
) -> Line:
    skills = _by_task(zero, zero, tasks, design)
    return Line(CONSTANT, True, skills, _mean(skills, judged))


def _costs(row: Row) -> tuple[float, float | None, float]:
    """(parameters, operations, processor seconds) of a row's networks together, mean over runs."""
    runs = [(result.job.split, result.job.seed) for result in row.chosen]
    number = len(set(runs))
    if not number:
        return 0.0, None, math.nan
    works = [result.flops for result in row.chosen]
    known = [work for work in works if work is not None]
    return (
        math.fsum(result.parameters for result in row.chosen) / number,
        math.fsum(known) / number if len(known) == len(works) else None,
        math.fsum(result.processor for result in row.chosen) / number,
    )


# Which tasks are judged -----------------------------------------------------------------------


def _unjudged(
    by_row: Mapping[str, Mapping[str, Points]],
    zero: Row,
    tasks: Mapping[str, Task],
    design: Design,
    facts: Sequence[Facts],
    margin: float,
) -> dict[str, str]:
    """The tasks that cannot be judged, and why."""
    found = {}
    for name in tasks:
        told = _told(name, facts)
        same = sum(f.test[name].values == 1 for f in facts if name in f.test)
        if same:
            where = "" if same == len(facts) else f" in {same} of {len(facts)} splits"
            found[name] = f"its test targets are all the same{where}"
        elif any(f.test[name].count == 0 for f in facts if name in f.test):
            found[name] = "a test part has no label of it"
        elif len(zero.by_split(name)) < design.splits:
            found[name] = _reason("its metric is not defined on a test part", told)
        elif not any(_learned(skills.get(name), design) for skills in by_row.values()):
            best = max((s[name].mean for s in by_row.values() if name in s), default=0.0)
            if best > margin:  # it may well be learned: these splits do not show it
                shown = f"best skill {best:.1f}, its interval reaches zero"
                found[name] = _reason("nothing is shown to beat a constant", shown, told)
            else:
                found[name] = _reason("nothing beats a constant", told)
    return found


def _reason(what: str, *details: str) -> str:
    known = "; ".join(detail for detail in details if detail)
    return f"{what} ({known})" if known else what


def _learned(skill: Points | None, design: Design) -> bool:
    """Whether the interval of a row's skill is above zero.

    It is that of one row, however many there are: a task that is let in by chance adds nothing to
    a mean difference but noise.
    """
    if skill is None or not skill.values:
        return False
    estimate = design.estimate(skill)
    if estimate is None:
        return min(skill.values.values()) > 0
    return estimate.interval().low > 0


RARE = 100
"""Fewer test rows of the rarest class are worth telling where a task is not judged, if they are
also fewer than half of what classes of equal size would have."""


def _told(task: str, facts: Sequence[Facts]) -> str:
    """How rare the rarest class of a task's test rows is, where that is worth telling."""
    known = [f.test[task] for f in facts if task in f.test]
    rare = [
        (t.rarest, t.count, t.rarest_value)
        for t in known
        if t.rarest is not None and t.values is not None and 2 * t.rarest * t.values < t.count
    ]
    few, count, value = min(rare, default=(RARE, 0, ""))
    if few >= RARE:
        return ""
    names = {"1": "positive", "0": "negative"}
    what = f"{names[value]}{'' if few == 1 else 's'}" if value in names else f"of class {value}"
    return f"{few:,} {what} in {count:,} test rows"
