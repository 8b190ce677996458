"""How near the online min-norm method stays to the exact minimum, with 40 and 100 tasks.

    python benchmarks/online.py [--steps 400] [--out benchmarks/results/online.json]

Conflicting binary tasks on common inputs: task i asks for the sign of a line of its own, and every
second pair of tasks for opposite answers on two samples in five, so that gradients point apart;
the losses' scales span 1 to 10. A perceptron is trained by SGD with the online weights. Every
tenth step, after the first fifth, the exact problem is solved too. Printed, median [10 %, 90 %]
over those steps: ‖Σ w_i g_i‖² over its minimum for the online weights and for equal ones, and how
many per cent of the tasks a step would hurt (g_i·d < 0, on the batch) with either.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from evenhand import Balancer, MultiTaskNetwork, OnlineMinNorm
from evenhand.comparison.folder import environment
from evenhand.linalg import min_norm
from evenhand.training.records import write_atomically

OUT = Path(__file__).parent / "results" / "online.json"
INPUTS, SAMPLES, WIDTH, EVERY = 32, 4096, 64, 10
TASKS, BATCHES, RATES = (40, 100), (128, 1024), (0.1, 0.5)


def labels(x: Tensor, m: int) -> Tensor:
    """[n, m] of 0 and 1."""
    lines = torch.randn(INPUTS, m)
    found = (x @ lines > 0).float()
    opposed = torch.rand(len(x), m // 4) < 0.4
    pairs = found[:, 0 : 4 * (m // 4) : 4], found[:, 1 : 4 * (m // 4) : 4]
    pairs[1].copy_(torch.where(opposed, 1 - pairs[0], pairs[1]))
    return found


def followed(m: int, size: int, rate: float, steps: int, seed: int) -> dict[str, list[float]]:
    """One training; what is seen at the exact checks."""
    torch.manual_seed(seed)
    x = torch.randn(SAMPLES, INPUTS)
    y = labels(x, m)
    scales = torch.logspace(0, 1, m)
    trunk = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    heads = {f"t{i}": nn.Linear(WIDTH, 1) for i in range(m)}
    network = MultiTaskNetwork(trunk, heads, fused=True)
    balancer = Balancer(aggregator=OnlineMinNorm(rate=rate), model=network, tasks=network.tasks)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    seen: dict[str, list[float]] = {k: [] for k in ("online", "equal", "hurt", "hurt, equal")}
    for step in range(steps):
        batch = torch.randint(SAMPLES, (size,))
        outputs = network(x[batch])
        losses = {
            task: scales[i] * binary_cross_entropy_with_logits(outputs[task][:, 0], y[batch, i])
            for i, task in enumerate(network.tasks)
        }
        if step % EVERY == 0 and step >= steps // 5:
            gramian = balancer.gradients(losses, features=outputs).gramian.double()
            least = float(min_norm(gramian).squared_norm)
            online = balancer.states.tree()["aggregator"]["shares"]
            for name, weights in (("online", online), ("equal", torch.full((m,), 1 / m))):
                products = gramian @ weights.double()
                seen[name].append(float(weights.double() @ products) / least)
                hurt = "hurt" if name == "online" else "hurt, equal"
                seen[hurt].append(100 * float((products < 0).double().mean()))
        optimizer.zero_grad()
        balancer.backward(losses, features=outputs)
        optimizer.step()
    return seen


def spread(values: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, [10, 50, 90])
    return {"median": float(median), "10 %": float(low), "90 %": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for m, size, rate in product(TASKS, BATCHES, RATES):
        runs = [followed(m, size, rate, asked.steps, seed) for seed in range(asked.seeds)]
        joined = {key: [v for run in runs for v in run[key]] for key in runs[0]}
        row = {key: spread(values) for key, values in joined.items()}
        rows.append({"tasks": m, "batch": size, "rate": rate, **row})
        told = "   ".join(
            f"{key} {v['median']:.2f} [{v['10 %']:.2f}, {v['90 %']:.2f}]" for key, v in row.items()
        )
        print(f"m = {m}, batches of {size}, η = {rate:g}:   {told}", flush=True)
    if asked.out:
        command = shlex.join(["python", *sys.argv])
        date = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"command": command, "date": date, **environment()}
        write_atomically(asked.out, json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
