"""Time and gap of the solvers on given Gramians, beside those of others, side by side in one run.

    python benchmarks/solvers.py --json benchmarks/results/solvers.json

Two tables. The min-norm point: `evenhand.linalg.min_norm`, TorchJD's MGDAWeighting (100 iterations
of Frank-Wolfe, its default) and SciPy's nnls on [R; 1ᵀ] with G = RᵀR by eigendecomposition. The
projection of all m gradients onto the cone of directions that harm no task, as UPGrad needs it:
`evenhand.linalg.project_cone`, TorchJD's QuadprogProjector (which solves for G + 1e-4 tr(G) I, so
its gap is of that size) and SciPy's nnls on R, one gradient after the other. TorchJD's needs
qpsolvers and quadprog, of which quadprog is GPL: if they are not installed it is left out.

Every round times all on one Gramian in turn; a time is the median over the rounds, with half their
interquartile range. It is time of the process, which other processes do not lengthen as they do
wall time. The gap is the house's certificate (see `min_norm`, `project_cone`), computed in float64
for all alike; for projections the largest.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = ("evenhand", "torch", "numpy", "scipy", "torchjd", "qpsolvers", "quadprog")
QUADPROG = ("qpsolvers", "quadprog")

Solver = Callable[["Tensor"], "Tensor"]
Gap = Callable[["Tensor", "Tensor"], float]


def gramians(m: int) -> dict[str, Tensor]:
    """Random, mixed and ill-conditioned gradients of m tasks, the same in every run."""
    import torch

    generator = torch.Generator().manual_seed(m)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def orthogonal() -> Tensor:
        return torch.linalg.qr(normal(m, m)).Q

    spread = 10 ** (6 * torch.rand(m, 1, generator=generator, dtype=torch.float64) - 3)
    mixed = spread * normal(m, 2 * m)
    mixed[m // 2] = 2 * mixed[0]
    ill = orthogonal() * torch.logspace(0, -6, m, dtype=torch.float64) @ orthogonal()
    kinds = {"random": normal(m, 2 * m), "norms span 1e6": mixed, "condition 1e12": ill}
    return {kind: jacobian @ jacobian.mT for kind, jacobian in kinds.items()}


def conflicts(m: int) -> dict[str, Tensor]:
    """Gradients of m tasks that conflict little, partly, as much as can be; the same in every run.

    Random ones in 2m dimensions are nearly orthogonal. What all share in "mixed" leaves some pairs
    in conflict; "nearly stationary" ones add up to almost nothing. "rank m/2" has more tasks than
    dimensions. In "duplicates" every gradient occurs twice.
    """
    import torch

    generator = torch.Generator().manual_seed(m)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = normal(m, 2 * m)
    twice = normal(m, 2 * m)
    twice[m // 2 :] = twice[: m - m // 2].clone()
    spread = 10 ** (6 * torch.rand(m, 1, generator=generator, dtype=torch.float64) - 3)
    rank = max(1, m // 2)
    kinds = {
        "random": normal(m, 2 * m),
        "mixed": normal(m, 2 * m) + 0.3 * normal(1, 2 * m),
        "conflicting": normal(m, 2 * m) - 0.95 * rows.mean(0),
        "nearly stationary": rows - (1 - 1e-6) * rows.mean(0),
        "norms span 1e6": spread * normal(m, 2 * m),
        "duplicates": twice,
        "rank m/2": normal(m, rank) @ normal(rank, 2 * m),
    }
    return {kind: jacobian @ jacobian.mT for kind, jacobian in kinds.items()}


def root(gramian: Tensor) -> Any:
    """R with G = RᵀR."""
    import numpy as np

    values, vectors = np.linalg.eigh(gramian.numpy())
    return (np.sqrt(values.clip(min=0)) * vectors).T


def min_norm_solvers() -> tuple[dict[str, Solver], Gap]:
    import numpy as np
    import torch
    from scipy.optimize import nnls
    from torchjd.aggregation import MGDAWeighting

    from evenhand.linalg import min_norm, min_norm_gap

    def scipy(gramian: Tensor) -> Tensor:
        r = root(gramian)
        rows = np.concatenate([r / np.linalg.norm(r, 2), np.ones((1, len(r)))])
        target = np.zeros(len(rows))
        target[-1] = 1
        x, _ = nnls(rows, target, maxiter=30 * len(r))
        return torch.from_numpy(x / x.sum())

    solvers: dict[str, Solver] = {
        "evenhand": lambda gramian: min_norm(gramian).weights,
        "torchjd": MGDAWeighting(),
        "scipy": scipy,
    }
    return solvers, lambda gramian, w: float(min_norm_gap(gramian, w))


def cone_solvers() -> tuple[dict[str, Solver], Gap]:
    import numpy as np
    import torch
    from scipy.optimize import nnls

    from evenhand.linalg import project_cone, project_cone_gap

    def scipy(gramian: Tensor) -> Tensor:
        r = root(gramian)
        columns = np.linalg.norm(r, axis=0)
        found = [nnls(r / columns, -column, maxiter=30 * len(r))[0] for column in r.T]
        return torch.eye(len(r)) + torch.from_numpy(np.stack(found) / columns)

    def ours(gramian: Tensor) -> Tensor:
        return project_cone(gramian, torch.eye(len(gramian), dtype=gramian.dtype)).weights

    solvers: dict[str, Solver] = {"evenhand": ours}
    if not (missing := [name for name in QUADPROG if find_spec(name) is None]):
        from torchjd.linalg import QuadprogProjector

        projector = QuadprogProjector()
        solvers["torchjd"] = lambda g: projector(torch.eye(len(g), dtype=g.dtype), g)
    else:
        print(f"torchjd is left out: {' and '.join(missing)} not installed")
    solvers["scipy"] = scipy

    def gap(gramian: Tensor, w: Tensor) -> float:
        return float(project_cone_gap(gramian, torch.eye(len(w), dtype=w.dtype), w).max())

    return solvers, gap


def timed(solve: Solver, gramian: Tensor, calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        solve(gramian)
    return (time.process_time() - start) / calls


def compare(
    solvers: Mapping[str, Solver], gap: Gap, gramian: Tensor, rounds: int
) -> dict[str, dict[str, float | str]]:
    results: dict[str, dict[str, float | str]] = {}
    calls: dict[str, int] = {}
    times: dict[str, list[float]] = {}
    for name, solve in solvers.items():
        try:
            results[name] = {"gap": gap(gramian, solve(gramian))}
        except (RuntimeError, ValueError) as error:  # nnls and quadprog give up
            results[name] = {"failed": str(error)}
            continue
        calls[name] = max(1, min(2000, round(0.02 / max(timed(solve, gramian, 1), 1e-6))))
        times[name] = []
    for _ in range(rounds):
        for name, count in calls.items():
            times[name].append(timed(solvers[name], gramian, count))
    for name, seconds in times.items():
        low, median, high = statistics.quantiles(seconds, n=4)
        results[name] |= {"seconds": median, "spread": (high - low) / 2}
    return results


def table(
    title: str,
    made: tuple[dict[str, Solver], Gap],
    gramians: Callable[[int], dict[str, Tensor]],
    sizes: str,
    rounds: int,
) -> list[dict[str, Any]]:
    solvers, gap = made
    print(f"\n{title}\n\n{'m':>5}  {'gradients':<18}" + "".join(f"{name:>24}" for name in solvers))
    rows = []
    for m in map(int, filter(None, sizes.split(","))):
        for kind, gramian in gramians(m).items():
            results = compare(solvers, gap, gramian, rounds)
            print(f"{m:>5}  {kind:<18}" + "".join(f"{cell(r):>24}" for r in results.values()))
            rows.append({"tasks": m, "gradients": kind, "results": results})
    return rows


def clock(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale or unit == "µs":
            return f"{seconds / scale:.3g} {unit}"
    raise AssertionError


def cell(result: dict[str, Any]) -> str:
    if "failed" in result:
        return "gave up"
    share = 100 * result["spread"] / result["seconds"]
    return f"{clock(result['seconds'])} ±{share:.0f} %, {result['gap']:.0e}"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="2,3,8,40,100,1000", help="numbers of tasks, min-norm")
    parser.add_argument("--cone-sizes", default="2,8,40,100", help="numbers of tasks, projections")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, at least 2")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and of BLAS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    options = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(options.threads)  # read when torch and numpy are imported

    import torch

    torch.set_num_threads(options.threads)
    print(f"{processor()}, {os.cpu_count()} cores, threads: {options.threads}")
    print(", ".join(f"{package} {found}" for package, found in versions().items()))
    print("median process time ± half the interquartile range, gap")
    rows = table("The min-norm point", min_norm_solvers(), gramians, options.sizes, options.rounds)
    cone_rows = table(
        "Every gradient projected onto the cone of directions that harm no task",
        cone_solvers(),
        conflicts,
        options.cone_sizes,
        options.rounds,
    )
    if options.json:
        record = {
            "command": shlex.join(["python", *sys.argv]),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": {
                "processor": processor(),
                "cores": os.cpu_count(),
                "system": platform.platform(),
            },
            "threads": options.threads,
            "rounds": options.rounds,
            "versions": {"python": platform.python_version()} | versions(),
            "rows": rows,
            "cone": cone_rows,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
