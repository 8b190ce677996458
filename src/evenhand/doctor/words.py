"""Findings in plain sentences: the verdict first, then its evidence, then what would change it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evenhand.asking import option
from evenhand.comparison.inference import Estimate
from evenhand.comparison.verdict import joined, percent, signed, spanned
from evenhand.doctor.agreement import Agreement
from evenhand.doctor.diagnose import Diagnosis
from evenhand.doctor.examine import Examination
from evenhand.doctor.ladder import (
    ALL,
    HALF,
    OWN,
    RUNGS,
    STANDARDISED,
    TOGETHER,
    TUNED,
    Ladder,
)
from evenhand.doctor.looks import Look
from evenhand.doctor.splitting import Splitting

APART = 10.0
"""Losses or gradients whose sizes differ by more than this factor are of different scales."""
LITTLE = 5.0
"""Points of the constant's loss: a network that takes away less has learned next to nothing."""

HEADLINES = {
    "none": "THE PLAIN SUM IS ENOUGH: no task is better off in a network of its own.",
    "conflict": "CONFLICT: tasks are better apart, and none of the usual remedies changes that.",
    "scale": "SCALE: tasks are better apart than in the plain sum, and not in a weighted one.",
    "own epochs": "OWN EPOCHS: tasks are better apart because they are best at different times.",
    "time": "TIME: tasks are better apart because the joint network is not trained long enough.",
    "capacity": "CAPACITY: tasks are better apart because the joint network is too small.",
    "several": "SEVERAL CAUSES: a larger, weighted, longer trained joint network is as good as "
    "networks apart; none of this suffices by itself.",
    "labels": "LABELS: tasks are better apart, and the less so, the more labels there are.",
    "cannot tell": "CANNOT TELL.",
}
ADVICE = {
    "none": "Train the plain sum. A balancing method has nothing to repair here.",
    "conflict": "Train the tasks apart, or share less: fewer layers, or in groups. A balancing "
    "method chooses who bears the cost, and does not remove it.",
    "scale": "Divide each loss by that of the best constant, once, or tune fixed weights; that is "
    "enough. Methods that adapt weights do the same at a higher price.",
    "own epochs": "Keep the weights of each task's own best epoch, or give tasks their own rates.",
    "time": "Train longer before anything else.",
    "capacity": "Widen the network before you balance anything.",
    "several": "Widen the network, divide the losses by the constant's and train longer, together.",
    "labels": "More labels would help more than any method. Until then, train the tasks apart.",
    "cannot tell": "",
}
CHANGE = {
    "none": "A harm below the margin may be there; more data or splits would show it.",
    "conflict": "A remedy that is not on the ladder, or a much larger network.",
    "scale": "Harm that is left when the weights are tuned on more data.",
    "own epochs": "Harm that is left when each task has its own epoch, on more data.",
    "time": "Harm that comes back after still longer training.",
    "capacity": "Harm that comes back in the wider network with more data.",
    "several": "Harm that comes back with all of them, on more data.",
    "labels": "Harm that stays when labels are added.",
    "cannot tell": "More splits ({splits}), or more data.",
}


@dataclass(frozen=True)
class Words:
    """What is told.

    Attributes:
        headline: the verdict.
        evidence: sentences.
        advice: what to do, with the reason.
        change: what would change the verdict.
    """

    headline: str
    evidence: tuple[str, ...]
    advice: str
    change: str


def words(found: Examination) -> Words:
    """The sentences for an examination."""
    evidence = [*_of_ladder(found), *_of_looks(found), *_of_counts(found), *_of_costs(found)]
    evidence += found.sampled
    if found.ladder is None:
        advice = _advice_unverified(found)
        verify = option("verify", True)
        headline = "NO VERDICT YET: gradients are evidence, and held-out losses decide"
        return Words(f"{headline} ({verify}).", tuple(evidence), advice, f"What {verify} finds.")
    cause = found.ladder.cause
    headline = HEADLINES[cause]
    if cause == "cannot tell":
        headline = _unclear(found.ladder)
    advice = ADVICE[cause] or _advice_unclear(found.ladder)
    advice += "".join(_enough(one, found.ladder) for one in found.splittings)
    if cause == "labels":
        advice += _noise_or_few(found)
    change = CHANGE[cause].format(splits=option("splits"))
    if _by_time(found.ladder):
        how = option("design", "hold-out")
        change = f"Splits that are not by time ({how}), if the rows allow it."
    return Words(headline, tuple(evidence), advice, change)


NOISY, CLEAN = 0.5, 0.1
"""Shares of the labels' variance among equal inputs that are much, and little."""


def _noise_or_few(found: Examination) -> str:
    """Which of the two it is, where samples with equal inputs tell."""
    if found.ladder is None:
        return ""
    harmed = found.ladder.harmed or found.tasks
    shares = [found.description.tasks[task].unexplained for task in harmed]
    known = [share for share in shares if share is not None]
    if len(known) == len(shares) and min(known) > NOISY:
        return " Equal inputs have different labels: it is noise, and cleaner labels would help."
    if len(known) == len(shares) and max(known) < CLEAN:
        return " Equal inputs have equal labels: they are too few, and hardly noisy."
    return " Whether they are too few or too noisy these data do not tell."


