"""What is known of a model beside its graph: blocks, and its parameters' order and names."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from evenhand.network import MultiTaskNetwork, unwrapped


class Structure:
    """What is known of the model: its blocks, the order and the names of its parameters.

    The model is looked at again whenever a leaf appears that it did not have before.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrapped(model)
        networks = [m for m in self.model.modules() if isinstance(m, MultiTaskNetwork)]
        self.network = networks[0] if len(networks) == 1 else None
        self._read()

    def _read(self) -> None:
        self._holders = {
            (module, name): parameter
            for module in self.model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        }
        self.names: dict[Tensor, str] = {}
        for name, parameter in self.model.named_parameters():
            self.names[parameter] = plain_name(name)
        self.places = {parameter: k for k, parameter in enumerate(self.names)}
        self.blocks = None if self.network is None else self.network.blocks()
        known = self.blocks
        self.trunk = set() if known is None else set(known.shared)
        self.heads = set() if known is None else set(known.own_of(known.own))

    def refresh(self, found: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Look again if one of these parameters is not known.

        Returns the parameters that stand in another's place, each behind it: loading with
        ``assign=True`` puts them there. A module that was replaced is another one.
        """
        if not any(leaf not in self.names for leaf in found if isinstance(leaf, nn.Parameter)):
            return []
        before = self._holders
        self._read()
        return [
            (before[holder], parameter)
            for holder, parameter in self._holders.items()
            if holder in before and before[holder] is not parameter
        ]


def plain_name(name: str) -> str:
    """A parameter's name without the wrappers that it passes."""
    return ".".join(part for part in name.split(".") if part not in WRAPPINGS)


WRAPPINGS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
