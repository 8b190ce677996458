"""Schedules: which tasks have a loss in a step, and what trains."""

from evenhand.schedules.alternate import alternate_epochs, alternate_steps
from evenhand.schedules.base import Phases, Schedule, Stateless, as_schedule, jointly
from evenhand.schedules.clock import BLOCKS, Block, Clock, Phase, mixed_seed
from evenhand.schedules.independent import in_groups, one_by_one
from evenhand.schedules.nesting import in_step, nested

__all__ = [
    "BLOCKS",
    "Block",
    "Clock",
    "Phase",
    "Phases",
    "Schedule",
    "Stateless",
    "alternate_epochs",
    "alternate_steps",
    "as_schedule",
    "in_groups",
    "in_step",
    "jointly",
    "mixed_seed",
    "nested",
    "one_by_one",
]
