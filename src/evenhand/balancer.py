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
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from evenhand.aggregation import Aggregator
from evenhand.autodiff.chunking import Chunking, Jacobian
from evenhand.autodiff.factors import Factored
from evenhand.autodiff.gradients import (
    Door,
    Matrices,
    NonFiniteError,
    Source,
    TaskGradients,
    all_finite,
    cosines,
    norms,
)
from evenhand.autodiff.ownership import Sharing
from evenhand.autodiff.passes import Graph, Update
from evenhand.network import Blocks, Nest, Outputs, leaves
from evenhand.schedules import BLOCKS, Clock, Phase
from evenhand.weighting.base import Gradients, Method, Outcome, Weighting, warn_of, worst
from evenhand.weighting.running import add_gradients
from evenhand.weighting.state import Held, State, put, take


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
    """

    tasks: tuple[str, ...]
    losses: Tensor
    weights: Tensor | None = None
    trunk_weights: Tensor | None = None
    norms: Tensor | None = None
    cosines: Tensor | None = None
    applied: bool = True
    status: str | None = None


@dataclass(frozen=True)
class _Answer:
    """What a slot's method made of a call, and the gradients of its learned weights."""

    outcome: Outcome
    gradients: Gradients


@dataclass(frozen=True)
class _Step:
    """What a call computed: the update, the next state, the gradients of learned weights."""

    update: Update
    balance: Balance
    state: State
    gradients: Gradients


