"""Recipes: a name for a composition of weighting, aggregator, schedule, network and moments.

A recipe composes one or more trainings for the tasks at hand: single-task composes one per task,
a grid one per vector of weights. Trainings of the same tasks compete, and validation chooses;
trainings of different tasks complete each other. Nothing but this file and the tool's tables
knows recipes by name.
"""

from __future__ import annotations

import difflib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import evenhand as eh
from evenhand.arguments import require_fields, require_kind
from evenhand.spelling import Spelled, Value
from evenhand.text import LINE, quoted

if TYPE_CHECKING:
    from evenhand.aggregation import Aggregator
    from evenhand.schedules import Phases, Schedule
    from evenhand.sharing import Sharing
    from evenhand.weighting import Weighting


def _jointly() -> Schedule:
    return eh.jointly()


def _hard() -> Sharing:
    return eh.hard_sharing()


class Part:
    """A piece of a recipe by its public name, made afresh for each run.

    Its keyword arguments are the options that a recipe with it has: those of the class's or
    function's signature, with the recipe's own values as defaults.
    """

    def __init__(self, name: str, base: Part | None, arguments: Mapping[str, Value]) -> None:
        self._name, self._base, self._arguments = name, base, dict(arguments)

    def __call__(self) -> Any:
        inner = () if self._base is None else (self._base(),)
        return getattr(eh, self._name)(*inner, **self._arguments)

    def options(self) -> dict[str, Any]:
        """Its options and those of what it wraps, with their defaults."""
        wrapped = {} if self._base is None else self._base.options()
        own = {
            name: self._arguments.get(name, parameter.default)
            for name, parameter in signature(getattr(eh, self._name)).parameters.items()
            if name != "base" and parameter.kind in (KEYWORD, EITHER)
        }
        return {**wrapped, **own}

    def varied(self, options: Mapping[str, Value]) -> Part:
        """The same with other values for those of `options` that it has."""
        own = self.options() if self._base is None else Part(self._name, None, {}).options()
        mine = {name: value for name, value in options.items() if name in own}
        rest = {name: value for name, value in options.items() if name not in own}
        base = None if self._base is None else self._base.varied(rest)
        return Part(self._name, base, {**self._arguments, **mine})


KEYWORD, EITHER = Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD


def part(name: str, *, base: Part | None = None, **arguments: Value) -> Part:
    """The piece of that public name."""
    return Part(name, base, arguments)


@dataclass(frozen=True)
class Composition:
    """One network's training: which tasks, what fills the slots, what trains when.

    `network` says what is made of the problem's own network: by default nothing, so that all tasks
    share its trunk (hard parameter sharing).
    `own_moments` gives each of the schedule's groups an optimizer of its own over the shared
    parameters (independent task steps); `replacement` draws each batch from the whole data set.
    The heads' rate is `own_rate` times the trunk's. After `plateau` epochs without improvement
    all rates are multiplied by `factor`; None leaves them.

    Raises:
        ValueError: a number is out of range.
    """

    tasks: tuple[str, ...]
    weighting: Weighting | None = None
    aggregator: Weighting | Aggregator | None = None
    schedule: Schedule | Phases = field(default_factory=_jointly)
    own_moments: bool = False
    replacement: bool = False
    network: Sharing = field(default_factory=_hard)
    own_rate: float = field(default=1.0, repr=False)
    plateau: int | None = field(default=None, repr=False)
    factor: float = field(default=0.5, repr=False)

    def __post_init__(self) -> None:
        require_fields(self)
        if not (math.isfinite(self.own_rate) and self.own_rate > 0):
            raise ValueError(f"own_rate={self.own_rate}: must be a positive number")
        if self.plateau is not None and self.plateau < 1:
            raise ValueError(f"plateau={self.plateau}: must be at least 1 epoch")
        if not 0 < self.factor < 1:
            raise ValueError(f"factor={self.factor}: must lie between 0 and 1")


Compose = Callable[[tuple[str, ...]], Mapping[str, Composition]]
RUN: Mapping[str, Any] = {"own_rate": 1.0, "plateau": 0, "factor": 0.5, "replacement": False}
"""Options that every recipe has: fields of `Composition`, and their defaults (0: no plateau)."""


