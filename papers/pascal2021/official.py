"""Pascal et al. (2021) on their data sets: CelebA, Cityscapes, NYUv2.

    python papers/pascal2021/official.py celeba --device cuda --readers 8

Files are to be fetched by hand: without them, each data set's loader says where they are to be had.
Days on a GPU for the paper's numbers of epochs; nothing of it was run here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from large import Setup, options, reproduce
from torch import Tensor

from evenhand import GradNorm
from evenhand.data import celeba, cityscapes, nyuv2
from evenhand.recipes import Composition, Recipe, joint
from evenhand.schedules import in_groups

HERE = Path(__file__).parent
PAPER = "Pascal, Michiardi, Bost, Huet & Zuluaga, arXiv 2109.11678"
RELEASED = "https://github.com/lucaspascal/AITSO_MTL, as released"


def grouped(size: int, own_moments: bool) -> Callable[[tuple[str, ...]], dict[str, Composition]]:
    """One network; groups of `size` tasks, drawn at random once, take turns."""

    def compose(tasks: tuple[str, ...]) -> dict[str, Composition]:
        return {"": Composition(tasks, schedule=in_groups(size), own_moments=own_moments)}

    return compose


def last_convolution(shared: Sequence[Tensor]) -> list[Tensor]:
    """GradNorm's W: the weight of the trunk's last convolution, which has no bias."""
    return [parameter for parameter in shared if parameter.ndim == 4][-1:]


OWN = (
    Recipe("ius-groups-5", "random groups of 5, one optimizer", RELEASED, grouped(5, False)),
    Recipe(
        "io-groups-10", "random groups of 10, each with its moments", RELEASED, grouped(10, True)
    ),
    Recipe(
        "gradnorm-conv",
        "GradNorm at the last convolution",
        RELEASED,
        joint(weighting=lambda: GradNorm(0.2, at=last_convolution)),
    ),
)
STATISTICS = "BatchNorm's running statistics in testing."
SETUPS = {
    "celeba": Setup(
        "CelebA",
        celeba.load,
        {
            "sus": ("SUS", 1e-3),
            "ius": ("IUS", 1e-4),
            "io": ("IO", 1e-4),
            "ius-groups-5": ("IUS, 8 groups of 5", 5e-4),
            "io-groups-10": ("IO, 4 groups of 10", 5e-4),
            "gradnorm-conv": ("GradNorm", 1e-3),
            "pcgrad": ("PCGrad", 1e-3),
            "mgda-ub": ("MGDA-UB", 1e-3),
        },
        epochs=15,
        batch=256,
        note=STATISTICS,
        own=OWN,
        rescored=tuple(
            partial(celeba.scored, quantity=q) for q in ("precision", "recall", "error %")
        ),
    ),
    "cityscapes": Setup(
        "Cityscapes",
        cityscapes.load,
        {
            "sus": ("SUS", 1e-3),
            "ius": ("IUS", 5e-4),
            "io": ("IO", 1e-3),
            "gradnorm-conv": ("GradNorm", 1e-3),
            "pcgrad": ("PCGrad", 1e-3),
        },
        epochs=150,
        batch=24,
        own=OWN,
        note=f"Cities held out to validate; IoU over all pixels. {STATISTICS}",
    ),
    "nyuv2": Setup(
        "NYUv2",
        nyuv2.load,
        {
            "sus": ("SUS", 1e-4),
            "ius": ("IUS", 1e-4),
            "io": ("IO", 2e-4),
            "gradnorm-conv": ("GradNorm", 1e-4),
            "pcgrad": ("PCGrad", 1e-4),
        },
        epochs=500,
        batch=8,
        own=OWN,
        note=f"Prepared files; a tenth held out to validate; IoU over all pixels. {STATISTICS}",
    ),
}


def main() -> None:
    asked = options(__doc__.splitlines()[0], SETUPS, HERE)
    reproduce(SETUPS[asked.data], asked, PAPER)


if __name__ == "__main__":
    main()
