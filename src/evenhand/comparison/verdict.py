"""The verdict in sentences: together or apart, for which tasks, how sure, at what cost, what next.

Words follow numbers by fixed rules. With P(worse), P(same) and P(better) of the plain sum against
single-task, by more than the margin:

    TOGETHER, APART                          the probability is at least 95 %, and the 95 % interval
                                             of the difference excludes zero
    EITHER WAY                               the probability is at least 95 %
    the same, PROBABLY                       at least 85 %
    TOGETHER IS NO WORSE                     P(worse) is below 5 %
    APART IS NO WORSE                        P(better) is below 5 %
    CANNOT TELL                              nothing of these

On one split, and by time, nothing is declared; of one task, there is nothing to declare.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evenhand.asking import of_table, option
from evenhand.comparison.assessment import Assessment, Difference, Line
from evenhand.comparison.inference import Interval, half_width_with
from evenhand.comparison.references import LINEAR, NARROW, OWN_EPOCHS, TREES, TUNED, WIDE
from evenhand.comparison.request import BASELINE, REFERENCE
from evenhand.comparison.skill import Design
from evenhand.text import NAME, plain

NAMED = 4
"""The most tasks that a sentence names."""
TOLD = 3
"""The most recipes that beat the sum and have a sentence each."""
SURE, LIKELY = 0.95, 0.85
"""Probabilities from which something is said, and said to be probable."""


@dataclass(frozen=True)
class Verdict:
    """What a comparison says in words.

    Attributes:
        word: the rule that applied, such as "TOGETHER" or "CANNOT TELL".
        headline: its sentence.
        sentences: the evidence.
        advice: what to do next.
        footnotes: what the table's columns are, and what this design can show.
    """

    word: str
    headline: str
    sentences: tuple[str, ...]
    advice: str
    footnotes: tuple[str, ...]


def verdict(found: Assessment) -> Verdict:
    """The words for an assessment."""
    word = _word(found)
    return Verdict(
        word,
        _headline(word, found),
        tuple(_evidence(found)),
        _advice(word, found),
        tuple(_footnotes(found)),
    )


# Numbers as text ------------------------------------------------------------------------------


def signed(value: float, digits: int = 1) -> str:
    """+2.1, −0.4, never −0.0."""
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        text = text.replace("-", "+")
    return text.replace("-", "−")


def spanned(interval: Interval) -> str:
    """−0.4 to +4.6."""
    return f"{signed(interval.low)} to {signed(interval.high)}"


def percent(probability: float) -> str:
    """Whole per cents; never 0 % or 100 % of what is only nearly so."""
    if 0 < probability < 0.01:
        return "below 1 %"
    if 0.99 < probability < 1:
        return "over 99 %"
    return f"{100 * probability:.0f} %"


def joined(names: Sequence[str], most: int = 8) -> str:
    """a, b and c; of many, the first and how many more."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join(", ".join(plain(name, NAME) for name in names).rsplit(", ", 1))


def _points(value: float) -> str:
    return f"{value:g} point{'' if value == 1 else 's'}"


# The headline ---------------------------------------------------------------------------------


def _word(found: Assessment) -> str:
    if not found.judged:
        return "NOTHING TO COMPARE"
    if found.headline is None:
        return "NO VERDICT"
    if _alone(found):
        return "ONE TASK"
    if found.design.kind == "rows":
        return "ONE SPLIT"
    if found.design.kind == "origins":
        return "BY TIME"
    chances = found.headline.chances
    if chances is None:
        return "CANNOT TELL"
    by_word = {
        "TOGETHER": chances.better,
        "APART": chances.worse,
        "EITHER WAY": chances.same,
    }
    likeliest = max(by_word, key=by_word.__getitem__)
    # One side's 95 % alone would be said beside an interval that reaches over zero.
    if by_word[likeliest] >= SURE and (likeliest == "EITHER WAY" or found.headline.shown):
        return likeliest
    if by_word[likeliest] >= LIKELY:
        return f"{likeliest}, PROBABLY"
    if chances.worse < 1 - SURE:
        return "TOGETHER IS NO WORSE"
    if chances.better < 1 - SURE:
        return "APART IS NO WORSE"
    return "CANNOT TELL"


def _alone(found: Assessment) -> bool:
    """Whether there is but one task: together and apart are then the same."""
    return len(found.judged) + len(found.unjudged) == 1


