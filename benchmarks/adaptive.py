"""Does it pay to choose how long the phases of alternate training last?

    python benchmarks/adaptive.py [--seeds 3] [--problems digits,…] [--out benchmarks/results/…]

Adaptive alternation against ATE-SG with E in {1, 10, 100} epochs of either kind, SAT-SG and plain
training (sg), all at equal compute: a run ends when its training steps, passes that fill the
memory for features included, have taken the floating-point operations of a given number of plain
epochs. The optimizer is the problem's own: Adam for digits, SGD with momentum 0.9 for quadrants.
The rate is chosen for each schedule by the mean over seeds of the lowest monitored validation
quantity (mean over tasks of L_i / L_i(0)); the test metrics are those of the weights at that epoch.

Runs that are in the output file already are not made again; they would be the same.

Problems: `digits` and `quadrants` as they ship, and `digits-conv`, digits with a convolutional
trunk, in which an own epoch that reads features from memory costs a hundredth of a shared one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evenhand.autodiff.gradients import NonFiniteError
from evenhand.comparison.folder import environment
from evenhand.comparison.request import OPTIMIZERS
from evenhand.data import Problem, problem
from evenhand.data.digits import FEATURES
from evenhand.network import MultiTaskNetwork
from evenhand.schedules import Schedule, alternate_epochs, alternate_steps, jointly
from evenhand.schedules.adaptive import alternate_adaptively
from evenhand.training.loop import Training, evaluate
from evenhand.training.optimizers import Optimizers

OUT = Path(__file__).parent / "results" / "adaptive.json"
SCHEDULES: Mapping[str, Callable[[], Schedule]] = {
    "sg": jointly,
    "SAT-SG": alternate_steps,
    "ATE-SG, E = 1": partial(alternate_epochs, 1, 1),
    "ATE-SG, E = 10": partial(alternate_epochs, 10, 10),
    "ATE-SG, E = 100": partial(alternate_epochs, 100, 100),
    "adaptive": alternate_adaptively,
}


class Picture(nn.Module):
    """Pictures [n, height, width] as one channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1)


def convolutional_digits() -> Problem:
    base = problem("digits")

    def network(tasks: Sequence[str]) -> MultiTaskNetwork:
        heads = base.network(tasks)
        trunk = nn.Sequential(
            Picture(),
            *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(12, 12, 3, padding=1, stride=2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(288, FEATURES), nn.Tanh()),
        )
        return MultiTaskNetwork(trunk, {task: heads.head(task) for task in tasks})

    return replace(base, name="digits-conv", network=network)


@dataclass(frozen=True)
class Setting:
    """A problem, the plain epochs that the compute is worth, and the rates to choose from."""

    make: Callable[[], Problem]
    epochs: int
    rates: tuple[float, ...]


PROBLEMS: Mapping[str, Setting] = {
    "digits": Setting(partial(problem, "digits"), 60, (0.001, 0.003, 0.01)),
    "digits-conv": Setting(convolutional_digits, 25, (0.001, 0.003, 0.01)),
    "quadrants": Setting(partial(problem, "quadrants"), 20, (0.01, 0.03)),
}


@dataclass(frozen=True)
class Run:
    """One training: the best epoch within the compute, and how the phases went.

    `halfway` is the lowest monitored quantity at half the compute; `phases` are (block, epochs).
    """

    schedule: str
    rate: float
    seed: int
    monitored: float = float("inf")
    halfway: float = float("inf")
    test: Mapping[str, float] | None = None
    epochs: int = 0
    phases: tuple[tuple[str, int], ...] = ()


def trainer(data: Problem, schedule: Schedule, rate: float, seed: int) -> Training:
    torch.manual_seed(seed)
    network = data.network(tuple(data.tasks))
    optimizers = Optimizers(network.blocks(), partial(OPTIMIZERS[data.optimizer], lr=rate))
    return Training(
        data,
        network,
        optimizers,
        schedule=schedule,
        epochs=sys.maxsize,
        seed=seed,
        count_flops=True,
    )