def _by_time(ladder: Ladder) -> bool:
    """Whether the splits say nothing of chance."""
    return all(math.isinf(estimate.scale) for estimate in ladder.rungs[TOGETHER].harm.values())


# The ladder -----------------------------------------------------------------------------------


def _unclear(ladder: Ladder) -> str:
    if not ladder.harmful:
        return "CANNOT TELL: whether a task is better apart is not clear from these data."
    return "BETTER APART, AND THE CAUSE CANNOT BE TOLD from these data."


def _advice_unclear(ladder: Ladder) -> str:
    if not ladder.harmful:
        return "Keep the plain sum, which costs least, until more data or splits tell."
    return "Train the tasks apart; what else would help is not clear."


def _of_ladder(found: Examination) -> Iterator[str]:
    ladder = found.ladder
    if ladder is None or found.effort is None:
        return
    margin = ladder.thresholds.margin
    yield (
        f"Harm is how much more of the best constant's loss is left on test rows together than "
        f"apart, in points; {margin:g} points matter. {found.effort.splits} splits."
    )
    taken = [f"{task} {estimate.mean:.0f}" for task, estimate in ladder.learned.items()]
    yield f"Of 100 points, networks apart take away: {joined(taken)}."
    idle = [task for task, estimate in ladder.learned.items() if estimate.mean < LITTLE]
    if idle:
        yield f"Apart as well, next to nothing is learned of {joined(idle)}."
    yield f"Together: {_harms(ladder, TOGETHER)}."
    if _by_time(ladder):
        yield "The splits follow one another in time: how sure this is they do not say."
    if ladder.harmful and not ladder.harmed:
        yield "Which task bears it differs from split to split; on average it is sure."
    for name in RUNGS:
        if name in ladder.rungs:
            yield f"{QUESTION[name]} {_answer(ladder, name)}: {_harms(ladder, name)}."
    if HALF in ladder.rungs:
        said = "It fades with more labels" if ladder.fades else "It does not fade with more labels"
        yield f"On half of the training rows: {_harms(ladder, HALF)}. {said}."
    for one in found.splittings:
        yield _splitting(one)
    for name, why in ladder.untested.items():
        yield f"Not tested: {name}, since {why}. Conflict is not claimed without it."


def _enough(one: Splitting, ladder: Ladder) -> str:
    """What to do about a way of sharing less that surely leaves too little to matter."""
    if one.left.interval().high >= ladder.thresholds.margin:
        return ""
    if one.kind == "layer":
        which = one.chosen if one.pays else f"{one.chosen}, or of another,"
        return f" A copy per task of the layer {which} leaves too little to matter."
    return f" Two networks, for {one.chosen}, leave too little to matter."


def _splitting(one: Splitting) -> str:
    what = {"layer": "A copy per task of the layer", "groups": "Trained in the groups"}[one.kind]
    others = f"the others that were tried ({'; '.join(one.others)})"
    verdict = (
        "the choice by gradients is better than chance"
        if one.pays
        else "the choice by gradients is not shown to be better than chance"
    )
    return (
        f"{what} {one.chosen} leaves {_spanned(one.left, 1)} points on average; {others} leave "
        f"{_spanned(one.left_by_others, 1)}: {verdict}."
    )


QUESTION = {
    TUNED: "With weights chosen on validation",
    STANDARDISED: "With losses divided by the constant's",
    OWN: "With each task's own epoch",
    "longer": "Trained twice as long",
    "wider": "Twice as large as all networks apart",
    ALL: "All of these at once",
}


def _answer(ladder: Ladder, name: str) -> str:
    if ladder.cures(name):
        return "the harm is gone"
    return "the harm is still there" if ladder.survives(name) else "it is not clear"


def _harms(ladder: Ladder, name: str) -> str:
    harm = ladder.rungs[name].harm
    return joined([f"{task} {_spanned(estimate, len(harm))}" for task, estimate in harm.items()])


def _spanned(estimate: Estimate, comparisons: int) -> str:
    if not math.isfinite(estimate.mean):
        return "diverged"
    if math.isinf(estimate.scale):
        return signed(estimate.mean)
    return f"{signed(estimate.mean)} ({spanned(estimate.interval(comparisons))})"


# Gradients ------------------------------------------------------------------------------------


