"""Is the doctor right? Problems whose causes are measured, and what it says of them.

    python benchmarks/doctor.py --family smooth           # on which thresholds were chosen
    python benchmarks/doctor.py --family rough            # on which they are scored
    python benchmarks/doctor.py --table                   # the page's, from the results so far
    python benchmarks/doctor.py --time conflict           # what an examination takes

Each draw of `doctor_problems.py` is judged twice by `evenhand.doctor.ladder.climb`. The *truth*
comes from ten fresh tables of the same size, each with its own 5,000 fresh test rows and its own
initial weights, and asks for margins twice as wide; where it is not clear by them the draw is left
out, and counted. The *verdict* comes from one table, divided eight times, as a user has it.

For draws of noise and of few labels, the truth is also measured with clean labels, and with four
times as many rows.

Beside the doctor stand three cheap ones: "always no"; the one-batch cosine, the mean cosine of the
tasks' gradients on common batches over three looks, a conflict where it is below 0 for some pair;
and the corrected cosine, between different batches, a conflict where its interval is below 0.

Results are appended to ``results/doctor.jsonl``, one line per draw; a run goes on where one was
stopped. Seeds are derived from a stated string by SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from doctor_problems import FAMILIES, FAMILY, KINDS, Draw, Numbers, draw, smooth_unit, summed

from evenhand.comparison.folder import environment
from evenhand.comparison.request import OPTIMIZERS
from evenhand.data.problem import Problem, Stream
from evenhand.doctor.diagnose import Diagnosis, DivergedError, diagnose
from evenhand.doctor.examine import examine
from evenhand.doctor.ladder import TOGETHER, Effort, Ladder, Thresholds, climb

RESULTS = Path(__file__).parent / "results" / "doctor.jsonl"
ROUND = (
    *("harmless", "conflict", "harmless", "scale", "harmless", "capacity"),
    *("harmless", "conflict", "harmless", "noise", "few"),
)
"""The kinds of one round; rounds follow one another."""
ROUNDS = 14
ENOUGH = 60
"""So many draws must be clearly harmless; after the rounds, those drawn so go on until they are."""
TABLES, SPLITS = 10, 8
CLEAR = Thresholds(margin=6.0, sure=0.99)
"""What the truth must show to be harm: twice the doctor's margin, with more certainty."""
HARMLESS = Thresholds(margin=1.5, none=0.01)
"""And to be none: below half of it."""
STRONG = 10.0
"""Points of harm from which a conflict is strong."""


def seed_of(stated: str, number: int) -> int:
    """A seed that nobody chose."""
    return int.from_bytes(hashlib.sha256(f"{stated}/{number}".encode()).digest()[:6], "big")


def schedule(family: str, stated: str) -> Iterator[tuple[str, int]]:
    """Kinds and seeds in the order of running: all rounds, then harmless draws without end."""
    for number in count():
        kind = ROUND[number % len(ROUND)]
        if number < ROUNDS * len(ROUND) or kind == "harmless":
            yield kind, seed_of(f"{stated}/{family}", number)


# One draw -------------------------------------------------------------------------------------


def judged(drawn: Draw) -> dict[str, Any]:
    """What is true of a draw, and what is said of it."""
    effort = partial(Effort, epochs=drawn.epochs, rates=FAMILY[drawn.family].rates)
    start = time.process_time()
    true = climb(drawn.fresh, effort(TABLES), CLEAR, ratio=0.0)
    cleaned = without_the_cause(drawn, true, effort(TABLES))
    middle = time.process_time()
    said = verdict(drawn)
    end = time.process_time()
    looked = looked_at(drawn.table(), drawn.epochs)
    return {
        "family": drawn.family,
        "kind": drawn.kind,
        "seed": drawn.seed,
        "rows": drawn.rows,
        "tasks": len(drawn.targets),
        "knobs": drawn.knobs,
        "truth": truth(drawn.kind, true, cleaned),
        "worst": true.rungs[TOGETHER].worst,
        "said": said.cause,
        "true_rungs": written(true),
        "cleaned_rungs": None if cleaned is None else written(cleaned),
        "said_rungs": written(said),
        "learned": {task: e.mean for task, e in said.learned.items()},
        "one_batch_cosine": one_batch(looked),
        "corrected_cosine": bool(looked.opposed),
        "seconds": {"truth": middle - start, "doctor": end - middle},
    }


