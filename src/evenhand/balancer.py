"""The two slots, and the one object a user drops into an existing loop.

`weighting` sees the raw problem and scales the losses everywhere, heads included: c = weights.
`aggregator` sees the weighted problem (losses c∘L, Jacobian diag(c)·J) and merges the gradients of
the trunk alone. Both take the same kind of object, a `Weighting`; the aggregator slot takes an
`Aggregator` too, for methods that leave the span of the gradients. An empty slot changes nothing,
so ``Balancer()`` is the plain sum of the losses.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from evenhand.aggregation import Aggregator
from evenhand.autodiff.accumulation import Accumulated, Sums
from evenhand.autodiff.call import Absent, Call, active, not_finite, require_finite
from evenhand.autodiff.catching import Catcher
from evenhand.autodiff.chunking import Chunking, Jacobian
from evenhand.autodiff.coordinates import Coordinates
from evenhand.autodiff.delivery import deliver, delivered_by, keeps_graph, released_at_the_end
from evenhand.autodiff.factors import Factored
from evenhand.autodiff.gradients import (
    Matrices,
    NonFiniteError,
    Reducer,
    Source,
    TaskGradients,
    all_finite,
    cosines,
    norms,
)
from evenhand.autodiff.hooks import without_hooks
from evenhand.autodiff.ownership import Ownership, Sharing
from evenhand.autodiff.passes import Passes, Update
from evenhand.network import Blocks, Nest, Outputs, leaves, unwrapped
from evenhand.schedules import BLOCKS, Clock, Phase
from evenhand.weighting.base import Gradients, Method, Outcome, Weighting, warn_of, worst
from evenhand.weighting.state import Held, State, put, take

NonFinite = Literal["raise", "skip", "leave_out"]
"""What becomes of a step in which a task's loss or gradient is NaN or infinite."""
Zero = Literal["keep", "leave_out"]
"""What becomes of a task whose gradient is exactly zero."""


@dataclass(frozen=True)
class Balance:
    """What one backward call did. Tensors are detached; what was not computed is None.

    Attributes:
        tasks: the m tasks that spoke.
        losses: their raw losses, [m].
        weights: what multiplied each task's gradient in the heads, [m].
        trunk_weights: what multiplied it in the trunk, [m]; None for an `Aggregator`, and where
            the trunk rests.
        norms: ‖g_i‖, [m], at the place the method looked at.
        cosines: cos(g_i, g_j), [m, m], likewise.
        applied: False when the step was skipped: a gradient overflowed under loss scaling.
        status: the worst way a solve of this call ended, "optimal", "stationary", "inaccurate" or
            "unbounded" (see `linalg.Solution`).
        left_out: tasks whose losses or gradients were not finite, or whose gradients were zero,
            where the step was skipped or taken without them.
    """

    tasks: tuple[str, ...]
    losses: Tensor
    weights: Tensor | None = None
    trunk_weights: Tensor | None = None
    norms: Tensor | None = None
    cosines: Tensor | None = None
    applied: bool = True
    status: str | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Step:
    """One call, as far as it is known before anything is differentiated.

    Attributes:
        call: the active tasks and their losses.
        sharing: whose the leaves are that they reach.
        clock: when.
        features, outputs: the representation as the user gave it.
        samples: losses on further batches; None where nobody is to see any.
        counts: how many labels each loss is the mean of, or None.
    """

    call: Call
    sharing: Sharing
    clock: Clock
    features: Sequence[Tensor]
    outputs: Outputs | None
    samples: Sequence[Mapping[str, Tensor]] | None
    counts: Mapping[str, float] | None


@dataclass(frozen=True)
class _Answer:
    """What a slot's method made of a call, and the gradients of its learned weights."""

    outcome: Outcome
    gradients: Gradients


@dataclass(frozen=True)
class _Solved:
    """What a step comes to: nothing is changed yet.

    Attributes:
        update: the gradients of the network's leaves.
        learned: those of the learned weights.
        balance: what to tell.
        state: the methods' next state; None for a step that is skipped.
        clock: when it was.
    """

    update: Update
    learned: Gradients
    balance: Balance
    state: State | None
    clock: Clock


Differentiated = Passes | Accumulated
"""Where an update comes from: the passes of one batch, or the sums of several."""