def _headline(word: str, found: Assessment) -> str:
    against = _exceptions(word, found)
    tasks = [task for task in found.judged if task not in against]
    named = _tasks(tasks, found)
    match word:
        case "NOTHING TO COMPARE":
            sentence = "NOTHING TO COMPARE: no row is shown to beat a constant in any task."
        case "NO VERDICT":
            missing = [name for name in (REFERENCE, BASELINE) if not _complete(found, name)]
            sentence = (
                f"NO VERDICT: together or apart is {BASELINE} against {REFERENCE}, and there is "
                f"no {joined(missing, 2)} in every split and task."
            )
        case "ONE TASK":
            sentence = (
                f"ONE TASK: nothing is trained together. {BASELINE} and {REFERENCE} are one and "
                "the same; the table has the other rows."
            )
        case "ONE SPLIT":
            sentence = (
                "ONE SPLIT: nothing is declared. What follows is of this split, for new rows like "
                "these; another split may reverse it."
            )
        case "BY TIME":
            sentence = f"BY TIME, {found.design.splits} origins: each is shown, without interval."
        case "TOGETHER" | "TOGETHER, PROBABLY" | "APART" | "APART, PROBABLY":
            sentence = f"{word}, for {named}."
        case "EITHER WAY" | "EITHER WAY, PROBABLY":
            sentence = f"{word}: no difference that matters, for {named}."
        case _:
            sentence = f"{word}, for {named}."
    if against:
        side = "apart" if word.startswith("TOGETHER") else "together"
        sentence += f" But {joined(list(against), NAMED)} {_does(against)} better {side}."
    return sentence + _not_judged(found)


def _complete(found: Assessment, name: str) -> bool:
    line = found.line(name)
    return line is not None and bool(line.skill.values)


def _does(names: Sequence[str]) -> str:
    return "does" if len(names) == 1 else "do"


def _exceptions(word: str, found: Assessment) -> tuple[str, ...]:
    """The tasks that are shown to go against the headline."""
    sides = {"TOGETHER": -1, "APART": 1}
    side = next((s for name, s in sides.items() if word.startswith(name)), 0)
    return tuple(task for task, d in found.by_task.items() if side and d.shown == side)


def _tasks(names: Sequence[str], found: Assessment) -> str:
    everything = len(found.judged) + len(found.unjudged)
    if len(names) == everything and everything > 1:
        return "both tasks" if everything == 2 else f"all {everything} tasks"
    return joined(list(names)) if len(names) <= NAMED else f"{len(names)} of {everything} tasks"


def _not_judged(found: Assessment) -> str:
    if not found.unjudged or not found.judged:
        return ""
    if len(found.unjudged) > NAMED:
        return f" {len(found.unjudged)} tasks cannot be judged."
    return f" {joined(list(found.unjudged))} cannot be judged."


# The evidence ---------------------------------------------------------------------------------


def _evidence(found: Assessment) -> Iterator[str]:
    yield from _declared(found)
    yield from _exceptional(found)
    yield from _unfinished(found)
    yield from _cost(found)
    yield from _balancing(found)
    yield from _enough(found)
    yield from _unjudged(found)
    yield from _controls(found)
    yield from _shallow(found)


def _declared(found: Assessment) -> Iterator[str]:
    """The comparison that was declared in advance."""
    headline = found.headline
    if headline is None or _alone(found):
        return
    what = f"One network (plain sum) against one per task: {signed(headline.mean)} points of skill"
    if found.design.kind == "origins":
        each = ", ".join(signed(value) for value in headline.points.values.values())
        yield f"{what} on average; origin by origin {each}."
        return
    if headline.interval is None:
        yield f"{what}; how sure that is cannot be told: {_why_not(found)}."
        return
    yield f"{what} (95 %: {spanned(headline.interval)})."
    chances = headline.chances
    if chances is not None:
        yield (
            f"Better {percent(chances.better)}, no difference that matters "
            f"{percent(chances.same)}, worse {percent(chances.worse)}."
        )


def _why_not(found: Assessment) -> str:
    points = found.headline.points if found.headline is not None else None
    if points is None or len(points.values) < found.design.splits:
        return "some split has no result"
    if found.design.too_few:
        what = "splits" if found.design.splits < 3 else "independent units"
        return f"two {what} say next to nothing of a spread"
    if found.design.kind in ("rows", "trainings") and not points.draws:
        return "the test outputs were too many to resample the test rows"
    return "it is the same every time, as where a metric is coarse and test rows are few"


