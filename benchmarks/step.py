"""What one training step costs in time and memory, relative to plain training, in every mode.

    python benchmarks/step.py [--cases a,b,c,d,e,f] [--peers] [--rounds 7] [--threads 1] [--quick]
                              [--variants PART,…] [--without PART,…] [--device cuda] [--out FILE]
    python benchmarks/step.py --table    # the README's, and that of docs/which.md, from
                                         # benchmarks/results/step.json and step-device.json

A step is: forward, the gradients and the min-norm weights, SGD. All is relative to `sg`, the loop
that everybody writes (the sum of the losses, one backward pass). `by hand` are loops that do the
arithmetic of a mode with autograd, and nothing around it. The rest are a `Balancer` in a user's
loop, and with --peers TorchJD and LibMTL, whose gradients then meet our solver (their own is
slower, and benchmarks/solvers.py is about those): only the gradients differ.

Time is the processor time of the process, which a busy machine disturbs less than the time on the
wall (given too). On a GPU it is the time on the wall until the device has done all of it, and the
results carry the card's name. The variants take turns in every round and ratios are taken within a
round: printed is the median over the rounds, in brackets their range. Memory is the peak of what
torch's allocator hands out during a step beyond what is there before it (weights, data).

LibMTL need not be installed beside torchvision: put its folder on PYTHONPATH. Its `weighting`
subpackage alone is imported.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shlex
import statistics
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from alternation import peak_bytes
from networks import CASES, QUICK, Case
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from evenhand import MGDA, Balancer, Every, MultiTaskNetwork, OnlineMinNorm
from evenhand.autodiff.chunking import JacobianMode
from evenhand.comparison.folder import environment
from evenhand.linalg import min_norm
from evenhand.training.records import write_atomically

OUT = Path(__file__).parent / "results" / "step.json"
OUT_GPU = Path(__file__).parent / "results" / "step-device.json"
README = Path(__file__).parent.parent / "README.md"
SECONDS = 0.3  # of each variant in each round, at least, where --seconds does not say otherwise
Step = Callable[[], None]


# Plain training, and the modes by hand ---------------------------------------------------------


def descent(network: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr=1e-4)


def sg(case: Case) -> Step:
    network = case.network()
    optimizer = descent(network)

    def step() -> None:
        optimizer.zero_grad()
        losses = list(case.losses(network(case.inputs)).values())
        sum(losses[1:], losses[0]).backward()
        optimizer.step()

    return step


def through_heads(network: MultiTaskNetwork, case: Case) -> tuple[Tensor, list[Tensor]]:
    """Z, and ∂L_i/∂Z for each task; the heads' gradients are in place."""
    outputs = network(case.inputs)
    rows = []
    for task, loss in case.losses(outputs).items():
        own = list(network.head(task).parameters())
        row, *gradients = torch.autograd.grad(loss, [outputs.features, *own], retain_graph=True)
        for parameter, gradient in zip(own, gradients, strict=True):
            parameter.grad = gradient
        rows.append(row)
    return outputs.features, rows


def by_hand(case: Case, *, batched: bool = False) -> Step:
    """The exact Jacobian, flat."""
    network = case.network()
    optimizer = descent(network)
    trunk = list(network.trunk.parameters())
    sizes = [p.numel() for p in trunk]

    def step() -> None:
        optimizer.zero_grad()
        z, rows = through_heads(network, case)
        if batched:
            columns = torch.autograd.grad(z, trunk, torch.stack(rows), is_grads_batched=True)
            jacobian = torch.cat([g.flatten(1) for g in columns], dim=1)
        else:
            gradients = [torch.autograd.grad(z, trunk, row, retain_graph=True) for row in rows]
            jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in gradients])
        direction = min_norm(jacobian @ jacobian.T).weights @ jacobian
        for parameter, piece in zip(trunk, direction.split(sizes), strict=True):
            parameter.grad = piece.view_as(parameter)
        optimizer.step()

    return step


