"""Which samples of a task have a label, what its loss gets to see of them, and how many there are.

A floating target is missing where it is NaN. An integer target is missing where it equals the
value that its task declares, and never if the task declares none: classes may be called −1 and 1.
A class number that the loss itself passes over (PyTorch's `ignore_index`) makes no sample missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor
from torch.utils._pytree import tree_map

Gaps = Literal["sample", "entry", "loss"]


@dataclass(frozen=True)
class LabelCount:
    """How many labels of one task a part of the data has.

    Attributes:
        samples: all samples of the part.
        used: the samples that the loss gets.
        entries: the labelled entries of the samples used (a pixel or column each).
        gaps: the entries without a label in the samples used.
    """

    samples: int
    used: int
    entries: int
    gaps: int = 0

    @property
    def left_out(self) -> int:
        """The samples that the loss does not get."""
        return self.samples - self.used

    def __add__(self, other: LabelCount) -> LabelCount:
        return LabelCount(
            self.samples + other.samples,
            self.used + other.used,
            self.entries + other.entries,
            self.gaps + other.gaps,
        )


@dataclass(frozen=True)
class Labelling:
    """How a task's targets say that a label is missing, and what becomes of incomplete samples.

    Attributes:
        missing: a value that stands for no label, besides NaN, which always does in floating
            targets. None: there is no such value.
        gaps: what happens to a sample some of whose entries (pixels, columns) have no label.
            "sample": the whole sample is left out. "entry": these entries are left out; the loss
            and the metric get the labelled entries of the batch in one row, outputs [n] or
            [n, classes] and targets [n], and the loss must be their mean. "loss": the loss and the
            metric get the sample as it is and pass over its gaps themselves (`ignore_index`); the
            loss must be the mean over the labelled entries. A sample without any labelled entry
            is left out in all three.

    Raises:
        ValueError: `gaps` is another word.
        TypeError: `missing` is neither a number nor None.

    Example:
        >>> import torch
        >>> target = torch.tensor([[0.5, math.nan], [1.0, 2.0], [math.nan, math.nan]])
        >>> Labelling().samples(target).tolist()
        [False, True, False]
        >>> Labelling(gaps="entry").samples(target).tolist()
        [True, True, False]
        >>> Labelling().samples(torch.tensor([-1, 1])).tolist()
        [True, True]
        >>> Labelling(missing=-1).samples(torch.tensor([-1, 1])).tolist()
        [False, True]
    """

    missing: float | None = None
    gaps: Gaps = "sample"

    def __post_init__(self) -> None:
        if self.missing is not None and not isinstance(self.missing, int | float):
            raise TypeError(f"missing={self.missing!r}: must be a number, or None")
        if self.gaps not in get_args(Gaps):
            raise ValueError(f"gaps={self.gaps!r}: must be one of {', '.join(get_args(Gaps))}")

    def entries(self, target: Tensor) -> Tensor:
        """Which entries have a label, bool of the target's shape."""
        present = ~target.isnan()  # of integers none is
        if self.missing is not None:
            present &= target != self.missing
        return present

    def samples(self, target: Tensor) -> Tensor:
        """Which samples the loss gets, bool [b]."""
        return self._used(_columns(self.entries(target)))

    def complete(self, target: Tensor) -> bool:
        """Whether every entry has a label: one pass over the targets where that is so."""
        # A sum with a NaN in it is NaN, but so may be one of infinite entries.
        if (
            target.is_floating_point()
            and math.isnan(target.sum().item())
            and bool(target.isnan().any())
        ):
            return False
        return self.missing is None or not bool((target == self.missing).any())

    def present(self, target: Tensor) -> bool:
        """Whether the loss gets any sample."""
        return len(target) > 0 and (self.complete(target) or bool(self.samples(target).any()))

    def count(self, target: Tensor) -> LabelCount:
        """How many labels there are."""
        present = _columns(self.entries(target))
        kept = present[self._used(present)]
        entries = int(kept.sum())
        return LabelCount(len(target), len(kept), entries, kept.numel() - entries)

    def _used(self, present: Tensor) -> Tensor:
        return present.all(dim=1) if self.gaps == "sample" else present.any(dim=1)

    def weight(self, target: Tensor) -> int:
        """Over how many labels a loss is the mean that gets this target and nothing else.

        Samples, or entries where single entries may be missing.
        """
        if self.gaps == "sample":
            return len(target)
        return target.numel() if self.complete(target) else int(self.entries(target).sum())

    def taken(self, output: Any, target: Tensor) -> tuple[Any, Tensor] | None:
        """What the loss and the metric get of a batch, or None if it has no label.

        Args:
            output: a tensor, or a mapping or sequence of tensors, with a row for each sample.
            target: the targets, [b, ...].

        Raises:
            ValueError: a tensor of the output has no row for each sample; or gaps are to be left
                out entry by entry, and the output does not have one value, or one per class, for
                each entry of the target.
            TypeError: something in the output is no tensor.
        """
        if self.complete(target):
            return self.arranged(output, target) if len(target) else None
        if self.gaps == "entry":
            mask = self.entries(target)
            found, labels = self.arranged(output, target)
            kept = mask.flatten()
            return (found[kept], labels[kept]) if bool(kept.any()) else None
        mask = self.samples(target)
        return (_rows(output, mask), target[mask]) if bool(mask.any()) else None

    def arranged(self, output: Any, target: Tensor) -> tuple[Any, Tensor]:
        """A complete batch as the loss and the metric expect it."""
        if self.gaps != "entry":
            return output, target
        if not isinstance(output, Tensor):
            raise ValueError(
                "gaps='entry' takes one tensor of outputs, with a value for each entry of the "
                f"target; this is a {type(output).__name__}"
            )
        if output.shape == target.shape:
            return output.flatten(), target.flatten()
        if output.ndim > 1 and (output.shape[0], *output.shape[2:]) == tuple(target.shape):
            return output.movedim(1, -1).flatten(0, -2), target.flatten()
        raise ValueError(
            f"gaps='entry' takes outputs of the targets' shape {list(target.shape)}, or with a "
            f"dimension of classes after the first; these are {list(output.shape)}"
        )


def _rows(output: Any, mask: Tensor) -> Any:
    """The rows of an output's tensors at which `mask` [b] is true."""

    def kept(leaf: Any) -> Any:
        if leaf is None:
            return None
        if not isinstance(leaf, Tensor):
            raise TypeError(
                "samples without a label cannot be left out of an output that holds a "
                f"{type(leaf).__name__}: it must be made of tensors, sequences and mappings"
            )
        if leaf.shape[:1] != mask.shape:
            raise ValueError(
                f"samples without a label cannot be left out of an output of shape "
                f"{list(leaf.shape)}: it has no row for each of the {len(mask)} samples"
            )
        return leaf[mask]

    return tree_map(kept, output)


def _columns(entries: Tensor) -> Tensor:
    """[b, ...] -> [b, n]."""
    return entries.unsqueeze(1) if entries.ndim == 1 else entries.flatten(1)


def labelled(target: Tensor, missing: float | None = None) -> Tensor:
    """Which samples have a label in all their entries, bool [b]; see `Labelling`."""
    return Labelling(missing).samples(target)


Loss = Callable[[Any, Tensor], Tensor]
"""(outputs [b, ...], targets [b, ...]) -> scalar, the mean over the samples."""