def _exceptional(found: Assessment) -> Iterator[str]:
    """Tasks that are shown to gain or to lose, the largest first; one split shows nothing."""
    if found.design.kind == "rows":
        return
    for sign, what in ((1, "gain"), (-1, "lose")):
        shown = [(task, d) for task, d in found.by_task.items() if d.shown == sign]
        if not shown or len(found.by_task) == 1:
            continue
        shown.sort(key=lambda pair: -abs(pair[1].mean))
        told = [
            f"{task} {signed(d.mean)} ({spanned(d.interval)})" for task, d in shown if d.interval
        ]
        number = "" if len(shown) <= 3 else f"{len(shown)} of {len(found.by_task)} tasks, such as "
        yield f"Shown to {what} together: {number}{joined(told, 4)}."


def _improving(found: Assessment) -> list[str]:
    """Which of the two that are compared were still improving when training ended."""
    lines = (found.line(name) for name in (BASELINE, REFERENCE))
    return [line.name for line in lines if line is not None and line.improving]


def _unfinished(found: Assessment) -> Iterator[str]:
    names = _improving(found)
    if names and found.headline is not None:
        were = "was" if len(names) == 1 else "were"
        yield f"{joined(names)} {were} still improving at the last epoch: more may change this."


def _cost(found: Assessment) -> Iterator[str]:
    """What one network costs, relative to one per task."""
    joint, single = found.line(BASELINE), found.line(REFERENCE)
    if found.headline is None or _alone(found):
        return
    if joint is None or single is None or not single.parameters:
        return
    parts = [f"{_share(joint.parameters / single.parameters)} of the parameters"]
    if joint.flops is not None and single.flops:
        parts.append(f"{joint.flops / single.flops:.2g} x the operations")
    if math.isfinite(joint.processor) and single.processor > 0:
        parts.append(f"{joint.processor / single.processor:.2g} x the processor time")
    yield f"The one network has {joined(parts)}."


def _share(ratio: float) -> str:
    """A ratio in words where it is near a simple one."""
    simple = {1 / 4: "a quarter", 1 / 3: "a third", 1 / 2: "half", 2 / 3: "two thirds"}
    for value, name in simple.items():
        if abs(ratio / value - 1) < 0.05:
            return name
    return f"{100 * ratio:.0f} %"


def _balancing(found: Assessment) -> Iterator[str]:
    """Whether another recipe is shown to beat the plain sum, and which look worse."""
    names = [name for name in found.balancing if name in found.against_sum]
    if not names or found.design.kind in ("origins", "rows") or _alone(found):
        return
    better = _beating(found)
    tuned = found.line(TUNED)
    for name in better[:TOLD]:
        difference = found.against_sum[name]
        line = found.line(name)
        beyond = ""
        if tuned is not None and line is not None and tuned.skill.values:
            ahead = line.skill.mean - tuned.skill.mean
            beyond = f"; against the tuned sum {signed(ahead)}"
        interval = f" ({spanned(difference.interval)})" if difference.interval else ""
        yield f"{name} is shown to beat the sum: {signed(difference.mean)}{interval}{beyond}."
    if len(better) > TOLD:
        others = better[TOLD:]
        are = "is" if len(others) == 1 else "are"
        yield f"{len(others)} more {are} shown to beat it: {joined(others)}."
    yield from _closest(found, names)
    if not better:
        whose = f"{names[0]} is not" if len(names) == 1 else "No other recipe is"
        yield f"{whose} shown to beat the sum{_worse(found, names)}."
    elif worse := _worse(found, names):
        yield f"{worse.removeprefix('; ')}."  # it begins with a recipe's name, which stays as it is


def _closest(found: Assessment, names: Sequence[str]) -> Iterator[str]:
    """Where the sum is behind single-task: the other recipe that is least so."""
    if found.headline is None or found.headline.mean > -found.margin:
        return
    lines = [line for name in names if (line := found.line(name)) is not None]
    behind = [(line.versus, line.name) for line in lines if line.versus is not None]
    if behind:
        versus, name = max(behind, key=lambda pair: pair[0].mean)
        interval = f" ({spanned(versus.interval)})" if versus.interval else ""
        yield (
            f"Of the other recipes {name} comes nearest to single-task: "
            f"{signed(versus.mean)}{interval}."
        )


def _worse(found: Assessment, names: Sequence[str]) -> str:
    sure = [
        (name, chances.worse)
        for name in names
        if (chances := found.against_sum[name].chances) and chances.worse >= SURE
    ]
    if not sure:
        return ""
    told = joined([f"{name} ({percent(p)})" for name, p in sure], 5)
    return f"; {told} look{'s' if len(sure) == 1 else ''} worse"


