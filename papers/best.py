"""Whether the untrained network may be the best one.

The library's early stopping counts epoch 0, the network before training, as the first candidate
for the best weights. The papers' protocols begin to look after the first epoch of training; there
`Trained` stands in for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from evenhand.training.stopping import EarlyStopping


@dataclass
class Trained(EarlyStopping):
    """Early stopping that neither keeps nor counts the first value it is shown, epoch 0's."""

    begun: bool = field(default=False, kw_only=True)

    def improved(self, value: float) -> bool:
        if not self.begun:
            self.begun = True
            return False
        return super().improved(value)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.begun = state["begun"]
