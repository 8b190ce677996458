"""The update of a step, found inside the backward pass of `Balancer.loss`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evenhand.autodiff.delivery import keeps_graph, released_at_the_end, shared_outside
from evenhand.balancing.request import Step
from evenhand.balancing.slots import Solved

SHARED_GRAPH = (
    "the graph of these losses was differentiated before: a term that was added to Balancer.loss "
    "and shares their graph belongs into its argument plus=, or keep the graph with "
    "backward(retain_graph=True)"
)


class Deferred:
    """Finds the update of a step when the scalar of `Balancer.loss` is differentiated.

    Args:
        solve: (step, whether a scaler skips what is infinite) -> what the step comes to.
        stands: takes over the state of a step that is taken.
        free: (step, what passes have left of the graph: of heads, of the trunk) frees it.
        step: the step.
        leaves: what the scalar delivers to, in order.
        may_share: whether terms that are added outside may share the graph.
        closing: to be done when the whole backward pass has ended, with what it queues itself.
    """

    def __init__(
        self,
        solve: Callable[[Step, bool], Solved],
        stands: Callable[[Solved], object],
        free: Callable[[Step, bool, bool], None],
        step: Step,
        leaves: Sequence[Tensor],
        closing: Callable[[], None] | None = None,
        may_share: bool = True,
    ) -> None:
        self._solve = solve
        self._stands = stands
        self._free = free
        self._step: Step | None = step
        self._places = {id(leaf): k for k, leaf in enumerate(leaves)}
        self._closing = closing
        self._may_share = may_share
        self._given: list[Tensor | None] | None = None
        self._scale = 1.0

    def __call__(self, gradient: Tensor) -> Sequence[Tensor | None]:
        """What each leaf gets, given the gradient by the scalar.

        Raises:
            RuntimeError: the graph of the losses is gone.
        """
        scale = float(gradient)
        if self._closing is not None:
            _after_all(self._closing)
        if self._given is not None:  # a second backward of the same scalar
            ratio = scale / self._scale
            return [None if g is None else g * ratio for g in self._given]
        if self._step is None:
            raise RuntimeError(
                "this scalar was differentiated already and its graph is gone: the first backward "
                "needs retain_graph=True"
            )
        keep = keeps_graph()
        step, self._step = self._step, None
        plus = [] if step.call.plus is None else [step.call.plus]
        shares = self._may_share and shared_outside([*step.call.losses, *plus])
        retain = keep or shares or step.call.retain
        call = replace(step.call, scale=None if scale == 1 else gradient, retain=retain)
        found: list[Tensor | None] = [None] * len(self._places)
        try:
            with torch.enable_grad():  # sums of losses are made here, and differentiated
                solved = self._solve(replace(step, call=call), scale > 1)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise RuntimeError(SHARED_GRAPH) from error
        for leaf, g in solved.update.items():
            found[self._places[id(leaf)]] = g
        for weight, g in solved.learned.items():
            found[self._places[id(weight)]] = g * gradient
        self._stands(solved)
        if shares and not keep:
            released_at_the_end(step.call.losses, step.features, step.owners.trained)
        elif self._may_share and not keep:
            self._free(step, *solved.unfreed)
        del solved  # autograd keeps a tensor that nobody else holds, and copies any other
        if keep:
            self._given, self._scale = found, scale
        return found


def _after_all(what: Callable[[], None]) -> None:
    """Do something when the backward pass that is under way has ended.

    A wrapper queues its own end when the last gradient has come; what is queued then is done later.
    """
    queue = torch.autograd.Variable._execution_engine.queue_callback
    queue(lambda: queue(what))
