"""A comparison's tables for other programs: CSV and JSON beside the report."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from evenhand.app.findings import Findings
from evenhand.comparison.assessment import Difference, Line
from evenhand.files import write_atomically

TABLE, RESULTS, VERDICT = "table.csv", "results.csv", "verdict.json"
FILES: Mapping[str, str] = {
    TABLE: "a line per row of the table",
    RESULTS: "a line per chosen run and task: split, seed, rate, epoch, metric, constant",
    VERDICT: "all of it, the sentences too",
}


def write(findings: Findings) -> None:
    """Write the files of `FILES` into the comparison's folder."""
    made = {TABLE: table(findings), RESULTS: results(findings), VERDICT: verdict(findings)}
    for name, text in made.items():
        write_atomically(findings.comparison.out / name, text)


def table(findings: Findings) -> str:
    """A line per row: skill, the difference from single-task, chances, costs, mean metrics."""
    tasks = list(findings.problem.tasks)
    heads = ["row", "reference", "skill", "versus", "low", "high", "worse", "same", "better"]
    heads += ["delta_m", "parameters", "operations", "processor_seconds"]
    heads += [f"{kind}:{task}" for kind in ("skill", "metric") for task in tasks]
    lines = []
    for line in findings.assessment.lines:
        row = findings.rows[line.name]
        versus = _difference(line.versus)
        cells = [line.name, int(line.reference), line.skill.mean, *versus.values()]
        cells += [_mean(findings.delta(line.name)), line.parameters, line.flops, line.processor]
        cells += [line.tasks[task].mean if task in line.tasks else None for task in tasks]
        cells += [_mean(row.test.get(task, ())) for task in tasks]
        lines.append(cells)
    return _csv(heads, lines)


def results(findings: Findings) -> str:
    """A line per chosen run and task."""
    heads = ["row", "network", "split", "seed", "rate", "epoch", "task", "metric_name", "metric"]
    constant = findings.rows["constant"]
    lines: list[list[Any]] = []
    for name, row in findings.rows.items():
        for result in row.chosen:
            job = result.job
            for task, value in result.test.items():
                who = (name, job.label, job.split, job.seed, job.rate, result.epoch, task)
                metric = findings.problem.tasks[task].metric_name
                lines.append([*who, metric, value, constant.by_split(task).get(job.split)])
    return _csv([*heads, "constant"], lines)


def verdict(findings: Findings) -> str:
    """Sentences and numbers as JSON; what is not known is null."""
    found = findings.assessment
    document = {
        "problem": findings.problem.name,
        "settings": findings.comparison.settings.written(),
        "verdict": asdict(findings.verdict),
        "design": asdict(found.design),
        "facts": [asdict(facts) for facts in findings.comparison.facts],
        "constant": found.constant,
        "judged": found.judged,
        "unjudged": found.unjudged,
        "headline": _told(found.headline),
        "spread": None if found.spread is None else asdict(found.spread),
        "by_task": {task: _told(d) for task, d in found.by_task.items()},
        "against_sum": {name: _told(d) for name, d in found.against_sum.items()},
        "rows": [_row(line) for line in found.lines],
    }
    return json.dumps(_known(document), indent=1, ensure_ascii=False) + "\n"


def _row(line: Line) -> dict[str, Any]:
    return {
        "name": line.name,
        "title": line.title,
        "reference": line.reference,
        "skill": line.skill.mean,
        "skill_by_split": dict(line.skill.values),
        "tasks": {task: dict(points.values) for task, points in line.tasks.items()},
        "versus": _told(line.versus),
        "parameters": line.parameters,
        "operations": line.flops,
        "processor_seconds": line.processor,
    }


def _told(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {**_difference(difference), "by_split": dict(difference.points.values)}


def _difference(difference: Difference | None) -> dict[str, float | None]:
    interval = None if difference is None else difference.interval
    chances = None if difference is None else difference.chances
    return {
        "mean": None if difference is None else difference.mean,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "worse": None if chances is None else chances.worse,
        "same": None if chances is None else chances.same,
        "better": None if chances is None else chances.better,
    }


def _mean(values: tuple[float, ...]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _known(value: Any) -> Any:
    """JSON has no NaN: what is not a finite number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _known(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_known(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _csv(heads: list[str], lines: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for line in lines:
        writer.writerow(["" if _known(cell) is None else cell for cell in line])
    return text.getvalue()
