"""Methods that leave the span of the gradients: TaskGradients -> a direction [n].

Most methods are weightings, and a weighting serves as an aggregator too (its weights combine the
trunk's gradients). The few that do more than combine, such as dropping single coordinates, are
`Aggregator`s and see the whole Jacobian. One file per method.
"""

from evenhand.aggregation.base import Aggregator, StatefulAggregator
from evenhand.aggregation.db_mtl import DBMTL
from evenhand.aggregation.graddrop import GradDrop
from evenhand.aggregation.moco import MoCo
from evenhand.aggregation.per_block import PerBlock
from evenhand.aggregation.trimmed_mean import TrimmedMean

__all__ = [
    "DBMTL",
    "Aggregator",
    "GradDrop",
    "MoCo",
    "PerBlock",
    "StatefulAggregator",
    "TrimmedMean",
]
