"""The papers' protocols begin to look after the first epoch of training.

So the untrained network is no candidate for the best weights.
"""

from __future__ import annotations

from functools import partial

from evenhand.training.stopping import EarlyStopping

Trained = partial(EarlyStopping, untrained=False)