@dataclass(frozen=True)
class _Look:
    """One call: the graph, the view that methods get of it, and what moves."""

    graph: Graph
    view: TaskGradients
    phase: Phase
    blocks: Blocks


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
    ) -> None:
        super().__init__()
        if not isinstance(weighting, Weighting | None):
            raise TypeError(f"weighting={weighting!r} is no Weighting")
        if not isinstance(aggregator, Weighting | Aggregator | None):
            raise TypeError(f"aggregator={aggregator!r} is neither a Weighting nor an Aggregator")
        self.weighting = weighting
        self.aggregator = aggregator
        self.door = Door()
        self.seed = seed
        self.members = torch.Size(members)
        self.chunking = Chunking(jacobian)
        if factored not in get_args(Factored):
            raise ValueError(f"factored={factored!r}: must be 'auto', 'never' or 'always'")
        self.factored = factored
        self.tasks: tuple[str, ...] | None = None
        self._step = 0
        self._warned_of_epochs = False
        self._warned_of_solves: set[str] = set()
        self._sharing = Sharing()
        self.states = Held({})
        if model is not None:
            self.know(model)
        if tasks is not None:
            self.bind(tasks)

    @property
    def blocks(self) -> Blocks:
        """Whose each parameter is, as far as known.

        Raises:
            ValueError: no call has told yet.
        """
        if self._sharing.ownership is None:
            raise ValueError("what is shared is known only after the first backward, or by model=")
        return self._sharing.ownership.blocks()

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

        The tasks, whose each parameter is, and what was timed are still known.
        """
        if self.tasks is not None:
            self.states.reset(self._first_state(len(self.tasks)))
        self._step = 0

    def _first_state(self, total: int) -> State:
        last = torch.ones(total, dtype=torch.float64)
        return {"last_weights": last} | {n: m.init(total) for n, m in self._slots.items()}

    def know(self, model: nn.Module) -> None:
        """Learn what `model` shares, if it is a `MultiTaskNetwork`, and its parameters' names."""
        self._sharing.know(model)

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
        losses: Mapping[str, Tensor],
        *,
        shared: Iterable[Tensor] | None = None,
        own: Mapping[str, Iterable[Tensor]] | None = None,
        features: Nest | Outputs | None = None,
        plus: Tensor | None = None,
        samples: Sequence[Mapping[str, Tensor]] = (),
        phase: Phase | None = None,
        clock: Clock | None = None,
        scale: float | Tensor | None = None,
        retain_graph: bool = False,
    ) -> Balance:
        """Add the balanced gradients to `.grad`, as `torch.Tensor.backward` adds.

        Args:
            losses: a scalar loss for each task that speaks, with its graph. A task without a
                labelled sample in this batch is left out; its parameters keep their `.grad`.
            shared: the shared parameters, where the balancer is not to find them itself.
            own: each task's own parameters, likewise.
            features: the shared representation Z, a tensor or a nest of tensors. With it one
                pass through each head and few through the trunk do. The outputs of a
                `MultiTaskNetwork` themselves tell more than their `features`: one pass then
                serves all heads, and linear heads take part as the factors they are.
            plus: a scalar that is nobody's task (a penalty); added without a weight.
            samples: losses on further independent batches, for methods that declare `batches`.
            phase: who speaks and what moves; everything by default. What rests gets `.grad` None.
            clock: when, for methods that draw at random; counted by the balancer by default.
            scale: the loss scale of mixed precision, ``scaler.scale(torch.ones(()))`` (a fresh
                GradScaler must have scaled something before it steps). `.grad` is scaled, what
                methods see is not. A gradient that overflows then leaves `.grad` infinite, for
                the scaler to skip the step, and no history.
            retain_graph: keep the graph for another backward.

        Raises:
            ValueError: an unknown task, a loss that is no scalar or has no graph, or sharing that
                cannot be decided from this call.
            NonFiniteError: a loss or gradient is NaN or infinite; it names the task.
        """
        look = self._look(
            losses, shared, own, features, phase, clock, plus, scale, retain_graph, samples
        )
        try:
            step = self._balanced(look)
        except NonFiniteError:
            if scale is None:
                raise
            for parameter in look.blocks.moving(look.phase):
                parameter.grad = torch.full_like(parameter, float("inf"))
            return Balance(look.phase.tasks, look.view.losses, applied=False)
        self._write(step.update, look.graph)
        if phase is not None:
            for parameter in look.blocks.resting(look.phase):
                parameter.grad = None
        self.states.replace(step.state)
        add_gradients(step.gradients)
        self._step = look.view.clock.step + 1
        return step.balance

    def gradients(
        self,
        losses: Mapping[str, Tensor],
        *,
        shared: Iterable[Tensor] | None = None,
        own: Mapping[str, Iterable[Tensor]] | None = None,
        features: Nest | Outputs | None = None,
        phase: Phase | None = None,
        clock: Clock | None = None,
    ) -> TaskGradients:
        """Look at the tasks' gradients without touching anything; arguments as in `backward`.

        The graph is kept, so a `backward` may follow. The result is a view of it: use it before
        that backward.
        """
        clock = clock or self._now()
        return self._look(losses, shared, own, features, phase, clock, None, None, True, None).view

    def updated(self, losses: Mapping[str, Tensor], clock: Clock | None = None) -> None:
        """Tell methods that declare `after` the losses after the update, on the same batch."""
        speaking = [task for task in self.tasks or () if task in losses]
        clock = clock or self._now()
        values = torch.stack([losses[task] for task in speaking], dim=-1)
        view = self._view(Matrices(None, None), speaking, values, clock, ())
        weighted = view.scaled(take(self.last_weights, view).to(view.losses))
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

    def _look(
        self,
        losses: Mapping[str, Tensor],
        shared: Iterable[Tensor] | None,
        own: Mapping[str, Iterable[Tensor]] | None,
        features: Nest | Outputs | None,
        phase: Phase | None,
        clock: Clock | None,
        plus: Tensor | None,
        scale: float | Tensor | None,
        retain_graph: bool,
        samples: Sequence[Mapping[str, Tensor]] | None,
    ) -> _Look:
        speaking, stacked = self._speaking(losses, phase)
        if plus is not None and not all_finite(plus):
            raise NonFiniteError("value", ["plus="])
        free = phase is None
        phase = Phase(tuple(speaking), BLOCKS if phase is None else phase.moves)
        if clock is None:
            self._warn_of_epochs()
            clock = self._now()
        outputs = features if isinstance(features, Outputs) else Outputs({}, features)
        nest = [] if outputs.features is None else leaves(outputs.features)
        places = list(dict.fromkeys(z for z in nest if z.requires_grad))
        self._sharing.name(shared, own)
        reads = self.aggregator is not None or any(m.traits.reads_gradients for m in self.methods)
        blocks, usable = self._sharing.decide(
            speaking,
            places,
            phase,
            self.tasks or (),
            needed=reads or not free,
            readings=outputs.readings,
        )
        if not blocks.shared and len(self.tasks or ()) > 1 and self.aggregator is not None:
            raise ValueError("no parameter is shared by several tasks: name them with shared=")
        graph = Graph(
            list(speaking.values()),
            stacked,
            phase,
            blocks,
            usable,
            readings=self._sharing.readings(speaking, outputs) if usable else (),
            plus=plus,
            scale=scale,
            door=self.door,
            chunk=self.chunking,
            factored=self.factored,
            retain_graph=retain_graph,
            retain_trunk=isinstance(self.aggregator, Aggregator)
            and self.aggregator.at == "representation",
        )
        further = [] if samples is None else self._further(samples, phase, blocks, clock)
        return _Look(graph, self._view(graph, phase.tasks, stacked, clock, further), phase, blocks)

    def _balanced(self, look: _Look) -> _Step:
        graph, view, phase = look.graph, look.view, look.phase
        trunk_moves = "shared" in phase.moves and bool(graph.shared)
        answers: dict[str, _Answer] = {}
        weights: Tensor | None = None
        if self.weighting is not None:
            weights = take(self.last_weights, view).to(view.losses).expand_as(view.losses)
            if trunk_moves or not self.weighting.traits.reads_gradients:
                answers["weighting"] = self._ask("weighting", view)
                weights = answers["weighting"].outcome.value
        weighted = view if weights is None else view.scaled(weights)
        trunk = weights
        aggregator = self.aggregator
        if aggregator is not None and aggregator.traits.reads_gradients and not trunk_moves:
            aggregator = None  # one that reads losses goes on, though its weights move nothing
        if aggregator is None:
            update = graph.in_span(None, weights)
        else:
            answers["aggregator"] = self._ask("aggregator", weighted)
            merged = answers["aggregator"].outcome.value
            if isinstance(aggregator, Aggregator):
                trunk = None
                update = graph.off_span(merged, aggregator.at, weights)
            else:
                trunk = merged if weights is None else merged * weights
                update = graph.in_span(trunk, weights)
        graph.require_finite(update)
        gramian = graph.known_gramian(*(method.at for method in self.methods))
        ones = torch.ones_like(view.losses)
        if not trunk_moves:
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
        )
        state = self.states.tree()
        if weights is not None:
            state["last_weights"] = put(state["last_weights"], view, weights.detach())
        gradients: Gradients = {}
        for name, answer in answers.items():
            state[name] = answer.outcome.state
            gradients |= answer.gradients
            self._tell_of_solves(name, answer.outcome)
        self.states.require(state)
        return _Step(update, balance, state, gradients)

    def _ask(self, slot: str, g: TaskGradients) -> _Answer:
        """What the method in a slot makes of a call; it changes nothing."""
        method, state = self._slots[slot], self.states.tree()[slot]
        return _Answer(method.advance(g, state), method.learn(g, state))

    def _tell_of_solves(self, slot: str, outcome: Outcome) -> None:
        """Warn of a solve that missed its tolerance, once for each slot."""
        if slot not in self._warned_of_solves and warn_of(self._slots[slot], outcome.solves):
            self._warned_of_solves.add(slot)

    def _write(self, update: Update, graph: Graph) -> None:
        taken: set[int] = set()
        for parameters, row in graph.pairs(update):
            for parameter, gradient in zip(parameters, row, strict=True):
                if gradient is None:
                    continue
                if parameter.grad is not None:
                    parameter.grad.add_(gradient)
                    continue
                # Autograd may hand out views and one tensor twice; `.grad` must be memory of its
                # own, since clipping and optimizers write to it.
                aliased = gradient.data_ptr() in taken or gradient.stride() != parameter.stride()
                own = torch.empty_like(parameter).copy_(gradient) if aliased else gradient
                taken.add(own.data_ptr())
                parameter.grad = own

    # Tasks ------------------------------------------------------------------------------------

    def _speaking(
        self, losses: Mapping[str, Tensor], phase: Phase | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The losses that count in this call, in the order of all tasks, checked; and stacked."""
        if self.tasks is None:
            self._refuse_late_parameters()
            self.bind(tuple(losses))
        tasks = self.tasks or ()
        unknown = [t for t in (*losses, *(phase.tasks if phase else ())) if t not in tasks]
        if unknown:
            raise ValueError(
                f"unknown task {unknown[0]!r}: the tasks are {', '.join(tasks)}; "
                "they are fixed by tasks= or the first call"
            )
        admitted = tasks if phase is None else phase.tasks
        speaking = {task: losses[task] for task in tasks if task in losses and task in admitted}
        if not speaking:
            raise ValueError(f"none of the tasks {', '.join(admitted)} has a loss in this call")
        for task, loss in speaking.items():
            if loss.shape != self.members and not (loss.numel() == 1 and not self.members):
                wanted = f"of shape {tuple(self.members)}" if self.members else "a scalar"
                raise ValueError(
                    f"the loss of {task!r} has shape {tuple(loss.shape)}; it must be {wanted}: "
                    "take its mean or sum"
                )
            if loss.shape != self.members:
                speaking[task] = loss.reshape(self.members)
            if not loss.requires_grad:
                raise ValueError(
                    f"the loss of {task!r} has no graph: was it computed under no_grad, or "
                    "from parameters that are frozen or at rest?"
                )
        stacked = torch.stack(list(speaking.values()), dim=-1)
        if not all_finite(stacked):
            finite = stacked.isfinite().reshape(-1, len(speaking)).all(0)
            flags = zip(speaking, finite.tolist(), strict=True)
            raise NonFiniteError("loss", [task for task, ok in flags if not ok])
        if self.last_weights.device != stacked.device:
            self.to(stacked.device)
        return speaking, stacked

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
        self,
        source: Source,
        speaking: Sequence[str],
        losses: Tensor,
        clock: Clock,
        samples: Sequence[TaskGradients],
    ) -> TaskGradients:
        place = {task: k for k, task in enumerate(self.tasks or ())}
        return TaskGradients(
            source,
            self.door.mean(losses.detach()),
            tasks=speaking,
            index=torch.tensor([place[task] for task in speaking], device=losses.device),
            total=len(place),
            clock=clock,
            samples=samples,
        )

    def _further(
        self,
        samples: Sequence[Mapping[str, Tensor]],
        phase: Phase,
        blocks: Blocks,
        clock: Clock,
    ) -> list[TaskGradients]:
        """Views of the further batches that some method declares."""
        wanted = max((method.traits.batches for method in self.methods), default=1) - 1
        if "shared" in phase.moves and len(samples) < wanted:
            raise ValueError(
                f"this method wants {wanted} further independent batch(es) per step: pass their "
                f"losses as samples=[{{task: loss, …}}, …]"
            )
        views = []
        for sample in samples[:wanted]:
            silent = [task for task in phase.tasks if task not in sample]
            if silent:
                raise ValueError(
                    f"{silent[0]!r} speaks in this call, but has no loss on a further batch: the "
                    "tasks of samples= must be those of the losses"
                )
            losses = [sample[task] for task in phase.tasks]
            stacked = torch.stack(losses, dim=-1)
            graph = Graph(
                losses,
                stacked,
                phase,
                blocks,
                None,
                door=self.door,
                chunk=self.chunking,
                factored=self.factored,
            )
            views.append(self._view(graph, phase.tasks, stacked, clock, ()))
        return views

    # Saving -----------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Names of the tasks, the step, who is shared, by name where known, and what was timed."""
        state = {"tasks": list(self.tasks or ()), "step": self._step, **self._sharing.state()}
        return {**state, "chunk": self.chunking.measured}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` gave."""
        self._step = state["step"]
        self.chunking.measured = state["chunk"]
        self._sharing.load_state(state)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # Bound first, so that the buffers that the state is to be loaded into exist.
        saved = state_dict.get(f"{prefix}_extra_state", {"tasks": []})
        if saved["tasks"]:
            self.bind(saved["tasks"])
        super()._load_from_state_dict(state_dict, prefix, *args)