def by_hand_at_features(case: Case) -> Step:
    """MGDA-UB."""
    network = case.network()
    optimizer = descent(network)
    trunk = list(network.trunk.parameters())

    def step() -> None:
        optimizer.zero_grad()
        z, rows = through_heads(network, case)
        stacked = torch.stack(rows)
        flat = stacked.flatten(1)
        weights = min_norm(flat @ flat.T).weights
        gradients = torch.autograd.grad(z, trunk, (weights @ flat).view_as(z))
        for parameter, gradient in zip(trunk, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    return step


# Ours ------------------------------------------------------------------------------------------


def ours(
    case: Case,
    make: Callable[[], Balancer],
    *,
    fused: bool = False,
    unfused_attention: bool = False,
    loss: bool = False,
) -> Step:
    """A user's loop; with `loss` it is the scalar of `Balancer.loss` that is differentiated."""
    network = case.network(fused)
    optimizer = descent(network)
    balancer = make()
    balancer.attach(network)
    plain = partial(sdpa_kernel, SDPBackend.MATH) if unfused_attention else nullcontext

    def step() -> None:
        optimizer.zero_grad()
        with plain():
            outputs = network(case.inputs)
        if loss:
            balancer.loss(case.losses(outputs), features=outputs).backward()
        else:
            balancer.backward(case.losses(outputs), features=outputs)
        optimizer.step()

    return step


# Peers -----------------------------------------------------------------------------------------


def torchjd(case: Case, chunk: int | None) -> Step:
    """TorchJD's multi-task backward, its Gramian summed over parameters as its page advises."""
    from torchjd.aggregation import GramianWeightedAggregator, Weighting
    from torchjd.autojac import jac_to_grad, mtl_backward

    class Exact(Weighting):  # type: ignore[type-arg]
        def forward(self, gramian: Tensor, /) -> Tensor:
            return min_norm(gramian).weights

    network = case.network()
    optimizer = descent(network)
    trunk = list(network.trunk.parameters())
    own = [list(network.head(task).parameters()) for task in case.targets]
    aggregator = GramianWeightedAggregator(Exact())

    def step() -> None:
        optimizer.zero_grad()
        outputs = network(case.inputs)
        losses = list(case.losses(outputs).values())
        mtl_backward(
            losses,
            features=outputs.features,
            tasks_params=own,
            shared_params=trunk,
            parallel_chunk_size=chunk,
        )
        jac_to_grad(trunk, aggregator, optimize_gramian_computation=True)
        optimizer.step()

    return step


def autogram(case: Case) -> Step:
    """TorchJD's Gramian without the Jacobian, and a backward pass of the weighted sum.

    Its heads then move by the weighted losses: the closest to the others that it offers.
    """
    from torchjd.autogram import Engine

    network = case.network()
    optimizer = descent(network)
    engine = Engine(network.trunk, batch_dim=None)

    def step() -> None:
        optimizer.zero_grad()
        losses = torch.stack(list(case.losses(network(case.inputs)).values()))
        gramian = engine.compute_gramian(losses)
        losses.backward(min_norm(gramian).weights)
        optimizer.step()

    return step


@cache
def libmtl_weighting() -> Any:
    """LibMTL's MGDA; the package's own __init__, which wants torchvision, is passed over."""
    spec = importlib.util.find_spec("LibMTL")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("LibMTL is not on the path")
    package = types.ModuleType("LibMTL")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules.setdefault("LibMTL", package)
    return importlib.import_module("LibMTL.weighting.MGDA").MGDA


def libmtl(case: Case, at_features: bool) -> Step:
    """LibMTL's MGDA; at the features it sums gradients over the batch, as it does."""
    network = case.network()
    optimizer = descent(network)
    trunk = list(network.trunk.parameters())

    class Method(libmtl_weighting()):  # type: ignore[misc]
        def get_share_params(self) -> list[nn.Parameter]:
            return trunk

        def zero_grad_share_params(self) -> None:
            network.trunk.zero_grad(set_to_none=False)

        def _find_min_norm_element(self, grads: Tensor) -> Tensor:
            return min_norm(grads @ grads.T).weights

    method = Method()
    method.task_num, method.task_name = len(case.targets), list(case.targets)
    method.device, method.rep_grad = case.inputs.device, at_features

    def step() -> None:
        optimizer.zero_grad()
        z = network.trunk(case.inputs)
        if at_features:
            method.rep = z
            method.rep_tasks = {t: z.detach().requires_grad_() for t in case.targets}
            outputs = {t: network.head(t)(method.rep_tasks[t]) for t in case.targets}
        else:
            outputs = {t: network.head(t)(z) for t in case.targets}
        method.backward(list(case.losses(outputs).values()), mgda_gn="none")
        optimizer.step()

    return step


Variants = Mapping[str, Callable[[Case], Step]]


def exact(jacobian: JacobianMode = "looped") -> Balancer:
    return Balancer(aggregator=MGDA(), jacobian=jacobian)


def at_features() -> Balancer:
    return Balancer(aggregator=MGDA(at="representation"))


def online() -> Balancer:
    return Balancer(aggregator=OnlineMinNorm())


def every(steps: int) -> Balancer:
    return Balancer(aggregator=Every(MGDA(), steps))


OURS: Variants = {
    "exact": partial(ours, make=exact),
    "exact, loss": partial(ours, make=exact, loss=True),
    "exact, batched": partial(ours, make=partial(exact, "batched")),
    "exact, fused heads": partial(ours, make=exact, fused=True),
    "features": partial(ours, make=at_features),
    "features, loss": partial(ours, make=at_features, loss=True),
    "online": partial(ours, make=online, unfused_attention=True),
    "every 10": partial(ours, make=partial(every, 10)),
    "features, fused heads": partial(ours, make=at_features, fused=True),
}
CYCLES = {"every 10": 10}  # steps of these cost differently in turn
VARIANTS: Variants = {
    "sg": sg,
    "exact by hand": by_hand,
    "exact by hand, batched": partial(by_hand, batched=True),
    "features by hand": by_hand_at_features,
    **OURS,
}
PEERS: Variants = {
    "TorchJD, chunk 1": partial(torchjd, chunk=1),
    "TorchJD, chunk None": partial(torchjd, chunk=None),
    "TorchJD, autogram": autogram,
    "LibMTL": partial(libmtl, at_features=False),
    "LibMTL, features": partial(libmtl, at_features=True),
}


# Measuring -------------------------------------------------------------------------------------


def timed(step: Step, repeats: int, cuda: bool) -> tuple[float, float]:
    """Processor and wall seconds of one call; on a GPU those on the wall until it is done, twice.

    A process that waits for a GPU spends processor time or none, as the driver pleases.
    """
    if cuda:
        torch.cuda.synchronize()
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        step()
    if cuda:
        torch.cuda.synchronize()
    taken = (time.perf_counter() - wall) / repeats
    return taken if cuda else (time.process_time() - processor) / repeats, taken


def peak(step: Step, cuda: bool) -> int:
    """The most bytes allocated at once during a step, beyond what is allocated before it."""
    if not cuda:
        return peak_bytes(step)
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def prepared(case: Case, variants: Variants) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps that run, warm, and why the others do not."""
    steps, failed = {}, {}
    for name, make in variants.items():
        try:
            with case.inputs.device:
                step = make(case)
            step()
            steps[name] = step
        except (ImportError, RuntimeError, ValueError) as error:
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return steps, failed


def rounds(
    steps: Mapping[str, Step], count: int, seconds: float, cuda: bool
) -> dict[str, list[Any]]:
    """What each variant takes in every round."""
    once = {name: timed(step, 1, cuda)[0] for name, step in steps.items()}
    repeats = {name: max(1, round(seconds / taken)) for name, taken in once.items()}
    for name, cycle in CYCLES.items():
        if name in repeats:
            repeats[name] = cycle * -(-repeats[name] // cycle)
    found: dict[str, list[Any]] = {name: [] for name in steps}
    for number in range(count):
        for name, step in steps.items():
            found[name].append(timed(step, repeats[name], cuda))
        print(f"  round {number + 1} of {count}", end="\r", file=sys.stderr, flush=True)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def measured(case: Case, variants: Variants, count: int, seconds: float) -> dict[str, Any]:
    """Everything about one case."""
    steps, failed = prepared(case, variants)
    cuda = case.inputs.is_cuda
    times = rounds(steps, count, seconds, cuda)
    memory = {name: peak(step, cuda) for name, step in steps.items()}
    results = {}
    for name, pairs in times.items():
        relative = [
            [one / base for one, base in zip(pair, plain, strict=True)]
            for pair, plain in zip(pairs, times["sg"], strict=True)
        ]
        results[name] = {
            "milliseconds": spread([1e3 * processor for processor, _ in pairs]),
            "time": spread([processor for processor, _ in relative]),
            "wall time": spread([wall for _, wall in relative]),
            "peak bytes": memory[name],
            "memory": memory[name] / memory["sg"],
        }
    return {"about": case.about, "variants": results, "cannot run": failed}


def told(result: Mapping[str, Any]) -> str:
    lines = [result["about"], f"{'':24}{'ms':>10}{'time':>26}{'wall':>8}{'memory':>9}"]
    for name, entry in result["variants"].items():
        ratio = entry["time"]
        span = f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
        wall = entry["wall time"]["median"]
        lines.append(
            f"{name:24}{entry['milliseconds']['median']:10.2f}{span:>26}{wall:8.2f}"
            f"{entry['memory']:9.2f}"
        )
    lines += [f"{name:24}  {why}" for name, why in result["cannot run"].items()]
    return "\n".join(lines)


def versions() -> dict[str, str]:
    found = {}
    for package in ("torchjd", "LibMTL"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of one step in every mode.")
    parser.add_argument("--cases", default=",".join(CASES), help="of a, b, c, d, e, f")
    parser.add_argument("--variants", help="a part of the name of those wanted beside sg")
    parser.add_argument("--without", help="a part of the name of those not wanted")
    parser.add_argument("--peers", action="store_true", help="TorchJD and LibMTL too")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, … [cpu]")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"a round's [{SECONDS}]")
    parser.add_argument("--quick", action="store_true", help="small networks, one round")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    parser.add_argument("--table", action="store_true", help="fill the pages' tables, no more")
    options = parser.parse_args()
    if options.table:
        return fill_pages()
    torch.set_num_threads(options.threads)
    if options.quick:
        options = argparse.Namespace(**{**vars(options), "rounds": 1})
    variants = {**VARIANTS, **(PEERS if options.peers else {})}
    if options.variants:
        parts = options.variants.split(",")
        wanted = {n for n in variants if any(part in n for part in parts)}
        variants = {n: make for n, make in variants.items() if n == "sg" or n in wanted}
    if options.without:
        parts = options.without.split(",")
        variants = {n: v for n, v in variants.items() if not any(part in n for part in parts)}
    for name in options.cases.split(","):
        torch.manual_seed(0)
        with torch.device(options.device):
            case = (QUICK if options.quick else CASES)[name]()
        load, seconds = os.getloadavg()[0], 0.0 if options.quick else options.seconds
        result = {
            **measured(case, variants, options.rounds, seconds),
            "card": torch.cuda.get_device_name() if case.inputs.is_cuda else None,
            "command": shlex.join(["python", *sys.argv]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "load before": load,
            "rounds": options.rounds,
            "threads": options.threads,
        }
        print(f"({name}) {told(result)}", end="\n\n", flush=True)
        if options.out:
            add(options.out, name, result)


def add(path: Path, name: str, result: Mapping[str, Any]) -> None:
    """Put one case's results into the file."""
    written: dict[str, Any] = {"cases": {}}
    if path.exists():
        written = json.loads(path.read_text())
    cases = dict(sorted({**written["cases"], name: result}.items()))
    whole = {**environment(), "peers": versions(), "cases": cases}
    write_atomically(path, json.dumps(whole, indent=1) + "\n")


# The README's table ----------------------------------------------------------------------------

BEGIN, END = "<!-- table of benchmarks/step.py -->", "<!-- end of the table -->"
SHOWN = {
    "exact": "MGDA",
    "exact, loss": "MGDA by `loss`",
    "features": "MGDA at the features",
    "online": "MGDA online",
    "every 10": "MGDA every 10 steps",
    "TorchJD, chunk 1": "TorchJD",
    "LibMTL": "LibMTL",
}


SHOWN_OF_A_GPU = {
    "exact": "MGDA",
    "exact, batched": 'MGDA, `jacobian="batched"`',
    "features": "MGDA at the features",
    "online": "MGDA online",
    "TorchJD, chunk 1": "TorchJD",
    "TorchJD, chunk None": "TorchJD, batched",
}


def table(written: Mapping[str, Any]) -> str:
    """The times as Markdown, a line per case; fused heads where there are such."""
    return _table(written, SHOWN, "{}, fused heads")


def gpu_table(written: Mapping[str, Any]) -> str:
    """That of docs/which.md; no heads are fused."""
    return _table(written, SHOWN_OF_A_GPU, "{}")


def _table(written: Mapping[str, Any], shown: Mapping[str, str], preferred: str) -> str:
    lines = [
        "| " + " | ".join(["one step, relative to `sg`", *shown.values()]) + " |",
        "|---" * (1 + len(shown)) + "|",
    ]
    for case in written["cases"].values():
        cells = [case["about"]]
        for name in shown:
            entry = case["variants"].get(preferred.format(name)) or case["variants"].get(name)
            cells.append("–" if entry is None else f"{entry['time']['median']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fill_pages() -> None:
    """Write the committed results' tables between the pages' markers."""
    for page, results, made, begin, end in PAGES:
        text = page.read_text()
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{page} has no markers {begin} and {end}")
        lines = made(json.loads(results.read_text()))
        page.write_text(f"{before}{begin}\n{lines}\n{end}{after}")


PAGES = (
    (README, OUT, table, BEGIN, END),
    (
        *(README.parent / "docs" / "which.md", OUT_GPU, gpu_table),
        *("<!-- times on a GPU -->", "<!-- end of the times on a GPU -->"),
    ),
)


if __name__ == "__main__":
    main()
