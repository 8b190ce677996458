"""What a frozen trunk computes, computed once.

In a phase that trains the heads alone, Z = trunk(x) is the same for a sample in every epoch. One
that lasts two epochs or more therefore pays for one pass through the trunk, over the data set in
its own order and in chunks of one batch, and reads Z from memory after that. Chunks are cut the
same way in every run, so a run that was killed within a phase rebuilds the same bits.

That holds as long as the trunk cannot vary: at rest in eval mode, with no module that draws at
random or mixes the samples of a batch. What is seen of that at the modules is checked there, the
rest by a trial.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.data import DataLoader

from evenhand.data.problem import Batch, Split, Stream, gathered
from evenhand.network import Blocks, FrozenMode, MultiTaskNetwork, Nest, Outputs, frozen
from evenhand.schedules import Phase

logger = logging.getLogger(__name__)

GIBIBYTE = 1 << 30
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class _Kept:
    """The leaves [n, ...] of a nest (Z, targets) of all n samples, and of which trunk."""

    leaves: list[Tensor]
    nest: TreeSpec
    versions: list[int]

    @property
    def bytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.leaves)


class FeatureMemory:
    """The features of the training samples, kept while the trunk is frozen.

    Args:
        network: whose trunk it is.
        stream: the training data.
        budget: the most bytes to keep; 0 keeps nothing.
        stable_loader: for a `DataLoader`: whether it gives the same sample whenever it is asked
            for it. Augmentation cannot be detected, so this is the user's word. Data held in
            memory are stable.
        mode: the mode in which the trunk is frozen.

    Attributes:
        obstacle: why nothing is kept, or "".
    """

    def __init__(
        self,
        network: MultiTaskNetwork,
        stream: Stream,
        *,
        budget: int = GIBIBYTE,
        stable_loader: bool = False,
        mode: FrozenMode = "eval",
    ) -> None:
        if budget < 0:
            raise ValueError(f"feature_memory={budget}: must be a number of bytes >= 0")
        self.network = network
        self.stream = stream
        self.budget = budget
        self.mode = mode
        self.obstacle = self._standing_obstacle(stable_loader)
        self._blocks: Blocks = network.blocks()
        self._state = [*network.trunk.parameters(), *network.trunk.buffers()]
        self._kept: _Kept | None = None
        self._said = False

    def wanted(self, phase: Phase) -> bool:
        """Whether `phase` is one whose features are worth keeping, and can be."""
        return phase.lasts >= 2 and "shared" not in phase.trains and not self.obstacle

    @property
    def filled(self) -> bool:
        """Whether the features of the trunk as it is now are in memory."""
        return self._kept is not None and self._kept.versions == self._versions()

    def drop(self) -> None:
        """Forget the features: the trunk is about to move."""
        self._kept = None

    def fill(self, phase: Phase) -> None:
        """Compute the features of all samples, or find the obstacle that forbids it.

        Nothing is drawn from torch's global stream.
        """
        self.drop()
        with (
            torch.no_grad(),
            torch.random.fork_rng(),
            frozen(self.network, phase, blocks=self._blocks, mode=self.mode),
        ):
            self.obstacle = _variation_of(self.network.trunk) or self._filled_or_not()
        self._say(phase)

    def _say(self, phase: Phase) -> None:
        """Tell the log, once in a run, whether features are kept, and why not or what it saves."""
        if self._said:
            return
        self._said = True
        if self._kept is None:
            logger.info("features of the frozen trunk are not kept: %s", self.obstacle)
        else:
            logger.info(
                "features of the frozen trunk are kept (%.3g of at most %.4g MB): one pass "
                "through the trunk instead of %d in a phase of %d epochs",
                *(self._kept.bytes / 1e6, self.budget / 1e6, phase.lasts, phase.lasts),
            )

    def batch(self, number: int) -> Batch:
        """Features and targets of batch `number` of the stream.

        Raises:
            ValueError: nothing is in memory.
        """
        if self._kept is None:
            raise ValueError("no features are in memory: fill it first")
        index = self.stream.index(number)
        rows = [gathered(leaf, index) for leaf in self._kept.leaves]
        features, targets = tree_unflatten(rows, self._kept.nest)
        if isinstance(self.stream.source, Split):
            targets = self.stream.source.labels(index)
        return features, targets

    def heads(self, features: Nest, tasks: Sequence[str]) -> Outputs:
        """What the network says from `features` on."""
        return Outputs({task: self.network.head(task)(features) for task in tasks}, features)

    # Filling ----------------------------------------------------------------------------------

    def _filled_or_not(self) -> str:
        """Fill the memory, chunk by chunk; returns the obstacle that the first chunk shows."""
        leaves: list[Tensor] = []
        start = 0
        for inputs, targets in self._chunks():
            features = self.network.trunk(inputs)
            # Data in memory have their targets there already.
            kept = {} if isinstance(self.stream.source, Split) else dict(targets)
            rows, nest = tree_flatten((features, kept))
            if not leaves:
                obstacle = self._obstacle_of_trial(inputs, features) or self._obstacle_of_size(rows)
                if obstacle:
                    return obstacle
                leaves = [row.new_empty((self._samples, *row.shape[1:])) for row in rows]
            stop = start + len(rows[0])
            for leaf, row in zip(leaves, rows, strict=True):
                leaf[start:stop] = row
            start = stop
        self._kept = _Kept(leaves, nest, self._versions())
        return ""

    def _chunks(self) -> Iterator[Batch]:
        match self.stream.source:
            case Split() as split:
                return split.in_order(self.stream.batch_size)
            case DataLoader() as loader:
                return iter(
                    DataLoader(
                        loader.dataset,
                        batch_size=loader.batch_size,
                        num_workers=loader.num_workers,
                        collate_fn=loader.collate_fn,
                        pin_memory=loader.pin_memory,
                    )
                )
        raise ValueError("only data in memory and a DataLoader's data set can be passed in order")

    @property
    def _samples(self) -> int:
        source = self.stream.source
        return len(source.dataset if isinstance(source, DataLoader) else source)  # type: ignore[arg-type]

    def _versions(self) -> list[int]:
        return [tensor._version for tensor in self._state]

    # Obstacles --------------------------------------------------------------------------------

    def _standing_obstacle(self, stable_loader: bool) -> str:
        """Why nothing can be kept whatever the trunk is made of, or ""."""
        source = self.stream.source
        if not self.budget:
            return "there is no memory for them"
        if self.mode != "eval":
            return "the trunk is frozen in training mode"
        if type(self.network).forward is not MultiTaskNetwork.forward:
            return f"{type(self.network).__name__} has a forward pass of its own"
        if isinstance(source, Split):
            return ""
        if not self.stream.numbered:
            return "the samples of this iterable have no numbers"
        if not stable_loader:
            return "the data loader may augment (stable_loader=True says that it does not)"
        return ""

    def _obstacle_of_trial(self, inputs: Nest, features: Nest) -> str:
        """Whether the trunk gives a sample other features in another batch, or at another time.

        Rounding may differ with the size of a batch; half of a number's digits may not.
        """
        size = len(tree_leaves(inputs)[0])
        if any(len(z) != size for z in tree_leaves(features)):
            return "the trunk gives no row of features for each sample"
        index = torch.arange(size - 1, -1, -2)
        again = self.network.trunk(tree_map(lambda x: x[index.to(x.device)], inputs))
        for z, other in zip(tree_leaves(features), tree_leaves(again), strict=True):
            difference = (z[index.to(z.device)] - other).abs().max()
            if difference > torch.finfo(z.dtype).eps ** 0.5 * z.abs().max():
                return "the trunk draws at random or mixes the samples of a batch"
        return ""

    def _obstacle_of_size(self, rows: Sequence[Tensor]) -> str:
        wanted = self._samples * sum(row[:1].nbytes for row in rows)
        if wanted <= self.budget:
            return ""
        return f"they take {wanted / 1e6:.3g} MB, and feature_memory is {self.budget / 1e6:.3g} MB"


def _variation_of(trunk: nn.Module) -> str:
    """What in a trunk at rest may vary, or ""."""
    for name, module in trunk.named_modules():
        if module.training:
            return f"{name or 'the trunk'} is in training mode"
        if isinstance(module, BATCH_NORMS) and module.running_mean is None:
            return f"{name or 'the trunk'} has no running statistics and mixes samples"
    return ""
