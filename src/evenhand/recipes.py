"""Recipes: a name for a composition of weighting, aggregator, schedule and moments.

A recipe composes one or more trainings for the tasks at hand: single-task composes one per task,
a grid one per vector of weights. Trainings of the same tasks compete, and validation chooses;
trainings of different tasks complete each other. Nothing but this file and the tool's tables
knows recipes by name.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import evenhand as eh

if TYPE_CHECKING:
    from evenhand.aggregation import Aggregator
    from evenhand.schedules import Phases, Schedule
    from evenhand.weighting import Weighting


def _jointly() -> Schedule:
    return eh.jointly()


@dataclass(frozen=True)
class Composition:
    """One network's training: which tasks, what fills the slots, who moves when.

    `own_moments` gives each of the schedule's slots an optimizer of its own over the shared
    parameters (independent task steps); `replacement` draws each batch from the whole data set.
    """

    tasks: tuple[str, ...]
    weighting: Weighting | None = None
    aggregator: Weighting | Aggregator | None = None
    schedule: Schedule | Phases = field(default_factory=_jointly)
    own_moments: bool = False
    replacement: bool = False


Compose = Callable[[tuple[str, ...]], Mapping[str, Composition]]


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
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ValueError(f"a recipe cannot be called {self.name!r}: use letters, digits, +-_.")

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
        summary: str = "a recipe of one's own",
        citation: str = "",
    ) -> Recipe:
        """One network for all tasks: see `Joint`. Parts are given by what makes them, a class or a
        function without arguments, for every run has its own.
        """
        parts = Joint(weighting, aggregator, schedule, own_moments, replacement)
        return cls(name, summary, citation, parts)


def single_task(tasks: tuple[str, ...]) -> dict[str, Composition]:
    """A network for each task by itself."""
    return {task: Composition((task,)) for task in tasks}


@dataclass(frozen=True)
class Joint:
    """One network for all tasks, its parts made afresh for each run.

    Attributes:
        weighting, aggregator: make what fills the slots; None leaves a slot empty.
        schedule: makes the schedule.
        own_moments, replacement: as in `Composition`.
    """

    weighting: Callable[[], Weighting] | None = None
    aggregator: Callable[[], Weighting | Aggregator] | None = None
    schedule: Callable[[], Schedule] = _jointly
    own_moments: bool = False
    replacement: bool = False

    def __call__(self, tasks: tuple[str, ...]) -> dict[str, Composition]:
        return {
            "": Composition(
                tasks,
                weighting=None if self.weighting is None else self.weighting(),
                aggregator=None if self.aggregator is None else self.aggregator(),
                schedule=self.schedule(),
                own_moments=self.own_moments,
                replacement=self.replacement,
            )
        }


joint = Joint


def in_halves(own_moments: bool) -> Compose:
    """One network; its tasks take turns in two groups, drawn at random once."""

    def compose(tasks: tuple[str, ...]) -> dict[str, Composition]:
        schedule = eh.in_groups(size=math.ceil(len(tasks) / 2))
        return {"": Composition(tasks, schedule=schedule, own_moments=own_moments)}

    return compose


def grid(steps: int = 2) -> Compose:
    """A network for each vector of fixed weights on a lattice; validation picks one.

    The vectors are w_i = m k_i / Σ k_i for all integers k_i ≥ 1 with Σ k_i = m + `steps`, so every
    task counts and Σw = m, as for the plain sum. There are (m + steps − 1 choose steps) of them,
    m (m + 1) / 2 for two steps.

    Raises:
        ValueError: `steps` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"grid(steps={steps}): must be at least 1")

    def compose(tasks: tuple[str, ...]) -> dict[str, Composition]:
        m = len(tasks)
        total = m + steps
        compositions = {}
        for cuts in combinations(range(1, total), m - 1):
            shares = [after - before for before, after in pairwise((0, *cuts, total))]
            weights = {task: m * share / total for task, share in zip(tasks, shares, strict=True)}
            label = "-".join(map(str, shares))
            compositions[label] = Composition(tasks, weighting=eh.Fixed(weights))
        return compositions

    return compose


