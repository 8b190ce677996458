"""What `evenhand compare` is asked: the options, a YAML file with the same keys, or both."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from evenhand import sources
from evenhand.app import completing
from evenhand.app.options import Option, settings_of, words_of_settings
from evenhand.app.source_options import SourceOptions, words_of
from evenhand.comparison.executors import LOCAL, require_executor
from evenhand.comparison.folder import begun
from evenhand.comparison.request import MOST, Settings, known_recipe, require_few
from evenhand.files import read_text, require_writable
from evenhand.recipes import RECIPES
from evenhand.spelling import split_list
from evenhand.text import LINE, plain, quoted

EVERYTHING = "all"
"""What asks for every recipe there is."""


def listed(value: Any) -> Any:
    """`a,b(c=1,d=2)`, a single value, or a list of values: a list."""
    if isinstance(value, str):
        if value.count(",") > MOST_VALUES:
            raise ValueError(f"{value.count(',') + 1} values: at most {MOST_VALUES}")
        return split_list(value)
    return [value] if isinstance(value, int | float) else value


def numbered(value: Any) -> Any:
    """A number, if that is what the user typed."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def number(value: Any) -> Any:
    """The same; true and false are no numbers here."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number")
    return value


def a_path(value: Any) -> Any:
    """A path that a folder can have."""
    if isinstance(value, str | Path) and (not str(value) or "\0" in str(value)):
        raise ValueError(f"{quoted(str(value))} is no folder's name")
    return value


MOST_VALUES = 200
"""The most values of an option that takes several."""
MOST_PROCESSES = 256
Item = TypeVar("Item")
Listed = Annotated[
    tuple[Item, ...], BeforeValidator(listed), Field(min_length=1, max_length=MOST_VALUES)
]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(number)]
Count = Annotated[int, BeforeValidator(number), Field(ge=1)]


Optimizer = Annotated[
    str | None,
    Option(
        "NAME",
        "sgd (momentum 0.9), adam, adamw(weight_decay=0.01), … [default: the data set's own]",
        "optimizer",
    ),
]


class Config(SourceOptions):
    """A comparison as the user asks for it. Options and keys of a file have these names.

    Raises:
        ValidationError: something is unknown or out of range.
    """

    recipes: Annotated[
        Listed[str],
        Option(
            "A,B,…",
            "Recipes, or 'all'; `evenhand methods` lists them. "
            "[default: single-task,sg,mgda,mgda-ub,ate-sg]",
            complete=completing.recipe_names,
        ),
    ] = ("single-task", "sg", "mgda", "mgda-ub", "ate-sg")
    splits: Annotated[
        Annotated[Count, Field(le=MOST["splits"])] | None,
        Option(
            "K",
            "Divide the data anew K times; each split has its own rates and epochs. "
            "[default: 5; 3 where the test set is fixed]",
            "splits",
        ),
    ] = None
    design: Annotated[
        str | None,
        Option(
            "HOW",
            "How the data are divided: hold-out, k-fold or time. [default: hold-out]",
            "design",
        ),
    ] = None
    seeds: Annotated[
        Annotated[Count, Field(le=MOST["seeds"])] | None,
        Option(
            "N",
            "Train with N seeds in each split. [default: 1]",
            "seeds",
            told=lambda count: tuple(range(count)),
            written=lambda seeds: str(len(seeds)),
        ),
    ] = None
    references: Annotated[
        str | None,
        Option(
            "WHICH",
            "Rows beside the recipes: none (the constant alone), cheap (a linear model and "
            "boosted trees, where inputs are flat), or all (equal size, own epochs, tuned "
            "weights). [default: cheap]",
            "references",
        ),
    ] = None
    matters: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        BeforeValidator(number),
        Option("POINTS", "The smallest difference of skill that matters. [default: 1]", "matters"),
    ] = 1.0
    lr: Annotated[
        Listed[Rate] | None,
        Option("R,R,…", "Learning rates to choose from. [default: the data set's own]", "rates"),
    ] = None
    epochs: Annotated[
        Annotated[Count, Field(le=MOST["epochs"])] | None,
        Option("N", "Most epochs of a run. [default: the data set's own]", "epochs"),
    ] = None
    patience: Annotated[
        Annotated[Count, Field(le=MOST["epochs"])] | None,
        Option("N", "Stop a run after N epochs without improvement. [default: never]", "patience"),
    ] = None
    optimizer: Optimizer = None
    stack: Annotated[
        str,
        Option(
            "WHEN",
            "Train a recipe's runs as one: auto (where it pays), never or always. [default: auto]",
            "stack",
        ),
    ] = "auto"
    jacobian: Annotated[
        Any,
        BeforeValidator(numbered),
        Option(
            "HOW",
            "Take the tasks' gradients looped, batched, so many at once, or as measured "
            "to be fastest. [default: looped]",
            "jacobian",
        ),
    ] = "looped"
    out: Annotated[
        Annotated[Path, BeforeValidator(a_path)] | None,
        Option("DIR", "Empty or new folder. [default: ./evenhand-SOURCE]"),
    ] = None
    resume: Annotated[
        bool, Option("", "Go on with what was begun in --out, options unchanged.")
    ] = False
    workers: Annotated[
        Annotated[Count, Field(le=MOST_PROCESSES)] | None,
        Option(
            "N",
            "Runs trained at a time, each in a process with one thread; 1 trains in this "
            "process, with all. [default: one per core, at most 8]",
        ),
    ] = None
    executor: Annotated[
        str,
        Option(
            "WHERE",
            "Who trains the runs: local (this machine), ray or slurm, or with options: "
            "slurm(slurm_partition=short). [default: local]",
        ),
    ] = LOCAL
    delta: Annotated[bool, Option("", "Show Δm as well, as the literature has it.")] = False
    plan: Annotated[bool, Option("", "Show columns, labels and cost, and train nothing.")] = False
    budget: Annotated[
        str | None,
        Option(
            "TIME",
            "As much as can be done in this time (90s, 10m, 1.5h); says what it gives up.",
        ),
    ] = None

    @field_validator("recipes")
    @classmethod
    def _known_recipes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return known(names)

    @field_validator("executor")
    @classmethod
    def _known_executor(cls, spelled: str) -> str:
        return str(require_executor(spelled))

    def settings(self) -> Settings:
        """What the library is told. The data set is loaded for what it suggests."""
        return Settings.suggested(self.source, **self._given())

    def check(self) -> None:
        """Refuse what no data set could suggest away.

        Raises:
            ValueError: a setting is out of range, or `out` holds something else; or as
                `SourceOptions.check`.
        """
        if self.budget is not None:
            read_duration(self.budget)
            if self.resume:
                raise ValueError("--budget plans a comparison anew: leave it out with --resume")
        if self.out is not None and not begun(self.out, self.resume) and self.resume:
            raise ValueError(f"{self.out} holds nothing to go on with: begin without --resume")
        if self.resume and self.out is None:
            raise ValueError("--resume goes on in a folder: name it with --out")
        require_few(self.seeds or 1, self.splits or 1, len(self.lr or (1,)), len(self.recipes))
        Settings(self.source, **{k: v for k, v in self._given().items() if v is not None})
        super().check()

    def _given(self) -> dict[str, Any]:
        return {"options": self.options()} | settings_of(self)

    def processes(self) -> int:
        """Runs trained at a time: `workers`, or as many as torch has threads, at most 8."""
        return processes(self.workers)

    def folder(self) -> Path:
        """`out`, or a folder that does not exist yet, named after the data set."""
        if self.out is not None:
            return self.out
        from evenhand.comparison.door import new_folder

        return new_folder(sources.called(self.source))


def at(workers: int, executor: str) -> str:
    """The words of a command line that say how many runs are trained at a time, and where."""
    where = "" if executor == LOCAL else f" --executor {for_shell(executor)}"
    return f"--workers {workers}{where}"


def processes(workers: int | None) -> int:
    """Runs trained at a time: as many as torch has threads, at most 8, unless said."""
    if workers is not None:
        return workers
    import torch

    return min(8, torch.get_num_threads())


def read_duration(text: str) -> float:
    """`90s`, `10m`, `1.5h` -> seconds; a number by itself is minutes.

    Raises:
        ValueError: it is none of these, or not positive.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(s|m|min|h)?", text.strip().lower())
    if found is None or not float(found[1]) > 0:
        raise ValueError(f"budget={quoted(text)}: write a time, such as 90s, 10m or 1.5h")
    return float(found[1]) * {"s": 1.0, "h": 3600.0}.get(found[2] or "m", 60.0)


