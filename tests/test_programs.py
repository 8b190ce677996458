"""The sum law, the weights law and the same-network law, on programs drawn at random.

The reference is `torch.autograd` and nothing of ours (see `programs`). A few programs of every
kind are drawn here; ``make programs`` draws many.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import Phase as Stage
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from evenhand import Aggregator, Balance, Balancer, Clock, TaskGradients
from evenhand import balancer as balancing
from evenhand.autodiff import walk
from evenhand.autodiff.ownership import Ownership
from evenhand.autodiff.union import Union
from evenhand.weighting.running import Running
from programs import (
    AT_FEATURES,
    KINDS,
    METHODS,
    PLANTS,
    WRAPPINGS,
    Head,
    Loss,
    Observer,
    Part,
    Program,
    Step,
    World,
    Wrapping,
    delivered,
    dense,
    gramian,
    law,
    programs,
)

DRAWS = int(os.environ.get("EVENHAND_PROGRAMS", "3"))
"""How many programs a test draws. ``make programs`` asks for many, and shrinks what fails."""

STAGES = [Stage.explicit, Stage.reuse, Stage.generate, *([Stage.shrink] if DRAWS > 20 else [])]
few = settings(max_examples=DRAWS, phases=STAGES)
more = settings(max_examples=8 * DRAWS, phases=STAGES)

RATE = 0.05


# The ways to call a balancer ------------------------------------------------------------------

Call = Callable[..., Balance]


def by_backward(balancer: Balancer, losses: Mapping[str, Tensor], **told: object) -> Balance:
    return balancer.backward(losses, **told)


def by_loss(balancer: Balancer, losses: Mapping[str, Tensor], **told: object) -> Balance:
    balancer.loss(losses, **told).backward()
    return balancer.last


both_ways = pytest.mark.parametrize("call", [by_backward, by_loss], ids=["backward", "loss"])


def balancer_for(program: Program, world: World) -> Balancer:
    weighting, aggregator = METHODS[program.method](program.names, program.known)
    learned = weighting is not None and weighting.traits.learned
    balancer = Balancer(
        weighting,
        aggregator,
        tasks=program.names if program.named or learned else None,
        jacobian=program.jacobian,
        factored=program.factored,
    )
    tell(balancer, program, world)
    return balancer


def tell(balancer: Balancer, program: Program, world: World) -> None:
    """What a user tells a balancer of a network before the first forward pass."""
    if program.route in ("model", "model+outputs"):
        balancer.attach(world.network)
    if program.route == "module":
        balancer.catch(world.trunk)


@contextmanager
def quietly() -> Iterator[None]:
    """What is said once (a parameter that nobody reaches, an absent task) is no failure here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


# Hooks ----------------------------------------------------------------------------------------


class Fired:
    """Counts how often the hooks of leaves, and of the trunk's layers, fire."""

    def __init__(self, leaves: Sequence[Tensor], modules: Sequence[nn.Module] = ()) -> None:
        self.count: Counter[str] = Counter()
        self.handles = []
        for k, leaf in enumerate(leaves):
            if leaf.requires_grad:
                self.handles += [
                    leaf.register_hook(lambda gradient, k=k: self._seen(f"hook of leaf {k}")),
                    leaf.register_post_accumulate_grad_hook(
                        lambda leaf, k=k: self._seen(f"accumulation of leaf {k}")
                    ),
                ]
        for k, module in enumerate(modules):
            self.handles.append(
                module.register_full_backward_hook(
                    lambda *_, k=k: self._seen(f"backward of module {k}")
                )
            )

    def _seen(self, what: str) -> None:
        self.count[what] += 1

    def __enter__(self) -> Counter[str]:
        return self.count

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


# The sum law ----------------------------------------------------------------------------------


def taken(leaves: Sequence[Tensor]) -> list[Tensor | None]:
    """The `.grad` of every leaf, taken away from it."""
    found = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return found