def robust(aggregator: Callable[[int, int], Weighting | Aggregator]) -> Compose:
    """One network; its aggregator is made for m tasks, a fifth of which may be off."""

    def compose(tasks: tuple[str, ...]) -> dict[str, Composition]:
        m = len(tasks)
        return {"": Composition(tasks, aggregator=aggregator(m, m // 5))}

    return compose


PASCAL = "Pascal et al., arXiv 2109.11678"
SENER = "Sener & Koltun, NeurIPS 2018, arXiv 1810.04650"
BELLAVIA = "Bellavia, Della Santa & Papini, Optim. Methods Softw. 2026, arXiv 2312.16340"
NAKAMURA = "Nakamura, Grassi & Wolf, Neurocomputing 511 (2022), arXiv 2204.06698"
LIN_STCH = "Lin et al., ICML 2024, arXiv 2402.19078"
LIU_IMTL = "Liu et al., ICLR 2021, openreview IMPnRXEWpvr"
QUINTON = "Quinton & Rey, arXiv 2406.16232"

RECIPES: tuple[Recipe, ...] = (
    Recipe("single-task", "a network for each task", "the baseline of every paper", single_task),
    Recipe(
        "sg", "the plain sum of the losses, one step for all", BELLAVIA + ", section 3", joint()
    ),
    Recipe(
        "uniform",
        "the mean of the task gradients in the trunk",
        NAKAMURA + ", the baseline",
        joint(aggregator=lambda: eh.Equal(mean=True)),
    ),
    Recipe(
        "grid",
        "fixed weights: a network for each vector of a grid",
        SENER + ", the baseline",
        grid(),
    ),
    Recipe(
        "uncertainty",
        "each loss over its learned noise, as for regression",
        "Kendall, Gal & Cipolla, CVPR 2018, arXiv 1705.07115, equation (7)",
        joint(weighting=lambda: eh.Uncertainty()),
    ),
    Recipe(
        "gradnorm",
        "learned weights that even out the gradients' norms",
        "Chen et al., ICML 2018, arXiv 1711.02257, Algorithm 1",
        joint(weighting=lambda: eh.GradNorm()),
    ),
    Recipe(
        "mgda",
        "min-norm point of the task gradients in the trunk",
        SENER + ", Algorithm 2",
        joint(aggregator=lambda: eh.MGDA()),
    ),
    Recipe(
        "mgda-online",
        "the min-norm point followed from step to step: one trunk pass and one product for any m",
        "Problem: " + SENER + "; steps: Kivinen & Warmuth, Inf. Comput. 132 (1997)",
        joint(aggregator=lambda: eh.OnlineMinNorm()),
    ),
    Recipe(
        "mgda-ub",
        "min-norm point at the shared representation: one trunk pass",
        SENER + ", section 3.3",
        joint(aggregator=lambda: eh.MGDA(at="representation")),
    ),
    Recipe(
        "mgda-released",
        "min-norm point whose weights scale the heads too",
        SENER + ", as released",
        joint(weighting=lambda: eh.MGDA()),
    ),
    Recipe(
        "mgda-l2",
        "min-norm point of the unit gradients, its weights on the raw ones",
        SENER + ", an option of the released code",
        joint(aggregator=lambda: eh.Normalized(eh.MGDA(), by="l2")),
    ),
    Recipe(
        "mgda-loss",
        "min-norm point of the gradients over their losses, likewise",
        SENER + ", an option of the released code",
        joint(aggregator=lambda: eh.Normalized(eh.MGDA(), by="loss")),
    ),
    Recipe(
        "mgda-loss+",
        "min-norm point of the gradients over losses and norms, likewise",
        SENER + ", the setting of the released example",
        joint(aggregator=lambda: eh.Normalized(eh.MGDA(), by="loss+")),
    ),
    Recipe(
        "central",
        "the direction at equal angles to the task gradients",
        NAKAMURA + ", equations (3) and (4)",
        joint(aggregator=lambda: eh.CentralDirection()),
    ),
    Recipe(
        "min-norm+tension",
        "min-norm point, pulled to the tasks that fall behind",
        NAKAMURA,
        joint(aggregator=lambda: eh.Tension(eh.MGDA())),
    ),
    Recipe(
        "central+tension",
        "central direction, pulled to the tasks that fall behind",
        NAKAMURA,
        joint(aggregator=lambda: eh.Tension(eh.CentralDirection())),
    ),
    Recipe(
        "sat-sg",
        "a step on the trunk, then one on the heads with a fresh batch",
        BELLAVIA + ", Algorithm 3.1",
        joint(schedule=lambda: eh.alternate_steps()),
    ),
    Recipe(
        "ate-sg",
        "an epoch on the trunk, then one on the heads, and again",
        BELLAVIA + ", Algorithm A.1",
        joint(schedule=lambda: eh.alternate_epochs(shared=1, own=1)),
    ),
    Recipe(
        "ate-sg-replacement",
        "ate-sg, each batch drawn from the whole data set",
        BELLAVIA + ", Algorithm 3.2",
        joint(schedule=lambda: eh.alternate_epochs(shared=1, own=1), replacement=True),
    ),
    Recipe(
        "ate-adaptive",
        "ate-sg whose phases end when they bring less per work than training has lately",
        BELLAVIA + ", named as future work",
        joint(schedule=lambda: eh.alternate_adaptively()),
    ),
    Recipe(
        "ate-sg+tension",
        "ate-sg, its trunk epochs with the tensioned central direction",
        f"{BELLAVIA}; {NAKAMURA}",
        joint(
            aggregator=lambda: eh.Tension(eh.CentralDirection()),
            schedule=lambda: eh.alternate_epochs(shared=1, own=1),
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
        joint(schedule=lambda: eh.one_by_one()),
    ),
    Recipe(
        "io",
        "a step for each task in turn, each with moments of its own",
        PASCAL + ", IO",
        joint(schedule=lambda: eh.one_by_one(), own_moments=True),
    ),
    Recipe(
        "ius-groups",
        "two random groups of tasks step in turn, one optimizer",
        PASCAL + ", random grouping",
        in_halves(own_moments=False),
    ),
    Recipe(
        "io-groups",
        "two random groups of tasks step in turn, each with moments of its own",
        PASCAL + ", random grouping",
        in_halves(own_moments=True),
    ),
    Recipe(
        "imtl-l",
        "learned scales that draw every loss to 1",
        LIU_IMTL + ", IMTL-L",
        joint(weighting=lambda: eh.IMTLL()),
    ),
    Recipe(
        "rlw",
        "random weights at every step",
        "Lin, Ye, Zhang & Tsang, TMLR 2022, arXiv 2111.10603",
        joint(weighting=lambda: eh.RLW()),
    ),
    Recipe(
        "dwa",
        "more weight for losses that fall slowly from epoch to epoch",
        "Liu, Johns & Davison, CVPR 2019, arXiv 1803.10704",
        joint(weighting=lambda: eh.DWA()),
    ),
    Recipe(
        "gls",
        "the geometric mean of the losses",
        "Chennupati et al., CVPR 2019 workshops (MultiNet++)",
        joint(weighting=lambda: eh.GLS()),
    ),
    Recipe(
        "si",
        "the sum of the losses' logarithms",
        "Navon et al., ICML 2022, arXiv 2202.01017, the baseline SI",
        joint(weighting=lambda: eh.ScaleInvariant()),
    ),
    Recipe(
        "tchebycheff",
        "the largest weighted loss",
        "Bowman 1976; " + LIN_STCH,
        joint(weighting=lambda: eh.Tchebycheff()),
    ),
    Recipe("stch", "a smooth maximum of the losses", LIN_STCH, joint(weighting=lambda: eh.STCH())),
    Recipe(
        "log-stch",
        "a smooth maximum of the losses relative to a warm-up's",
        LIN_STCH + ", the released multi-task training",
        joint(weighting=lambda: eh.LogSTCH()),
    ),
    Recipe(
        "pbi",
        "down a ray of preferred losses, and towards it; θ = ½, so that no weight is negative",
        "Zhang & Li, IEEE TEVC 11 (2007), MOEA/D",
        joint(weighting=lambda: eh.PBI(theta=0.5)),
    ),
    Recipe(
        "famo",
        "all losses fall at one rate, by the losses alone",
        "Liu, Feng, Stone & Liu, NeurIPS 2023, arXiv 2306.03792, Algorithm 1",
        joint(weighting=lambda: eh.FAMO()),
    ),
    Recipe(
        "sdmgrad",
        "min-norm point near a preferred direction, from independent batches",
        "Xiao, Ban & Ji, NeurIPS 2023, arXiv 2305.18409",
        joint(aggregator=lambda: eh.SDMGrad()),
    ),
    Recipe(
        "modo",
        "min-norm point followed step by step, from independent batches",
        "Chen, Fernando, Ying & Chen, NeurIPS 2023, arXiv 2305.20057",
        joint(aggregator=lambda: eh.MoDo()),
    ),
    Recipe(
        "moco",
        "min-norm point of averaged gradients, followed step by step",
        "Fernando et al., ICLR 2023, arXiv 2210.12624",
        joint(aggregator=lambda: eh.MoCo()),
    ),
    Recipe(
        "cr-mogm",
        "min-norm weights, averaged over time",
        "Zhou et al., NeurIPS 2022, CR-MOGM",
        joint(aggregator=lambda: eh.CRMOGM(eh.MGDA())),
    ),
    Recipe(
        "db-mtl",
        "logarithms of the losses, and averaged gradients as long as the longest",
        "Lin et al., arXiv 2308.12029, Algorithm 1",
        joint(weighting=lambda: eh.ScaleInvariant(), aggregator=lambda: eh.DBMTL()),
    ),
    Recipe(
        "excess-mtl",
        "more weight for tasks far from their own optimum",
        "He et al., ICML 2024, arXiv 2402.02009",
        joint(weighting=lambda: eh.ExcessMTL()),
    ),
    Recipe(
        "pcgrad",
        "each gradient yields to those it conflicts with, in random order",
        "Yu et al., NeurIPS 2020, arXiv 2001.06782, Algorithm 1",
        joint(aggregator=lambda: eh.PCGrad()),
    ),
    Recipe(
        "gradvac",
        "gradients turned to each other up to their usual cosines",
        "Wang, Tsvetkov, Firat & Cao, ICLR 2021, arXiv 2010.05874",
        joint(aggregator=lambda: eh.GradVac()),
    ),
    Recipe(
        "cagrad",
        "near the mean gradient, what does most for the worst-off task",
        "Liu et al., NeurIPS 2021, arXiv 2110.14048, Algorithm 1",
        joint(aggregator=lambda: eh.CAGrad()),
    ),
    Recipe(
        "imtl-g",
        "equal projections on all task gradients",
        LIU_IMTL + ", IMTL-G",
        joint(aggregator=lambda: eh.IMTLG()),
    ),
    Recipe(
        "imtl",
        "learned loss scales, and equal projections on all task gradients",
        LIU_IMTL + ", IMTL",
        joint(weighting=lambda: eh.IMTLL(), aggregator=lambda: eh.IMTLG(at="representation")),
    ),
    Recipe(
        "nash-mtl",
        "Nash's solution of the tasks' bargaining over the direction",
        "Navon et al., ICML 2022, arXiv 2202.01017, Algorithm 1",
        joint(aggregator=lambda: eh.NashMTL()),
    ),
    Recipe(
        "fairgrad",
        "α-fair shares of the descent, α = 2",
        "Ban & Ji, ICML 2024, arXiv 2402.15638, Algorithm 1",
        joint(aggregator=lambda: eh.FairGrad()),
    ),
    Recipe(
        "aligned-mtl",
        "principal components of the gradients, all equally long",
        "Senushkin et al., CVPR 2023, arXiv 2305.19000, Algorithm 1",
        joint(aggregator=lambda: eh.AlignedMTL()),
    ),
    Recipe(
        "upgrad",
        "each gradient projected to conflict with no task, then the mean",
        QUINTON + ", section 3",
        joint(aggregator=lambda: eh.UPGrad()),
    ),
    Recipe(
        "dualproj",
        "the mean gradient projected to conflict with no task",
        "Lopez-Paz & Ranzato, NeurIPS 2017, equation (11); " + QUINTON,
        joint(aggregator=lambda: eh.DualProj()),
    ),
    Recipe(
        "config",
        "the direction at equal angles to the task gradients, by pseudo-inverse",
        "Liu, Chu & Thuerey, ICLR 2025, arXiv 2408.11104, equations (2) and (3)",
        joint(aggregator=lambda: eh.ConFIG()),
    ),
    Recipe(
        "graddrop",
        "one sign in each coordinate, drawn by lot",
        "Chen et al., NeurIPS 2020, arXiv 2010.06808, Algorithm 1",
        joint(aggregator=lambda: eh.GradDrop()),
    ),
    Recipe(
        "multi-krum",
        "the mean of the gradients that have company",
        "Blanchard et al., NeurIPS 2017",
        robust(lambda m, f: eh.Krum(byzantine=f, selected=m - f)),
    ),
    Recipe(
        "trimmed-mean",
        "the mean of each coordinate without its extremes",
        "Yin et al., ICML 2018, arXiv 1803.01498",
        robust(lambda m, f: eh.TrimmedMean(trim=f)),
    ),
)


def recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ValueError: there is none; the message names the nearest ones.
    """
    known = {entry.name: entry for entry in RECIPES}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
    raise ValueError(f"no recipe is called {name!r}; did you mean {', '.join(near)}?")