class Varied(ABC):
    """Composes networks, and has options."""

    @abstractmethod
    def __call__(self, tasks: tuple[str, ...]) -> Mapping[str, Composition]: ...

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Its options with their defaults."""

    @abstractmethod
    def varied(self, options: Mapping[str, Value]) -> Varied:
        """The same with other values for some of its options."""


@dataclass(frozen=True)
class Recipe:
    """A named composition.

    Attributes:
        name: what the user types.
        summary: one line.
        citation: authors, venue, identifier; where in the paper.
        compose: tasks -> labelled compositions, made afresh at each call.

    Raises:
        ValueError: the name is not fit for a folder and a list: letters, digits and ``+-_.`` are.

    Example:
        >>> mine = Recipe.of("mine", aggregator=eh.MGDA, schedule=eh.alternate_steps)
        >>> mine.compose(("a", "b"))[""].aggregator
        MGDA()
    """

    name: str
    summary: str
    citation: str
    compose: Compose

    def __post_init__(self) -> None:
        require_fields(self)
        if not re.fullmatch(r"\w[\w.+-]*(\([\w.+=,-]+\))?", self.name):
            raise ValueError(f"a recipe cannot be called {self.name!r}: use letters, digits, +-_.")

    def options(self) -> dict[str, Any]:
        """What can be varied, with the defaults: `ate-sg(shared=10,own=10)`."""
        own = self.compose.options() if isinstance(self.compose, Varied) else {}
        return {**own, **{name: value for name, value in RUN.items() if name not in own}}

    def varied(self, options: Mapping[str, Value]) -> Recipe:
        """The recipe with other values for some of its options, and a name that says so.

        Raises:
            ValueError: there is no such option, or it takes values of another kind.
        """
        known = self.options()
        name = str(Spelled(self.name, options))
        for option, value in options.items():
            if option not in known:
                near = difflib.get_close_matches(option, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"{name}: there is no option {option!r}; {_listed(known)}{hint}")
            _require_kind(name, option, value, known[option])
        composed = _Composed(name, self.compose, {}).varied(options)
        return Recipe(name, self.summary, self.citation, composed)

    @classmethod
    def of(
        cls,
        name: str,
        weighting: Callable[[], Weighting] | None = None,
        aggregator: Callable[[], Weighting | Aggregator] | None = None,
        schedule: Callable[[], Schedule] = _jointly,
        *,
        own_moments: bool = False,
        replacement: bool = False,
        network: Callable[[], Sharing] = _hard,
        summary: str = "a recipe of one's own",
        citation: str = "",
    ) -> Recipe:
        """One network for all tasks: see `Joint`. Parts are given by what makes them, a class or a
        function without arguments, for every run has its own.
        """
        parts = Joint(weighting, aggregator, schedule, own_moments, replacement, network)
        return cls(name, summary, citation, parts)


def single_task(tasks: tuple[str, ...]) -> dict[str, Composition]:
    """A network for each task by itself."""
    return {task: Composition((task,)) for task in tasks}


def _listed(options: Mapping[str, Any]) -> str:
    return "there are " + ", ".join(f"{name}={value}" for name, value in options.items())


def _require_kind(recipe_name: str, option: str, value: Value, default: Any) -> None:
    """See that a value is of the kind of the default; where that is None, any single one goes."""
    kinds: tuple[type, ...]
    if isinstance(value, tuple):
        raise ValueError(f"{recipe_name}: {option} takes one value, not {len(value)}")
    match default:
        case bool():
            kinds = (bool,)
        case int():
            kinds = (int,)
        case float():
            kinds = (int, float)
        case str():
            kinds = (str,)
        case _:
            return
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        word = {bool: "true or false", int: "an integer", str: "a word"}.get(kinds[0], "")
        word = "a number" if float in kinds else word
        raise ValueError(f"{recipe_name}: {option} must be {word}")


@dataclass(frozen=True)
class _Composed(Varied):
    """What a recipe with options composes; a value that is out of range is told with its name."""

    name: str
    compose: Compose
    of_runs: Mapping[str, Any]

    def __call__(self, tasks: tuple[str, ...]) -> Mapping[str, Composition]:
        changed: dict[str, Any] = {
            k: None if (k, v) == ("plateau", 0) else v for k, v in self.of_runs.items()
        }
        try:
            made = self.compose(tasks)
            return {label: replace(parts, **changed) for label, parts in made.items()}
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: {error}") from error

    def options(self) -> dict[str, Any]:
        own = self.compose.options() if isinstance(self.compose, Varied) else {}
        return {**own, **{k: v for k, v in RUN.items() if k not in own}, **self.of_runs}

    def varied(self, options: Mapping[str, Value]) -> _Composed:
        own = self.compose.options() if isinstance(self.compose, Varied) else {}
        compose = self.compose
        if isinstance(compose, Varied):
            compose = compose.varied({k: v for k, v in options.items() if k in own})
        of_runs = {**self.of_runs, **{k: v for k, v in options.items() if k not in own}}
        return _Composed(self.name, compose, of_runs)


@dataclass(frozen=True)
class Joint(Varied):
    """One network for all tasks, its parts made afresh for each run.

    Attributes:
        weighting, aggregator: make what fills the slots; None leaves a slot empty.
        schedule: makes the schedule.
        own_moments, replacement: as in `Composition`.
        network: makes what is made of the problem's network.
    """

    weighting: Callable[[], Weighting] | None = None
    aggregator: Callable[[], Weighting | Aggregator] | None = None
    schedule: Callable[[], Schedule] = _jointly
    own_moments: bool = False
    replacement: bool = False
    network: Callable[[], Sharing] = _hard

    def __post_init__(self) -> None:
        require_fields(self)

    def __call__(self, tasks: tuple[str, ...]) -> dict[str, Composition]:
        return {
            "": Composition(
                tasks,
                weighting=None if self.weighting is None else self.weighting(),
                aggregator=None if self.aggregator is None else self.aggregator(),
                schedule=self.schedule(),
                own_moments=self.own_moments,
                replacement=self.replacement,
                network=self.network(),
            )
        }

    def options(self) -> dict[str, Any]:
        own = {"own_moments": self.own_moments, "replacement": self.replacement}
        parts = [piece.options() for piece in self._parts().values()]
        return {name: value for options in (*parts, own) for name, value in options.items()}

    def varied(self, options: Mapping[str, Value]) -> Joint:
        """Raises ValueError where two parts have an option of that name."""
        parts = self._parts()
        for name in options:
            having = [place for place, piece in parts.items() if name in piece.options()]
            if len(having) > 1:
                raise ValueError(f"the option {name!r} is one of {' and '.join(having)} alike")
        changed: dict[str, Any] = {
            place: piece.varied({k: v for k, v in options.items() if k in piece.options()})
            for place, piece in parts.items()
        }
        changed |= {k: v for k, v in options.items() if k in ("own_moments", "replacement")}
        return replace(self, **changed)

    def _parts(self) -> dict[str, Part]:
        places = ("weighting", "aggregator", "schedule", "network")
        return {place: piece for place in places if isinstance(piece := getattr(self, place), Part)}


joint = Joint


@dataclass(frozen=True)
class Halves(Varied):
    """One network; its tasks take turns in groups, drawn at random once.

    Attributes:
        own_moments: as in `Composition`.
        size: tasks in a group; 0 is half of them.
    """

    own_moments: bool
    size: int = 0

    def __call__(self, tasks: tuple[str, ...]) -> dict[str, Composition]:
        if self.size < 0:
            raise ValueError(f"size={self.size}: must be at least 1")
        schedule = eh.in_groups(size=self.size or math.ceil(len(tasks) / 2))
        return {"": Composition(tasks, schedule=schedule, own_moments=self.own_moments)}

    def options(self) -> dict[str, Any]:
        return {"size": self.size}

    def varied(self, options: Mapping[str, Value]) -> Halves:
        changed: dict[str, Any] = dict(options)
        return replace(self, **changed)


MOST_VECTORS = 1_000
"""Of weights in a grid."""


@dataclass(frozen=True)
class Grid(Varied):
    """A network for each vector of fixed weights on a lattice; validation picks one.

    The vectors are w_i = m k_i / Σ k_i for all integers k_i ≥ 1 with Σ k_i = m + `steps`, so every
    task counts and Σw = m, as for the plain sum. There are (m + steps − 1 choose steps) of them,
    m (m + 1) / 2 for two steps.

    Raises:
        ValueError: `steps` is less than 1; or there are more than `MOST_VECTORS` vectors.
    """

    steps: int = 2

    def __post_init__(self) -> None:
        require_fields(self)
        if not 1 <= self.steps <= MOST_VECTORS:
            raise ValueError(f"grid(steps={self.steps}): must be from 1 to {MOST_VECTORS:,}")

    def __call__(self, tasks: tuple[str, ...]) -> dict[str, Composition]:
        m = len(tasks)
        total = m + self.steps
        if (vectors := math.comb(total - 1, m - 1)) > MOST_VECTORS:
            raise ValueError(
                f"grid(steps={self.steps}) has {vectors:,} vectors for {m} tasks, each a network: "
                f"at most {MOST_VECTORS:,}"
            )
        compositions = {}
        for cuts in combinations(range(1, total), m - 1):
            shares = [after - before for before, after in pairwise((0, *cuts, total))]
            weights = {task: m * share / total for task, share in zip(tasks, shares, strict=True)}
            label = "-".join(map(str, shares))
            compositions[label] = Composition(tasks, weighting=eh.Fixed(weights))
        return compositions

    def options(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def varied(self, options: Mapping[str, Value]) -> Grid:
        changed: dict[str, Any] = dict(options)
        return replace(self, **changed)


grid = Grid


@dataclass(frozen=True)
class Robust(Varied):
    """One network; its aggregator is made for m tasks, some of which may be off.

    Attributes:
        aggregator: (m, how many may be off) -> the aggregator.
        off: how many; −1 is a fifth of them.
    """

    aggregator: Callable[[int, int], Weighting | Aggregator]
    off: int = -1

    def __call__(self, tasks: tuple[str, ...]) -> dict[str, Composition]:
        m = len(tasks)
        off = m // 5 if self.off == -1 else self.off
        return {"": Composition(tasks, aggregator=self.aggregator(m, off))}

    def options(self) -> dict[str, Any]:
        return {"off": self.off}

    def varied(self, options: Mapping[str, Value]) -> Robust:
        changed: dict[str, Any] = dict(options)
        return replace(self, **changed)


def _krum(tasks: int, off: int) -> Weighting:
    return eh.Krum(byzantine=off, selected=tasks - off)


def _trimmed(tasks: int, off: int) -> Aggregator:
    return eh.TrimmedMean(trim=off)


PASCAL = "Pascal et al., arXiv 2109.11678"
SENER = "Sener & Koltun, NeurIPS 2018, arXiv 1810.04650"
BELLAVIA = "Bellavia, Della Santa & Papini, Optim. Methods Softw. 2026, arXiv 2312.16340"
NAKAMURA = "Nakamura, Grassi & Wolf, Neurocomputing 511 (2022), arXiv 2204.06698"
LIN_STCH = "Lin et al., ICML 2024, arXiv 2402.19078"
LIU_IMTL = "Liu et al., ICLR 2021, openreview IMPnRXEWpvr"
DUONG = "Duong, Cohn, Bird & Cook, ACL 2015, Low resource dependency parsing"
QUINTON = "Quinton & Rey, arXiv 2406.16232"

RECIPES: tuple[Recipe, ...] = (
    Recipe("single-task", "a network for each task", "the baseline of every paper", single_task),
    Recipe(
        "sg", "the plain sum of the losses, one step for all", BELLAVIA + ", section 3", joint()
    ),
    Recipe(
        "soft",
        "a network for each task, tied by the squared distance of their trunks",
        DUONG,
        joint(network=part("soft_sharing")),
    ),
    Recipe(
        "soft-trace",
        "a network for each task, tied by the trace norm of their stacked trunks",
        "Yang & Hospedales, arXiv 1606.04038, last axis flattening",
        joint(network=part("trace_norm_sharing")),
    ),
    Recipe(
        "cross-stitch",
        "a network for each task, their layers' outputs mixed by learned numbers",
        "Misra, Shrivastava, Gupta & Hebert, CVPR 2016, arXiv 1604.03539, equation (1)",
        joint(network=part("cross_stitch")),
    ),
    Recipe(
        "uniform",
        "the mean of the task gradients in the trunk",
        NAKAMURA + ", the baseline",
        joint(aggregator=part("Equal", mean=True)),
    ),
    Recipe(
        "grid",
        "fixed weights: a network for each vector of a grid",
        SENER + ", the baseline",
        Grid(),
    ),
    Recipe(
        "uncertainty",
        "each loss over its learned noise, as for regression",
        "Kendall, Gal & Cipolla, CVPR 2018, arXiv 1705.07115, equation (7)",
        joint(weighting=part("Uncertainty")),
    ),
    Recipe(
        "gradnorm",
        "learned weights that even out the gradients' norms",
        "Chen et al., ICML 2018, arXiv 1711.02257, Algorithm 1",
        joint(weighting=part("GradNorm")),
    ),
    Recipe(
        "mgda",
        "min-norm point of the task gradients in the trunk",
        SENER + ", Algorithm 2",
        joint(aggregator=part("MGDA")),
    ),
    Recipe(
        "mgda-online",
        "the min-norm point followed from step to step: one trunk pass and one product for any m",
        "Problem: " + SENER + "; steps: Kivinen & Warmuth, Inf. Comput. 132 (1997)",
        joint(aggregator=part("OnlineMinNorm")),
    ),
    Recipe(
        "mgda-ub",
        "min-norm point at the shared representation: one trunk pass",
        SENER + ", section 3.3",
        joint(aggregator=part("MGDA", at="representation")),
    ),
    Recipe(
        "mgda-released",
        "min-norm point whose weights scale the heads too",
        SENER + ", as released",
        joint(weighting=part("MGDA")),
    ),
    Recipe(
        "mgda-l2",
        "min-norm point of the unit gradients, its weights on the raw ones",
        SENER + ", an option of the released code",
        joint(aggregator=part("Normalized", by="l2", base=part("MGDA"))),
    ),
    Recipe(
        "mgda-loss",
        "min-norm point of the gradients over their losses, likewise",
        SENER + ", an option of the released code",
        joint(aggregator=part("Normalized", by="loss", base=part("MGDA"))),
    ),
    Recipe(
        "mgda-loss+",
        "min-norm point of the gradients over losses and norms, likewise",
        SENER + ", the setting of the released example",
        joint(aggregator=part("Normalized", by="loss+", base=part("MGDA"))),
    ),
    Recipe(
        "central",
        "the direction at equal angles to the task gradients",
        NAKAMURA + ", equations (3) and (4)",
        joint(aggregator=part("CentralDirection")),
    ),
    Recipe(
        "min-norm+tension",
        "min-norm point, pulled to the tasks that fall behind",
        NAKAMURA,
        joint(aggregator=part("Tension", base=part("MGDA"))),
    ),
    Recipe(
        "central+tension",
        "central direction, pulled to the tasks that fall behind",
        NAKAMURA,
        joint(aggregator=part("Tension", base=part("CentralDirection"))),
    ),
    Recipe(
        "sat-sg",
        "a step on the trunk, then one on the heads with a fresh batch",
        BELLAVIA + ", Algorithm 3.1",
        joint(schedule=part("alternate_steps")),
    ),
    Recipe(
        "ate-sg",
        "an epoch on the trunk, then one on the heads, and again",
        BELLAVIA + ", Algorithm A.1",
        joint(schedule=part("alternate_epochs", shared=1, own=1)),
    ),
    Recipe(
        "ate-sg-replacement",
        "ate-sg, each batch drawn from the whole data set",
        BELLAVIA + ", Algorithm 3.2",
        joint(schedule=part("alternate_epochs", shared=1, own=1), replacement=True),
    ),
    Recipe(
        "ate-adaptive",
        "ate-sg whose phases end when they bring less per work than training has lately",
        BELLAVIA + ", named as future work",
        joint(schedule=part("alternate_adaptively")),
    ),
    Recipe(
        "ate-sg+tension",
        "ate-sg, its trunk epochs with the tensioned central direction",
        f"{BELLAVIA}; {NAKAMURA}",
        joint(
            aggregator=part("Tension", base=part("CentralDirection")),
            schedule=part("alternate_epochs", shared=1, own=1),
        ),
    ),
    Recipe(
        "sus",
        "one step on the sum of the losses: sg by its other name",
        PASCAL + ", SUS",
        joint(),
    ),
    Recipe(
        "ius",
        "a step for each task in turn, one optimizer whose moments mix them",
        PASCAL + ", IUS",
        joint(schedule=part("one_by_one")),
    ),
    Recipe(
        "io",
        "a step for each task in turn, each with moments of its own",
        PASCAL + ", IO",
        joint(schedule=part("one_by_one"), own_moments=True),
    ),
    Recipe(
        "ius-groups",
        "two random groups of tasks step in turn, one optimizer",
        PASCAL + ", random grouping",
        Halves(own_moments=False),
    ),
    Recipe(
        "io-groups",
        "two random groups of tasks step in turn, each with moments of its own",
        PASCAL + ", random grouping",
        Halves(own_moments=True),
    ),
    Recipe(
        "imtl-l",
        "learned scales that draw every loss to 1",
        LIU_IMTL + ", IMTL-L",
        joint(weighting=part("IMTLL")),
    ),
    Recipe(
        "rlw",
        "random weights at every step",
        "Lin, Ye, Zhang & Tsang, TMLR 2022, arXiv 2111.10603",
        joint(weighting=part("RLW")),
    ),
    Recipe(
        "dwa",
        "more weight for losses that fall slowly from epoch to epoch",
        "Liu, Johns & Davison, CVPR 2019, arXiv 1803.10704",
        joint(weighting=part("DWA")),
    ),
    Recipe(
        "gls",
        "the geometric mean of the losses",
        "Chennupati et al., CVPR 2019 workshops (MultiNet++)",
        joint(weighting=part("GLS")),
    ),
    Recipe(
        "si",
        "the sum of the losses' logarithms",
        "Navon et al., ICML 2022, arXiv 2202.01017, the baseline SI",
        joint(weighting=part("ScaleInvariant")),
    ),
    Recipe(
        "tchebycheff",
        "the largest weighted loss",
        "Bowman 1976; " + LIN_STCH,
        joint(weighting=part("Tchebycheff")),
    ),
    Recipe("stch", "a smooth maximum of the losses", LIN_STCH, joint(weighting=part("STCH"))),
    Recipe(
        "log-stch",
        "a smooth maximum of the losses relative to a warm-up's",
        LIN_STCH + ", the released multi-task training",
        joint(weighting=part("LogSTCH")),
    ),
    Recipe(
        "pbi",
        "down a ray of preferred losses, and towards it; θ = ½, so that no weight is negative",
        "Zhang & Li, IEEE TEVC 11 (2007), MOEA/D",
        joint(weighting=part("PBI", theta=0.5)),
    ),
    Recipe(
        "famo",
        "all losses fall at one rate, by the losses alone",
        "Liu, Feng, Stone & Liu, NeurIPS 2023, arXiv 2306.03792, Algorithm 1",
        joint(weighting=part("FAMO")),
    ),
    Recipe(
        "sdmgrad",
        "min-norm point near a preferred direction, from independent batches",
        "Xiao, Ban & Ji, NeurIPS 2023, arXiv 2305.18409",
        joint(aggregator=part("SDMGrad")),
    ),
    Recipe(
        "modo",
        "min-norm point followed step by step, from independent batches",
        "Chen, Fernando, Ying & Chen, NeurIPS 2023, arXiv 2305.20057",
        joint(aggregator=part("MoDo")),
    ),
    Recipe(
        "moco",
        "min-norm point of averaged gradients, followed step by step",
        "Fernando et al., ICLR 2023, arXiv 2210.12624",
        joint(aggregator=part("MoCo")),
    ),
    Recipe(
        "cr-mogm",
        "min-norm weights, averaged over time",
        "Zhou et al., NeurIPS 2022, CR-MOGM",
        joint(aggregator=part("CRMOGM", base=part("MGDA"))),
    ),
    Recipe(
        "db-mtl",
        "logarithms of the losses, and averaged gradients as long as the longest",
        "Lin et al., arXiv 2308.12029, Algorithm 1",
        joint(weighting=part("ScaleInvariant"), aggregator=part("DBMTL")),
    ),
    Recipe(
        "excess-mtl",
        "more weight for tasks far from their own optimum",
        "He et al., ICML 2024, arXiv 2402.02009",
        joint(weighting=part("ExcessMTL")),
    ),
    Recipe(
        "pcgrad",
        "each gradient yields to those it conflicts with, in random order",
        "Yu et al., NeurIPS 2020, arXiv 2001.06782, Algorithm 1",
        joint(aggregator=part("PCGrad")),
    ),
    Recipe(
        "gradvac",
        "gradients turned to each other up to their usual cosines",
        "Wang, Tsvetkov, Firat & Cao, ICLR 2021, arXiv 2010.05874",
        joint(aggregator=part("GradVac")),
    ),
    Recipe(
        "cagrad",
        "near the mean gradient, what does most for the worst-off task",
        "Liu et al., NeurIPS 2021, arXiv 2110.14048, Algorithm 1",
        joint(aggregator=part("CAGrad")),
    ),
    Recipe(
        "imtl-g",
        "equal projections on all task gradients",
        LIU_IMTL + ", IMTL-G",
        joint(aggregator=part("IMTLG")),
    ),
    Recipe(
        "imtl",
        "learned loss scales, and equal projections on all task gradients",
        LIU_IMTL + ", IMTL",
        joint(weighting=part("IMTLL"), aggregator=part("IMTLG", at="representation")),
    ),
    Recipe(
        "nash-mtl",
        "Nash's solution of the tasks' bargaining over the direction",
        "Navon et al., ICML 2022, arXiv 2202.01017, Algorithm 1",
        joint(aggregator=part("NashMTL")),
    ),
    Recipe(
        "fairgrad",
        "α-fair shares of the descent, α = 2",
        "Ban & Ji, ICML 2024, arXiv 2402.15638, Algorithm 1",
        joint(aggregator=part("FairGrad")),
    ),
    Recipe(
        "aligned-mtl",
        "principal components of the gradients, all equally long",
        "Senushkin et al., CVPR 2023, arXiv 2305.19000, Algorithm 1",
        joint(aggregator=part("AlignedMTL")),
    ),
    Recipe(
        "upgrad",
        "each gradient projected to conflict with no task, then the mean",
        QUINTON + ", section 3",
        joint(aggregator=part("UPGrad")),
    ),
    Recipe(
        "dualproj",
        "the mean gradient projected to conflict with no task",
        "Lopez-Paz & Ranzato, NeurIPS 2017, equation (11); " + QUINTON,
        joint(aggregator=part("DualProj")),
    ),
    Recipe(
        "config",
        "the direction at equal angles to the task gradients, by pseudo-inverse",
        "Liu, Chu & Thuerey, ICLR 2025, arXiv 2408.11104, equations (2) and (3)",
        joint(aggregator=part("ConFIG")),
    ),
    Recipe(
        "graddrop",
        "one sign in each coordinate, drawn by lot",
        "Chen et al., NeurIPS 2020, arXiv 2010.06808, Algorithm 1",
        joint(aggregator=part("GradDrop")),
    ),
    Recipe(
        "multi-krum",
        "the mean of the gradients that have company",
        "Blanchard et al., NeurIPS 2017",
        Robust(_krum),
    ),
    Recipe(
        "trimmed-mean",
        "the mean of each coordinate without its extremes",
        "Yin et al., ICML 2018, arXiv 1803.01498",
        Robust(_trimmed),
    ),
)


def recipe(name: str) -> Recipe:
    """The recipe called `name`; with options in parentheses, varied so: `ate-sg(shared=10,own=10)`.

    Raises:
        ValueError: there is none (the message names the nearest ones), or it has no such option.
    """
    require_kind("name", name, str)
    known = {entry.name: entry for entry in RECIPES}
    if name in known:
        return known[name]
    spelled = Spelled.of(name)
    if spelled.name in known:
        found = known[spelled.name]
        return found.varied(spelled.options) if spelled.options else found
    near = difflib.get_close_matches(spelled.name[:LINE], known, n=3, cutoff=0.4) or sorted(known)
    raise ValueError(f"no recipe is called {quoted(spelled.name)}; did you mean {', '.join(near)}?")


def sharing_of(
    name: str, label: str, tasks: tuple[str, ...], mine: Recipe | None = None
) -> Sharing:
    """What was made of a problem's network for a run that is known by name.

    Args:
        name: of its recipe.
        label: of its network.
        tasks: the problem's.
        mine: the recipe itself, if it is one's own; without it, one of another name than the
            list's is taken to share one trunk.

    Raises:
        ValueError: the recipe has no such network.
    """
    if mine is None and Spelled.of(name).name not in {entry.name for entry in RECIPES}:
        return _hard()
    made = (mine or recipe(name)).compose(tasks)
    if label not in made:
        raise ValueError(f"{name} has no network {quoted(label)} on these tasks")
    return made[label].network