def verdict(drawn: Draw) -> Ladder:
    """What the doctor says of one table."""
    pool = drawn.table().pool
    if pool is None:
        raise ValueError("a draw has a pool")
    effort = Effort(SPLITS, drawn.epochs, FAMILY[drawn.family].rates)
    return climb(lambda k: pool.problem("hold-out", SPLITS, k), effort, ratio=0.25)


def written(ladder: Ladder) -> dict[str, Any]:
    return {
        name: {
            task: [round(x, 4) for x in (e.mean, e.scale)]
            for task, e in {**rung.harm, "average": rung.average}.items()
        }
        for name, rung in ladder.rungs.items()
    }


def without_the_cause(drawn: Draw, true: Ladder, effort: Effort) -> Ladder | None:
    """With clean labels, or with four times as many, where the kind says so and there is harm."""
    if not true.harmful or drawn.kind not in ("noise", "few"):
        return None
    if drawn.kind == "noise":
        return climb(lambda seed: drawn.fresh(seed, clean=True), effort, CLEAR, ratio=0.0)
    return climb(lambda seed: drawn.fresh(seed, more=4), effort, CLEAR, ratio=0.0)


def truth(kind: str, true: Ladder, cleaned: Ladder | None) -> str:
    """What is clear of a draw, or "unclear"."""
    if Ladder(true.rungs, true.learned, true.untested, HARMLESS).harmless:
        return "harmless"
    if not true.harmful:
        return "unclear"
    if cleaned is not None and cleaned.rungs[TOGETHER].worst < 0.5 * true.rungs[TOGETHER].worst:
        return kind
    return "unclear" if true.cause in ("none", "cannot tell") else true.cause


def looked_at(problem: Problem, epochs: int) -> Diagnosis:
    """Gradients at the beginning, in the middle and at the end of training the plain sum.

    At the beginning alone, where the training diverges.
    """
    torch.manual_seed(0)
    network = problem.network(tuple(problem.tasks))
    stream = Stream(problem.train, problem.batch_size, 0)
    batches = [stream.batch(k) for k in range(len(stream))]
    # Where labels are few, a batch without one of every task tells nothing.
    full = [b for b in batches if len(problem.active(tuple(problem.tasks), b[1])) == len(b[1])]

    def losses(model: torch.nn.Module, batch: Any) -> Mapping[str, torch.Tensor]:
        return problem.losses(model(batch[0]), batch[1])

    train = partial(OPTIMIZERS[problem.optimizer], lr=min(problem.rates))
    try:
        return diagnose(network, losses, full, train=train, steps=epochs * len(stream), looks=3)
    except DivergedError:  # the plain sum at the lowest rate: its beginning is all there is
        return diagnose(network, losses, full)


def one_batch(found: Diagnosis) -> bool:
    """Whether the mean of the usual cosines is below 0 for some pair."""
    pairs = found.looks[0].whole.same_batch
    means = [
        math.fsum(look.whole.same_batch[pair] for look in found.looks) / len(found.looks)
        for pair in pairs
    ]
    return min(means) < 0


# The table ------------------------------------------------------------------------------------

BEGIN, END = "<!-- table of benchmarks/doctor.py -->", "<!-- end of the table -->"
SAID = ("none", "conflict", "capacity", "scale", "own epochs", "time", "several", "labels")
TRUE = ("harmless", *SAID[1:], "noise", "few")
Lines = Sequence[Mapping[str, Any]]


