"""The public names of `evenhand`."""

from evenhand import aggregation, weighting
from evenhand.aggregation import *  # noqa: F403
from evenhand.autodiff.gradients import NonFiniteError, TaskGradients
from evenhand.balancer import Balancer
from evenhand.balancing.balance import Balance
from evenhand.comparison.door import compare
from evenhand.doctor.diagnose import Diagnosis, diagnose
from evenhand.network import Blocks, MultiTaskNetwork, Outputs, frozen
from evenhand.schedules import (
    Clock,
    Phase,
    alternate_epochs,
    alternate_steps,
    in_groups,
    jointly,
    nested,
    one_by_one,
)
from evenhand.schedules.adaptive import alternate_adaptively
from evenhand.sharing import (
    CrossStitchNetwork,
    SquaredDistance,
    TiedNetwork,
    TraceNorm,
    cross_stitch,
    hard_sharing,
    soft_sharing,
    trace_norm_sharing,
)
from evenhand.weighting import *  # noqa: F403

__all__ = [
    "Balance",
    "Balancer",
    "Blocks",
    "Clock",
    "CrossStitchNetwork",
    "Diagnosis",
    "MultiTaskNetwork",
    "NonFiniteError",
    "Outputs",
    "Phase",
    "SquaredDistance",
    "TaskGradients",
    "TiedNetwork",
    "TraceNorm",
    "alternate_adaptively",
    "alternate_epochs",
    "alternate_steps",
    "compare",
    "cross_stitch",
    "diagnose",
    "frozen",
    "hard_sharing",
    "in_groups",
    "jointly",
    "nested",
    "one_by_one",
    "soft_sharing",
    "trace_norm_sharing",
]
__all__ += aggregation.__all__
__all__ += weighting.__all__
