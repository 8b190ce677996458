"""AND/XOR: a network of twelve weights, two tasks, and whose gradient wins. Tables 1 and 2.

All runs of a row are one stacked ensemble: orders of the data (or initialisations), learning
rates and scales of the XOR target are its members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import evenhand as eh
from evenhand.ensemble.network import Stack
from evenhand.ensemble.optimizers import StackedSGD

PAPER = "Nakamura, Grassi & Wolf, Neurocomputing 511 (2022) 43-53, arXiv 2204.06698"
INPUTS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
TARGETS = {
    "xor": torch.tensor([0.0, 1.0, 1.0, 0.0]),  # times c
    "and": torch.tensor([0.0, 0.0, 0.0, 1.0]),
}
RATES = (5e-5, 1e-4, 5e-3, 1e-3, 5e-2, 1e-2)
SCALES = (1, 10)
SHARED_SEED = 136  # of the released script's one initialisation
MOMENTUM = 0.9


class ReleasedMinNorm(eh.MGDA):
    """The released solver for two tasks: .999/.001 where the optimum is a vertex, 1/0.

    Interior optima stand, also those closer to a vertex than that.
    """

    def weigh(self, g: eh.TaskGradients) -> eh.Solved:
        weights, solution = super().weigh(g)
        vertex = (weights == 0) | (weights == 1)
        return eh.Solved(torch.where(vertex, weights.clamp(0.001, 0.999), weights), solution)


@dataclass(frozen=True)
class Row:
    """A row of the tables."""

    name: str
    tasks: tuple[str, ...]
    aggregator: Callable[[], eh.Weighting]


BOTH = ("xor", "and")
ROWS = (
    Row("Single AND", ("and",), eh.Equal),
    Row("Single XOR", ("xor",), eh.Equal),
    Row("Uniform", BOTH, lambda: eh.Equal(mean=True)),
    Row("Min-norm", BOTH, ReleasedMinNorm),
    Row("Min-norm (exact)", BOTH, eh.MGDA),
    Row("Central", BOTH, eh.CentralDirection),
    Row("Min-norm + tension", BOTH, lambda: eh.Tension(ReleasedMinNorm())),
    Row("Central + tension", BOTH, lambda: eh.Tension(eh.CentralDirection())),
)


def network(seed: int, tasks: tuple[str, ...]) -> eh.MultiTaskNetwork:
    """The trunk, then the heads, drawn in the released script's order: AND, then XOR."""
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
    return eh.MultiTaskNetwork(trunk, {task: nn.Linear(2, 1) for task in sorted(tasks)})


def train(
    row: Row,
    seeds: list[int],
    scales: list[int],
    rates: list[float],
    epochs: int,
    shared_start: bool,
    trace: bool = False,
) -> tuple[Tensor, list[dict[str, list[float]]]]:
    """Epoch of convergence of every member (−1: never), and traces of the first member."""
    members = len(seeds)
    starts = {s: network(SHARED_SEED if shared_start else s, row.tasks) for s in set(seeds)}
    stack = Stack([starts[seed] for seed in seeds])
    optimizer = StackedSGD(stack.parameters(), rates, MOMENTUM)
    balancer = eh.Balancer(
        aggregator=row.aggregator(), tasks=row.tasks, model=stack, leading=(members,)
    )
    orders = torch.stack([_orders(seed, epochs) for seed in sorted(set(seeds))])
    which = torch.tensor([sorted(set(seeds)).index(seed) for seed in seeds])
    scale = {"xor": torch.tensor(scales, dtype=torch.float32), "and": torch.ones(members)}
    alive = torch.arange(members)
    converged = torch.full((members, len(row.tasks)), -1)
    counted = 4 * len(row.tasks)  # the released rule: samples times tasks
    traces: list[dict[str, list[float]]] = []
    for epoch in range(epochs):
        order = orders[which[alive], epoch]
        sums = torch.zeros(len(alive), len(row.tasks))
        for batch in (order[:, :2], order[:, 2:]):
            outputs = stack(INPUTS[batch])
            losses = {
                task: (outputs[task][..., 0] - scale[task][:, None] * TARGETS[task][batch])
                .square()
                .mean(dim=-1)
                for task in row.tasks
            }
            sums += torch.stack([losses[task].detach() for task in row.tasks], dim=-1)
            optimizer.zero_grad()
            seen = balancer.gradients(losses, features=outputs).gramian[0] if trace else None
            balance = balancer.backward(losses, features=outputs)
            optimizer.step()
            if seen is not None and balance.trunk_weights is not None:
                traces.append(_trace(seen, balance.trunk_weights[0]))
        fresh = (converged[alive] < 0) & (sums / counted < 1e-3) & (epoch > 0)
        converged[alive] = torch.where(fresh, epoch, converged[alive])
        # A member whose loss has left the floats will not come back; the others go on.
        going = (converged[alive] < 0).any(dim=1) & (sums.amax(dim=1) < 1e8)
        if not bool(going.any()):
            break
        if int((~going).sum()) * 8 > len(alive):  # compacting costs about a step
            where = going.nonzero()[:, 0]
            alive = alive[where]
            stack.select(where)
            optimizer.select(where)
            balancer.select(where)
            scale = {task: values[where] for task, values in scale.items()}
    done = (converged >= 0).all(dim=1)
    return torch.where(done, converged.amax(dim=1), -1), traces


