"""What every recipe is composed of, written out by hand from its paper, and what a run makes of it.

The table shares nothing with `recipes.py`: a recipe that changes must change here too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from evenhand.comparison.job import Job
from evenhand.comparison.plan import training
from evenhand.comparison.request import Settings
from evenhand.recipes import RECIPES, Composition, recipe
from evenhand.training.loop import Training
from samplers import mixed

TEN = tuple("abcdefghij")


class Part(NamedTuple):
    """A method: its class, its numbers, the method that it wraps, where it looks."""

    kind: str
    numbers: dict[str, Any] = {}  # noqa: RUF012  a NamedTuple's default is read only
    base: Part | None = None
    at: str = "parameters"


MGDA, CENTRAL = Part("MGDA"), Part("CentralDirection")
JOINT, EPOCHS = "jointly()", "alternate_epochs(shared=1, own=1)"
HARD = "HardSharing(width=1.0)"
COPIES = "size='full', start='same'"
ONE, GROUPS = "one_by_one('fixed')", "in_groups(5, redraw='never')"


def tension(base: Part) -> Part:
    """Nakamura et al.: α = 0.3, T = 10; the projection is exact where one pass is not enough."""
    return Part("Tension", {"alpha": 0.3, "period": 10, "feasibility": "auto"}, base)


def normalized(by: str) -> Part:
    """Sener & Koltun: solved for scaled gradients, the weights put on the raw ones."""
    return Part("Normalized", {"by": by, "back": False}, MGDA)


class Golden(NamedTuple):
    """One network of a recipe."""

    weighting: Part | None = None
    aggregator: Part | None = None
    schedule: str = JOINT
    own_moments: bool = False
    replacement: bool = False
    network: str = HARD


# Of ten tasks. Weightings scale heads and trunk, aggregators the trunk alone.
TABLE: dict[str, Golden] = {
    "sg": Golden(),
    "sus": Golden(),
    # Duong et al.; Yang & Hospedales, last axis flattening; Misra et al., alpha_S = 0.9.
    "soft": Golden(network=f"Tied({COPIES}, tie=SquaredDistance(weight=0.001))"),
    "soft-trace": Golden(network=f"Tied({COPIES}, tie=TraceNorm(weight=0.001, flattening='laf'))"),
    "cross-stitch": Golden(network=f"Stitched({COPIES}, own=0.9)"),
    "uniform": Golden(None, Part("Equal", {"mean": True})),
    # Kendall et al., equation (7), for regression: ½ exp(−s) L + ½ s.
    "uncertainty": Golden(Part("Uncertainty", {"kind": "regression"})),
    # Chen et al., section 4: α = 1.5 on NYUv2, W the last shared layer.
    "gradnorm": Golden(Part("GradNorm", {"alpha": 1.5}, at="last_layer")),
    # Sener & Koltun, Algorithm 2: the heads step on their own losses.
    "mgda": Golden(None, MGDA),
    "mgda-online": Golden(None, Part("OnlineMinNorm", {"rate": 0.5, "check": 0})),
    "mgda-ub": Golden(None, Part("MGDA", at="representation")),
    "mgda-released": Golden(MGDA),
    "mgda-l2": Golden(None, normalized("l2")),
    "mgda-loss": Golden(None, normalized("loss")),
    "mgda-loss+": Golden(None, normalized("loss+")),
    "central": Golden(None, CENTRAL),
    "min-norm+tension": Golden(None, tension(MGDA)),
    "central+tension": Golden(None, tension(CENTRAL)),
    # Bellavia et al.: Algorithms 3.1, A.1 and 3.2.
    "sat-sg": Golden(None, None, "alternate_steps()"),
    "ate-sg": Golden(None, None, EPOCHS),
    "ate-sg-replacement": Golden(None, None, EPOCHS, replacement=True),
    "ate-adaptive": Golden(None, None, "alternate_adaptively(longest=100, memory=0.8)"),
    "ate-sg+tension": Golden(None, tension(CENTRAL), EPOCHS),
    # Pascal et al.: one optimizer (IUS) or one per task (IO).
    "ius": Golden(None, None, ONE),
    "io": Golden(None, None, ONE, own_moments=True),
    "ius-groups": Golden(None, None, GROUPS),
    "io-groups": Golden(None, None, GROUPS, own_moments=True),
    # Liu et al. (ICLR 2021): IMTL-L learns scales, IMTL-G balances at the shared feature.
    "imtl-l": Golden(Part("IMTLL")),
    "imtl-g": Golden(None, Part("IMTLG")),
    "imtl": Golden(Part("IMTLL"), Part("IMTLG", at="representation")),
    "rlw": Golden(Part("RLW", {"distribution": "normal"})),
    # Liu, Johns & Davison: T = 2.
    "dwa": Golden(Part("DWA", {"temperature": 2.0})),
    "gls": Golden(Part("GLS")),
    "si": Golden(Part("ScaleInvariant")),
    "tchebycheff": Golden(Part("Tchebycheff")),
    "stch": Golden(Part("STCH", {"mu": 1.0})),
    "log-stch": Golden(Part("LogSTCH", {"mu": 1.0, "warmup": 4})),
    "pbi": Golden(Part("PBI", {"theta": 0.5})),
    # Liu et al. (NeurIPS 2023): the weights' rate 0.025, decay 1e-3.
    "famo": Golden(Part("FAMO", {"lr": 0.025, "decay": 0.001})),
    "sdmgrad": Golden(
        None,
        Part(
            "SDMGrad",
            {"strength": 0.3, "lr": 10.0, "momentum": 0.5, "steps": 20, "batches": 3},
        ),
    ),
    "modo": Golden(None, Part("MoDo", {"gamma": 0.1, "rho": 0.0, "batches": 3})),
    "moco": Golden(None, Part("MoCo", {"beta": 0.5, "gamma": 0.1, "rho": 0.0, "decay": 0.5})),
    "cr-mogm": Golden(None, Part("CRMOGM", {"alpha": 0.9}, MGDA)),
    "db-mtl": Golden(Part("ScaleInvariant"), Part("DBMTL", {"beta": 0.9, "decay": 0.0})),
    "excess-mtl": Golden(Part("ExcessMTL", {"lr": 0.01, "warmup": 1})),
    "pcgrad": Golden(None, Part("PCGrad")),
    "gradvac": Golden(None, Part("GradVac", {"beta": 0.01})),
    "cagrad": Golden(None, Part("CAGrad", {"c": 0.5})),
    "nash-mtl": Golden(None, Part("NashMTL", {"max_norm": None})),
    "fairgrad": Golden(None, Part("FairGrad", {"alpha": 2.0})),
    "aligned-mtl": Golden(None, Part("AlignedMTL", {"scale": "min", "preference": None})),
    "upgrad": Golden(None, Part("UPGrad", {"preference": None})),
    "dualproj": Golden(None, Part("DualProj", {"preference": None})),
    "config": Golden(None, Part("ConFIG", {"preference": None})),
    "graddrop": Golden(None, Part("GradDrop", {"leak": 0.0, "f": None})),
    # A fifth of ten tasks may be off.
    "multi-krum": Golden(None, Part("Krum", {"byzantine": 2, "selected": 8})),
    "trimmed-mean": Golden(None, Part("TrimmedMean", {"trim": 2})),
}

GRID = {
    "1-1-3": (0.6, 0.6, 1.8),
    "1-2-2": (0.6, 1.2, 1.2),
    "1-3-1": (0.6, 1.8, 0.6),
    "2-1-2": (1.2, 0.6, 1.2),
    "2-2-1": (1.2, 1.2, 0.6),
    "3-1-1": (1.8, 0.6, 0.6),
}
"""All w = 3k/5 for k ≥ 1 with Σk = 5."""


def assert_is(method: Any, part: Part | None) -> None:
    """The method is what the table says, at every depth."""
    if part is None:
        assert method is None
        return
    assert type(method).__name__ == part.kind
    assert method.at == part.at
    found = {"batches": method.traits.batches, **vars(method)}
    assert {name: found[name] for name in part.numbers} == part.numbers
    assert hasattr(method, "base") == (part.base is not None)
    if part.base is not None:
        assert_is(method.base, part.base)


def assert_composed(found: Composition, tasks: tuple[str, ...], golden: Golden) -> None:
    assert found.tasks == tasks
    assert_is(found.weighting, golden.weighting)
    assert_is(found.aggregator, golden.aggregator)
    assert repr(found.schedule) == golden.schedule
    assert found.own_moments == golden.own_moments
    assert found.replacement == golden.replacement
    assert repr(found.network) == golden.network


def test_the_table_has_every_recipe() -> None:
    assert {entry.name for entry in RECIPES} == {*TABLE, "single-task", "grid"}


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_is_composed_of_what_the_paper_says(name: str) -> None:
    composed = recipe(name).compose(TEN)
    assert list(composed) == [""]
    assert_composed(composed[""], TEN, TABLE[name])


def test_single_task_is_a_network_for_each_task() -> None:
    composed = recipe("single-task").compose(("a", "b"))
    assert list(composed) == ["a", "b"]
    for task, found in composed.items():
        assert_composed(found, (task,), Golden())


def test_grid_is_a_network_for_each_vector_of_weights() -> None:
    composed = recipe("grid").compose(("a", "b", "c"))
    assert list(composed) == list(GRID)
    for label, found in composed.items():
        assert found.weighting.weights == pytest.approx(dict(zip("abc", GRID[label], strict=True)))
        assert_composed(found, ("a", "b", "c"), Golden(Part("Fixed")))


# What a run is made with ----------------------------------------------------------------------


SETTINGS = Settings("mixed", epochs=1, weights_rate=0.007, optimizer="sgd")


def made(name: str, **changes: Any) -> Training:
    problem = mixed()
    (label, *_) = recipe(name).compose(tuple(problem.tasks))
    return training(Job(name, label, 3, 0.03), problem, replace(SETTINGS, **changes))


def kinds(method: Any) -> list[str]:
    """The class of a method and of what it wraps."""
    return [] if method is None else [type(method).__name__, *kinds(getattr(method, "base", None))]


@pytest.mark.parametrize("name", [entry.name for entry in RECIPES])
def test_a_run_has_its_recipes_parts_and_its_requests_numbers(name: str) -> None:
    """Nothing of a composition is lost on the way, and every rate is the one that was asked for."""
    run = made(name)
    golden = TABLE.get(name, Golden())
    parts = next(iter(recipe(name).compose(tuple(run.problem.tasks)).values()))
    assert kinds(run.balancer.weighting) == kinds(parts.weighting)
    assert kinds(run.balancer.aggregator) == kinds(parts.aggregator)
    assert repr(run.schedule) == repr(parts.schedule)
    assert run.seed == run.steps.clock().seed == 3
    assert run.stream.replacement is golden.replacement
    learned = name in ("uncertainty", "gradnorm", "imtl-l", "imtl")
    expected = dict.fromkeys(run.optimizers.rates(), 0.03)
    slots = {"io": 3, "io-groups": 2}.get(name, 1)
    shared = {"shared"} if slots == 1 else {f"shared.{k}" for k in range(slots)}
    if name in ("soft", "soft-trace"):  # all of a tied network is its tasks' own
        shared = set()
    assert run.optimizers.rates().keys() == shared | {"own"} | ({"weights"} if learned else set())
    if learned:
        expected["weights"] = 0.007
        assert isinstance(run.optimizers.named()["weights"], torch.optim.Adam)
    assert run.optimizers.rates() == expected


def test_a_run_takes_gradients_as_asked() -> None:
    assert made("mgda", jacobian="batched").balancer.chunking.wanted == "batched"
    assert made("mgda").balancer.chunking.wanted == "looped"


def test_own_moments_are_stepped_in_turn() -> None:
    """After one step of each of three tasks every slot's optimizer has a momentum of its own."""
    run = made("io")
    run.train_epoch()
    buffers = [
        optimizer.state[run.network.blocks().shared[0]]["momentum_buffer"]
        for name, optimizer in run.optimizers.named().items()
        if name.startswith("shared")
    ]
    assert len(buffers) == 3
    assert not any(torch.equal(buffers[i], buffers[j]) for i in range(3) for j in range(i))