class Balancer(nn.Module):
    """Fills `.grad` so that every task gets its due; any optimizer steps afterwards.

    Args:
        weighting: scales the losses in trunk and heads.
        aggregator: merges the trunk's gradients; heads keep the weighted losses' own.
        tasks: names of all tasks, in order. By default those of the first call.
        model: the network. A `MultiTaskNetwork` tells what is shared; for any other module what
            the first call finds is saved by parameter name. Not a submodule of the balancer.
        seed: of all chance in the methods, when `backward` gets no clock.
        members: for a stacked ensemble, its shape: losses have it, parameters begin with it, and
            every member is balanced by itself.
        jacobian: how the m passes through the trunk are taken where a method wants every task's
            gradient: "looped", one after another; "batched", vectorised over all tasks; a number,
            over so many at a time; or "measured", what is fastest at the first step, which
            `state_dict` then remembers. They differ in the last bits, and not every operation
            can be vectorised.
        factored: whether the tasks' gradients by the weights of linear layers, convolutions and
            embeddings are kept as factors and never formed (`evenhand.autodiff.factors`):
            "auto", where the shapes say that it takes less arithmetic; "never"; or "always".

    State (histories, learned weights, names of tasks, the last weights) is in `state_dict`;
    learned weights are `parameters()`, for an optimizer of the user's choice.

    Raises:
        TypeError: a slot holds something else than a Weighting (or an Aggregator).
        ValueError: `jacobian` or `factored` is none of these.

    Example:
        >>> from evenhand import MGDA
        >>> trunk, heads = nn.Linear(2, 3), nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])
        >>> z = trunk(torch.ones(4, 2)).relu()
        >>> losses = {"a": heads[0](z).square().mean(), "b": heads[1](z).mean()}
        >>> balance = Balancer(aggregator=MGDA()).backward(losses, features=z)
        >>> trunk.weight.grad.shape, balance.weights
        (torch.Size([3, 2]), tensor([1., 1.]))
    """

    def __init__(
        self,
        weighting: Weighting | None = None,
        aggregator: Weighting | Aggregator | None = None,
        *,
        tasks: Sequence[str] | None = None,
        model: nn.Module | None = None,
        seed: int = 0,
        members: tuple[int, ...] = (),
        jacobian: Jacobian = "looped",
        factored: Factored = "auto",
        nonfinite: NonFinite = "raise",
        zero: Zero = "keep",
    ) -> None:
        super().__init__()
        if not isinstance(weighting, Weighting | None):
            raise TypeError(f"weighting={weighting!r} is no Weighting")
        if not isinstance(aggregator, Weighting | Aggregator | None):
            raise TypeError(f"aggregator={aggregator!r} is neither a Weighting nor an Aggregator")
        self.weighting = weighting
        self.aggregator = aggregator
        self.reducer = Reducer()
        self.seed = seed
        self.members = torch.Size(members)
        self.chunking = Chunking(jacobian)
        if factored not in get_args(Factored):
            raise ValueError(f"factored={factored!r}: must be 'auto', 'never' or 'always'")
        if nonfinite not in get_args(NonFinite):
            raise ValueError(f"nonfinite={nonfinite!r}: must be 'raise', 'skip' or 'leave_out'")
        self.factored = factored
        if zero not in get_args(Zero):
            raise ValueError(f"zero={zero!r}: must be 'keep' or 'leave_out'")
        self.nonfinite = nonfinite
        self.zero = zero
        self.tasks: tuple[str, ...] | None = None
        self._step = 0
        self._warned_of_epochs = False
        self.last: Balance | None = None
        self._ownership = Ownership()
        self._absent = Absent()
        self._catcher = Catcher()
        self._coordinates = Coordinates()
        self._told: set[str] = set()
        self._sums: list[Sums] | None = None  # of micro-batches so far: theirs, and of samples
        self._spoiled: NonFiniteError | None = None
        self.states = Held({})
        if model is not None:
            self.attach(model)
        if tasks is not None:
            self.bind(tasks)

    @property
    def blocks(self) -> Blocks:
        """Which block each parameter belongs to, as far as known.

        Raises:
            ValueError: no call has told yet.
        """
        return self._ownership.blocks(self.tasks or ())

    @property
    def methods(self) -> list[Method]:
        """What the slots hold."""
        return list(self._slots.values())

    @property
    def _slots(self) -> dict[str, Method]:
        slots = {"weighting": self.weighting, "aggregator": self.aggregator}
        return {name: method for name, method in slots.items() if method is not None}

    @property
    def last_weights(self) -> Tensor:
        """The weights of the weighting slot in each task's last call, [..., M], float64."""
        return self.states.get_buffer("last_weights")

    def reset(self) -> None:
        """Begin again: all histories and learned weights as they were before the first call.

        The tasks, who has reached which parameter, and what was timed are still known.
        """
        if self.tasks is not None:
            self.states.reset(self._first_state(len(self.tasks)))
        self._step = 0
        self._sums = self._spoiled = self.last = None

    def _first_state(self, total: int) -> State:
        last = torch.ones(total, dtype=torch.float64)
        return {"last_weights": last} | {n: m.init(total) for n, m in self._slots.items()}

    def attach(self, model: nn.Module) -> None:
        """Learn the model's structure, its parameters' order and names, whatever it is wrapped in.

        The structure is known where there is one `MultiTaskNetwork` in it. The model does not
        become a part of the balancer.
        """
        self._ownership.attach(model)
        self._catcher.prepare(unwrapped(model))

    def bind(self, tasks: Sequence[str]) -> None:
        """Fix the names of all tasks, in order. Calls with the same names change nothing.

        Raises:
            ValueError: other tasks were fixed before, or names are missing or repeated.
        """
        tasks = tuple(tasks)
        if not tasks or len(set(tasks)) != len(tasks):
            raise ValueError(f"tasks={tasks!r}: must be one or more different names")
        if self.tasks is not None and self.tasks != tasks:
            raise ValueError(
                f"this balancer belongs to the tasks {', '.join(self.tasks)}, "
                f"not to {', '.join(tasks)}"
            )
        if self.tasks is None:
            for method in self.methods:
                method.require(tasks)
            self.tasks = tasks
            self.states = Held(self._first_state(len(tasks)))
            self.states.expand(self.members)  # learned weights: every member has its own

    # What a user calls ------------------------------------------------------------------------

    def backward(
        self,
        losses: Mapping[str, Tensor | None],
        *,
        shared: Iterable[Tensor] | None = None,
        own: Mapping[str, Iterable[Tensor]] | None = None,
        features: Nest | Outputs | nn.Module | None = None,
        plus: Tensor | None = None,
        samples: Sequence[Mapping[str, Tensor]] = (),
        phase: Phase | None = None,
        clock: Clock | None = None,
        scale: float | Tensor | None = None,
        counts: Mapping[str, float] | None = None,
        retain_graph: bool = False,
    ) -> Balance:
        """Add the balanced gradients to `.grad`, as `torch.Tensor.backward` adds.

        A leaf that several tasks have reached, in this call or any before, gets Σ w_i ∂L_i/∂θ with
        the trunk's weights; one that a single task has reached gets ∂L_i/∂θ, times the weighting's
        w_i. With empty slots this is `torch.autograd.backward` of the losses' sum and nothing
        else: its gradients are then not tested for NaN before they are added, only its losses are.

        Args:
            losses: a scalar loss for each task, with its graph. A task without a labelled sample in
                this batch is left out, or None; its parameters keep their `.grad`. Names need not
                be those of heads, and any number of losses may use a head, or of heads a loss.
            shared: what is balanced, where that is not to be read off the graph. Whatever else
                several tasks reach gets the plain sum of their gradients. It holds until another
                is given.
            own: with `shared`, all that a task may train beside it; tasks that are not named train
                what they reach. ``own={"b": []}`` keeps all of b's out.
            features: the shared representation Z: a tensor, a nest of tensors, the outputs of a
                `MultiTaskNetwork`, or the module that makes it. With it one pass through each head
                and few through the trunk do. Outputs tell more than their `features`: one pass
                then serves all heads, and linear heads take part as the factors they are. A
                module's outputs are caught by a hook, inside whatever wraps it; see `catch`.
            plus: a scalar that is nobody's task (a penalty); added without a weight.
            samples: losses on further independent batches, for methods that declare `batches`.
            phase: which tasks are active and what trains; everything by default. What is frozen
                gets `.grad` None.
            clock: when, for methods that draw at random; counted by the balancer by default.
            scale: the loss scale of mixed precision, ``scaler.scale(torch.ones(()))`` (a fresh
                GradScaler must have scaled something before it steps). `.grad` is scaled, what
                methods see is not. A loss or gradient that overflows then leaves `.grad` infinite,
                for the scaler to skip the step, and no history.
            counts: after `accumulate` with counts, how many labels each loss is the mean of.
            retain_graph: keep the graph for another backward.

        Raises:
            ValueError: an unknown task, a loss that is no scalar or has no graph, or sharing that
                cannot be decided from this call.
            NonFiniteError: a loss or gradient is NaN or infinite; it names the task.
        """
        if self._is_plain(phase, shared, own, counts):
            _ = self._places(features, ())
            return self._summed(losses, plus, scale, retain_graph)
        step = self._step_of(
            losses, shared, own, features, phase, clock, plus, scale, retain_graph, samples, counts
        )
        solved = self._solved(step, skips=scale is not None)
        reached, gradients = solved.update.given()
        for weight, gradient in solved.learned.items():
            reached.append(weight)
            gradients.append(gradient if scale is None else gradient * scale)
        # Autograd keeps a tensor that nobody else holds, and copies any other.
        solved = replace(solved, update=Update([], []), learned={})
        if reached:
            deliver(reached, gradients)
        balance = self._stands(solved)
        if phase is not None:
            for leaf in step.sharing.frozen:
                leaf.grad = None
        return balance

    def loss(
        self,
        losses: Mapping[str, Tensor | None],
        *,
        shared: Iterable[Tensor] | None = None,
        own: Mapping[str, Iterable[Tensor]] | None = None,
        features: Nest | Outputs | nn.Module | None = None,
        plus: Tensor | None = None,
        samples: Sequence[Mapping[str, Tensor]] = (),
        phase: Phase | None = None,
        clock: Clock | None = None,
        counts: Mapping[str, float] | None = None,
    ) -> Tensor:
        """A scalar; whoever calls `.backward()` on it gives `.grad` what `backward` would.

        So it is what a trainer's `training_step` or `compute_loss` returns. Weights are found
        inside that backward pass; `last` then tells them. The incoming gradient g is the loss
        scale, or 1/k of gradient accumulation: `.grad` gets g times the balanced gradients, and
        methods see what they would see without it. A step whose losses or gradients are not finite
        leaves `.grad` infinite where g > 1, which only a loss scale is, for its scaler to skip the
        step; else it raises `NonFiniteError` before anything is added.

        Its value is the losses' sum, with the weighting's weights where losses alone decide
        them, and `plus`. Under `no_grad` it is that value, and nothing is remembered. A second
        backward (after ``retain_graph=True``) gives the same again and advances no history.

        The passes through the graph of the losses are taken inside; it is freed when the whole
        backward pass has ended. Terms that are added outside may share it, but one that the engine
        happens to differentiate first takes it away: the error then names `plus=`.

        Args and errors are those of `backward`.
        """
        if not torch.is_grad_enabled():
            return self._value({t: v for t, v in losses.items() if v is not None}, plus, None)
        if self._is_plain(phase, shared, own, counts):
            _ = self._places(features, ())
            return self._plain_loss(losses, plus)
        step = self._step_of(
            losses, shared, own, features, phase, clock, plus, None, False, samples, counts
        )
        present = dict(zip(step.call.tasks, step.call.losses, strict=True))
        leaves = dict.fromkeys(step.sharing.trained)
        for sums in self._sums or ():
            leaves.update(dict.fromkeys(sums.leaves.values()))
        leaves.update(dict.fromkeys(self.parameters()))
        value = self._value(present, plus, step)
        return delivered_by(_Deferred(self, step, list(leaves)), value, list(leaves))

    def accumulate(
        self,
        losses: Mapping[str, Tensor | None],
        *,
        shared: Iterable[Tensor] | None = None,
        own: Mapping[str, Iterable[Tensor]] | None = None,
        features: Nest | Outputs | nn.Module | None = None,
        plus: Tensor | None = None,
        samples: Sequence[Mapping[str, Tensor]] = (),
        phase: Phase | None = None,
        scale: float | Tensor | None = None,
        counts: Mapping[str, float] | None = None,
    ) -> None:
        """Add the gradients of a micro-batch to those of the step that `backward` or `loss` ends.

        Call it for all micro-batches but the last. What is handed over adds up: losses that are
        means over k micro-batches of equal size are divided by k, as everywhere in torch; or
        `counts` tells how many labels each loss is the mean of, here and in the last call, and
        the step is then that of the means over all labels. There is one solve, and state, chance
        and clock advance once. `.grad` is not touched before the last call.

        The gradients of all tasks are kept until then (as many numbers as m times the trunk's).

        Args and errors are those of `backward`. A micro-batch that is not finite ends the step:
        all that was accumulated is dropped.
        """
        if self._is_plain(phase, shared, own, counts):
            self._summed(losses, plus, scale, False)
            self._step -= 1  # it is the last call that ends a step
            return
        step = self._step_of(
            losses, shared, own, features, phase, None, plus, scale, False, samples, counts
        )
        with without_hooks(step.sharing.trained):
            try:
                self._require_finite_losses(step.call)
                self._sums = self._with(step)
            except NonFiniteError as error:
                if scale is None and self.nonfinite != "skip":
                    self._sums = None
                    raise
                self._spoiled = error

    def gradients(
        self,
        losses: Mapping[str, Tensor | None],
        *,
        shared: Iterable[Tensor] | None = None,
        own: Mapping[str, Iterable[Tensor]] | None = None,
        features: Nest | Outputs | nn.Module | None = None,
        phase: Phase | None = None,
        clock: Clock | None = None,
    ) -> TaskGradients:
        """Look at the tasks' gradients without touching anything; arguments as in `backward`.

        The graph is kept, so a `backward` may follow. The result is a view of it: use it before
        that backward.
        """
        clock = clock or self._now()
        step = self._step_of(
            losses, shared, own, features, phase, clock, None, None, True, None, None
        )
        return self._view_of(step)[1]

    def catch(self, module: nn.Module) -> None:
        """Catch what `module` returns from now on, so that ``features=module`` finds it.

        ``features=module`` does this by itself, and so finds all outputs but those that were made
        before the first call; a balancer that was given ``model=`` finds those too.
        """
        self._catcher.catch(module)

    def updated(self, losses: Mapping[str, Tensor], clock: Clock | None = None) -> None:
        """Tell methods that declare `after` the losses after the update, on the same batch."""
        tasks = self.tasks or ()
        clock = clock or self._now()
        present = {task: losses[task].detach() for task in tasks if task in losses}
        index = tuple(tasks.index(task) for task in present)
        call = Call(tuple(present), index, tuple(present.values()), _stacked(present))
        view = self._view(Matrices(None, None), call, clock, ())
        last = take(self.last_weights, view).to(view.losses)
        weighted = view.scaled(last.expand_as(view.losses))
        seen, state = {"weighting": view, "aggregator": weighted}, self.states.tree()
        for name, method in self._slots.items():
            state[name] = method.after(seen[name], state[name])
        self.states.replace(state)

    def keep(self, members: Tensor) -> None:
        """Go on with the members of a stacked ensemble at these positions, [k], alone."""
        if len(self.members) != 1:
            raise ValueError("only a balancer made with members=(E,) has members to keep")
        self.members = torch.Size([len(members)])
        self.states.keep(members)

    # The steps of a backward ------------------------------------------------------------------

    def _is_plain(
        self,
        phase: Phase | None,
        shared: Iterable[Tensor] | None,
        own: Mapping[str, Iterable[Tensor]] | None,
        counts: Mapping[str, float] | None,
    ) -> bool:
        """Whether a call is one backward pass of the losses' sum, in one process."""
        special = any(given is not None for given in (phase, shared, own, counts))
        return self.reducer.alone and not (self.methods or special or self._sums)

    def _summed(
        self,
        losses: Mapping[str, Tensor | None],
        plus: Tensor | None,
        scale: float | Tensor | None,
        retain_graph: bool,
    ) -> Balance:
        """One backward pass of the losses' sum."""
        present = self._present(losses, None)
        stacked = _stacked(present)
        bad = not_finite(stacked, list(present))
        if bad and scale is None:
            raise NonFiniteError("loss", bad)
        _require_finite_plus(plus)
        self._watch(present, stacked, plus)
        total = _sum(present, plus)
        torch.autograd.backward(
            total if scale is None else total * scale, retain_graph=retain_graph
        )
        return self._was_summed(present, stacked)

    def _watch(self, present: Mapping[str, Tensor], stacked: Tensor, plus: Tensor | None) -> None:
        """Look, until it is known, whether some task reaches every parameter of the model."""
        if self._ownership.watches:
            tasks = self.tasks or ()
            index = tuple(tasks.index(task) for task in present)
            losses = tuple(present.values())
            self._ownership.watch(Call(tuple(present), index, losses, stacked, plus=plus), tasks)

    def _was_summed(self, present: Mapping[str, Tensor], stacked: Tensor) -> Balance:
        self._step += 1
        ones = torch.ones_like(stacked)
        applied = not not_finite(stacked, list(present))
        self.last = Balance(tuple(present), stacked, ones, ones, applied=applied)
        return self.last

    def _plain_loss(self, losses: Mapping[str, Tensor | None], plus: Tensor | None) -> Tensor:
        """The losses' sum itself, with its graph."""
        present = self._present(losses, None)
        total = _sum(present, plus)
        stacked = _stacked(present)
        self._watch(present, stacked, plus)
        told: list[Balance] = []

        def differentiated(_: Tensor) -> None:
            if not told:  # a second backward of the same scalar is no second step
                told.append(self._was_summed(present, stacked))

        on_backward: Any = total.register_hook
        on_backward(differentiated)
        return total

    def _step_of(
        self,
        losses: Mapping[str, Tensor | None],
        shared: Iterable[Tensor] | None,
        own: Mapping[str, Iterable[Tensor]] | None,
        features: Nest | Outputs | nn.Module | None,
        phase: Phase | None,
        clock: Clock | None,
        plus: Tensor | None,
        scale: float | Tensor | None,
        retain_graph: bool,
        samples: Sequence[Mapping[str, Tensor]] | None,
        counts: Mapping[str, float] | None,
    ) -> _Step:
        present = self._present(losses, phase)
        if clock is None:
            self._warn_of_epochs()
            clock = self._now()
        left_out: list[str] = []
        if self.nonfinite == "leave_out":
            bad = not_finite(_stacked(present), list(present))
            if len(bad) < len(present):
                left_out = bad
                present = {task: loss for task, loss in present.items() if task not in bad}
        tasks = self.tasks or ()
        stacked = _stacked(present)
        call = Call(
            tasks=tuple(present),
            index=tuple(tasks.index(task) for task in present),
            losses=tuple(present.values()),
            stacked=stacked,
            trains=BLOCKS if phase is None else phase.moves,
            phase=phase is not None,
            plus=plus,
            scale=scale,
            retain=retain_graph or self.nonfinite == "leave_out" or self.zero == "leave_out",
            left_out=tuple(left_out),
        )
        if self.last_weights.device != stacked.device:
            self.to(stacked.device)
        self._ownership.name(shared, own)
        outputs = features if isinstance(features, Outputs) else None
        places = self._places(features, call.losses)
        sharing = self._shared_by(call, places, outputs)
        if counts is not None and (uncounted := [t for t in call.tasks if t not in counts]):
            raise ValueError(f"counts= says nothing of {uncounted[0]!r}, which has a loss here")
        return _Step(call, sharing, clock, places, outputs, samples, counts)

    def _places(
        self, features: Nest | Outputs | nn.Module | None, losses: Sequence[Tensor]
    ) -> list[Tensor]:
        """The tensors of the representation that require gradients."""
        if isinstance(features, nn.Module):
            return self._catcher.outputs(features, losses, needed=self._needs_features)
        self._catcher.settle(None)
        nest = features.features if isinstance(features, Outputs) else features
        if isinstance(features, Outputs) and nest is None and self._needs_features:
            raise ValueError(
                "features= are outputs that a wrapper has rebuilt, and they do not know what they "
                "came from: give the module, features=network.trunk"
            )
        return list(dict.fromkeys(z for z in leaves(nest) if z.requires_grad))

    def _shared_by(
        self, call: Call, features: Sequence[Tensor], outputs: Outputs | None
    ) -> Sharing:
        probe = Passes(replace(call, retain=True, plus=None, scale=None), Sharing()).nonzero
        sharing = self._ownership.decide(call, self.tasks or (), features, outputs, probe)
        several = len(self.tasks or ()) > 1 and len(call.tasks) > 1
        if self.aggregator is not None and several and not sharing.balanced and not call.phase:
            self._tell(
                "nothing shared",
                "no parameter is reached by several of the losses "
                f"{', '.join(call.tasks)}, so the aggregator has nothing to balance in such a "
                "step: is the trunk frozen, or its output detached? This is said once",
            )
        return sharing

    def _view_of(self, step: _Step) -> tuple[Differentiated, TaskGradients]:
        """Where the update of a step comes from, and the view that methods get of it."""
        if self._sums is not None or step.counts is not None:
            return self._view_of_sums(step, self._with(step))
        samples = [self._sampled(step, sample) for sample in self._further(step)]
        # Losses on further batches may share a part of the graph.
        call = replace(step.call, retain=step.call.retain or bool(samples))
        passes = self._passes(call, step.sharing)
        views = [self._view(other, other.call, step.clock, ()) for other in samples]
        return passes, self._view(passes, step.call, step.clock, views)

    def _passes(self, call: Call, sharing: Sharing) -> Passes:
        return Passes(
            call,
            sharing,
            reducer=self.reducer,
            chunk=self.chunking,
            factored=self.factored,
            retain_trunk=self._merges_features
            or (bool(sharing.carried) and isinstance(self.aggregator, Aggregator)),
            coordinates=self._coordinates,
            names=self._ownership.names,
        )

    def _sampled(self, step: _Step, sample: Mapping[str, Tensor]) -> Passes:
        """The passes of a further batch; its losses are looked at, and nothing else."""
        losses = {task: sample[task] for task in step.call.tasks}
        values = tuple(losses.values())
        stacked = _stacked(losses)
        call = replace(step.call, losses=values, stacked=stacked, plus=None, retain=True)
        known = step.sharing
        alone: list[list[Tensor]] = [[] for _ in call.tasks]
        looked_at = Sharing(balanced=known.balanced, alone=alone, last_layer=known.last_layer)
        return self._passes(call, looked_at)

    @property
    def _merges_features(self) -> bool:
        """Whether a direction is made at the representation, so that the trunk is needed later."""
        aggregator = self.aggregator
        return isinstance(aggregator, Aggregator) and aggregator.at == "representation"

    # Micro-batches ----------------------------------------------------------------------------

    def _with(self, step: _Step) -> list[Sums]:
        """The sums of the micro-batches so far and of this one; those kept stay as they are."""
        further = self._further(step)
        total = len(self.tasks or ())
        before = self._sums or [Sums(total) for _ in range(1 + len(further))]
        if len(before) != 1 + len(further):
            raise ValueError("samples= must have as many batches in every micro-batch")
        passes = [self._passes(step.call, step.sharing)]
        passes += [self._sampled(step, sample) for sample in further]
        places = [m.at for m in self.modules() if isinstance(m, Method)]
        at_features = "representation" in places
        needs = [m.traits.needs for m in self.modules() if isinstance(m, Method)]
        keeps = self._merges_features or (at_features and "jacobian" in needs)
        found = []
        for sums, there in zip(before, passes, strict=True):
            found.append(sums.copied())
            found[-1].add(there, step.counts, at_features, keeps)
        return found

    def _view_of_sums(self, step: _Step, found: list[Sums]) -> tuple[Accumulated, TaskGradients]:
        """The same where the update comes from the sums of several micro-batches."""
        for sums in found:
            sums.divide()
        tasks = self.tasks or ()
        sources = []
        for sums in found:
            index = tuple(k for k in sums.index if tasks[k] not in step.call.left_out)
            call = replace(
                step.call,
                tasks=tuple(tasks[k] for k in index),
                index=index,
                losses=(),
                stacked=torch.stack([sums.losses[k] for k in index], dim=-1),
                plus=None,
            )
            sharing = self._ownership.of_sums(call, tasks, sums.masks())
            names = self._ownership.names
            sources.append(Accumulated(sums, call, sharing, self._coordinates, names))
        main, *further = sources
        views = [self._view(other, main.call, step.clock, ()) for other in further]
        return main, self._view(main, main.call, step.clock, views)

    # The solve --------------------------------------------------------------------------------

    def _require_finite_losses(self, call: Call) -> None:
        require_finite(call.stacked, call.tasks, "loss")
        _require_finite_plus(call.plus)

    def _solved(self, step: _Step, skips: bool) -> _Solved:
        """What a step comes to.

        Args:
            step: the step.
            skips: whether a scaler stands by, which skips a step whose gradients are infinite.

        Raises:
            NonFiniteError: a loss or gradient is not finite, and nothing was said of that.
        """
        with without_hooks(step.sharing.trained):
            while True:
                try:
                    if self._spoiled is not None:
                        raise self._spoiled
                    self._require_finite_losses(step.call)
                    source, view = self._view_of(step)
                    solved = self._balanced(source, view)
                except NonFiniteError as error:
                    if skips:
                        return self._skipped(step, torch.inf, error.tasks)
                    if self.nonfinite == "skip":
                        return self._skipped(step, None, error.tasks)
                    less = self._without(step, error.tasks)
                    if self.nonfinite == "raise" or less is None:
                        self._sums = self._spoiled = None
                        raise
                    step = less
                else:
                    less = self._without_zeros(step, solved.balance)
                    if less is None:
                        return solved
                    step = less

    def _without(self, step: _Step, tasks: Sequence[str]) -> _Step | None:
        """The same step in which these tasks are absent; None if none is left."""
        if len(set(step.call.tasks) - set(tasks)) == 0:
            return None
        call = step.call.without(tasks)
        sharing = self._shared_by(call, step.features, step.outputs)
        return replace(step, call=call, sharing=sharing)

    def _without_zeros(self, step: _Step, balance: Balance) -> _Step | None:
        """The step without tasks whose gradient is exactly zero, if they are to be left out.

        Where they are kept and stop the method, that is told.
        """
        if balance.norms is None:
            return None
        zero = (balance.norms == 0).reshape(-1, len(balance.tasks)).all(0).tolist()
        tasks = [task for task, is_zero in zip(balance.tasks, zero, strict=True) if is_zero]
        if not tasks or len(tasks) == len(balance.tasks):
            return None
        if self.zero == "leave_out":
            return self._without(step, tasks)
        aggregator = self.aggregator
        if aggregator is not None and aggregator.traits.stationary:
            self._tell(
                "zero gradient",
                f"the gradient of {', '.join(map(repr, tasks))} is exactly zero, and "
                f"{type(aggregator).__name__} takes such a point for one that cannot be improved "
                "for all tasks, so the step may be zero. Balancer(zero='leave_out') leaves such a "
                "task out of the step. This is said once",
            )
        return None

    def _skipped(self, step: _Step, value: float | None, tasks: Sequence[str]) -> _Solved:
        """A step that changes nothing; gradients are `value`, or there are none."""
        leaves = step.sharing.trained
        filled = [None if value is None else torch.full_like(p, value) for p in leaves]
        learned: Gradients = {}
        if value is not None:
            learned = {w: torch.full_like(w, value) for w in self.parameters()}
        balance = Balance(step.call.tasks, step.call.stacked, applied=False, left_out=tuple(tasks))
        return _Solved(Update(leaves, filled), learned, balance, None, step.clock)

    def _balanced(self, source: Differentiated, view: TaskGradients) -> _Solved:
        balanced = bool(source.shared)
        answers: dict[str, _Answer] = {}
        weights: Tensor | None = None
        if self.weighting is not None:
            weights = take(self.last_weights, view).to(view.losses).expand_as(view.losses)
            if balanced or not self.weighting.traits.reads_gradients:
                answers["weighting"] = self._ask("weighting", view)
                weights = answers["weighting"].outcome.value
        weighted = view if weights is None else view.scaled(weights)
        trunk = weights
        aggregator = self.aggregator
        if aggregator is not None and aggregator.traits.reads_gradients and not balanced:
            aggregator = None  # one that reads losses goes on, though its weights move nothing
        if aggregator is None:
            update = source.in_span(None, weights)
        else:
            answers["aggregator"] = self._ask("aggregator", weighted)
            merged = answers["aggregator"].outcome.value
            if isinstance(aggregator, Aggregator):
                trunk = None
                update = source.off_span(merged, aggregator.at, weights)
            else:
                trunk = merged if weights is None else merged * weights
                update = source.in_span(trunk, weights)
        source.require_finite(update)
        gramian = source.known_gramian(*(method.at for method in self.methods))
        ones = torch.ones_like(view.losses)
        if not balanced:
            trunk = None
        elif self.aggregator is None and trunk is None:
            trunk = ones
        balance = Balance(
            tasks=view.tasks,
            losses=view.losses,
            weights=ones if weights is None else weights,
            trunk_weights=trunk,
            norms=None if gramian is None else norms(gramian),
            cosines=None if gramian is None else cosines(gramian),
            status=worst([s for answer in answers.values() for s in answer.outcome.solves]),
            left_out=source.call.left_out,
        )
        state = self.states.tree()
        if weights is not None:
            state["last_weights"] = put(state["last_weights"], view, weights.detach())
        learned: Gradients = {}
        for name, answer in answers.items():
            state[name] = answer.outcome.state
            learned |= answer.gradients
            if name not in self._told and warn_of(self._slots[name], answer.outcome.solves):
                self._told.add(name)
        self.states.require(state)
        return _Solved(update, learned, balance, state, view.clock)

    def _ask(self, slot: str, g: TaskGradients) -> _Answer:
        """What the method in a slot makes of a call; it changes nothing."""
        method, state = self._slots[slot], self.states.tree()[slot]
        return _Answer(method.advance(g, state), method.learn(g, state))

    def _stands(self, solved: _Solved) -> Balance:
        """Take the next state over: the step is taken."""
        self._catcher.forget()
        self._sums = self._spoiled = None
        self.last = solved.balance
        if solved.state is not None:
            self.states.replace(solved.state)
            self._step = solved.clock.step + 1
        return solved.balance

    def _value(
        self, losses: Mapping[str, Tensor], plus: Tensor | None, step: _Step | None
    ) -> Tensor:
        """What `loss` is worth: the losses' sum, with the weights that losses alone decide."""
        values = [loss.detach() for loss in losses.values()]
        weighting = self.weighting
        if step is not None and weighting is not None and not weighting.traits.reads_gradients:
            view = self._view(Matrices(None, None), step.call, step.clock, ())
            weights = weighting.advance(view, self.states.tree()["weighting"]).value.unbind(-1)
            values = [v * w.to(v) for v, w in zip(values, weights, strict=True)]
        values = [value.sum() for value in values]
        if plus is not None:
            values.append(plus.detach())
        return torch.stack([value.to(values[0]) for value in values]).sum()

    # Tasks ------------------------------------------------------------------------------------

    def _present(
        self, losses: Mapping[str, Tensor | None], phase: Phase | None
    ) -> dict[str, Tensor]:
        """The losses that count in this call, in the order of all tasks, checked."""
        if self.tasks is None:
            self._refuse_late_parameters()
            self.bind(tuple(losses))
        with_graph = self._absent.sorted_out(losses)
        return active(with_graph, self.tasks or (), phase, self.members)

    def _tell(self, key: str, message: str) -> None:
        """Warn of something once."""
        if key not in self._told:
            self._told.add(key)
            warnings.warn(message, stacklevel=6)

    @property
    def _needs_features(self) -> bool:
        return any(m.at == "representation" for m in self.modules() if isinstance(m, Method))

    def _now(self) -> Clock:
        return Clock(step=self._step, seed=self.seed)

    def _warn_of_epochs(self) -> None:
        counting = [type(method).__name__ for method in self.methods if method.traits.counts_epochs]
        if counting and not self._warned_of_epochs:
            self._warned_of_epochs = True
            warnings.warn(
                f"{counting[0]} counts epochs, and this loop does not tell it about them, so all "
                "is epoch 0: pass clock=Clock(epoch, step) to backward",
                stacklevel=4,
            )

    def _refuse_late_parameters(self) -> None:
        late = [type(method).__name__ for method in self.methods if method.traits.learned]
        if late:
            raise ValueError(
                f"{late[0]} has learned weights, which an optimizer must know before the first "
                "call: name the tasks with Balancer(..., tasks=[...])"
            )

    def _view(
        self, source: Source, call: Call, clock: Clock, samples: Sequence[TaskGradients]
    ) -> TaskGradients:
        return TaskGradients(
            source,
            self.reducer.mean(call.stacked),
            tasks=call.tasks,
            index=torch.tensor(call.index, device=call.stacked.device),
            total=len(self.tasks or ()),
            clock=clock,
            samples=samples,
        )

    def _further(self, step: _Step) -> Sequence[Mapping[str, Tensor]]:
        """The further batches that some method declares."""
        call, samples = step.call, step.samples
        if samples is None:
            return []
        wanted = max((method.traits.batches for method in self.methods), default=1) - 1
        if "shared" in call.trains and len(samples) < wanted:
            raise ValueError(
                f"this method wants {wanted} further independent batch(es) per step: pass their "
                f"losses as samples=[{{task: loss, …}}, …]"
            )
        for sample in samples[:wanted]:
            silent = [task for task in call.tasks if task not in sample]
            if silent:
                raise ValueError(
                    f"{silent[0]!r} is active in this call, but has no loss on a further batch: "
                    "the tasks of samples= must be those of the losses"
                )
        return samples[:wanted]

    # Saving -----------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Names of the tasks, the step, who is shared, by name where known, and what was timed."""
        tasks = self.tasks or ()
        state = {"tasks": list(tasks), "step": self._step, "chunk": self.chunking.measured}
        state["coordinates"] = self._coordinates.state()
        return {**state, **self._ownership.state(tasks)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` gave."""
        self._step = state["step"]
        self.chunking.measured = state["chunk"]
        self._coordinates.load_state(state.get("coordinates", {}))
        self._ownership.load_state(state, self.tasks or ())

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # Bound first, so that the buffers that the state is to be loaded into exist.
        saved = state_dict.get(f"{prefix}_extra_state", {"tasks": []})
        if saved["tasks"]:
            self.bind(saved["tasks"])
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Deferred:
    """Finds the update of a step when the scalar of `Balancer.loss` is differentiated."""

    def __init__(self, balancer: Balancer, step: _Step, leaves: Sequence[Tensor]) -> None:
        self._balancer = balancer
        self._step: _Step | None = step
        self._places = {id(leaf): k for k, leaf in enumerate(leaves)}
        self._given: list[Tensor | None] | None = None
        self._scale = 1.0

    def __call__(self, gradient: Tensor) -> Sequence[Tensor | None]:
        scale = float(gradient)
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
        call = replace(step.call, scale=None if scale == 1 else gradient, retain=True)
        found: list[Tensor | None] = [None] * len(self._places)
        try:
            with torch.enable_grad():  # sums of losses are made here, and differentiated
                solved = self._balancer._solved(replace(step, call=call), skips=scale > 1)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise RuntimeError(SHARED_GRAPH) from error
        for leaf, g in solved.update.items():
            found[self._places[id(leaf)]] = g
        for weight, g in solved.learned.items():
            found[self._places[id(weight)]] = g * gradient
        self._balancer._stands(solved)
        if not keep:
            released_at_the_end(step.call.losses, step.sharing.trained)
        del solved  # autograd keeps a tensor that nobody else holds, and copies any other
        if keep:
            self._given, self._scale = found, scale
        return found


SHARED_GRAPH = (
    "the graph of these losses was differentiated before: a term that was added to Balancer.loss "
    "and shares their graph belongs into its argument plus=, or keep the graph with "
    "backward(retain_graph=True)"
)


def _stacked(losses: Mapping[str, Tensor]) -> Tensor:
    """The losses' values, [..., m]."""
    values = [loss.detach() for loss in losses.values()]
    if len({(v.dtype, v.device) for v in values}) > 1:
        wide = reduce(torch.promote_types, (v.dtype for v in values))
        values = [v.to(values[0].device, wide) for v in values]
    return torch.stack(values, dim=-1)


def _sum(losses: Mapping[str, Tensor], plus: Tensor | None) -> Tensor:
    """The losses' sum, one after the other."""
    terms = [loss.sum() for loss in losses.values()] + ([] if plus is None else [plus])
    return reduce(torch.add, terms)


def _require_finite_plus(plus: Tensor | None) -> None:
    if plus is not None and not all_finite(plus):
        raise NonFiniteError("value", ["plus="])