def _orders(seed: int, epochs: int) -> Tensor:
    """A fresh permutation of the four points for every epoch, [epochs, 4]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(epochs, 4, generator=generator).argsort(dim=1)


def _trace(gramian: Tensor, weights: Tensor) -> dict[str, list[float]]:
    """Norms of the gradients g_i and of v = Σ w_i g_i, and angles between them in degrees.

    From G [m, m] and w [m], by g_i·v = (G w)_i and v·v = wᵀ G w.
    """
    gramian, weights = gramian.double(), weights.double()
    norms = gramian.diagonal().sqrt()
    length = (weights @ gramian @ weights).clamp_min(0).sqrt()
    cosines = (gramian @ weights) / (norms * length)
    return {
        "norms": norms.tolist(),
        "direction": [float(length)],
        "angles": cosines.clamp(-1, 1).arccos().rad2deg().tolist(),
    }


# The study -------------------------------------------------------------------------------------

PROTOCOLS = {
    "one initialisation": {"runs": 50, "epochs": 3_000, "shared_start": True, "rates": RATES},
    "honest initialisations": {
        "runs": 500, "epochs": 3_000, "shared_start": False, "rates": (5e-2,)
    },
    "exact min-norm, 500 orders": {
        "runs": 500, "epochs": 3_000, "shared_start": True, "rates": RATES, "scales": (10,)
    },
}  # fmt: skip
SOME_ROWS = {"exact min-norm, 500 orders": ("Min-norm (exact)",)}
"""The rows of protocols that are not for all."""
QUICK = {
    "one initialisation": {
        "runs": 4, "epochs": 450, "shared_start": True, "rates": (5e-2,), "scales": (10,)
    },
}  # fmt: skip
QUICK_ROWS = ("Single AND", "Central", "Central + tension")
"""Those that converge soon when the targets of XOR are times 10."""
RELEASED_CAP = 2_500


def cells(quick: bool) -> list[dict[str, Any]]:
    """A run of the study is a row: an ensemble of all its scales, rates and orders."""
    return [
        {"protocol": name, "row": row.name, **settings}
        for name, settings in (QUICK if quick else PROTOCOLS).items()
        for row in ROWS
        if row.name in (QUICK_ROWS if quick else SOME_ROWS.get(name, (row.name,)))
    ]


def run(cell: dict[str, Any]) -> dict[str, Any]:
    """The epoch in which each run of a row converged, −1 for never, by scale and rate."""
    (row,) = (row for row in ROWS if row.name == cell["row"])
    return ends(row, cell)


def ends(row: Row, cell: dict[str, Any]) -> dict[str, Any]:
    """The same of a row that need not be in the table."""
    used = cell.get("scales", SCALES)
    members = [
        (c, rate, seed) for c in used for rate in cell["rates"] for seed in range(cell["runs"])
    ]
    scales, rates, seeds = (list(column) for column in zip(*members, strict=True))
    reached, _ = train(row, seeds, scales, rates, cell["epochs"], cell["shared_start"])
    by_cell = reached.reshape(len(used), len(cell["rates"]), cell["runs"]).tolist()
    return {f"c={c}": by_cell[k] for k, c in enumerate(used)}


def table(
    found: Sequence[tuple[dict[str, Any], dict[str, Any]]],
) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    """{protocol: {row: {quantity: [mean, deviation, runs]}}} of (cell, what `run` returned)."""
    tables: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for cell, values in found:
        rows = tables.setdefault(cell["protocol"], {})
        for scale, by_rate in values.items():
            candidates = zip(cell["rates"], by_rate, strict=True)
            best = max(candidates, key=lambda pair: _merit(pair[1], cell["epochs"]))
            rows.setdefault(cell["row"], {}).update(_quantities(scale, *best, cell["epochs"]))
            if cell["row"] == "Uniform" and scale == "c=10" and 5e-3 in cell["rates"]:
                ended = by_rate[list(cell["rates"]).index(5e-3)]
                as_released = _quantities(scale, 5e-3, ended, RELEASED_CAP)
                rows["Uniform, cap 2,500, at rate 5e-3"] = as_released
    return tables


def _merit(ended: Sequence[int], cap: int) -> tuple[float, float]:
    """The most runs converged; then the soonest, those that did not counted at the cap."""
    return sum(e >= 0 for e in ended), -sum(e if e >= 0 else cap - 1 for e in ended)


def _quantities(
    scale: str, rate: float, ended: Sequence[int], cap: int
) -> dict[str, list[float | None]]:
    """Share of converged runs, epochs of those, and epochs with the others at the cap."""
    epochs = torch.tensor(ended, dtype=torch.float64)
    reached = (epochs >= 0) & (epochs < cap)
    quantities: dict[str, list[float | None]] = {
        f"{scale} converged %": [100 * float(reached.double().mean()), None, len(ended)],
        f"{scale} rate": [rate, None, 1],
    }
    if bool(reached.any()):
        quantities[f"{scale} epochs"] = _statistics(epochs[reached])
    capped = torch.where(reached, epochs, torch.full_like(epochs, cap - 1))
    quantities[f"{scale} epochs, at the cap if unconverged"] = _statistics(capped)
    return quantities


def _statistics(values: Tensor) -> list[float | None]:
    return [float(values.mean()), float(values.std(correction=0)), len(values)]
