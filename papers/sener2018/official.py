"""Sener & Koltun (2018) on their data sets: CelebA with 40 attributes, Cityscapes.

    python papers/sener2018/official.py celeba --device cuda --readers 8

Files are to be fetched by hand: without them, each data set's loader says where they are to be had.
Days on a GPU; nothing of it was run here. On Cityscapes the trunk is a U-Net, not the paper's
pretrained ResNet-50 with pyramid pooling: another experiment, with the paper's three tasks.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from large import Setup, options, reproduce

from evenhand.data import Problem, celeba, cityscapes

HERE = Path(__file__).parent
PAPER = "Sener & Koltun, NeurIPS 2018, arXiv 1810.04650"
RATE = 5e-4
"""With Adam, as in the settings that the released code comes with; the paper chose per method."""
ROWS = {
    "single-task": ("Single task", RATE),
    "sg": ("Uniform", RATE),
    "uncertainty": ("Uncertainty", RATE),
    "gradnorm": ("GradNorm", RATE),
    "mgda-ub": ("MGDA-UB", RATE),
}


def faces(problem: Problem) -> Problem:
    """The paper's trunk, a ResNet-18, and its score, the error."""
    scored = celeba.scored(problem, "error %")
    return replace(scored, network=partial(celeba.network, trunk=celeba.resnet18))


SETUPS = {
    "celeba": Setup(
        "CelebA",
        celeba.load,
        {**ROWS, "mgda": ("MGDA", RATE)},
        epochs=15,
        batch=256,
        note="One rate for all methods, 15 epochs (the paper's number is not in our copy).",
        adapt=faces,
    ),
    "cityscapes": Setup(
        "Cityscapes",
        cityscapes.load_scene,
        {**ROWS, "mgda": ("MGDA", RATE)},
        epochs=100,
        batch=8,
        note="A U-Net on 256×128 from scratch, not the paper's network; one rate for all methods.",
    ),
}


def main() -> None:
    asked = options(__doc__.splitlines()[0], SETUPS, HERE)
    reproduce(SETUPS[asked.data], asked, PAPER)


if __name__ == "__main__":
    main()
