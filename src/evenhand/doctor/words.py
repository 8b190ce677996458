"""Findings in plain sentences."""

from __future__ import annotations

from collections.abc import Iterator

from evenhand.doctor.diagnose import Diagnosis


def gradient_sentences(found: Diagnosis) -> Iterator[str]:
    """What the looks say."""
    yield ""