def lines(family: str) -> list[dict[str, Any]]:
    """The results so far of a family."""
    if not RESULTS.exists():
        return []
    found = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return [one for one in found if one["family"] == family]


def page_table(results: Lines) -> str:
    """Rows are what was measured, columns what was said."""
    columns = [*SAID, "cannot tell"]
    head = ["measured", *("no harm" if c == "none" else c for c in columns), "draws"]
    rows = [head, ["---"] * len(head)]
    for true in (*TRUE, "unclear"):
        for kind in KINDS if true == "harmless" else ("",):
            drawn = [o for o in results if o["truth"] == true and kind in ("", o["kind"])]
            said = Counter(one["said"] for one in drawn)
            if said:
                counts = [str(said[c]) if said[c] else "" for c in columns]
                name = f"harmless, drawn as {kind}" if kind not in ("", "harmless") else true
                rows.append([name, *counts, str(len(drawn))])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def page(results: Lines) -> str:
    """The table, and the counts below it."""
    found = score(results)
    counts = [
        f"{found['draws']} draws of the scoring family, {found['clear']} of them clear. "
        f"Planned are {ROUNDS} rounds, {ROUNDS * len(ROUND)} draws, and then draws of the harmless "
        f"kind until {ENOUGH} of all are clearly harmless.",
        f"Conflict said of harmless draws: {found['conflict said of them']} of "
        f"{found['harmless draws']}; of all clear draws without conflict: "
        f"{found['conflict said of those']} of {found['clear draws without conflict']}; of all "
        f"that were drawn as harmless, clear or not: {found['conflict said of drawn harmless']} "
        f"of {found['drawn as harmless']}.",
        f"Strong conflicts (harm of {STRONG:g} points or more) found: "
        f"{found['strong conflicts found']} of {found['strong conflicts']}.",
        f"Cannot tell: {found['cannot tell, of clear draws']} of {found['clear']} clear draws.",
    ]
    rivals = ["| rival | strong conflicts found | conflict said without one |", "|---|---|---|"]
    for name, title in RIVALS.items():
        one = found[name]
        rivals.append(
            f"| {title} | {one['strong conflicts found']} of {found['strong conflicts']} | "
            f"{one['conflict said of clear draws without']} of "
            f"{found['clear draws without conflict']} |"
        )
    return "\n".join([page_table(results), "", " ".join(counts), "", *rivals, "", made(results)])


def made(results: Lines) -> str:
    """With what, and how to go on."""
    stated = sorted({one["stated"] for one in results})
    versions = {f"torch {one['made']['versions']['torch']}" for one in results}
    machines = {one["made"]["machine"]["system"].split("-with")[0] for one in results}
    command = f"python benchmarks/doctor.py --family rough --stated {' or '.join(stated)}"
    return (
        f"Seeds and thresholds are those of commit {', '.join(one[:7] for one in stated)}; "
        f"{', '.join(sorted(versions))}, one thread, {', '.join(sorted(machines))}. "
        f"The command, which goes on where it was stopped:\n\n    {command}"
    )


RIVALS = {
    "one_batch_cosine": "cosine on one batch below 0",
    "corrected_cosine": "corrected cosine surely below 0",
    "always no": "always no",
}


