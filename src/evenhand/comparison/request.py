"""What a comparison is asked: the data, the settings, and what they may be.

Nothing here loads torch before it is needed, so that the tool refuses a mistake at once.
"""

from __future__ import annotations

import difflib
import json
import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from evenhand.arguments import require_fields, require_kind
from evenhand.asking import option
from evenhand.autodiff.chunking import Chunking, JacobianMode
from evenhand.comparison.job import APART
from evenhand.recipes import RECIPES, Recipe, recipe
from evenhand.sources import DESIGNS, is_function, is_table
from evenhand.spelling import Spelled, Value, written
from evenhand.text import LINE, plain, quoted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from evenhand.data.problem import Problem

REFERENCE = "single-task"
"""The recipe that Δm compares with."""


BASELINE = "sg"
"""The recipe that times are relative to."""


STACK = ("auto", "never", "always")
LEVELS = ("none", "cheap", "all")
"""Which reference rows there are beside the recipes."""
ROWS = (
    "constant",
    "linear",
    "trees",
    "single-task-narrow",
    "sg-wide",
    "sg-own-epochs",
    "sg-tuned",
)
"""The names of all reference rows, see `references`."""


def known_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ValueError: there is none: the message names the nearest ones, or says how one gets the
            reference row of that name.
    """
    if name in ROWS:
        raise ValueError(
            f"{name} is a reference row and no recipe: a comparison with "
            f"{option('references', 'all')} has it, and keeps its weights"
        )
    return recipe(name)


def sgd(parameters: Iterable[Tensor], **options: Any) -> Optimizer:
    """SGD with momentum 0.9."""
    from torch.optim import SGD

    return SGD(parameters, **{"momentum": 0.9, "fused": True, **options})


def adam(parameters: Iterable[Tensor], **options: Any) -> Optimizer:
    """Adam with torch's defaults."""
    from torch.optim import Adam

    return Adam(parameters, **{"fused": True, **options})


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {"sgd": sgd, "adam": adam}
"""Fused: one pass over the memory instead of several; ``benchmarks/alternation.py`` has both."""


def optimizer(spelled: str) -> Callable[..., Optimizer]:
    """What `adamw(weight_decay=0.01)` makes: one of torch.optim by name, in small letters.

    "sgd" has momentum 0.9 unless it is told otherwise; the learning rate is the run's own.

    Raises:
        ValueError: torch has no such optimizer, it needs more than gradients, it has no such
            option, or the option is out of range.
    """
    from inspect import signature

    import torch

    asked = _require_optimizer(spelled)
    name = asked.name.lower()
    kind: Any = getattr(torch.optim, TORCH[name], None)
    if kind is None:
        raise ValueError(f"optimizer={asked.name}: this version of torch has none")
    known = [p for p in signature(kind).parameters if p not in NOT_ASKED]
    if unknown := [option for option in asked.options if option not in known]:
        raise ValueError(
            f"optimizer={spelled}: {asked.name} has no option {unknown[0]!r}; there are "
            f"{', '.join(known)}, and the rate is {option('rates')}"
        )
    for given, value in asked.options.items():
        _require_like(spelled, given, value, signature(kind).parameters[given].default)
    make = partial(OPTIMIZERS.get(name, kind), **asked.options)
    try:
        make([torch.zeros(1, requires_grad=True)], lr=1e-3)
    except (TypeError, ValueError, RuntimeError) as error:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"optimizer={spelled}: {plain(first, 2 * LINE)}") from error
    return make


NOT_ASKED = ("params", "lr", "maximize", "capturable", "differentiable")
"""What an optimizer takes and is not told: losses are minimised at the run's rate, on gradients."""