def known(names: Sequence[str]) -> tuple[str, ...]:
    """The names of recipes, every one's for "all".

    Raises:
        ValueError: there is no such recipe; the message names the nearest ones.
    """
    found = tuple(known_recipe(name).name for name in names if name != EVERYTHING)
    return tuple(entry.name for entry in RECIPES) if EVERYTHING in names else found


ALONE = ("lr", "epochs", "patience", "optimizer")
"""What `evenhand train` takes of the options that settings follow from."""


def command(settings: Settings, recipes: tuple[str, ...], out: Path, *, alone: bool = False) -> str:
    """The command line that asks for this comparison, all that matters spelled out.

    One that was given objects has no command line; its call in Python is told instead. `alone` is
    for `evenhand train`, which has fewer options.
    """
    if settings.given.problem is not None or settings.given.recipes:
        what = repr(settings.source) if settings.given.problem is None else settings.source
        return f"compare({what}, {list(recipes)}, {str(out)!r})  # in Python, with its objects"
    words = ["evenhand", "train" if alone else "compare", settings.source]
    words += ["--recipe" if alone else "--recipes", ",".join(recipes), *words_of(settings.options)]
    words += words_of_settings(Config, settings, *(ALONE if alone else ()))
    return " ".join(for_shell(word) for word in [*words, "--out", str(out)])