def _enough(found: Assessment) -> Iterator[str]:
    """Said only where the sum is worse than no recipe by more than the margin, each below 5 %."""
    headline = found.headline
    if headline is None or headline.chances is None:
        return
    rivals = [found.against_sum[name] for name in found.balancing if name in found.against_sum]
    if len(rivals) < len(found.balancing):
        return
    sum_worse = [headline.chances.worse]
    sum_worse += [d.chances.better for d in rivals if d.chances is not None]
    if len(sum_worse) == 1 + len(rivals) and max(sum_worse) < 1 - SURE:
        yield (
            f"The plain sum is enough: that it is worse by more than {_points(found.margin)} has a "
            f"probability {_below(max(sum_worse))}, against each other recipe by itself."
        )


def _below(probability: float) -> str:
    return "below 1 %" if probability < 0.01 else f"of {100 * probability:.0f} % at most"


def _unjudged(found: Assessment) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for task, reason in found.unjudged.items():
        by_reason.setdefault(reason, []).append(task)
    if len(by_reason) > 6:  # counts differ from task to task
        plain: dict[str, list[str]] = {}
        for reason, tasks in by_reason.items():
            plain.setdefault(reason.partition(" (")[0], []).extend(tasks)
        by_reason = plain
    for reason, tasks in by_reason.items():
        yield f"{joined(tasks, NAMED)}: {reason}."


def _controls(found: Assessment) -> Iterator[str]:
    """What else than conflict a difference could be: size, epochs, capacity, weights."""
    single, joint = found.line(REFERENCE), found.line(BASELINE)
    if single is None or joint is None or not joint.skill.values or found.headline is None:
        return
    if _alone(found):
        return
    gap = found.headline.mean
    narrow, wide = found.line(NARROW), found.line(WIDE)
    if narrow is not None and narrow.skill.values:
        at_equal = joint.skill.mean - narrow.skill.mean
        yield f"Against one network per task of the same total size: {signed(at_equal)}."
    else:
        yield "Equal size was not tested."
    if gap < -found.margin:
        for line, what in (
            (wide, "as large as all networks together"),
            (found.line(OWN_EPOCHS), "with an epoch of its own for each task"),
            (found.line(TUNED), "with its weights tuned"),
        ):
            if line is not None and line.skill.values and single.skill.values:
                left = line.skill.mean - single.skill.mean
                yield f"A sum {what} is at {signed(left)} instead of {signed(gap)}."


def _shallow(found: Assessment) -> Iterator[str]:
    """Linear models and trees beside the sum."""
    lines = [found.line(name) for name in (TREES, LINEAR)]
    known = [line for line in lines if line is not None and line.name in found.against_sum]
    if not known or found.design.kind in ("origins", "rows"):
        return
    best = max(known, key=lambda line: line.skill.mean)
    difference = found.against_sum[best.name]
    yield _beside(best, difference, found)


def _beside(line: Line, difference: Difference, found: Assessment) -> str:
    name = {TREES: "Boosted trees", LINEAR: "A linear model"}[line.name]
    lead = abs(difference.mean)
    interval = ""
    if difference.interval is not None:
        low, high = difference.interval.low, difference.interval.high
        if difference.mean < 0:
            low, high = -high, -low
        interval = f" ({spanned(Interval(low, high))})"
    plural = line.name == TREES
    if difference.mean > found.margin:
        return (
            f"{name} lead{'' if plural else 's'} the sum by {lead:.1f}{interval}: use "
            f"{'them' if plural else 'it'} unless you need one network."
        )
    if difference.mean < -found.margin:
        return f"The sum leads {name[0].lower()}{name[1:]} by {lead:.1f}{interval}."
    does = "do" if plural else "does"
    return f"{name} {does} as well as the sum, {signed(difference.mean)}{interval}."


# What next ------------------------------------------------------------------------------------