def score(results: Lines) -> dict[str, Any]:
    """The promises, and how the cheap doctors do."""
    clear = [one for one in results if one["truth"] != "unclear"]
    harmless = [one for one in clear if one["truth"] == "harmless"]
    conflict = [one for one in clear if one["truth"] == "conflict"]
    strong = [one for one in conflict if one["worst"] >= STRONG]
    others = [one for one in clear if one["truth"] != "conflict"]
    found: dict[str, Any] = {
        "draws": len(results),
        "clear": len(clear),
        "harmless draws": len(harmless),
        "conflict said of them": sum(o["said"] == "conflict" for o in harmless),
        "drawn as harmless": sum(o["kind"] == "harmless" for o in results),
        "conflict said of drawn harmless": sum(
            o["kind"] == "harmless" and o["said"] == "conflict" for o in results
        ),
        "any harm said of them": sum(o["said"] not in ("none", "cannot tell") for o in harmless),
        "clear draws without conflict": len(others),
        "conflict said of those": sum(o["said"] == "conflict" for o in others),
        "strong conflicts": len(strong),
        "strong conflicts found": sum(o["said"] == "conflict" for o in strong),
        "conflicts": len(conflict),
        "conflicts found": sum(o["said"] == "conflict" for o in conflict),
        "conflict said of unclear draws": sum(
            o["said"] == "conflict" for o in results if o["truth"] == "unclear"
        ),
        "cannot tell, of clear draws": sum(o["said"] == "cannot tell" for o in clear),
    }
    for name in ("one_batch_cosine", "corrected_cosine"):
        found[name] = {
            "strong conflicts found": sum(o[name] for o in strong),
            "conflict said of clear draws without": sum(o[name] for o in others),
        }
    found["always no"] = {"strong conflicts found": 0, "conflict said of clear draws without": 0}
    return found


# What an examination takes --------------------------------------------------------------------


def timed(kind: str) -> dict[str, Any]:
    """Processor seconds on 5,000 rows of 30 columns with 3 targets, three rates, five splits."""
    numbers = Numbers(0, *kind.encode())
    drawn = replace(draw("smooth", kind, 1), rows=5000, columns=30, width=64, layers=2, epochs=20)
    units = [smooth_unit(numbers, 30) for _ in range(9)]
    targets = {
        f"t{k}": replace(
            target, signal=summed(units[3 * k : 3 * k + 3], numbers.normal(3)), labels=None
        )
        for k, target in enumerate([*drawn.targets.values()][:3])
    }
    problem = replace(replace(drawn, targets=targets).table(), rates=(1e-3, 3e-3, 1e-2))
    found: dict[str, Any] = {"tasks": len(problem.tasks)}
    for verify in (False, True):
        start = time.process_time()
        said = examine(problem, verify=verify)
        found["with --verify" if verify else "without"] = time.process_time() - start
    found["cause"] = None if said.ladder is None else said.ladder.cause
    return found


# The command ----------------------------------------------------------------------------------


def commit() -> str:
    """The commit's hash."""
    command = ["git", "rev-parse", "HEAD"]
    where = Path(__file__).parent
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=where)
    return run.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, default="rough")
    parser.add_argument("--stated", help="seeds come from this string [default: the commit]")
    parser.add_argument("--most", type=int, help="draws in all [default: as planned]")
    parser.add_argument("--time", choices=KINDS, help="time an examination, and stop")
    parser.add_argument("--table", action="store_true", help="print what there is, and stop")
    asked = parser.parse_args()
    if asked.table:
        for family in FAMILIES:
            print(family, json.dumps(score(lines(family)), indent=1))
            print(page(lines(family)))
        return
    torch.set_num_threads(1)
    if asked.time:
        print(json.dumps(timed(asked.time)))
        return
    stated = asked.stated or commit()
    done = {(one["family"], one["seed"]) for one in lines(asked.family)}
    for number, (kind, seed) in enumerate(islice(schedule(asked.family, stated), asked.most)):
        if (asked.family, seed) in done:
            continue
        harmless = sum(one["truth"] == "harmless" for one in lines(asked.family))
        if number >= ROUNDS * len(ROUND) and harmless >= ENOUGH:
            break
        found = judged(draw(asked.family, kind, seed))
        found |= {"stated": stated, "thresholds": asdict(Thresholds()), "made": environment()}
        with RESULTS.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(kind, found["truth"], "->", found["said"], found["seconds"], flush=True)


if __name__ == "__main__":
    main()
