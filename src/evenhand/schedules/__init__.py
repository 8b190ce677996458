"""Schedules: which tasks have a loss in a step, and what trains."""

from evenhand.schedules.alternate import alternate_epochs, alternate_steps
from evenhand.schedules.base import Schedule, Stateless, jointly
from evenhand.schedules.clock import BLOCKS, Block, Clock, Phase, mixed_seed
from evenhand.schedules.independent import in_groups, one_by_one
from evenhand.schedules.nesting import in_step, nested

__all__ = [
    "BLOCKS",
    "Block",
    "Clock",
    "Phase",
    "Schedule",
    "Stateless",
    "alternate_epochs",
    "alternate_steps",
    "in_groups",
    "in_step",
    "jointly",
    "mixed_seed",
    "nested",
    "one_by_one",
]