def _advice(word: str, found: Assessment) -> str:
    steps = [f"train longer ({option('epochs')}) before deciding"] if _improving(found) else []
    if word.startswith(("TOGETHER", "EITHER WAY")):
        beating = _beating(found)
        steps.append(f"keep one network, {f'balanced by {beating[0]}' if beating else 'the sum'}")
        if apart := _exceptions(word, found):
            steps.append(f"{joined(list(apart), 6)} in a network of {_its(apart)} own")
    elif word.startswith("APART"):
        instead = list(_instead(found))
        steps.append(", or one ".join(["one network per task", *instead]))
        if together := _exceptions(word, found):
            steps.append(f"{joined(list(together), 6)} together")
    elif word == "NO VERDICT":
        steps.append(f"put {REFERENCE} and {BASELINE} among the recipes")
    elif word == "ONE SPLIT":
        steps.append(f"{option('splits', 5)} says whether this holds on other splits")
    rare = {
        task: reason
        for task, reason in found.unjudged.items()
        if ("test rows" in reason or "all the same in" in reason)
    }
    for what in ("positives", "rare rows"):
        tasks = [task for task, r in rare.items() if (what == "positives") == (" positive" in r)]
        if tasks:
            steps.append(f"more {what} for {joined(tasks, NAMED)}")
    if word == "NOTHING TO COMPARE":
        steps.append("see whether the inputs say anything about the targets")
        if any("is shown" in reason for reason in found.unjudged.values()):
            steps.append(f"{option('splits', max(5, 2 * found.design.splits))} shows more")
    undecided = word not in ("TOGETHER", "APART", "EITHER WAY")
    headline = found.headline
    measured = headline is not None and headline.estimate is not None
    if word == "CANNOT TELL" and found.design.too_few:
        few = found.design.splits < 3
        steps.append(f"{option('splits', 5)} says how sure this is" if few else "more groups")
    elif headline is not None and not measured and word == "CANNOT TELL":
        steps.append(
            f"more test rows, or a metric that moves with each of them ({of_table('metrics')})"
        )
    if undecided and found.design.kind == "splits" and headline is not None and measured:
        values = list(headline.points.values.values())
        more = 2 * found.design.splits
        half = half_width_with(values, found.design.ratio, more, found.design.units)
        steps.append(f"{option('splits', more)} gives about ±{half:.1f}")
    return f"{'; '.join(steps)}." if steps else ""


def _instead(found: Assessment) -> Iterator[str]:
    """What one network could be that is no worse than one per task by what matters, in the mean."""

    def level(name: str) -> bool:
        line = found.line(name)
        return line is not None and line.versus is not None and line.versus.mean > -found.margin

    if level(WIDE):
        yield "as large as all of them"
    if level(TUNED):
        yield "with tuned weights"
    beating = [name for name in _beating(found) if level(name)]
    if beating:
        yield f"balanced by {beating[0]}"


def _beating(found: Assessment) -> list[str]:
    """The balancing recipes that are shown to beat the plain sum, the furthest ahead first."""
    names = [name for name in found.balancing if name in found.against_sum]
    names = [name for name in names if found.against_sum[name].shown > 0]
    return sorted(names, key=lambda name: -found.against_sum[name].mean)


def _its(names: Sequence[str]) -> str:
    return "its" if len(names) == 1 else "their"


def _freedom(design: Design) -> str:
    number = int(design.freedom)
    return f"{number} degree{'' if number == 1 else 's'} of freedom"


def _footnotes(found: Assessment) -> Iterator[str]:
    design, judged = found.design, found.judged
    scale = "Skill: 0 is the best constant, 100 is perfect, on test rows"
    if judged and found.unjudged:
        some = joined(list(judged)) if len(judged) <= NAMED else f"{len(judged)} tasks"
        scale += f"; the mean is over {some} only"
    yield f"{scale}."
    matters = f'"matters" is {_points(found.margin)}'
    match design.kind:
        case "splits" | "trainings" if design.too_few:
            yield f"No interval is worth printing with one degree of freedom; {matters}."
        case "splits":
            yield (
                f"Intervals by the corrected resampled t, {_freedom(design)}, test to rest "
                f"{design.ratio:.2f}; {matters}."
            )
        case "trainings":
            yield (
                "The test set is fixed. Intervals have the spread over redrawn training parts and "
                f"over resampled test rows, {_freedom(design)}; {matters}."
            )
        case "rows":
            yield "Intervals by a paired bootstrap over the test rows of the one split."
        case _:
            yield "Origins of one history are not draws of anything: there is no interval."
    if found.spread is not None:
        yield (
            f"The declared difference spreads by {found.spread.splits:.1f} points between splits "
            f"and by {found.spread.seeds:.1f} between seeds of a split (standard deviations)."
        )
    if math.isfinite(found.visible) and design.kind != "rows":
        yield f"Visible with this design: differences above {found.visible:.1f} points."