def descend(leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    with torch.no_grad():
        for leaf, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                leaf -= RATE * dense(gradient)


def follow_sum_law(program: Program, call: Call, hooks: bool = False) -> None:
    world = World(program)
    balancer = Balancer(tasks=program.names if program.named else None)
    tell(balancer, program, world)
    for step in range(program.steps):
        version = world.version
        (balancer,) = world.prepare(step, [balancer])
        if world.version != version:
            tell(balancer, program, world)
        leaves = world.leaves()
        watched = (leaves, list(world.trunk.layers)) if hooks else ([], [])
        with Fired(*watched) as expected_count, quietly():
            sum(world.forward().losses.values()).backward()
        expected = taken(leaves)
        with Fired(*watched) as count, quietly():
            forward = world.forward()
            call(balancer, forward.losses, features=forward.told)
        found = taken(leaves)
        for k, (one, other) in enumerate(zip(expected, found, strict=True)):
            where = f"step {step}, leaf {k} in {world.place(leaves[k])!r}"
            assert (one is None) == (other is None), f"{where}: {one} became {other}"
            if one is not None and other is not None:
                assert one.layout == other.layout, where
                assert one.dtype == other.dtype, where
                exact(dense(other), dense(one), where)
        assert count == expected_count
        descend(leaves, expected)


def exact(found: Tensor, expected: Tensor, where: str, size: float = 0.0) -> None:
    """Equal to 1e-12 of the largest entry (or of `size`, if that is larger)."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        found, expected, rtol=0, atol=1e-12 * max(size, largest), msg=lambda m: f"{where}: {m}"
    )


@both_ways
@pytest.mark.parametrize("kind", KINDS)
@few
@given(data=st.data())
def test_an_empty_balancer_is_the_sum(kind: str, call: Call, data: st.DataObject) -> None:
    follow_sum_law(data.draw(programs(kind, method="equal")), call)


@both_ways
@more
@given(data=st.data())
def test_hooks_fire_as_often_as_for_the_sum(call: Call, data: st.DataObject) -> None:
    """Those of leaves, before and after they accumulate, and those of modules."""
    follow_sum_law(data.draw(programs(method="equal")), call, hooks=True)


@both_ways
@few
@given(data=st.data())
def test_an_empty_balancer_gives_inputs_their_gradients(call: Call, data: st.DataObject) -> None:
    """A leaf that all losses use, such as the input, gets the sum like all else."""
    program = data.draw(programs("leaf", method="equal"))
    for k in range(len(program.losses)):
        program = beside_leaf(program, k)
    follow_sum_law(program, call)


def beside_leaf(program: Program, k: int) -> Program:
    losses = list(program.losses)
    losses[k] = replace(losses[k], beside=("leaf",))
    return replace(program, losses=tuple(losses))


# The weights law ------------------------------------------------------------------------------


class Twin:
    """The same methods, given the true numbers: what the weights should be."""

    def __init__(self, program: Program) -> None:
        self.names = program.names
        slots = METHODS[program.method](program.names, program.known)
        self.weighting, self.aggregator = (
            None if method is None else Running(method, self.names) for method in slots
        )

    @property
    def running(self) -> list[Running]:
        return [slot for slot in (self.weighting, self.aggregator) if slot is not None]

    @property
    def off_span(self) -> bool:
        return self.aggregator is not None and isinstance(self.aggregator.method, Aggregator)

    def view(self, step: Step, slot: Running, clock: Clock, noise: float = 0.0) -> TaskGradients:
        rows, positions = {
            "parameters": (step.rows, [k for k, shared in enumerate(step.balanced) if shared]),
            "representation": (step.at_features, range(100)),
            "last_layer": (
                step.rows,
                [k for k, p in enumerate(step.leaves) for q in step.world.last_layer() if p is q],
            ),
        }[slot.method.at]
        width = len(next(iter(rows.values())))
        matrix = gramian(rows, [k for k in positions if k < width])
        chance = torch.Generator().manual_seed(0)
        shake = 1 + noise * torch.randn(len(matrix), generator=chance, dtype=matrix.dtype)
        return self._of(step.losses, clock, gramian=shake[:, None] * matrix * shake)

    def _of(
        self, losses: Mapping[str, Tensor], clock: Clock, gramian: Tensor | None = None
    ) -> TaskGradients:
        return TaskGradients.of(
            gramian=gramian,
            losses=torch.stack(list(losses.values())),
            tasks=list(losses),
            index=torch.tensor([self.names.index(name) for name in losses]),
            total=len(self.names),
            clock=clock,
        )

    def weights(self, step: Step, clock: Clock, noise: float = 0.0) -> tuple[Tensor, Tensor]:
        """What multiplies each task's gradient in the heads, and in the trunk."""
        heads = torch.ones(len(step.losses), dtype=torch.float64)
        if self.weighting is not None:
            seen = self.view(step, self.weighting, clock, noise)
            heads = self.weighting.method.advance(seen, self.weighting.state).value.double()
        trunk = heads
        if self.aggregator is not None and not self.off_span:
            seen = self.view(step, self.aggregator, clock, noise).scaled(heads)
            value = self.aggregator.method.advance(seen, self.aggregator.state).value
            trunk = heads * value.double()
        return heads, trunk

    def learn(self, step: Step, clock: Clock) -> None:
        """Go on to the next state, with gradients of what is learned."""
        heads, _ = self.weights(step, clock)
        for slot in self.running:
            if slot.method.traits.reads_gradients and not any(step.balanced):
                continue
            if not (slot is self.aggregator and self.off_span):
                seen = self.view(step, slot, clock)
                slot(seen if slot is self.weighting else seen.scaled(heads))

    def updated(self, losses: Mapping[str, Tensor], clock: Clock) -> None:
        for slot in self.running:
            slot.after(self._of(losses, clock))


def follow_weights_law(
    program: Program,
    call: Call,
    wrapping: Wrapping | None = None,
    around: Callable[[nn.Module], nn.Module] | None = None,
    hooks: bool = False,
) -> None:
    world = World(program)
    if around is not None:
        world.runs = around(world.network)
    observer, twin = Observer(world), Twin(program)
    balancer = balancer_for(program, world)
    for number in range(program.steps):
        note(f"step {number}")
        version, before = world.version, world.leaves()
        (balancer,) = world.prepare(number, [balancer])
        leaves = world.leaves()
        if any((c.step, c.what) in ((number, "copy"), (number, "assign")) for c in program.changes):
            observer.account.moved(before, leaves)
        if world.version != version:
            tell(balancer, program, world)
        step = observer.look()
        meet = (wrapping is not None and wrapping.meets) or getattr(world.network, "fused", False)
        clock = Clock(step=number)
        if program.method in AT_FEATURES:
            reads = [any(g is not None and g.any() for g in r) for r in step.at_features.values()]
            assume(all(reads))
        with Fired(leaves if hooks else []) as fired:
            forward = world.forward(wrapping and wrapping.join)
            try:
                with quietly():
                    balance = call(balancer, forward.losses, features=forward.told, clock=clock)
            except ValueError as refusal:
                # Refused by name: nothing is shared, the graph cannot tell heads apart, Z does not
                # stand for what is shared, or torch cannot vectorise a sparse gradient.
                beyond = program.method in AT_FEATURES and program.kind == "round the features"
                sparse = program.kind == "sparse" and "jacobian='looped'" in str(refusal)
                if any(step.balanced) and not meet and not beyond and not sparse:
                    raise
                return
        found = taken(leaves)
        check_delivery(step, balance, found, twin.off_span, meet)
        for k, leaf in enumerate(leaves if hooks else ()):
            wanted = int(step.reached(k) or (meet and found[k] is not None))
            counts = fired[f"hook of leaf {k}"], fired[f"accumulation of leaf {k}"]
            assert counts == (wanted, wanted), f"leaf {k} in {world.place(leaf)!r}: {counts}"
        check_weights(step, balance, twin, clock)
        twin.learn(step, clock)
        check_learned(balancer, twin)
        descend(leaves, found)
        if any(slot.method.traits.after for slot in twin.running):
            after = {name: loss.detach() for name, loss in world.forward().losses.items()}
            balancer.updated(after, clock)
            twin.updated(after, clock)


def follow_accumulation(program: Program, call: Call) -> None:
    """The weights law for batches that are handed over in two parts."""
    world = World(program)
    observer, twin = Observer(world), Twin(program)
    balancer = balancer_for(program, world)
    parts = (slice(0, 2), slice(2, None))
    for number in range(program.steps):
        note(f"step {number}")
        version = world.version
        world.prepare(number)
        if world.version != version:
            tell(balancer, program, world)
        step, clock = observer.look(parts), Clock(step=number)
        if program.method in AT_FEATURES:
            reads = [any(g is not None and g.any() for g in r) for r in step.at_features.values()]
            assume(all(reads))
        assume(any(step.balanced))
        with quietly():
            world.part = parts[0]
            forward = world.forward()
            balancer.accumulate(forward.losses, features=forward.told)
            assert all(leaf.grad is None for leaf in step.leaves)
            world.part = parts[1]
            forward = world.forward()
            balance = call(balancer, forward.losses, features=forward.told, clock=clock)
        world.part = slice(None)
        found = taken(step.leaves)
        meet = getattr(world.network, "fused", False)
        check_delivery(step, balance, found, twin.off_span, meet)
        check_weights(step, balance, twin, clock)
        twin.learn(step, clock)
        check_learned(balancer, twin)
        descend(step.leaves, found)
        if any(slot.method.traits.after for slot in twin.running):
            after = {name: loss.detach() for name, loss in world.forward().losses.items()}
            balancer.updated(after, clock)
            twin.updated(after, clock)


def check_delivery(
    step: Step, balance: Balance, found: Sequence[Tensor | None], off_span: bool, apart: bool
) -> None:
    """`.grad` = Σ w_i ∂L_i/∂p with the weights that the balance reports.

    `apart`: the call saw heads that meet in the graph, so one that is not read may get zeros.
    """
    assert balance.tasks == tuple(step.losses)
    assert balance.weights is not None
    heads = dict(zip(balance.tasks, balance.weights.tolist(), strict=True))
    trunk = heads
    if balance.trunk_weights is not None:
        trunk = dict(zip(balance.tasks, balance.trunk_weights.tolist(), strict=True))
    largest = max(map(abs, [*heads.values(), *trunk.values()]))
    for k, gradient in enumerate(found):
        where = f"leaf {k} in {step.world.place(step.leaves[k])!r}"
        if off_span and step.balanced[k]:
            check_sign_dropout(step, k, gradient, heads, where)
            continue
        if balance.trunk_weights is None:
            assert off_span or not step.balanced[k] or not step.reached(k), where
        expected = delivered(step, k, law(step, k), trunk, heads)
        if apart and expected is None and gradient is not None:
            expected = torch.zeros_like(dense(gradient))
        assert (expected is None) == (gradient is None), f"{where}: {gradient}, not {expected}"
        if expected is not None and gradient is not None:
            assert gradient.dtype == step.leaves[k].dtype, where
            exact(dense(gradient), expected, where, size=largest * step.size(k))


def check_sign_dropout(
    step: Step, k: int, gradient: Tensor | None, heads: Mapping[str, float], where: str
) -> None:
    """GradDrop: in every coordinate the sum of the positive entries, or of the negative ones."""
    rows = [heads[n] * dense(row[k]) for n, row in step.rows.items() if row[k] is not None]
    assert (gradient is None) == (not rows), where
    if gradient is None or not gradient.numel():
        return
    if gradient.is_complex():
        rows, gradient = [torch.view_as_real(row) for row in rows], torch.view_as_real(gradient)
    stacked = torch.stack(rows)
    up, down = stacked.clamp_min(0).sum(0), stacked.clamp_max(0).sum(0)
    near = 1e-12 * float(stacked.abs().sum(0).max())
    found = dense(gradient)
    kept_up = ((found - up).abs() <= near) & ((up > 0) | (down == 0))
    kept_down = ((found - down).abs() <= near) & ((down < 0) | (up == 0))
    assert bool((kept_up | kept_down).all()), f"{where}: {found} is neither {up} nor {down}"


def check_weights(step: Step, balance: Balance, twin: Twin, clock: Clock) -> None:
    """The weights are the method's for the true Gramian, where rounding cannot turn them."""
    shaken = twin.weights(step, clock, noise=1e-9)
    heads, trunk = twin.weights(step, clock)
    for found, expected, other in (
        (balance.weights, heads, shaken[0]),
        (balance.trunk_weights, trunk, shaken[1]),
    ):
        if found is None or not any(step.balanced):
            continue
        size = float(expected.abs().max())
        if float((expected - other).abs().max()) > 1e-5 * size:
            continue  # a draw on which the last bits decide
        torch.testing.assert_close(
            found.double(), expected, rtol=0, atol=2e-5 * size, msg=lambda m: f"weights: {m}"
        )


def check_learned(balancer: Balancer, twin: Twin) -> None:
    """Learned weights get the same gradients, and are moved alike."""
    expected = [p for slot in twin.running for p in slot.parameters()]
    for one, other in zip(balancer.parameters(), expected, strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)
            with torch.no_grad():
                one -= RATE * one.grad
                other -= RATE * other.grad
            one.grad = other.grad = None


@both_ways
@pytest.mark.parametrize("kind", KINDS)
@few
@given(data=st.data())
def test_the_weights_law_for_every_kind(kind: str, call: Call, data: st.DataObject) -> None:
    follow_weights_law(data.draw(programs(kind)), call)


@both_ways
@pytest.mark.parametrize("method", METHODS)
@few
@given(data=st.data())
def test_the_weights_law_for_every_method(method: str, call: Call, data: st.DataObject) -> None:
    follow_weights_law(data.draw(programs(method=method)), call)


ACCUMULATED = ("unlike names", "losses on one head", "late", "absent", "next fold", "scale")


@both_ways
@more
@given(data=st.data())
def test_the_weights_law_over_micro_batches(call: Call, data: st.DataObject) -> None:
    """One solve over the whole batch, whatever the micro-batches are."""
    program = data.draw(programs(data.draw(st.sampled_from(ACCUMULATED))))
    follow_accumulation(program, call)


@both_ways
@more
@given(data=st.data())
def test_the_hooks_of_leaves_fire_once(call: Call, data: st.DataObject) -> None:
    """On what is delivered, and never in passes that only look."""
    follow_weights_law(data.draw(programs()), call, hooks=True)


# The same network in a wrapper ----------------------------------------------------------------

APART = ("unlike names", "a loss over heads", "two views", "decay", "passing", "absent", "late")
"""Kinds in which one head, at least, is one task's own, or which tell heads apart."""


@both_ways
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@more
@given(data=st.data())
def test_the_same_network_in_a_wrapper(wrapping: str, call: Call, data: st.DataObject) -> None:
    """The same weights and gradients; or an error, where heads meet in the graph."""
    kind = data.draw(st.sampled_from(APART))
    follow_weights_law(data.draw(programs(kind)), call, wrapping=WRAPPINGS[wrapping])


@both_ways
@pytest.mark.parametrize("wrapping", [name for name, w in WRAPPINGS.items() if w.meets])
@pytest.mark.parametrize("method", ["mgda", "mgda-ub", "upgrad", "graddrop", "uncertainty"])
def test_a_known_network_needs_no_refusal(method: str, wrapping: str, call: Call) -> None:
    """Heads meet in the graph, but the network tells whose they are."""
    program = Program(
        kind="known",
        seed=3,
        heads=(Head(), Head("mlp"), Head()),
        losses=(Loss((Part(0),)), Loss((Part(1),), size=3.0), Loss((Part(2),))),
        names=("h0", "h1", "h2"),
        network="multitask",
        route="model+outputs",
        method=method,
    )
    joined = WRAPPINGS[wrapping].join
    world, twin = World(program), Twin(program)
    observer = Observer(world)
    balancer = balancer_for(program, world)
    for number in range(2):
        world.prepare(number)
        step, forward = observer.look(), world.forward(joined)
        clock = Clock(step=number)
        with quietly():
            balance = call(balancer, forward.losses, features=forward.told, clock=clock)
        found = taken(step.leaves)
        check_delivery(step, balance, found, twin.off_span, True)
        check_weights(step, balance, twin, clock)
        twin.learn(step, clock)
        check_learned(balancer, twin)
        descend(step.leaves, found)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one."""
    place = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def in_ddp(network: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)


@both_ways
@more
@given(data=st.data())
def test_the_same_network_in_ddp(one_process: None, call: Call, data: st.DataObject) -> None:
    """Its reducer, which waits for every accumulation node, too."""
    kind = data.draw(st.sampled_from(["unlike names", "decay", "losses on one head"]))
    program = data.draw(programs(kind))
    used = {part.head for loss in program.losses for part in loss.parts}
    assume(len(used) == len(program.heads))  # DDP wants every output to take part in the loss
    program = replace(program, fused=False, route="none", method="mgda")
    follow_weights_law(program, call, around=in_ddp)


@few
@given(data=st.data())
def test_heads_that_meet_change_their_result_under_a_planted_bug(data: st.DataObject) -> None:
    """To take every node that several tasks pass for shared gives heads other weights."""
    shows_its_bug(data.draw(programs("unlike names")), "nodes")


# Each kind would notice its bug ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@few
@given(data=st.data())
def test_each_kind_changes_its_result_under_a_planted_bug(kind: str, data: st.DataObject) -> None:
    """Somebody who decides ownership so wrongly leaves other gradients than the law says."""
    shows_its_bug(data.draw(programs(kind)), KINDS[kind].plant)


def shows_its_bug(program: Program, plant: str) -> None:
    world = World(program)
    observer = Observer(world)
    heads = {name: 1.0 + 0.1 * k for k, name in enumerate(program.names)}
    trunk = {name: 0.3 + 0.35 * k for k, name in enumerate(program.names)}
    worst = 0.0
    for number in range(program.steps):
        before = world.leaves()
        world.prepare(number)
        if plant == "this call" and len(before) == len(world.leaves()):
            observer.account.moved(before, world.leaves())
        step = observer.look()
        for k in range(len(step.leaves)):
            right = delivered(step, k, law(step, k), trunk, heads)
            wrong = delivered(step, k, PLANTS[plant](step, k), trunk, heads)
            if right is None or not right.numel():
                continue
            apart = right if wrong is None else right - wrong
            worst = max(worst, float(apart.abs().max()) / max(step.size(k), 1e-300))
    assert worst > 1e-3, f"the bug {plant!r} goes unseen"


# A bug planted in the balancer itself -----------------------------------------------------------


def _first_call_for_ever(patch: pytest.MonkeyPatch) -> None:
    """Who has reached a leaf is never added to."""
    add = Union.add

    def kept(union: Union, leaf: Tensor, mask: int, seen: int = 0) -> int:
        return union.of(leaf) or add(union, leaf, mask, seen)

    patch.setattr(Union, "add", kept)


def _every_call_anew(patch: pytest.MonkeyPatch) -> None:
    """Who has reached a leaf is forgotten."""
    add = Union.add

    def renewed(union: Union, leaf: Tensor, mask: int, seen: int = 0) -> int:
        union._masks.pop(id(leaf), None)
        return add(union, leaf, mask, seen)

    patch.setattr(Union, "add", renewed)


def _copied_without(patch: pytest.MonkeyPatch) -> None:
    """A copy of a balancer begins anew."""
    patch.setattr(Ownership, "__deepcopy__", lambda ownership, memo: Ownership())


def _joins_unseen(patch: pytest.MonkeyPatch) -> None:
    """A cat is a node like any other."""
    patch.setattr(walk, "_joins", lambda kind: False)


def _straight_into_grad(patch: pytest.MonkeyPatch) -> None:
    """Gradients reach `.grad` by a side door."""

    def written(leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        for leaf, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                leaf.grad = gradient

    patch.setattr(balancing, "deliver", written)


PLANTED: Mapping[str, tuple[Callable[[pytest.MonkeyPatch], None], str, str | None]] = {
    "the first call holds for ever": (_first_call_for_ever, "late", None),
    "the first call holds for experts": (_first_call_for_ever, "experts", None),
    "every call is decided anew": (_every_call_anew, "absent", None),
    "a copy begins anew": (_copied_without, "copied", None),
    "a cat is no join": (_joins_unseen, "unlike names", "cat"),
    "gradients by a side door": (_straight_into_grad, "decay", None),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_bug_planted_in_the_balancer_is_noticed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, kind, wrapping = PLANTED[name]
    noticed = settings(
        max_examples=10,
        phases=[Stage.generate],
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
    )

    @noticed
    @given(program=programs(kind, method="fixed"))
    def follow(program: Program) -> None:
        follow_weights_law(
            program, by_backward, wrapping=WRAPPINGS[wrapping] if wrapping else None, hooks=True
        )

    plant(monkeypatch)
    with pytest.raises(AssertionError):
        follow()