def plain_work(data: Problem) -> float:
    """The operations of one plain epoch."""
    records = trainer(data, jointly(), 1e-4, 0).run()
    next(records)
    work = next(records).work
    assert work is not None
    return work


def run(data: Problem, name: str, rate: float, seed: int, compute: float) -> Run:
    training = trainer(data, SCHEDULES[name](), rate, seed)
    spent, best, halfway, test, moves = 0.0, float("inf"), float("inf"), None, []
    try:
        for record in training.run():
            spent += record.flops or 0.0
            if spent > compute:
                break
            moves.append("+".join(record.trains))
            if record.best:
                best = record.monitored
                test = evaluate(training.network, data, data.test, training.tasks)[1]
            if spent <= compute / 2:
                halfway = best
    except NonFiniteError:
        return Run(name, rate, seed)
    phases = tuple((block, len(list(group))) for block, group in groupby(moves[1:]))
    return Run(name, rate, seed, best, halfway, test, len(moves) - 1, phases)


def mean(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


def chosen(runs: Sequence[Run], name: str) -> list[Run]:
    """The runs of a schedule at its best rate."""
    rates = {r.rate for r in runs}
    by_rate = {q: [r for r in runs if r.schedule == name and r.rate == q] for q in rates}
    return min(by_rate.values(), key=lambda found: statistics.mean(r.monitored for r in found))


def length(runs: Sequence[Run], block: str) -> str:
    lengths = [n for r in runs for moved, n in r.phases if moved == block]
    return f"{statistics.mean(lengths):.1f}" if lengths else "–"


def table(label: str, data: Problem, setting: Setting, runs: Sequence[Run]) -> str:
    metrics = [f"{task} ({entry.metric_name})" for task, entry in data.tasks.items()]
    head = ["schedule", "rate", "validation", "at half", *metrics, "epochs", "shared", "own"]
    lines = [f"{label}: the compute of {setting.epochs} plain epochs", " | ".join(head)]
    lines.append(" | ".join("---" for _ in head))
    for name in SCHEDULES:
        found = chosen(runs, name)
        cells = [name, f"{found[0].rate:g}", mean([r.monitored for r in found])]
        cells.append(mean([r.halfway for r in found]))
        for task in data.tasks:
            cells.append(mean([r.test[task] for r in found if r.test is not None]))
        cells.append(f"{statistics.mean(r.epochs for r in found):.0f}")
        cells += [length(found, "shared"), length(found, "own")]
        lines.append(" | ".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Adaptive alternation at equal compute.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    written: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(),
        "problems": {},
    }
    if arguments.out.exists():
        written["problems"] = json.loads(arguments.out.read_text())["problems"]
    for label in arguments.problems.split(","):
        setting = PROBLEMS[label]
        data = setting.make()
        work = plain_work(data)
        entry = {"operations of a plain epoch": work, "plain epochs": setting.epochs, "runs": []}
        if written["problems"].get(label, {}).get("plain epochs") != setting.epochs:
            written["problems"][label] = entry
        done = {
            (r["schedule"], r["rate"], r["seed"]): Run(**r)
            for r in written["problems"][label]["runs"]
        }
        runs = []
        for seed, rate, name in product(range(arguments.seeds), setting.rates, SCHEDULES):
            found = done.get((name, rate, seed)) or run(
                data, name, rate, seed, setting.epochs * work
            )
            runs.append(found)
            written["problems"][label]["runs"] = [asdict(r) for r in runs]
            arguments.out.write_text(json.dumps(written, indent=1) + "\n")
            print(
                f"{label}: {name}, rate {rate:g}, seed {seed}: {found.monitored:.4f}",
                file=sys.stderr,
            )
        print(table(label, data, setting, runs), end="\n\n", flush=True)
    print(arguments.out)


if __name__ == "__main__":
    main()