def _require_like(spelled: str, name: str, value: Value, default: object) -> None:
    """See that an option is of its default's kind: as many numbers, a truth value, or a number.

    Raises:
        ValueError: it is not.
    """
    switch = isinstance(default, bool) or name in ("foreach", "fused")
    usual = default if isinstance(default, tuple) else (default,)
    given = value if isinstance(value, tuple) else (value,)
    kinds = (bool,) if switch else (int, float)
    fits = isinstance(value, tuple) == isinstance(default, tuple) and len(given) == len(usual)
    if fits and all(type(v) in kinds or v is d for v, d in zip(given, usual, strict=True)):
        return
    word = "true or false" if switch else "a number"
    if isinstance(default, tuple):
        word = f"{len(usual)} numbers, such as {name}={written(default)}"
    raise ValueError(f"optimizer={spelled}: {name} must be {word}")


def _require_optimizer(spelled: str) -> Spelled:
    """The name, and the options to be looked at when torch is loaded.

    Raises:
        ValueError: torch has no such optimizer.
    """
    asked = Spelled.of(spelled)
    if asked.name.lower() not in TORCH:
        near = difflib.get_close_matches(asked.name.lower(), TORCH, n=3) or list(TORCH)
        raise ValueError(f"optimizer={asked.name!r}: must be one of torch's: {', '.join(near)}")
    return asked


TORCH = {
    name.lower(): name
    for name in (
        *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax"),
        *("ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
    )
}
"""The optimizers of torch that step on dense gradients alone."""
MOST: Mapping[str, int] = {"seeds": 100_000, "splits": 1_000, "rates": 200, "epochs": 1_000_000}
"""More than anybody asks for: beyond it is a mistake, which would take all memory or days."""
MOST_RUNS = 1_000_000


def require_few(*factors: int) -> None:
    """See that a comparison has no more runs than can be listed.

    Raises:
        ValueError: the product of `factors` is larger.
    """
    if (runs := math.prod(factors)) > MOST_RUNS:
        raise ValueError(
            f"{' x '.join(map(str, factors))} (seeds, splits, rates, networks) are {runs:,} runs: "
            f"at most {MOST_RUNS:,} can be planned"
        )


Maker = Callable[[int], "Problem"]
"""The number of a split -> the problem, divided for that split."""


@dataclass(frozen=True)
class Given:
    """What a comparison was given as objects, where others have names.

    Attributes:
        problem: the problem, or a function that divides it anew for each split. A function of a
            module can be sent to worker processes; a problem can if all in it can be pickled.
        recipes: recipes of one's own, by name.
    """

    problem: Problem | Maker | None = None
    recipes: Mapping[str, Recipe] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_fields(self)

    def require_picklable(self) -> None:
        """See that worker processes can be sent them.

        Raises:
            ValueError: they cannot.
        """
        try:
            pickle.dumps((self.problem, dict(self.recipes)))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"what was given cannot be sent to worker processes ({error}): compare with "
                "workers=1, or give functions and classes of a module instead of local ones"
            ) from error


