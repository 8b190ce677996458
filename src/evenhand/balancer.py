"""The two slots, and the one object a user drops into an existing loop.

`weighting` sees the raw problem and scales the losses everywhere, heads included: c = weights.
`aggregator` sees the weighted problem (losses c∘L, Jacobian diag(c)·J) and merges the gradients of
the trunk alone. Both take the same kind of object, a `Weighting`; the aggregator slot takes an
`Aggregator` too, for methods that leave the span of the gradients. An empty slot changes nothing,
so ``Balancer()`` is the plain sum of the losses.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from evenhand.aggregation import Aggregator
from evenhand.arguments import require_kind
from evenhand.autodiff.call import Absent, Call, active, not_finite, require_finite, values_of
from evenhand.autodiff.catching import Catcher
from evenhand.autodiff.chunking import Chunking, JacobianMode
from evenhand.autodiff.delivery import deliver, delivered_by, release, release_up_to
from evenhand.autodiff.factors import Factored
from evenhand.autodiff.gradients import (
    Matrices,
    NonFiniteError,
    TaskGradients,
    all_finite,
)
from evenhand.autodiff.hooks import without_hooks
from evenhand.autodiff.owners import Owners
from evenhand.autodiff.ownership import Ownership, Probe
from evenhand.autodiff.passes import Passes, Update
from evenhand.autodiff.reducer import Reducer
from evenhand.autodiff.replay import Replayed
from evenhand.balancing.balance import Balance, NonFinite, Zero
from evenhand.balancing.deferred import Deferred
from evenhand.balancing.partners import Group, Partners
from evenhand.balancing.request import Request, Step
from evenhand.balancing.slots import Slots, Solved
from evenhand.balancing.sources import Sources
from evenhand.balancing.vain import Unused, detached, detached_from, unused
from evenhand.network import Blocks, Nest, Outputs, leaves, unwrapped
from evenhand.schedules import BLOCKS, Clock, Phase
from evenhand.text import unknown
from evenhand.weighting.base import Gradients, Method, Weighting, warn_of
from evenhand.weighting.state import Held

if TYPE_CHECKING:
    from evenhand.distributed.parallel import Parallel


class Balancer(nn.Module):
    """Fills `.grad` so that every task gets its due; any optimizer steps afterwards.

    Args:
        weighting: scales the losses in trunk and heads.
        aggregator: merges the trunk's gradients; heads keep the weighted losses' own.
        tasks: names of all tasks, in order. By default those of the first call.
        model: the network. A `MultiTaskNetwork` tells what is shared; for any other module what
            the first call finds is saved by parameter name. Not a submodule of the balancer.
        seed: of all chance in the methods, when `backward` gets no clock.
        leading: the shape of the losses, where several networks are trained side by side: their
            parameters begin with it, and each is balanced by itself.
        jacobian: how the m passes through the trunk are taken where a method wants every task's
            gradient: "looped", one after another; "batched", vectorised over all tasks; a number,
            over so many at a time; or "measured", what is fastest at the first step, which
            `state_dict` then remembers. They differ in the last bits, and not every operation
            can be vectorised.
        factored: whether the tasks' gradients by the weights of linear layers, convolutions and
            embeddings are kept as factors and never formed (`evenhand.autodiff.factors`):
            "auto", where the shapes say that it takes less arithmetic; "never"; or "always".
        group: the processes that share out every batch: a process group, or a device mesh of one
            dimension. By default that of the model's `DistributedDataParallel`, else the world,
            if torch.distributed is initialised. False is this process alone: under
            `DistributedDataParallel` each process then balances its own part of the batch, with
            weights, learned weights and states of its own, and the wrapper takes the mean of the
            gradients that they chose; a warning says so once.

    State (histories, learned weights, names of tasks, the last weights) is in `state_dict`;
    learned weights are `parameters()`, for an optimizer of the user's choice.

    Raises:
        TypeError: a slot holds something else than a Weighting (or an Aggregator).
        TypeError: another argument is of the wrong kind: a text for `tasks`, no module for `model`.
        ValueError: `jacobian` or `factored` is none of these, or `model` is wrapped in a way that
            goes wrong (see `evenhand.distributed.wrappers`).

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
        leading: tuple[int, ...] = (),
        jacobian: JacobianMode = "looped",
        factored: Factored = "auto",
        nonfinite: NonFinite = "raise",
        zero: Zero = "keep",
        group: Group = None,
    ) -> None:
        super().__init__()
        require_kind("tasks", tasks, Sequence[str] | None)
        require_kind("seed", seed, int)
        require_kind("leading", leading, tuple[int, ...])
        if not isinstance(weighting, Weighting | None):
            raise TypeError(f"weighting={weighting!r} is no Weighting")
        if not isinstance(aggregator, Weighting | Aggregator | None):
            raise TypeError(f"aggregator={aggregator!r} is neither a Weighting nor an Aggregator")
        if factored not in get_args(Factored):
            raise ValueError(f"factored={factored!r}: must be 'auto', 'never' or 'always'")
        if nonfinite not in get_args(NonFinite):
            raise ValueError(f"nonfinite={nonfinite!r}: must be 'raise', 'skip' or 'leave_out'")
        if zero not in get_args(Zero):
            raise ValueError(f"zero={zero!r}: must be 'keep' or 'leave_out'")
        self.weighting = weighting
        self.aggregator = aggregator
        self.seed = seed
        self.leading = torch.Size(leading)
        self.nonfinite = nonfinite
        self.zero = zero
        self.tasks: tuple[str, ...] = ()
        self.last: Balance | None = None
        self._step = 0
        self._told: set[str] = set()
        self._absent = Absent()
        self._catcher = Catcher()
        self._ownership = Ownership()
        self._sources = Sources(self._ownership, Chunking(jacobian), factored)
        self._partners = Partners(group, self._ownership)
        self._made_slots = Slots(weighting, aggregator)
        self._unused = Unused()
        self.states = Held({})
        if model is not None:
            self.attach(model)
        if tasks is not None:
            self.bind(tasks)

    @property
    def chunking(self) -> Chunking:
        """How many tasks' passes are taken at once."""
        return self._sources.chunking

    @property
    def blocks(self) -> Blocks:
        """Which block each parameter belongs to, as far as known.

        Raises:
            ValueError: no call has told yet.
        """
        return self._ownership.blocks(self.tasks)

    @property
    def methods(self) -> list[Method]:
        """What the slots hold."""
        return self._slots.methods

    @property
    def _learned(self) -> list[str]:
        """The methods whose weights are an optimizer's to step on."""
        return [type(method).__name__ for method in self.methods if method.traits.learned]

    @property
    def _slots(self) -> Slots:
        made, weighting, aggregator = self._made_slots, self.weighting, self.aggregator
        if made.weighting is not weighting or made.aggregator is not aggregator:
            made = self._made_slots = Slots(weighting, aggregator)
        return made

    @property
    def last_weights(self) -> Tensor:
        """The weights of the weighting slot in each task's last call, [..., M], float64."""
        return self.states.get_buffer("last_weights")

    def reset(self) -> None:
        """Begin again: all histories and learned weights as they were before the first call.

        The tasks, who has reached which parameter, and what was timed are still known.
        """
        if self.tasks:
            self.states.reset(self._slots.init(len(self.tasks)))
        self._step = 0
        self._sources.forget()
        self.last = None

    def attach(self, model: nn.Module) -> None:
        """Learn the model's structure, its parameters' order and names, whatever it is wrapped in.

        The structure is known where there is one `MultiTaskNetwork` in it. The model does not
        become a part of the balancer.
        """
        require_kind("model", model, nn.Module)
        self._partners.watch(model)
        self._ownership.attach(model)
        self._catcher.prepare(unwrapped(model))
        self._placed()

    def bind(self, tasks: Sequence[str]) -> None:
        """Fix the names of all tasks, in order. Calls with the same names change nothing.

        Raises:
            TypeError: `tasks` is a text, or holds something else than names.
            ValueError: other tasks were fixed before, or names are missing or repeated.
        """
        require_kind("tasks", tasks, Sequence[str])
        tasks = tuple(tasks)
        if not tasks or len(set(tasks)) != len(tasks):
            raise ValueError(f"tasks={tasks!r}: must be one or more different names")
        if self.tasks and self.tasks != tasks:
            raise ValueError(
                f"this balancer belongs to the tasks {', '.join(self.tasks)}, "
                f"not to {', '.join(tasks)}"
            )
        if not self.tasks:
            for method in self.methods:
                method.require(tasks)
            self.tasks = tasks
            self.states = Held(self._slots.init(len(tasks)))
            self.states.expand(self.leading)  # learned weights: each network has its own
            self._placed()

    def _placed(self) -> None:
        """Go to the model's device, if it is known, before an optimizer's state is loaded.

        A state goes where its parameters are then, and does not follow them.
        """
        device = self._ownership.device
        if device is not None and self.tasks and self.last_weights.device != device:
            self.to(device)

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
            counts: how many labels each loss (and each of `samples`) is the mean of. Micro-batches
                of one step, and the parts of several processes, are then weighed by it. A task
                whose count is 0 is absent.
            retain_graph: keep the graph for another backward.

        Raises:
            ValueError: an unknown task, a loss that is no scalar or has no graph, or sharing that
                cannot be decided from this call.
            NonFiniteError: a loss or gradient is NaN or infinite; it names the task.
        """
        request = Request(
            losses, shared, own, features, plus, samples, phase, clock, scale, counts, retain_graph
        )
        if self._is_sum(request):
            return self._summed(request)
        step = self._step_of(request)
        solved = self._solved(step, scale is not None)
        reached, gradients = solved.update.given()
        for weight, gradient in solved.learned.items():
            reached.append(weight)
            gradients.append(gradient if scale is None else gradient * scale)
        solved.update.drop()
        solved.learned.clear()
        parallel = self._parallel()
        if parallel is not None:
            restore = parallel.untouched(step.owners.trained)
            receivers = parallel.receivers(reached)
            given = {id(leaf): g for leaf, g in zip(reached, gradients, strict=True)}
            reached, gradients = receivers, [given.pop(id(leaf), None) for leaf in receivers]
        if reached:
            deliver(reached, gradients)
        if parallel is not None:
            restore()
        if not retain_graph:
            self._free(step, *solved.unfreed)
        balance = self._stands(solved)
        if phase is not None:
            frozen = step.owners.frozen
            for leaf in frozen if parallel is None else parallel.handed(frozen):
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

        The passes through the graph of the losses are taken inside and free it, as those of
        `backward` do. Terms that are added outside may share it: it is then kept until the whole
        backward pass has ended. One that the engine happens to differentiate first takes it away:
        the error then names `plus=`.

        Args and errors are those of `backward`.
        """
        request = Request(losses, shared, own, features, plus, samples, phase, clock, None, counts)
        if not torch.is_grad_enabled():
            return self._value({t: v for t, v in losses.items() if v is not None}, plus, None)
        if self._is_sum(request):
            return self._sum_with_graph(request)
        step = self._step_of(request)
        present = dict(zip(step.call.tasks, step.call.losses, strict=True))
        reached = [*step.owners.trained, *self._sources.waiting, *self.parameters()]
        reached = list(dict.fromkeys(reached))
        closing = None
        if (parallel := self._parallel()) is not None:
            closing = parallel.untouched(reached)
            reached = parallel.receivers(reached)
        may_share = self._sources.sharded is None
        deferred = Deferred(
            self._solved, self._stands, self._free, step, reached, closing, may_share
        )
        return delivered_by(deferred, self._value(present, plus, step), reached)

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
        Methods that look at the representation alone can do with those by the features: see
        ``catch(trunk, replay=True)``. A module whose inputs have a graph themselves, and processes
        that share out a batch, keep them all.

        Args and errors are those of `backward`. A micro-batch that is not finite ends the step:
        all that was accumulated is dropped.
        """
        request = Request(losses, shared, own, features, plus, samples, phase, None, scale, counts)
        if self._is_sum(request):
            self._summed(request)
            self._step -= 1  # it is the last call that ends a step
            return
        step = self._step_of(request)
        if self._sources.sharded is not None:
            raise ValueError(
                "accumulate() keeps all tasks' gradients, and under fully_shard each rank has a "
                "part: take larger batches, or balance every micro-batch by itself"
            )
        with without_hooks(step.owners.trained):
            try:
                _require_finite_losses(step.call)
                self._sources.add(step, self._slots)
                if step.trunk is not None and not step.call.retain:
                    self._free(step, True, True)
            except NonFiniteError as error:
                if scale is None and self.nonfinite != "skip":
                    self._sources.forget()
                    raise
                self._sources.spoiled = error

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
        clock = self._now() if clock is None else clock
        request = Request(
            losses, shared, own, features, None, None, phase, clock, None, None, retain=True
        )
        return self._sources.of(self._step_of(request), self._slots)[1]

    def catch(self, module: nn.Module, *, replay: bool = False) -> None:
        """Catch what `module` returns from now on, so that ``features=module`` finds it.

        ``features=module`` does this by itself, and so finds all outputs but those that were made
        before the first call; a balancer that was given ``model=`` finds those too.

        Args:
            module: the module.
            replay: for `accumulate` with methods that look at the representation alone: keep what
                the module was given, and run it once more when the weights are known, instead of
                keeping every task's gradient by its parameters. Dropout is drawn again as it was;
                batch statistics are updated once. What is not of torch (chance of other
                generators, a state that is no buffer) must not change what it returns.
        """
        require_kind("module", module, nn.Module)
        require_kind("replay", replay, bool)
        self._catcher.catch(module, replay)

    def updated(
        self,
        losses: Mapping[str, Tensor],
        clock: Clock | None = None,
        *,
        counts: Mapping[str, float] | None = None,
    ) -> None:
        """Tell methods that declare `after` the losses after the update, on the same batch.

        Of several processes, each tells its own; `counts` are those that `backward` got.
        """
        tasks = self.tasks
        Request(losses, clock=clock, counts=counts).require(tasks)
        clock = self._now() if clock is None else clock
        if foreign := [task for task in losses if task not in tasks]:
            raise ValueError(unknown(foreign[0], tasks, "task", "losses"))
        present = {task: losses[task].detach() for task in tasks if task in losses}
        if (parallel := self._parallel()) is not None:
            present = parallel.values(tasks, present, counts, self.leading)
        view = self._view_of_losses(Call.of(present, tasks), clock)
        self.states.replace(self._slots.after(view, self.states.tree()))

    def select(self, positions: Tensor) -> None:
        """Go on with the networks at these positions, [k], of the leading dimension alone."""
        require_kind("positions", positions, Tensor)
        if len(self.leading) != 1 or positions.dim() != 1:
            raise ValueError(
                "positions, [k], are those of networks: only a balancer made with leading=(E,) "
                "can go on with some of the E"
            )
        self.leading = torch.Size([len(positions)])
        self.states.select(positions)

    # A call that is the plain sum -------------------------------------------------------------

    def _is_sum(self, request: Request) -> bool:
        """Whether a call is one backward pass of the losses' sum, in one process."""
        alone = self._parallel() is None and not self._sources.summing
        if alone and request.wants_the_sum and not self.methods:
            _ = self._places(request.features, ())  # refuse what is no representation
            return True
        return False

    def _summed(self, request: Request) -> Balance:
        """One backward pass of the losses' sum."""
        present = self._present(request)
        values = values_of(present)
        bad = not_finite(values, list(present))
        if bad and request.scale is None:
            raise NonFiniteError("loss", bad)
        _require_finite_plus(request.plus)
        self._watch(present, request.plus)
        total = _sum(present, request.plus)
        torch.autograd.backward(
            total if request.scale is None else total * request.scale,
            retain_graph=request.retain,
        )
        return self._was_summed(present, values)

    def _sum_with_graph(self, request: Request) -> Tensor:
        """The losses' sum itself, with its graph."""
        present = self._present(request)
        total = _sum(present, request.plus)
        values = values_of(present)
        self._watch(present, request.plus)
        told: list[Balance] = []

        def differentiated(_: Tensor) -> None:
            if not told:  # a second backward of the same scalar is no second step
                told.append(self._was_summed(present, values))

        on_backward: Any = total.register_hook
        on_backward(differentiated)
        return total

    def _watch(self, present: Mapping[str, Tensor], plus: Tensor | None) -> None:
        """Look, until it is known, whether some task reaches every parameter of the model."""
        if self._ownership.watches:
            tasks = self.tasks
            self._ownership.watch(Call.of(present, tasks, plus=plus), tasks)
            self._tell("detached", detached_from(self._ownership, tasks))

    def _was_summed(self, present: Mapping[str, Tensor], values: Tensor) -> Balance:
        self._step += 1
        ones = torch.ones_like(values)
        applied = not not_finite(values, list(present))
        self.last = Balance(tuple(present), values, ones, ones, applied=applied)
        return self.last

    # The steps of any other call --------------------------------------------------------------

    def _step_of(self, request: Request) -> Step:
        """The call, checked, and whose the parameters are that it reaches."""
        present = self._present(request)
        together = self._partners.together()
        if together is not None:
            together.look(present, request.plus)
        parallel = self._parallel()
        clock = request.clock
        if clock is None:
            self._warn_of_epochs()
            clock = self._now()
        places = self._places(request.features, list(present.values()))
        if parallel is not None:
            request, present = self._agreed(parallel, request, present, places)
        left_out: list[str] = []
        if self.nonfinite == "leave_out":
            bad = not_finite(values_of(present), list(present))
            if len(bad) < len(present):
                left_out = bad
                present = {task: loss for task, loss in present.items() if task not in bad}
        tasks, phase, counts = self.tasks, request.phase, request.counts
        call = Call.of(
            present,
            tasks,
            trains=BLOCKS if phase is None else phase.trains,
            phase=phase is not None,
            plus=request.plus,
            scale=request.scale,
            retain=request.retain or "leave_out" in (self.nonfinite, self.zero),
            left_out=tuple(left_out),
        )
        if self.last_weights.device != call.values.device:
            self.to(call.values.device)
        self._ownership.name(request.shared, request.own)
        outputs = request.features if isinstance(request.features, Outputs) else None
        owners = self._shared_by(call, places, outputs)
        if counts is not None and (uncounted := [t for t in call.tasks if t not in counts]):
            raise ValueError(f"counts= says nothing of {uncounted[0]!r}, which has a loss here")
        trunk = Replayed.of(places, self._catcher.recordings)
        return Step(tasks, call, owners, clock, places, outputs, request.samples, counts, trunk)

    def _present(self, request: Request) -> dict[str, Tensor]:
        """The losses that count in this call, in the order of all tasks, checked.

        Where this process is not alone there may be none.
        """
        if not self.tasks:
            self._refuse_late_parameters()
            self.bind(tuple(request.losses))
        request.require(self.tasks)
        parallel = self._parallel()
        alone = parallel is None
        losses = request.losses
        whole = parallel is not None and parallel.sharded is not None
        if request.counts is not None and not whole:  # the mean over no label is NaN
            losses = {t: v for t, v in losses.items() if request.counts.get(t, 1)}
        with_graph = self._absent.sorted_out(losses, alone)
        return active(with_graph, self.tasks, request.phase, self.leading, alone)

    def _parallel(self) -> Parallel | None:
        """The processes that share out the batch; None where this one is alone."""
        parallel = self._partners.together()
        ranks = None if parallel is None else parallel.now()
        if parallel is None or ranks is None:
            if not self._sources.reducer.alone:
                self._sources.reducer = Reducer()
                self._sources.sharded = None
            return None
        return parallel

    def _agreed(
        self,
        parallel: Parallel,
        request: Request,
        present: Mapping[str, Tensor],
        places: Sequence[Tensor],
    ) -> tuple[Request, dict[str, Tensor]]:
        """The request and the losses as all ranks agree they are.

        Raises:
            ValueError: no rank has a loss, or a further batch lacks a task on every rank.
        """
        tasks, phase = self.tasks, request.phase
        parallel.meet(self._told_to_others(), self._slots.by_name)
        self._sources.reducer = parallel.reducer()
        self._sources.sharded = parallel.sharded
        kind = None if phase is None else (tuple(phase.tasks), tuple(phase.trains))
        outputs = request.features if isinstance(request.features, Outputs) else None
        found = parallel.agree(
            tasks, present, request.plus, request.counts, places, outputs, self.leading, kind
        )
        if not found.losses:
            raise ValueError("no task has a loss in this call, on any rank")
        samples = request.samples
        if samples is not None:
            samples = [
                parallel.agree(
                    tasks,
                    {t: v for t, v in sample.items() if t in found.losses},
                    None,
                    request.counts,
                    (),
                    None,
                    self.leading,
                    (kind, number),
                ).losses
                for number, sample in enumerate(samples[: self._slots.further_batches])
            ]
        counts = None if request.counts is None else found.counts
        agreed = replace(request, plus=found.plus, samples=samples, counts=counts)
        return agreed, found.losses

    def _told_to_others(self) -> tuple[tuple[str, ...], tuple[str, ...], int]:
        """What must be the same on all ranks."""
        return self.tasks, tuple(type(m).__qualname__ for m in self.methods), self.seed

    def _places(
        self, features: Nest | Outputs | nn.Module | None, losses: Sequence[Tensor]
    ) -> list[Tensor]:
        """The tensors of the representation that require gradients."""
        needed = self._slots.looks_at_features
        if isinstance(features, nn.Module):
            return self._catcher.outputs(features, losses, needed=needed)
        self._catcher.settle(None)
        nest = features.features if isinstance(features, Outputs) else features
        if isinstance(features, Outputs) and nest is None and needed:
            raise ValueError(
                "features= are outputs that a wrapper has rebuilt, and they do not know what they "
                "came from: give the module, features=network.trunk"
            )
        return list(dict.fromkeys(z for z in leaves(nest) if z.requires_grad))

    def _shared_by(self, call: Call, features: Sequence[Tensor], outputs: Outputs | None) -> Owners:
        def looked(leaves: Sequence[Tensor]) -> list[int]:
            looking = replace(call, retain=True, plus=None, scale=None)
            with without_hooks(leaves):
                return Passes(looking, Owners()).nonzero(leaves)

        probe: Probe = looked
        if (parallel := self._parallel()) is not None:
            probe = parallel.probed(probe, len(self.tasks))
        with nullcontext() if parallel is None else parallel.as_in_the_graph():
            owners = self._ownership.decide(call, self.tasks, features, outputs, probe)
        several = len(self.tasks) > 1 and len(call.tasks) > 1
        nothing = not (owners.balanced and owners.sharers)
        if self.aggregator is not None and several and nothing and not call.phase:
            self._tell(
                "nothing shared",
                "no parameter is reached by several of the losses "
                f"{', '.join(call.tasks)}, so the aggregator has nothing to balance in such a "
                "step: is the trunk frozen, its output detached, or shared= of another network? "
                "This is said once",
            )
        known = bool(features) or self._ownership.network is not None
        self._tell("detached", detached(call, self.tasks, owners, known))
        return owners

    def _solved(self, step: Step, skips: bool) -> Solved:
        """What a step comes to.

        Args:
            step: the step.
            skips: whether a scaler stands by, which skips a step whose gradients are infinite.

        Raises:
            NonFiniteError: a loss or gradient is not finite, and nothing was said of that.
        """
        if self._learned and self._unused.begun(self.parameters(), step.owners.trained):
            self._tell("unused", unused(self._learned))
        with without_hooks(step.owners.trained):
            while True:
                try:
                    solved = self._solved_with_all(step)
                except NonFiniteError as error:
                    if skips:
                        return self._skipped(step, torch.inf, error.tasks)
                    if self.nonfinite == "skip":
                        return self._skipped(step, None, error.tasks)
                    less = self._without(step, error.tasks)
                    if self.nonfinite == "raise" or less is None:
                        self._sources.forget()
                        raise
                else:
                    less = self._without_zeros(step, solved)
                    if less is None:
                        return solved
                step = less

    def _solved_with_all(self, step: Step) -> Solved:
        """What a step comes to with every task that is active in it."""
        if self._sources.spoiled is not None:
            raise self._sources.spoiled
        _require_finite_losses(step.call)
        slots, state = self._slots, self.states.tree()
        solved = slots.solve(*self._sources.of(step, slots), state)
        for name, ended in solved.solves.items():
            if name not in self._told and warn_of(slots.by_name[name], ended):
                self._told.add(name)
        if solved.state is not None and solved.state is not state:
            self.states.require(solved.state)
        return solved

    def _without(self, step: Step, tasks: Sequence[str]) -> Step | None:
        """The same step in which these tasks are absent; None if none is left."""
        if len(set(step.call.tasks) - set(tasks)) == 0:
            return None
        call = step.call.without(tasks)
        owners = self._shared_by(call, step.features, step.outputs)
        return replace(step, call=call, owners=owners)

    def _without_zeros(self, step: Step, solved: Solved) -> Step | None:
        """The step without tasks whose gradient is exactly zero, if they are to be left out.

        Where they are kept and stop the method, that is told.
        """
        balance, aggregator = solved.balance, self.aggregator
        stops = aggregator is not None and aggregator.traits.stationary
        if balance.gramian is None or not (self.zero == "leave_out" or stops):
            return None
        squares = balance.gramian.diagonal(dim1=-2, dim2=-1)
        if min(squares.reshape(-1).tolist()) > 0:
            return None
        zero = (squares <= 0).reshape(-1, len(balance.tasks)).all(0).tolist()
        looked_at = range(len(balance.tasks)) if solved.sharers is None else solved.sharers
        tasks = [balance.tasks[k] for k in looked_at if zero[k]]
        if not tasks or len(tasks) == len(looked_at):
            return None
        if self.zero == "leave_out":
            return self._without(step, tasks)
        if stops:
            self._tell(
                "zero gradient",
                f"the gradient of {', '.join(map(repr, tasks))} is exactly zero, and "
                f"{type(aggregator).__name__} takes such a point for one that cannot be improved "
                "for all tasks, so the step may be zero. Balancer(zero='leave_out') leaves such a "
                "task out of the step. This is said once",
            )
        return None

    def _skipped(self, step: Step, value: float | None, tasks: Sequence[str]) -> Solved:
        """A step that changes nothing; gradients are `value`, or there are none."""
        leaves = step.owners.trained
        if (parallel := self._parallel()) is not None:
            leaves = parallel.handed(leaves)
        filled = [None if value is None else torch.full_like(p, value) for p in leaves]
        learned: Gradients = {}
        if value is not None:
            learned = {w: torch.full_like(w, value) for w in self.parameters()}
        balance = Balance(step.call.tasks, step.call.values, applied=False, left_out=tuple(tasks))
        return Solved(Update(leaves, filled), learned, balance, None, step.clock, {})

    def _stands(self, solved: Solved) -> Balance:
        """Take the next state over: the step is taken."""
        self._catcher.forget()
        self._sources.forget()
        mine = vars(self)  # a module's __setattr__ looks for parameters first, in every step
        mine["last"] = solved.balance
        if solved.state is not None:
            self.states.replace(solved.state, known=True)
            if self._learned:
                self._unused.ended(self.parameters())
            mine["_step"] = solved.clock.step + 1
        return solved.balance

    def _free(self, step: Step, heads: bool, trunk: bool) -> None:
        """Free what the passes of a step have left of its graph: of heads, and of the trunk."""
        losses, owners = step.call.losses, step.owners
        if trunk:
            release(losses, step.features, owners.trained)
        elif heads:
            ends = step.features or [leaf for mine in owners.alone for leaf in mine]
            release_up_to(losses[:-1], ends, owners.trained)

    def _value(
        self, losses: Mapping[str, Tensor], plus: Tensor | None, step: Step | None
    ) -> Tensor:
        """What `loss` is worth: the losses' sum, with the weights that losses alone decide."""
        values = [loss.detach() for loss in losses.values()]
        if step is not None:
            view = self._view_of_losses(step.call, step.clock)
            weights = self._slots.weights_by_losses(view, self.states.tree())
            if weights is not None:
                values = [v * w.to(v) for v, w in zip(values, weights.unbind(-1), strict=True)]
        values = [value.sum() for value in values]
        if plus is not None:
            values.append(plus.detach().sum())
        return torch.stack([value.to(values[0]) for value in values]).sum()

    # What it knows and says -------------------------------------------------------------------

    def _view_of_losses(self, call: Call, clock: Clock) -> TaskGradients:
        return self._sources.view(Matrices(None, None), call, clock, len(self.tasks))

    def _now(self) -> Clock:
        return Clock(step=self._step, seed=self.seed)

    def _tell(self, key: str, message: str | None) -> None:
        """Warn of something once, if there is something."""
        if message is not None and key not in self._told:
            self._told.add(key)
            warnings.warn(message, stacklevel=6)

    def _warn_of_epochs(self) -> None:
        counting = [type(method).__name__ for method in self.methods if method.traits.counts_epochs]
        if counting:
            self._tell(
                "epochs",
                f"{counting[0]} counts epochs, and this loop does not tell it about them, so all "
                "is epoch 0: pass clock=Clock(epoch, step) to backward",
            )

    def _refuse_late_parameters(self) -> None:
        if self._learned:
            raise ValueError(
                f"{self._learned[0]} has learned weights, which an optimizer must know before the "
                "first call: name the tasks with Balancer(..., tasks=[...])"
            )

    # Saving -----------------------------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """Names of the tasks, the step, who is shared, by name where known, and what was timed.

        It is JSON as bytes in a tensor, since some formats of checkpoints hold nothing but tensors.
        """
        tasks = self.tasks
        state = {"tasks": list(tasks), "step": self._step, "chunk": self.chunking.measured}
        state["coordinates"] = self._sources.coordinates.state()
        text = json.dumps({**state, **self._ownership.state(tasks)}, sort_keys=True)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what `get_extra_state` gave."""
        self._set_extra_state(extra_state(state))

    def _set_extra_state(self, state: Mapping[str, Any]) -> None:
        self._step = state["step"]
        self.chunking.measured = state["chunk"]
        self._sources.coordinates.load_state(state.get("coordinates", {}))
        self._ownership.load_state(state, self.tasks)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # Bound first, so that the buffers that the state is to be loaded into exist.
        saved = state_dict.get(f"{prefix}_extra_state")
        if saved is not None and (tasks := extra_state(saved)["tasks"]):
            self.bind(tasks)
        super()._load_from_state_dict(state_dict, prefix, *args)


def extra_state(saved: Tensor) -> dict[str, Any]:
    """What `Balancer.get_extra_state` has put into a tensor.

    Raises:
        ValueError: the tensor holds something else.
    """
    try:
        state = json.loads(bytes(saved.cpu().tolist()))
        return {"tasks": state["tasks"], **state}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("this is no state of a balancer: its _extra_state is damaged") from error


def _sum(losses: Mapping[str, Tensor], plus: Tensor | None) -> Tensor:
    """The losses' sum, one after the other."""
    terms = [loss.sum() if loss.ndim else loss for loss in losses.values()]
    terms += [] if plus is None else [plus]
    return reduce(torch.add, terms)


def _require_finite_losses(call: Call) -> None:
    require_finite(call.values, call.tasks, "loss")
    _require_finite_plus(call.plus)


def _require_finite_plus(plus: Tensor | None) -> None:
    if plus is not None and not all_finite(plus):
        raise NonFiniteError("value", ["plus="])
