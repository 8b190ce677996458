"""The runs of a comparison as jobs of Slurm, by submitit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from evenhand.arguments import checked
from evenhand.comparison.executors.base import SHARE, supervise
from evenhand.comparison.executors.sent import Sent
from evenhand.comparison.job import Listener, Unit, WorkerEndedError
from evenhand.comparison.request import Settings
from evenhand.text import plain

LOGS = ".slurm"
"""In the comparison's folder: what submitit writes, the output of every job among it."""


class Slurm:
    """Jobs of Slurm, one for each unit, each with one thread of torch.

    All machines must see the comparison's folder, the data and this Python environment under the
    same names. A job that Slurm has ended (its time was over, its machine failed, it was preempted)
    is sent again, from its run's checkpoint.

    Args:
        cluster: "slurm", or submitit's own "local", which starts processes of this machine to try
            things out.
        timeout_min: minutes that a job may take; submitit's own default is 5.
        parameters: what else `submitit.AutoExecutor.update_parameters` takes: mem_gb,
            slurm_partition, slurm_account, …

    Raises:
        TypeError: `cluster` is no text, or `timeout_min` no whole number.
        ValueError: `timeout_min` is below 1; or, in a run, there is no such cluster or parameter,
            or Slurm refuses a job.
    """

    @checked
    def __init__(
        self, cluster: str = "slurm", *, timeout_min: int = 240, **parameters: Any
    ) -> None:
        if timeout_min < 1:
            raise ValueError(f"timeout_min={timeout_min}: must be at least 1 minute")
        self.cluster = cluster
        self.parameters = {"name": "evenhand", "timeout_min": timeout_min, **parameters}

    def run(
        self,
        planned: Sequence[Unit],
        settings: Settings,
        out: Path,
        listener: Listener,
        workers: int,
    ) -> None:
        sent = Sent.of(settings, out)
        with closing(_Jobs(sent, self._engine(out))) as pool:
            supervise(planned, pool, settings, out, listener, workers)

    def _engine(self, out: Path) -> Any:
        import submitit

        try:
            engine = submitit.AutoExecutor(out.resolve() / LOGS, cluster=self.cluster)
            engine.update_parameters(**self.parameters)
        except (NameError, ValueError, TypeError, RuntimeError, AssertionError) as error:
            raise _refused(error) from error
        return engine


class _Jobs:
    """Jobs, as submitit has them."""

    def __init__(self, sent: Sent, engine: Any) -> None:
        self._sent = sent
        self._engine = engine
        self.away: dict[Unit, Any] = {}

    def submit(self, unit: Unit) -> None:
        from submitit.core.utils import FailedSubmissionError

        try:
            self.away[unit] = self._engine.submit(self._sent, unit)
        except FailedSubmissionError as error:
            raise _refused(error) from error

    def ended(self, seconds: float) -> list[tuple[Unit, BaseException | None]]:
        begun = time.monotonic()
        done = [unit for unit, job in self.away.items() if job.done()]
        if not done:  # submitit looks for files, perhaps over a network
            time.sleep(max(seconds, SHARE * (time.monotonic() - begun)))
        return [(unit, _outcome(self.away.pop(unit))) for unit in done]

    def close(self) -> None:
        """End what is not finished."""
        for job in self.away.values():
            job.cancel()


def _refused(error: Exception) -> ValueError:
    return ValueError(f"executor=slurm: {plain(' '.join(str(error).split()), 300)}")


def _outcome(job: Any) -> BaseException | None:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        error: BaseException | None = job.result()
    except FailedJobError as raised:  # the unit itself could not be read
        return RuntimeError(plain(str(raised), 1000))
    except UncompletedJobError as lost:
        first, *_ = str(lost).strip().splitlines() or [""]
        return WorkerEndedError(f"job {job.job_id} is {job.state}: {first}")
    return error
