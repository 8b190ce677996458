"""The runs of a comparison as Ray's own tasks."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evenhand.arguments import require_fields
from evenhand.comparison.executors.base import supervise
from evenhand.comparison.executors.sent import Sent
from evenhand.comparison.job import Listener, Unit, WorkerEndedError
from evenhand.comparison.request import Settings
from evenhand.signals import ENDING
from evenhand.text import plain


@dataclass(frozen=True)
class Ray:
    """Tasks of a Ray cluster, each with one thread of torch.

    A cluster that this process has joined already is used. Otherwise one is joined, or started on
    this machine and stopped at the end. All its machines must see the comparison's folder, the data
    and this Python environment under the same names. A task whose worker or machine is lost is sent
    again, from its run's checkpoint.

    Args:
        address: of a cluster, as `ray.init` takes it ("auto" finds one); "local" starts one; by
            default what the variable RAY_ADDRESS names, else one is started.
        cpus: that a task asks for.
        gpus: likewise.

    Raises:
        TypeError: something is of another kind; the message names it.
        ValueError: `cpus` or `gpus` is negative or not finite.
    """

    address: str | None = None
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        require_fields(self)
        for name, number in (("cpus", self.cpus), ("gpus", self.gpus)):
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(f"{name}={number}: must be 0 or more")

    def run(
        self,
        planned: Sequence[Unit],
        settings: Settings,
        out: Path,
        listener: Listener,
        workers: int,
    ) -> None:
        sent = Sent.of(settings, out)
        with (
            _joined(self.address),
            closing(_Tasks(sent, self.cpus, self.gpus)) as pool,
        ):
            supervise(planned, pool, settings, out, listener, workers)


class _Tasks:
    """Tasks, by the reference that Ray gives for each."""

    def __init__(self, sent: Sent, cpus: float, gpus: float) -> None:
        import ray

        self._ray = ray
        self._sent = ray.put(sent)  # once, not with each task: it may hold data
        # Tries are counted by whoever asks, so that they are bounded and told in one place.
        options: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)
        self._train = options(_train)
        self.away: dict[Any, Unit] = {}

    def submit(self, unit: Unit) -> None:
        self.away[self._train.options(name=unit.jobs[0].folder).remote(self._sent, unit)] = unit

    def ended(self, seconds: float) -> list[tuple[Unit, BaseException | None]]:
        refs = list(self.away)
        done, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        if not done:
            done, _ = self._ray.wait(refs, num_returns=1, timeout=seconds)
        return [(self.away.pop(ref), self._outcome(ref)) for ref in done]

    def _outcome(self, ref: Any) -> BaseException | None:
        try:
            found: BaseException | None = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as raised:  # the unit itself could not be read
            return RuntimeError(plain(str(raised), 1000))
        except self._ray.exceptions.RayError as lost:  # a worker, its machine, or its memory
            first, *_ = str(lost).strip().splitlines() or [""]
            return WorkerEndedError(f"{type(lost).__name__}: {first}")
        return found

    def close(self) -> None:
        """End what is not finished, at once."""
        for ref in self.away:
            self._ray.cancel(ref, force=True)


def _train(sent: Sent, unit: Unit) -> BaseException | None:
    return sent(unit)


@contextmanager
def _joined(address: str | None) -> Iterator[None]:
    """Inside, this process is a driver of a cluster."""
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody outside
    before = {number: signal.getsignal(number) for number in ENDING}
    ray.init(address, log_to_driver=False, configure_logging=False)
    try:
        for number, handler in before.items():  # Ray has its own, which exit without a word
            if handler is not None:
                signal.signal(number, handler)
        yield
    finally:
        ray.shutdown()