def for_shell(word: str) -> str:
    """A word for a shell; with characters that no terminal should be sent, as bash's $'…'."""
    if word.isprintable():
        return shlex.quote(word)
    letters = (c if c.isprintable() and c not in "'\\" else f"\\U{ord(c):08x}" for c in word)
    return f"$'{''.join(letters)}'"


FIGURES = (".pdf", ".png", ".svg")
"""What a figure's file may end in."""


def require_figure(file: Path) -> None:
    """Refuse a file that a figure cannot be written to.

    Raises:
        ValueError: the suffix is unknown, or there is no such folder.
        OSError: nothing can be written there.
    """
    if file.suffix not in FIGURES:
        raise ValueError(f"{file}: the suffix must be one of {', '.join(FIGURES)}")
    if not file.parent.is_dir():
        raise ValueError(f"{file}: there is no folder {file.parent}")
    if file.is_dir():
        raise ValueError(f"{file} is a folder")
    require_writable(file.parent)


Options = TypeVar("Options", bound=SourceOptions)


def read(
    file: Path | None, options: Mapping[str, Any], usual: Mapping[str, Any] | None = None
) -> Config:
    """A comparison's options, see `read_as`.

    Args:
        file: YAML or TOML.
        options: by key.
        usual: what stands where neither says anything.
    """
    return read_as(Config, file, options, usual)


def read_as(
    kind: type[Options],
    file: Path | None,
    options: Mapping[str, Any],
    usual: Mapping[str, Any] | None = None,
) -> Options:
    """The file's values, and over them the options that were given (those that are not None).

    Args:
        kind: of options.
        file: YAML or TOML.
        options: by key.
        usual: what stands where neither says anything.

    Raises:
        ValueError: in one line, what is wrong and what would be right.
    """
    given = {key: value for key, value in options.items() if value is not None}
    values = {**(usual or {}), **({} if file is None else _mapping(file)), **given}
    try:
        found = kind.model_validate(values)
        found.check()
    except ValidationError as error:
        told = [_complaint(entry, kind) for entry in error.errors()[:3]]
        more = [f"and {len(error.errors()) - 3} more"] if len(error.errors()) > 3 else []
        raise ValueError("; ".join(told + more)) from error
    return found


