"""What is asked of a table: its targets, and what is known of its other columns.

Nothing here loads torch or reads a file, so that the tool refuses a mistake at once.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenhand.arguments import require_fields
from evenhand.asking import of_table, option
from evenhand.sources import KINDS
from evenhand.tables.shape import Shape
from evenhand.text import composed, plain

if TYPE_CHECKING:
    from evenhand.tables.reading import Table

MOST_COLUMNS = 10_000
"""That can be named."""
COLUMNS = ("targets", "inputs", "drop", "kinds", "metrics", "group", "time", "weight")
"""What names columns."""


@dataclass(frozen=True)
class Question:
    """What is asked of a table.

    Attributes:
        targets: the columns to be predicted, each a task.
        test: a file with the official test set, of the same columns.
        kinds: the kind of a column, where it is not the one its cells show, see `kinds`.
        inputs: the columns to predict from; all others than targets if empty.
        drop: columns to leave out.
        group: the column that says which rows belong together; a group is never divided.
        time: the column that says when a row was taken; what comes later tests.
        weight: the column that says how much a row counts, in losses and metrics.
        metrics: the metric of a target, where it is not the usual one, see `scores`.
        missing: cells that mean "blank", besides the usual ones.
        encoding: of text files.
        balance: whether classes count equally in the loss, whatever their numbers.
        network: its shape, `mlp(width=64,depth=2,head=32,dropout=0,activation=relu)`; what is left
            out follows from the data's size.
        batch: rows per training batch; None: from the data's size.
    """

    targets: tuple[str, ...] = ()
    test: str | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    group: str | None = None
    time: str | None = None
    weight: str | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    encoding: str = "utf-8"
    balance: bool = False
    network: str = "mlp"
    batch: int | None = None

    def __post_init__(self) -> None:
        require_fields(self)
        for what, given in (
            ("targets", self.targets),
            ("inputs", self.inputs),
            ("drop", self.drop),
        ):
            if len(given) > MOST_COLUMNS:
                raise ValueError(f"{len(given):,} columns in {what}: at most {MOST_COLUMNS:,}")
        targets, drop = frozenset(self.targets), frozenset(self.drop)
        if len(targets) < len(self.targets):
            twice = Counter(self.targets).most_common(1)[0][0]
            raise ValueError(f"the target {twice!r} is named twice")
        taken: dict[str, tuple[str | None, ...]] = {"drop": self.drop, "inputs": self.inputs}
        taken |= {"group": (self.group,), "time": (self.time,), "weight": (self.weight,)}
        for asked, names in taken.items():
            if both := [name for name in names if name in targets]:
                raise ValueError(f"{both[0]!r} is a target: it cannot be in {of_table(asked)} too")
        if both := [name for name in self.inputs if name in drop]:
            raise ValueError(f"{both[0]!r} is in both {of_table('inputs')} and {of_table('drop')}")
        if self.group is not None and self.time is not None:
            raise ValueError(
                f"{of_table('group')} and {of_table('time')}: a group may reach over the time at "
                "which past and future are divided; have one of the two"
            )
        if self.test is not None and self.time is not None:
            raise ValueError(
                f"{of_table('test')} and {of_table('time')}: the test set is fixed, so no time "
                "divides"
            )
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch={self.batch}: must be at least 1")
        for name, kind in self.kinds.items():
            if kind not in KINDS:
                near = difflib.get_close_matches(kind, KINDS, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(
                    f"kind of {name!r}: {kind!r} must be one of {', '.join(KINDS)}{hint}"
                )
        Shape.of(self.network)

    def require_columns(self, table: Table) -> None:
        """Refuse names that no column of the table has.

        Raises:
            ValueError: there is one, or no target (the message names the nearest); or a column that
                is used cannot be read.
        """
        names = [*table.columns, *table.unreadable]
        if not self.targets:
            raise ValueError(
                f"{table.name}: name the columns to predict ({option('targets')}); "
                f"{nearest('', names)}"
            )
        wanted: dict[str, Sequence[str | None]] = {
            "target": self.targets,
            of_table("inputs"): self.inputs,
            of_table("drop"): self.drop,
            of_table("kinds"): list(self.kinds),
            of_table("metrics"): list(self.metrics),
            of_table("group"): (self.group,),
            of_table("time"): (self.time,),
            of_table("weight"): (self.weight,),
        }
        for asked, columns in wanted.items():
            for name in columns:
                if name is not None and name not in names:
                    lacking = f"{table.name} has no column {_shown(name)}"
                    raise ValueError(f"{asked}: {lacking}; {nearest(name, names)}")
                if name is not None and name in table.unreadable and columns is not self.drop:
                    raise ValueError(f"{asked}: {table.unreadable[name]}")
        if aside := [name for name in self.metrics if name not in self.targets]:
            raise ValueError(f"{of_table('metrics')}: {_shown(aside[0])} is no target")

    def written(self) -> dict[str, Any]:
        """What a manifest keeps: what differs from the defaults, in JSON's types."""
        plain = {e.name: e.default for e in fields(self)}
        said = asdict(self)
        kept = {key: value for key, value in said.items() if value and value != plain[key]}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Question:
        """What `written` said, or options with these names.

        Raises:
            ValueError: there is no such option, or one is out of range.
        """
        known = {entry.name for entry in fields(cls)}
        if unknown := [key for key in said if key not in known]:
            raise ValueError(f"a table has no option {unknown[0]!r}; there are {', '.join(known)}")
        lists = {"targets", "inputs", "drop", "missing"}
        made: dict[str, Any] = {k: _listed(v) if k in lists else v for k, v in said.items()}
        return cls(**made | {key: _composed(made[key]) for key in COLUMNS if key in made})


def _composed(value: Any) -> Any:
    """The same with the names of columns as tables have them, see `text.composed`."""
    match value:
        case str():
            return composed(value)
        case tuple():
            return tuple(map(_composed, value))
        case Mapping():
            return {_composed(key): item for key, item in value.items()}
    return value


def _listed(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, Iterable) else value  # told with the others


def absolute(said: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the test file's whole path, so that they hold wherever one works."""
    test = said.get("test")
    return {**said, **({} if test is None else {"test": str(Path(test).absolute())})}


def nearest(name: str, names: Sequence[str]) -> str:
    """What may have been meant by the name of a column that is not there."""
    lower = {other.lower(): other for other in names}
    near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    told = near or list(names)[:20]
    more = "" if near or len(names) <= 20 else f", … ({len(names)} in all)"
    return ("did you mean " if near else "there are ") + ", ".join(map(_shown, told)) + more


def _shown(name: str) -> str:
    """As `reading.shown`, which loads numpy."""
    return f"'{plain(str(name))}'"
