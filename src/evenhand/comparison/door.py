"""`evenhand.compare`: one call from a problem, a function, a file or a data frame to a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenhand import sources
from evenhand.arguments import require_kind
from evenhand.recipes import Recipe

if TYPE_CHECKING:
    from evenhand.comparison.compare import Comparison
    from evenhand.comparison.executors.base import Executor
    from evenhand.comparison.job import Listener
    from evenhand.comparison.request import Maker
    from evenhand.data.problem import Problem

RECIPES = ("single-task", "sg", "mgda", "mgda-ub", "ate-sg")
"""What is compared where nothing is said."""


def compare(
    asked: Any,
    recipes: Sequence[str | Recipe] = RECIPES,
    *,
    targets: str | Sequence[str] = (),
    table: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    workers: int = 1,
    resume: bool = False,
    executor: str | Executor = "local",
    listener: Listener | None = None,
    **settings: Any,
) -> Comparison:
    """Train tasks together and apart, and see which serves them; printing it gives the verdict.

    Args:
        asked: a `Problem`; a function from the number of a split to one; a pandas data frame or a
            mapping from names to columns; a table's file, `module:function`, or a data set's name.
        recipes: by name, or recipes of one's own (`Recipe.of`).
        targets: of a table, the columns to predict.
        table: of a table, what else is known of it, by the names of `tables.question.Question`.
        out: an empty or new folder; by default one that does not exist yet, named after the data.
        workers: runs at a time; what is given as an object must then be fit to be pickled.
        resume: go on with what was begun in `out`.
        executor: where runs are trained: "local" (processes of this machine), "ray",
            "slurm(slurm_partition=…)", or an object such as `comparison.executors.ray.Ray(cpus=2)`.
        listener: is told, in this process, of every record of a run and of its result.
        settings: as `Settings` has them: splits, seeds (as numbers), rates, epochs, …

    Raises:
        ValueError: something asked for cannot be had; it says what would be right.
        TypeError: `asked` is none of these, or a setting is unknown.

    Example:
        >>> import tempfile, numpy as np
        >>> x, noise = np.random.default_rng(0).normal(size=(2, 60))
        >>> columns = {"x": x, "up": 2 * x + noise / 9, "steep": (x > 0.3).astype(float)}
        >>> with tempfile.TemporaryDirectory() as out:
        ...     found = compare(columns, ["single-task", "sg"], targets=["up", "steep"], out=out,
        ...                     splits=2, epochs=2, rates=(0.01,), references="none")
        >>> [row.recipe for row in found.rows]
        ['single-task', 'sg']
    """
    from evenhand.comparison import compare as comparing
    from evenhand.comparison.request import Settings

    for name, value, kind in (
        ("recipes", recipes, Sequence[str | Recipe]),
        ("targets", targets, str | Sequence[str]),
        ("table", table, Mapping[str, object] | None),
        ("out", out, str | Path | None),
        ("workers", workers, int),
        ("resume", resume, bool),
        ("listener", listener, Callable[..., Any] | None),
    ):
        require_kind(name, value, kind)
    if workers < 1:
        raise ValueError(f"workers={workers}: must be at least 1")
    said = {**({"targets": targets} if len(targets) else {}), **(table or {})}
    source, options = _source(asked, said)
    unknown = [name for name in settings if name not in Settings.__dataclass_fields__]
    if unknown:
        raise TypeError(f"there is no setting {unknown[0]!r}")
    made = Settings.suggested(source, options=options, **settings)
    folder = Path(out) if out is not None else new_folder(sources.called(made.source))
    return comparing.compare(
        made,
        recipes,
        folder,
        listener=listener or (lambda job, event: None),
        workers=workers,
        resume=resume,
        executor=executor,
    )


def _source(asked: Any, said: Mapping[str, Any]) -> tuple[str | Problem | Maker, dict[str, Any]]:
    """What settings take, and the options that it is told."""
    from evenhand.data.problem import Problem
    from evenhand.tables.examined import examined, tested
    from evenhand.tables.problem import TableProblem
    from evenhand.tables.question import Question, absolute
    from evenhand.tables.reading import columns_of, held

    if isinstance(asked, str):
        source = sources.checked(asked)
        table = sources.is_table(source)
        return source, Question.of(absolute(said)).written() if table else dict(said)
    columns = columns_of(asked)
    if columns is not None:
        question = Question.of(said)
        seen = examined(held(columns, strict=False), question, tested(question))
        return TableProblem("", question, seen), {}
    if said:
        raise ValueError(f"{', '.join(said)}: only a table has columns")
    if not isinstance(asked, Problem) and not callable(asked):
        raise TypeError(
            f"asked= is a {type(asked).__name__}, which cannot be compared on: give a Problem, a "
            "function that makes one, a data frame, a mapping of columns, or a name"
        )
    return asked, {}


def new_folder(name: str) -> Path:
    """`evenhand-NAME`, or with the first number behind it that is free."""
    plain = Path(f"evenhand-{name}")
    folder, number = plain, 1
    while folder.exists():
        number += 1
        folder = plain.with_name(f"{plain.name}-{number}")
    return folder