def written(asked: SourceOptions, as_json: bool = False) -> str:
    """All options as YAML, or as JSON, which is YAML too: a file that asks for the same."""
    import json

    import yaml

    values = asked.model_dump(mode="json")
    rest = {key: value for key, value in values.items() if key not in ("plan", "print_config")}
    kept = {key: value for key, value in rest.items() if value not in (None, [], {})}
    if as_json:
        return json.dumps(kept, ensure_ascii=False) + "\n"
    return str(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))


def _mapping(file: Path) -> dict[str, Any]:
    """What a YAML file says, read within bounds.

    Values are texts, as on the command line, or true, false, null, and lists of them: no times of
    day, octal numbers or dates. There are no references and no tags, and every key comes once.
    """
    import tomllib

    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {}

    for tag, words in (("bool", "true|True|TRUE|false|False|FALSE"), ("null", "~|null|Null|NULL|")):
        pattern = re.compile(f"^(?:{words})$")
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, None)
    try:
        text = read_text(file, MOST_BYTES)
        if file.suffix.lower() == ".toml":
            _require_flat_toml(file, text)
            return dict(tomllib.loads(text))
        _require_flat(file, islice(yaml.parse(text, Loader=Loader), MOST_EVENTS))
        root = yaml.compose(text, Loader=Loader)
        content = yaml.load(text, Loader=Loader)  # a SafeLoader
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply: write keys and lists") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is not TOML: {error}") from error
    except yaml.YAMLError as error:
        said = plain(" ".join(str(error).split()), 2 * LINE)
        raise ValueError(f"{file} is not YAML: {said}") from error
    if not isinstance(content, dict) or not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{file} must hold keys and values, such as 'source: digits'")
    keys = [key.value for key, _ in root.value if isinstance(key, yaml.ScalarNode)]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{file} has the key {quoted(key)} twice")
    return {str(key): value for key, value in content.items()}


def _require_flat(file: Path, events: Iterable[Any]) -> None:
    """See that a file is keys, values and lists, before it is made values of."""
    import yaml

    depth = count = 0
    for event in events:
        count += 1
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            raise ValueError(f"{file} has a reference or a tag: write plain values")
        if depth > DEEPEST:
            raise ValueError(f"{file} is nested more than {DEEPEST} deep: write keys and lists")
    if count == MOST_EVENTS:
        raise ValueError(f"{file} holds thousands of values: an option takes {MOST_VALUES} at most")


def _require_flat_toml(file: Path, text: str) -> None:
    """The same of TOML, before it is parsed: a key of a thousand parts takes its parser minutes."""
    bare = TEXTS.sub("", text)
    if re.search(rf"(?:\.[\w\s-]*){{{DEEPEST},}}", bare):
        raise ValueError(f"{file} has a key of more than {DEEPEST} parts: write plain keys")
    if re.search(rf"(?:[\[{{][^\[\]{{}}]*){{{DEEPEST + 1},}}", bare):
        raise ValueError(f"{file} is nested more than {DEEPEST} deep: write keys and lists")


TEXTS = re.compile(r'"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*')
"""Texts and remarks in TOML."""
DEEPEST, MOST_EVENTS, MOST_BYTES = 3, 2000, 64 << 10
"""How deep a file may be nested, of how many pieces it may be, and how large."""


def _complaint(error: Mapping[str, Any], kind: type[SourceOptions]) -> str:
    """One of pydantic's errors as a person would say it."""
    key = plain(str(error["loc"][0]), 40)
    match error["type"]:
        case "missing":
            names = ", ".join(entry.name for entry in sources.SOURCES)
            other = "name a table (table.csv) or a function (mine.py:problem)"
            return f"{other}, or name a data set: one of {names}"
        case "extra_forbidden":
            near = difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.4)
            known = near or list(kind.model_fields)
            return f"there is no option {key!r}; did you mean {', '.join(known)}?"
        case "value_error":
            said = str(error["ctx"]["error"])
            named = key == "source" or "no recipe" in said or said.startswith(f"{key}=")
            return said if named else f"{key}: {said}"
    requirement = error["msg"].removeprefix("Input ").replace("should", "must")
    return f"{key}={plain(str(error['input']), 40)}: {requirement}"
