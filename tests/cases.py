"""The registry: every piece that the laws of test_laws.py are held against, one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

import evenhand as eh
from evenhand import Aggregator, Weighting, schedules
from evenhand.schedules import Schedule


@dataclass(frozen=True)
class Case:
    """A method under test: how to make it, and for how many tasks it makes sense.

    What it promises (feasible, stationary, scale_invariant, needs) is declared by the method
    itself; the laws read it there.
    """

    name: str
    make: Callable[[tuple[str, ...]], Weighting | Aggregator]
    tasks: tuple[int, ...] = (1, 2, 3, 8)


def preferences(tasks: tuple[str, ...]) -> dict[str, float]:
    """Different for every task, and not of sum 1."""
    return {task: 0.5 + i for i, task in enumerate(tasks)}


CASES: tuple[Case, ...] = (
    Case("equal", lambda tasks: eh.Equal()),
    Case("equal-mean", lambda tasks: eh.Equal(mean=True)),
    Case("fixed", lambda tasks: eh.Fixed({t: 0.5 + i for i, t in enumerate(tasks)})),
    Case("mgda", lambda tasks: eh.MGDA()),
    Case("mgda-online", lambda tasks: eh.OnlineMinNorm()),
    Case("mgda-l2", lambda tasks: eh.Normalized(eh.MGDA(), by="l2")),
    Case("mgda-l2-back", lambda tasks: eh.Normalized(eh.MGDA(), by="l2", back=True)),
    Case("mgda-loss", lambda tasks: eh.Normalized(eh.MGDA(), by="loss", back=True)),
    Case("mgda-loss+", lambda tasks: eh.Normalized(eh.MGDA(), by="loss+")),
    Case("central", lambda tasks: eh.CentralDirection()),
    Case("min-norm+tension", lambda tasks: eh.Tension(eh.MGDA(), period=2)),
    Case("central+tension", lambda tasks: eh.Tension(eh.CentralDirection(), period=2)),
    Case("uncertainty", lambda tasks: eh.Uncertainty()),
    Case("gradnorm", lambda tasks: eh.GradNorm()),
    Case("per-block-mgda", lambda tasks: eh.PerBlock(eh.MGDA, {"all": lambda shared: shared})),
    Case("every-3-mgda", lambda tasks: eh.Every(eh.MGDA(), steps=3)),
    Case("imtl-l", lambda tasks: eh.IMTLL()),
    Case("rlw", lambda tasks: eh.RLW()),
    Case("rlw-dirichlet", lambda tasks: eh.RLW("dirichlet")),
    Case("dwa", lambda tasks: eh.DWA()),
    Case("gls", lambda tasks: eh.GLS()),
    Case("si", lambda tasks: eh.ScaleInvariant()),
    Case("tchebycheff", lambda tasks: eh.Tchebycheff()),
    Case("stch", lambda tasks: eh.STCH()),
    Case("log-stch", lambda tasks: eh.LogSTCH(warmup=0)),
    Case("pbi", lambda tasks: eh.PBI()),
    Case("famo", lambda tasks: eh.FAMO()),
    Case("sdmgrad", lambda tasks: eh.SDMGrad()),
    Case("sdmgrad-2", lambda tasks: eh.SDMGrad(batches=2)),
    Case("modo", lambda tasks: eh.MoDo()),
    Case("modo-2", lambda tasks: eh.MoDo(batches=2)),
    Case("moco", lambda tasks: eh.MoCo()),
    Case("cr-mogm", lambda tasks: eh.CRMOGM(eh.MGDA())),
    Case("db-mtl", lambda tasks: eh.DBMTL()),
    Case("excess-mtl", lambda tasks: eh.ExcessMTL()),
    Case("pcgrad", lambda tasks: eh.PCGrad()),
    Case("gradvac", lambda tasks: eh.GradVac(beta=0.5)),
    Case("cagrad", lambda tasks: eh.CAGrad(c=0.5)),
    Case("cagrad-1", lambda tasks: eh.CAGrad(c=1.0)),
    Case("imtl-g", lambda tasks: eh.IMTLG()),
    Case("nash-mtl", lambda tasks: eh.NashMTL()),
    Case("nash-mtl-clipped", lambda tasks: eh.NashMTL(max_norm=1.0)),
    Case("fairgrad", lambda tasks: eh.FairGrad(alpha=2.0)),
    Case("fairgrad-0.5", lambda tasks: eh.FairGrad(alpha=0.5)),
    Case("fairgrad-0", lambda tasks: eh.FairGrad(alpha=0.0)),
    Case("aligned-mtl", lambda tasks: eh.AlignedMTL()),
    Case("aligned-mtl-median", lambda tasks: eh.AlignedMTL(scale="median")),
    Case("aligned-mtl-rmse", lambda tasks: eh.AlignedMTL(preferences(tasks), scale="rmse")),
    Case("upgrad", lambda tasks: eh.UPGrad()),
    Case("upgrad-preferring", lambda tasks: eh.UPGrad(preferences(tasks))),
    Case("dualproj", lambda tasks: eh.DualProj()),
    Case("dualproj-preferring", lambda tasks: eh.DualProj(preferences(tasks))),
    Case("config", lambda tasks: eh.ConFIG()),
    Case("config-precise", lambda tasks: eh.ConFIG(precise=True)),
    Case("config-preferring", lambda tasks: eh.ConFIG(preferences(tasks))),
    Case("krum", lambda tasks: eh.Krum()),
    Case("multi-krum", lambda tasks: eh.Krum(byzantine=1, selected=3), tasks=(8,)),
    Case("graddrop", lambda tasks: eh.GradDrop()),
    Case(
        "graddrop-leaking",
        lambda tasks: eh.GradDrop(leak={t: 1 / (i + 2) for i, t in enumerate(tasks)}),
    ),
    Case("trimmed-mean", lambda tasks: eh.TrimmedMean(trim=1), tasks=(8,)),
)


SCHEDULES: Mapping[str, Callable[[], Schedule]] = {
    "jointly": schedules.jointly,
    "alternate-steps": schedules.alternate_steps,
    "alternate-epochs": lambda: schedules.alternate_epochs(shared=1, own=1),
    "one-by-one": lambda: schedules.one_by_one("random"),
    "groups": lambda: schedules.in_groups(2, redraw="epoch"),
    "nested": lambda: schedules.nested(
        schedules.alternate_epochs(1, 1), schedules.in_groups(2), within=("shared",)
    ),
}


OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.02, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}
