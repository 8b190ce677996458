"""What one walk of the graph of a call tells of the leaves that its losses reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from evenhand.autodiff.call import Call
from evenhand.autodiff.walk import Edge, edge_of, is_opaque, walk
from evenhand.network import Outputs, Reading


@dataclass
class Found:
    """What the walk of a call found.

    Attributes:
        reached: for each leaf that a task reaches, the mask of the tasks.
        joint: the leaves for which the graph may not tell two tasks apart.
        behind: the leaves behind the features.
        round: the leaves to which a task has a way that goes round the features.
        extra: leaves that `plus` reaches.
        features: the features that some task reaches.
        readings: how the head of each active task reads the features, if each loss sees one alone.
    """

    reached: dict[Tensor, int]
    joint: set[Tensor]
    behind: set[Tensor]
    round: set[Tensor]
    extra: list[Tensor]
    features: Sequence[Tensor]
    readings: list[Reading]

    def told(self) -> tuple[object, ...]:
        """What was found, as something that can be compared; leaves by their identity."""
        return (
            tuple(map(id, self.reached)),
            tuple(self.reached.values()),
            frozenset(map(id, self.behind)),
            frozenset(map(id, self.round)),
            tuple(map(id, self.extra)),
            bool(self.features),
            bool(self.readings),
        )

    @classmethod
    def of(
        cls,
        call: Call,
        tasks: Sequence[str],
        features: Sequence[Tensor],
        outputs: Outputs | None,
    ) -> Found:
        """Walk the graph once for all tasks, with bits by their positions among all tasks.

        At the output of a linear head, whose parameters its reading names, the walk ends: beyond
        it may lie all heads that were evaluated with it as one.
        """
        plus = 1 << len(tasks)
        roots = [(edge_of(loss), 1 << k) for loss, k in zip(call.losses, call.index, strict=True)]
        if call.plus is not None and call.plus.requires_grad:
            roots.append((edge_of(call.plus), plus))
        edges = [edge_of(z) for z in features]
        probes: dict[Edge, Reading] = {}
        if outputs is not None and len(features) == 1:
            probes = {
                edge_of(r.probe): r for r in outputs.readings.values() if r.probe.requires_grad
            }
            # What a compiled function returned beside the features did not come from them.
            if any(map(is_opaque, {type(node) for node, _ in probes})):
                probes = {}
        reach = walk(roots, [*edges, *probes], counted=plus - 1)
        direct = through = 0
        for edge in edges:
            direct |= reach.stops.get(edge, 0)
        read = [(probes[edge], edge, mask) for edge, mask in reach.stops.items() if edge in probes]
        for reading, edge, mask in read:
            through |= mask
            trained = [parameter for parameter in reading.parameters if parameter.requires_grad]
            for parameter in trained:
                before = reach.leaves.setdefault(parameter, mask)
                if before | mask != before:
                    reach.leaves[parameter] = before | mask
            if edge in reach.joint_stops:
                reach.joint.update(trained)
        whole = direct | through
        if features and not whole & ~plus:
            raise ValueError(
                "no loss depends on features=: give the representation that the losses were "
                "computed from, not a copy made beside it, or the module that makes it. Of what is "
                "made inside a compiled network nothing can be used: compile trunk and heads apart"
            )
        behind = walk([(edge, 1) for edge in edges]).leaves if edges else {}
        reached, extra = reach.leaves, []
        if call.plus is not None:
            reached = {leaf: mask & ~plus for leaf, mask in reach.leaves.items() if mask & ~plus}
            extra = [leaf for leaf, mask in reach.leaves.items() if mask & plus]
        found = cls(
            reached={**reached, **{p: reached.get(p, 0) | (whole & ~plus) for p in behind}},
            joint=reach.joint,
            behind=set(behind),
            round={leaf for leaf in behind if leaf in reached},
            extra=extra,
            features=features,
            readings=[],
        )
        if whole & plus:
            found.extra += [leaf for leaf in behind if leaf not in found.extra]
        if not direct & ~plus:
            found.readings = _paired(call, {mask: reading for reading, _, mask in read}, len(read))
        return found


def _paired(call: Call, by_mask: Mapping[int, Reading], seen: int) -> list[Reading]:
    """The reading of each active task, if each loss sees one head alone, and no two the same."""
    found = [by_mask.get(1 << k) for k in call.index]
    readings = [reading for reading in found if reading is not None and reading.intact]
    return readings if len(readings) == len(found) == seen else []
