"""Which collectives end a process of gloo by a signal: plain torch, nothing of evenhand.

    python benchmarks/gloo_names.py [--batches 40000] [--tries 3]

A process group of gloo has two threads that carry out collectives. Each notes the name of the one
that it has ended in a string of both, without a lock (torch 2.13, `ProcessGroupGloo::runLoop`,
`pgStatus_->lastCompletedWorkName`). Up to 15 letters are kept in the string itself; a longer name
is on the heap, and two threads that assign one at the same time free the same memory twice. The
process dies later, in any allocation of one of the threads: by a SIGSEGV, or "malloc(): unaligned
tcache chunk detected". Six collectives are in flight at a time here, so that it is seen in seconds;
where each is waited for, a thread must be held up between the end of one and its note.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

KINDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "all_reduce": ("ALLREDUCE", lambda: dist.all_reduce(torch.ones(8), async_op=True)),
    "all_gather": (
        "ALLGATHER",
        lambda: dist.all_gather([torch.empty(8)], torch.ones(8), async_op=True),
    ),
    "all_gather of DTensor.full_tensor": (
        "ALLGATHER_COALESCED",
        lambda: dist.all_gather_coalesced([[torch.empty(8)]], [torch.ones(8)], async_op=True),
    ),
    "all_reduce of sparse gradients": (
        "_ALLREDUCE_SPARSE",
        lambda: dist.all_reduce(torch.ones(8).to_sparse(), async_op=True),
    ),
}
"""The name that torch notes of each, and how it is begun."""


def work(kind: str, batches: int) -> None:
    """Begin so many batches of collectives of a kind, in a group of this process alone."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _, begin = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/s", rank=0, world_size=1)
        for _ in range(batches):
            for handle in [begin() for _ in range(6)]:
                handle.wait()
    os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=40_000)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--work", choices=KINDS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.batches)
    print(f"torch {torch.__version__}, {options.tries} tries of 6 x {options.batches} collectives")
    for kind, (name, _) in KINDS.items():
        again = [sys.executable, __file__, "--work", kind, "--batches", str(options.batches)]
        codes = [
            subprocess.run(again, capture_output=True, check=False).returncode
            for _ in range(options.tries)
        ]
        died = sum(code < 0 for code in codes)
        print(f"{kind:34} {name:20} {died} of {len(codes)} ended by a signal {codes}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