@dataclass(frozen=True)
class Settings:
    """What a comparison is made with, besides the recipes.

    Attributes:
        source: name of the data set, or of the problem that was given.
        seeds: of initial weights, order of data, dropout and methods.
        rates: learning rates to choose from.
        epochs: the most epochs of one run; None takes the problem's own.
        patience: epochs without improvement after which a run stops; None never stops.
        optimizer: "sgd" (momentum 0.9), "adam", or another one of torch with or without options,
            see `optimizer`.
        weights_rate: learning rate of learned task weights (Adam).
        observe_every: steps between looks at the tasks' gradients.
        stack: train the runs of a recipe as one (`ensemble/training.py`): "auto" where it can be
            and pays, "never", or "always". What was chosen is in the manifest, with the reason.
        jacobian: how tasks' gradients are taken, see `Balancer`.
        splits: how often the data are divided anew. Each split has its own parts, initial weights
            and order of the data, and chooses its own rates and epochs; `seeds` are trained in
            each of them.
        design: how they are divided, see `data/splits.py`. Without a pool there is "hold-out"
            alone, which is the loader's own way.
        references: which rows stand beside the recipes, see `references`: "none" but the
            constant, "cheap" or "all".
        matters: the smallest difference that matters, in points of skill.
        options: what else the source is told; of a table, its targets and columns
            (`tables.question.Question.written`).
        given: objects instead of names; no part of what is compared or written down.
    """

    source: str
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    epochs: int | None = None
    patience: int | None = None
    optimizer: str = "sgd"
    weights_rate: float = 0.025
    observe_every: int = 10
    stack: str = "auto"
    jacobian: JacobianMode = "looped"
    splits: int = 1
    design: str = "hold-out"
    references: str = "none"
    matters: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    given: Given = field(default_factory=Given, compare=False, repr=False)

    @classmethod
    def suggested(cls, source: str | Problem | Maker, **given: Any) -> Settings:
        """What the data set suggests, and what is given (None counts as not given).

        Where nothing is said, the seed is one and the splits are five; three, where the test set
        is fixed and they only draw training and validation anew; one, where a problem is given
        that cannot be divided anew.

        Args:
            source: the name of a data set; or a problem, or a function that gives one for the
                number of a split.
            given: settings by name.

        Raises:
            TypeError: `source` is none of these, or a setting is of another kind.
            ValueError: a setting is out of range, or the source cannot be had.
        """
        from evenhand.data.problem import Problem

        if not (isinstance(source, str | Problem) or callable(source)):
            raise TypeError(
                f"source={quoted(source)}: must be a name, a Problem, or a function from the "
                "number of a split to one"
            )
        whole = _resolved(source, given.get("options") or {})
        problem = whole if isinstance(whole, Problem) else load_problem(whole, 0)
        own: dict[str, Any] = {
            "rates": problem.rates,
            "optimizer": problem.optimizer,
            "seeds": (0,),
            "splits": 3 if problem.official_test else 5,
            "references": "cheap",
            "design": problem.design,
        }
        if isinstance(whole, Problem) and whole.pool is None:
            own["splits"] = 1
        if not isinstance(source, str):
            own["given"] = Given(source)
        wanted = {key: value for key, value in given.items() if value is not None}
        return cls(problem.name if not isinstance(source, str) else source, **own | wanted)

    def __post_init__(self) -> None:
        require_fields(self)
        seeds, rates = quoted(self.seeds), quoted(self.rates)
        if not all(isinstance(seed, int) and 0 <= seed < APART for seed in self.seeds):
            raise ValueError(f"seeds={seeds}: must be integers from 0 to {APART - 1:,}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds={seeds}: must be different integers >= 0")
        for name, number in (("seeds", len(self.seeds)), ("rates", len(self.rates))):
            if number > MOST[name]:
                raise ValueError(f"{number:,} {name}: at most {MOST[name]:,}")
        for name, value in (("epochs", self.epochs), ("patience", self.patience)):
            if value is not None and value > MOST["epochs"]:
                raise ValueError(f"{name}={quoted(value)}: must be at most {MOST['epochs']:,}")
        if not self.rates or any(not (math.isfinite(r) and r > 0) for r in self.rates):
            raise ValueError(f"rates={rates}: must be positive numbers")
        if len({f"{rate:g}" for rate in self.rates}) != len(self.rates):
            raise ValueError(f"rates={rates}: must differ within six digits")
        _require_optimizer(self.optimizer)
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs={self.epochs}: must be at least 1")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience={self.patience}: must be at least 1 epoch, or None")
        if not (math.isfinite(self.weights_rate) and self.weights_rate > 0):
            raise ValueError(f"weights_rate={self.weights_rate}: must be a positive number")
        if self.observe_every < 0:
            raise ValueError(f"observe_every={self.observe_every}: must be >= 0")
        if self.stack not in STACK:
            raise ValueError(f"stack={quoted(self.stack)}: must be one of {', '.join(STACK)}")
        Chunking(self.jacobian)
        if not 1 <= self.splits <= MOST["splits"]:
            raise ValueError(
                f"splits={quoted(self.splits)}: must be at least 1, at most {MOST['splits']:,}"
            )
        if self.design not in DESIGNS:
            raise ValueError(f"design={quoted(self.design)}: must be one of {', '.join(DESIGNS)}")
        if self.references not in LEVELS:
            raise ValueError(
                f"references={quoted(self.references)}: must be one of {', '.join(LEVELS)}"
            )
        if not (math.isfinite(self.matters) and self.matters >= 0):
            raise ValueError(f"matters={self.matters}: must be a number of points >= 0")

    def resolved(self) -> Problem | Maker:
        """What the source stands for: a problem, or a function that divides it for each split."""
        return self.given.problem or _resolved(self.source, self.options)

    def problem(self, split: int = 0) -> Problem:
        """The problem with the parts of one split.

        Raises:
            ValueError: the data cannot be divided in this way.
        """
        from evenhand.data.problem import Problem

        source = self.resolved()
        if not isinstance(source, Problem):
            return _divided(source, self.design, self.splits, split)
        if self.splits == 1 and self.design == "hold-out":
            return source
        if source.pool is None:
            raise ValueError(
                f"splits={self.splits}: {self.source} was given divided; give a function of the "
                "split's number that divides it, or a pool (Problem.pool), or ask for one split"
            )
        return source.pool.problem(self.design, self.splits, split)

    def recipe(self, name: str) -> Recipe:
        """The recipe called `name`, one's own or one of the list.

        Raises:
            ValueError: there is none; the message names the nearest ones.
        """
        own = self.given.recipes
        return own[name] if name in own else known_recipe(name)

    def taking(self, recipes: Sequence[str | Recipe]) -> tuple[Settings, tuple[str, ...]]:
        """The settings that know these recipes, and the recipes' names.

        Raises:
            ValueError: a recipe of one's own has the name of another one.
        """
        own = dict(self.given.recipes)
        for entry in recipes:
            require_kind("recipe", entry, str | Recipe)
            if isinstance(entry, str) or entry in RECIPES:
                continue
            if own.get(entry.name, entry) != entry or any(r.name == entry.name for r in RECIPES):
                raise ValueError(f"there is another recipe called {entry.name!r}: rename yours")
            own[entry.name] = entry
        names = tuple(entry if isinstance(entry, str) else entry.name for entry in recipes)
        return replace(self, given=replace(self.given, recipes=own)), names

    def written(self) -> dict[str, Any]:
        """What a manifest keeps of them: everything but the objects."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "given"}
        return json.loads(json.dumps(values))  # type: ignore[no-any-return]  # tuples are lists


def _resolved(source: str | Problem | Maker, options: Mapping[str, Any]) -> Problem | Maker:
    """What a source stands for; a table is read, and a function called, once for a comparison."""
    if not isinstance(source, str):
        return source
    if is_table(source) or is_function(source):
        return _made(source, json.dumps(options))
    from evenhand import data

    return data.resolved(source, options)


@lru_cache(maxsize=4)
def _made(source: str, options: str) -> Problem | Maker:
    from evenhand import data

    return data.resolved(source, json.loads(options))


@lru_cache(maxsize=4)
def load_problem(source: str | Maker, split: int = 0) -> Problem:
    """The problem called or made by `source`, divided by its loader for the `split`-th time.

    It is kept for the parts of one comparison; `compare` loads it afresh, see `forget`.
    """
    from evenhand import data

    if isinstance(source, str):
        return data.problem(source, split)
    made = source(split)
    if not isinstance(made, data.Problem):
        raise TypeError(
            f"source= gave a {type(made).__name__} for split {split}: it must return an "
            "evenhand.data.Problem"
        )
    return made


@lru_cache(maxsize=4)
def _divided(source: str | Maker, design: str, splits: int, split: int) -> Problem:
    """The problem divided by its pool, so that classes have their shares; without, by its loader.

    An official test set stays where the loader puts it, whether there is a pool or not.

    Raises:
        ValueError: the loader divides, and another design than hold-out is asked for.
    """
    whole = load_problem(source, 0)
    if whole.pool is not None and not whole.official_test:
        return whole.pool.problem(design, splits, split)
    if design != "hold-out":
        raise ValueError(
            f"{splits} splits, design={design!r}: {whole.name} is divided by its loader, which "
            "knows hold-out only"
        )
    return load_problem(source, split)


def forget() -> None:
    """Load the data afresh from now on: they may be others than those of an earlier comparison."""
    load_problem.cache_clear()
    _divided.cache_clear()
    _made.cache_clear()