def gradient_sentences(found: Diagnosis) -> Iterator[str]:
    """What the looks say."""
    first, last = found.looks[0], found.looks[-1]
    yield from _scales(first)
    for at in found.looks:
        when = "as it is" if len(found.looks) == 1 else f"after {at.step} steps"
        yield f"Gradients between different batches, {when}: {_agreements(at.whole)}."
    if last.metric is not None:
        yield f"In the optimizer's metric at the last look: {_agreements(last.metric)}."
    if found.without_signal:
        yield f"No signal at any look: {joined(found.without_signal)}."
    noisy = [pair for pair, r in last.whole.shared_noise.items() if abs(r) > 0.3]
    for a, b in noisy:
        r = last.whole.shared_noise[a, b]
        yield (
            f"The noise of {a} and {b} on one batch is correlated ({signed(r, 2)}), and is part of "
            f"their cosine on one batch ({signed(last.whole.same_batch[a, b], 2)})."
        )
    worst = _worst_layer(last)
    if worst:
        yield worst
    for mover, judged in found.harmful_steps:
        fall = last.ahead.fall[mover, judged]
        yield (
            f"A step of {mover} raises the loss of {judged} on a fresh batch by "
            f"{-fall.mean:.2g} % (sure)."
        )


def _scales(at: Look) -> Iterator[str]:
    for what, values in (("losses", at.losses), ("gradient norms", at.norms)):
        sizes = {task: abs(value) for task, value in values.items() if value}
        if len(sizes) < 2:
            continue
        large, small = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
        ratio = sizes[large] / sizes[small]
        if ratio > APART:
            yield f"At the start {what} differ by a factor of {ratio:.3g} ({large} over {small})."


def _agreements(at: Agreement) -> str:
    parts = []
    if at.aligned:
        parts.append(f"{_pairs(at.aligned)} agree")
    if at.opposed:
        parts.append(f"{_pairs(at.opposed)} oppose each other")
    rest = [pair for pair in at.cosines if pair not in {*at.aligned, *at.opposed}]
    if rest:
        parts.append(f"{_pairs(rest)} neither surely agree nor oppose")
    silent = [task for task, told in zip(at.tasks, at.signal, strict=True) if not told]
    if silent:
        parts.append(f"no signal of {joined(silent)}")
    return "; ".join(parts)


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return joined([f"{a} with {b}" for a, b in pairs], most=4)


def _worst_layer(at: Look) -> str:
    opposed = {
        layer: min(found.cosines[pair].mean for pair in found.opposed)
        for layer, found in at.layers.items()
        if found.opposed
    }
    if not opposed:
        return ""
    layer = min(opposed, key=opposed.__getitem__)
    return f"They oppose each other most in {layer} (cosine {signed(opposed[layer], 2)})."


def _of_looks(found: Examination) -> Iterator[str]:
    if found.diagnosis is None:
        yield f"Gradients were not looked at: {found.unseen}."
        return
    yield from gradient_sentences(found.diagnosis)


# Counts and costs -----------------------------------------------------------------------------


def _of_counts(found: Examination) -> Iterator[str]:
    for task, facts in found.description.tasks.items():
        if facts.blank:
            parts = [f"{c.left_out} of {c.samples} in {part}" for part, c in facts.blank.items()]
            yield f"{task} has no label in some samples: {joined(parts)}."
        if facts.constant:
            yield f"All training labels of {task} are the same: nothing can be learned."
        if facts.unexplained is not None:
            yield (
                f"{facts.repeats} training samples of {task} repeat the inputs of others, and "
                f"{percent(min(1.0, facts.unexplained))} of the labels' variance is between such: "
                "no model of these inputs explains it."
            )
        if facts.few and not facts.constant and facts.rarest is not None:
            value, count = facts.rarest
            yield f"{task} has {count} training label{'s' if count != 1 else ''} of class {value}."
    used = {
        task: facts.labels["train"].used
        for task, facts in found.description.tasks.items()
        if "train" in facts.labels
    }
    if used and max(used.values()) > 2 * min(used.values()):
        counts = joined([f"{task} {count}" for task, count in used.items()])
        yield f"Training labels differ in number: {counts}."
    if found.description.groups is not None:
        yield f"{found.description.groups} groups; none of them stands on two sides."
    for (first, second), count in found.description.duplicates.items():
        if count:
            yield (
                f"{count} sample{'s' if count != 1 else ''} of the {second} part "
                f"{'stand' if count != 1 else 'stands'} in the {first} part as well."
            )


def _of_costs(found: Examination) -> Iterator[str]:
    if not found.costs:
        return
    plain = found.costs[0]
    parts = [
        f"{cost.kind} {cost.seconds / plain.seconds:.1f} x"
        for cost in found.costs[1:]
        if plain.seconds > 0
    ]
    if parts:
        base = f"{1000 * plain.seconds:.2g} ms"
        yield f"A step costs, against the plain sum's {base}: {joined(parts)}."


def _advice_unverified(found: Examination) -> str:
    first = found.diagnosis.looks[0] if found.diagnosis is not None else None
    if first is not None and list(_scales(first)):
        return (
            "Begin with the plain sum of losses divided by those of the best constant: scales "
            "differ. Then verify."
        )
    return "Begin with the plain sum, which costs least. Then verify."
