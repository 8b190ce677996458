"""`Balancer.loss`, a scalar whose ordinary backward is the balanced update; and `accumulate`.

What is expected is computed by `torch.autograd.grad` (see `programs`), for every method there.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from evenhand import MGDA, Balance, Balancer, Clock, GradDrop, MultiTaskNetwork, NonFiniteError
from programs import (
    AT_FEATURES,
    DTYPE,
    LOSS_BASED,
    METHODS,
    Forward,
    Head,
    Loss,
    Observer,
    Part,
    Program,
    Step,
    World,
    dense,
)
from test_programs import balancer_for, exact, quietly, taken

pytestmark = pytest.mark.filterwarnings("ignore:FAMO was not told")

NAMES = ("a", "b", "c")
IN_SPAN = tuple(name for name in METHODS if name != "graddrop")

every_method = pytest.mark.parametrize("method", METHODS)
in_span = pytest.mark.parametrize("method", IN_SPAN)


def program(method: str, network: str = "plain", **changes: object) -> Program:
    """Three losses, each with a head of its own; loss c uses its head twice."""
    losses = (
        Loss((Part(0),)),
        Loss((Part(1),), size=3.0),
        Loss((Part(2), Part(2, 0.5)), decay=(2,), size=0.5),
    )
    route = {"plain": "features" if method in AT_FEATURES else "none", "multitask": "outputs"}
    settings = {"route": route[network], "trunk": ("linear", "mlp"), "steps": 3} | changes
    return Program(
        "", 5, (Head(), Head(), Head("mlp")), losses, NAMES, network, method=method, **settings
    )


class Run:
    """A program, a balancer for it, and what autograd says of each step."""

    def __init__(self, method: str, network: str = "plain", **changes: object) -> None:
        self.program = program(method, network, **changes)
        self.world = World(self.program)
        self.balancer = balancer_for(self.program, self.world)
        self.observer = Observer(self.world)
        self.number = -1

    def step(self) -> Step:
        self.number += 1
        self.world.prepare(self.number)
        return self.observer.look()

    def forward(self) -> Forward:
        return self.world.forward()

    def loss(self, forward: Forward) -> Tensor:
        return self.balancer.loss(
            forward.losses, features=forward.told, clock=Clock(step=self.number)
        )

    def backward(self, forward: Forward, **more: object) -> Balance:
        return self.balancer.backward(
            forward.losses, features=forward.told, clock=Clock(step=self.number), **more
        )

    def call(self, forward: Forward, route: str) -> Balance:
        """By `backward`, or by the backward of `loss`."""
        if route == "backward":
            return self.backward(forward)
        self.loss(forward).backward()
        return self.balancer.last

    @property
    def leaves(self) -> list[Tensor]:
        return self.world.leaves()


def state(balancer: Balancer) -> dict[str, object]:
    """All that a balancer remembers, learned weights included."""
    return copy.deepcopy(balancer.state_dict())


def same_state(one: Mapping[str, object], other: Mapping[str, object]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(other[name], value, rtol=0, atol=0, equal_nan=True)
        else:
            assert other[name] == value, name


def expected(step: Step, balance: Balance) -> list[Tensor | None]:
    """Σ w_i ∂L_i/∂p with the weights that the balance reports."""
    heads = dict(zip(balance.tasks, balance.weights.tolist(), strict=True))
    trunk = dict(zip(balance.tasks, balance.trunk_weights.tolist(), strict=True))
    return [step.mixed(k, trunk if both else heads) for k, both in enumerate(step.balanced)]


def alike(found: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> None:
    for k, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert (one is None) == (other is None), k
        if one is not None and other is not None:
            exact(dense(one), dense(other), f"leaf {k}", size=1.0)


# The scalar -----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["plain", "multitask"])
@every_method
def test_its_backward_is_the_balancers(method: str, network: str) -> None:
    """Gradients, balance and state after each step are those of `backward`."""
    ours, theirs = Run(method, network), Run(method, network)
    for _ in range(3):
        ours.step(), theirs.step()
        ours.loss(ours.forward()).backward()
        balance = theirs.backward(theirs.forward())
        last = ours.balancer.last
        assert last.tasks == balance.tasks
        torch.testing.assert_close(last.losses, balance.losses)
        for one, other in (
            (last.weights, balance.weights),
            (last.trunk_weights, balance.trunk_weights),
        ):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other)
        alike(taken(ours.leaves), taken(theirs.leaves))
        alike(taken(list(ours.balancer.parameters())), taken(list(theirs.balancer.parameters())))
        ours_state, theirs_state = state(ours.balancer), state(theirs.balancer)
        assert ours_state.keys() == theirs_state.keys()
        for name, value in ours_state.items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(value, theirs_state[name])


@pytest.mark.parametrize("method", ["fixed-weighting", "uncertainty", "rlw", "famo"])
def test_its_value_has_the_weights_that_losses_decide(method: str) -> None:
    run = Run(method)
    run.step()
    forward = run.forward()
    scalar = run.loss(forward)
    value = float(scalar.detach())
    assert scalar.shape == ()
    scalar.backward()
    weights = run.balancer.last.weights.double()
    losses = torch.stack([loss.detach() for loss in forward.losses.values()])
    assert value == pytest.approx(float(weights @ losses), rel=1e-6)


@pytest.mark.parametrize("method", ["mgda", "upgrad", "central", "graddrop", "equal", "mgda-ub"])
def test_its_value_is_the_plain_sum_where_gradients_decide(method: str) -> None:
    run = Run(method)
    run.step()
    forward = run.forward()
    total = sum(float(loss.detach()) for loss in forward.losses.values())
    assert float(run.loss(forward).detach()) == pytest.approx(total, rel=1e-12)


@every_method
def test_without_gradients_it_is_a_value_and_leaves_no_trace(method: str) -> None:
    run, control = Run(method), Run(method)
    for _ in range(2):
        run.step(), control.step()
        before, last = state(run.balancer), getattr(run.balancer, "last", None)
        with torch.no_grad():
            scalar = run.loss(run.forward())
        assert not scalar.requires_grad
        assert scalar.isfinite()
        same_state(state(run.balancer), before)
        assert getattr(run.balancer, "last", None) is last
        run.loss(run.forward()).backward()
        control.loss(control.forward()).backward()
        same_state(state(run.balancer), state(control.balancer))
        alike(taken(run.leaves), taken(control.leaves))


def test_without_gradients_it_may_be_the_first_call() -> None:
    """Trainers look at the validation set before they train; then too the tasks stay open."""
    run = Run("mgda", named=False)
    run.world.prepare(0)
    run.number = 0
    with torch.no_grad():
        run.loss(run.forward())
    assert run.balancer.tasks == ()


@every_method
def test_a_scalar_that_is_never_gone_through_leaves_no_history(method: str) -> None:
    run, control = Run(method), Run(method)
    run.step(), control.step()
    run.loss(run.forward())
    run.loss(run.forward()).backward()
    control.loss(control.forward()).backward()
    same_state(state(run.balancer), state(control.balancer))
    alike(taken(run.leaves), taken(control.leaves))


@every_method
def test_a_second_backward_repeats_the_weights_and_writes_no_history(method: str) -> None:
    run = Run(method)
    run.step()
    scalar = run.loss(run.forward())
    scalar.backward(retain_graph=True)
    first, before = taken(run.leaves), state(run.balancer)
    weights = run.balancer.last.weights
    scalar.backward()
    alike(taken(run.leaves), first)
    same_state(state(run.balancer), before)
    torch.testing.assert_close(run.balancer.last.weights, weights, rtol=0, atol=0)


@every_method
def test_gradients_add_up_as_for_any_loss(method: str) -> None:
    run = Run(method)
    run.step()
    forward = run.forward()
    run.loss(forward).backward()
    once = [None if p.grad is None else p.grad.clone() for p in run.leaves]
    for leaf, gradient in zip(run.leaves, once, strict=True):
        leaf.grad = None if gradient is None else torch.ones_like(gradient)
    again = Run(method)
    again.step()
    for leaf, gradient in zip(again.leaves, once, strict=True):
        leaf.grad = None if gradient is None else torch.ones_like(gradient)
    again.loss(again.forward()).backward()
    alike(taken(again.leaves), [None if g is None else g + 1 for g in once])


# Scale ----------------------------------------------------------------------------------------


@every_method
def test_the_incoming_gradient_scales_everything_alike(method: str) -> None:
    run, scaled = Run(method), Run(method)
    run.step(), scaled.step()
    run.loss(run.forward()).backward()
    (1024 * scaled.loss(scaled.forward())).backward()
    torch.testing.assert_close(scaled.balancer.last.weights, run.balancer.last.weights)
    torch.testing.assert_close(scaled.balancer.last.losses, run.balancer.last.losses)
    ours = [*run.leaves, *run.balancer.parameters()]
    theirs = [*scaled.leaves, *scaled.balancer.parameters()]
    alike(taken(theirs), [None if g is None else 1024 * g for g in taken(ours)])
    for name, value in state(run.balancer).items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(state(scaled.balancer)[name], value)


@pytest.mark.parametrize("method", ["uncertainty", "gradnorm", "uncertainty+mgda"])
def test_learned_weights_carry_the_scale_of_backward_too(method: str) -> None:
    run, scaled = Run(method, "multitask"), Run(method, "multitask")
    run.step(), scaled.step()
    run.backward(run.forward())
    scaled.backward(scaled.forward(), scale=256.0)
    ours = [*run.leaves, *run.balancer.parameters()]
    theirs = [*scaled.leaves, *scaled.balancer.parameters()]
    alike(taken(theirs), [None if g is None else 256 * g for g in taken(ours)])


# Hooks and optimizers -------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["backward", "loss"])
@pytest.mark.parametrize("network", ["plain", "multitask"])
@every_method
def test_a_doubling_hook_doubles_what_is_delivered_once(
    method: str, network: str, route: str
) -> None:
    run, plain = Run(method, network), Run(method, network)
    run.step(), plain.step()
    calls = dict.fromkeys(range(len(run.leaves)), 0)

    def double(gradient: Tensor, k: int) -> Tensor:
        calls[k] += 1
        return 2 * gradient

    for k, leaf in enumerate(run.leaves):
        leaf.register_hook(lambda gradient, k=k: double(gradient, k))
    for one in (run, plain):
        one.call(one.forward(), route)
    assert set(calls.values()) == {1}
    alike(taken(run.leaves), [None if g is None else 2 * g for g in taken(plain.leaves)])


@pytest.mark.parametrize("route", ["backward", "loss"])
@every_method
def test_a_clamping_hook_clamps_what_is_delivered(method: str, route: str) -> None:
    """And nothing that methods look at: their weights are the same."""
    run, plain = Run(method), Run(method)
    run.step(), plain.step()
    for leaf in run.leaves:
        leaf.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))
    balances = []
    for one in (run, plain):
        balances.append(one.call(one.forward(), route))
    torch.testing.assert_close(balances[0].weights, balances[1].weights)
    wanted = [None if g is None else g.clamp(-1e-3, 1e-3) for g in taken(plain.leaves)]
    alike(taken(run.leaves), wanted)


@pytest.mark.parametrize("network", ["plain", "multitask"])
@every_method
def test_an_optimizer_may_step_inside_the_backward(method: str, network: str) -> None:
    """Each parameter is stepped as soon as it has its gradient, which is then given up."""
    inside, after = Run(method, network), Run(method, network)

    def step(leaf: Tensor) -> None:
        with torch.no_grad():
            leaf -= 0.1 * leaf.grad
        leaf.grad = None

    for leaf in inside.leaves:
        leaf.register_post_accumulate_grad_hook(step)
    for _ in range(2):
        inside.step(), after.step()
        inside.loss(inside.forward()).backward()
        after.loss(after.forward()).backward()
        assert all(leaf.grad is None for leaf in inside.leaves)
        for leaf in after.leaves:
            step(leaf)
    alike([p.detach() for p in inside.leaves], [p.detach() for p in after.leaves])


# What is not finite ---------------------------------------------------------------------------


class Broken(torch.autograd.Function):
    """The identity; its gradient is NaN."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * float("nan")


@pytest.mark.parametrize("route", ["backward", "loss"])
@pytest.mark.parametrize("where", ["trunk", "head"])
@every_method
def test_a_nan_inside_the_backward_leaves_everything_untouched(
    method: str, where: str, route: str
) -> None:
    run, control = Run(method), Run(method)
    for one in (run, control):
        one.step()
        one.backward(one.forward())
    before = state(run.balancer)
    kept = [None if p.grad is None else p.grad.clone() for p in run.leaves]
    learned = [None if p.grad is None else p.grad.clone() for p in run.balancer.parameters()]
    run.step(), control.step()
    fired: list[int] = []
    handles = []
    for k, leaf in enumerate(run.leaves):
        handles.append(leaf.register_hook(lambda _, k=k: fired.append(k)))
        handles.append(leaf.register_post_accumulate_grad_hook(lambda _, k=k: fired.append(k)))
    broken = run.world.trunk.layers[0] if where == "trunk" else run.world.heads[1]
    handle = broken.register_forward_hook(lambda module, args, out: Broken.apply(out))
    forward = run.forward()
    handle.remove()
    with pytest.raises(NonFiniteError):
        run.call(forward, route)
    assert not fired
    alike([p.grad for p in run.leaves], kept)
    alike([p.grad for p in run.balancer.parameters()], learned)
    same_state(state(run.balancer), before)
    for handle in handles:
        handle.remove()
    for one in (run, control):
        taken(one.leaves)
        taken(list(one.balancer.parameters()))
        one.backward(one.forward())
    alike(taken(run.leaves), taken(control.leaves))


@every_method
def test_a_nan_steps_no_optimizer_inside_the_backward(method: str) -> None:
    run = Run(method)
    run.step()
    values = [p.detach().clone() for p in run.leaves]

    def step(leaf: Tensor) -> None:
        with torch.no_grad():
            leaf -= 0.1 * leaf.grad
        leaf.grad = None

    for leaf in run.leaves:
        leaf.register_post_accumulate_grad_hook(step)
    handle = run.world.heads[1].register_forward_hook(lambda m, args, out: Broken.apply(out))
    forward = run.forward()
    handle.remove()
    with pytest.raises(NonFiniteError):
        run.loss(forward).backward()
    alike([p.detach() for p in run.leaves], values)


@every_method
def test_a_loss_that_is_not_finite_names_its_task(method: str) -> None:
    run = Run(method)
    run.step()
    forward = run.forward()
    forward.losses["b"] = forward.losses["b"] * float("nan")
    with pytest.raises(NonFiniteError, match="'b'"):
        run.loss(forward).backward()
    assert all(leaf.grad is None for leaf in run.leaves)


# Terms beside ---------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["plain", "multitask"])
@every_method
def test_terms_added_outside_are_added(method: str, network: str) -> None:
    """A decay of weights, which shares no graph with the losses."""
    run, plain = Run(method, network), Run(method, network)
    run.step(), plain.step()
    penalty = sum(p.square().sum() for p in run.leaves)
    (run.loss(run.forward()) + 0.3 * penalty).backward()
    plain.loss(plain.forward()).backward()
    wanted = [
        0.6 * p.detach() + (0 if g is None else g)
        for p, g in zip(plain.leaves, taken(plain.leaves), strict=True)
    ]
    alike(taken(run.leaves), wanted)


@pytest.mark.parametrize("network", ["plain", "multitask"])
@every_method
def test_terms_that_share_the_graph_are_added_or_refused(method: str, network: str) -> None:
    """A penalty on the features: its gradient goes through the trunk that the losses passed."""
    run, plain = Run(method, network), Run(method, network)
    run.step(), plain.step()
    forward = run.forward()
    penalty = forward.features.square().mean()
    alone = torch.autograd.grad(penalty, run.leaves, retain_graph=True, allow_unused=True)
    scalar = run.loss(forward) + penalty
    try:
        scalar.backward()
    except (ValueError, RuntimeError) as refusal:
        if "plus=" not in str(refusal):
            raise
        return
    plain.loss(plain.forward()).backward()
    wanted = [
        None if g is None and p is None else (0 if g is None else g) + (0 if p is None else p)
        for g, p in zip(taken(plain.leaves), alone, strict=True)
    ]
    alike(taken(run.leaves), wanted)


@every_method
def test_plus_is_nobodys_task(method: str) -> None:
    run, plain = Run(method), Run(method)
    run.step(), plain.step()
    forward = run.forward()
    penalty = forward.features.square().mean()
    alone = torch.autograd.grad(penalty, run.leaves, retain_graph=True, allow_unused=True)
    run.balancer.loss(
        forward.losses, features=forward.told, clock=Clock(step=0), plus=penalty
    ).backward()
    plain.loss(plain.forward()).backward()
    wanted = [
        None if g is None and p is None else (0 if g is None else g) + (0 if p is None else p)
        for g, p in zip(taken(plain.leaves), alone, strict=True)
    ]
    alike(taken(run.leaves), wanted)


# What stays alive -----------------------------------------------------------------------------


class Saved:
    """A tensor that some node of a graph has saved for its backward."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach().clone()  # of its own, whoever else holds the activation


@pytest.mark.parametrize("network", ["plain", "multitask"])
@pytest.mark.parametrize("route", ["loss", "backward"])
@every_method
def test_no_activation_outlives_the_backward(method: str, route: str, network: str) -> None:
    """Although the user holds the scalar, the losses and the balancer."""
    run = Run(method, network)
    run.step()
    alive: list[weakref.ref[Saved]] = []

    def pack(tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        alive.append(weakref.ref(saved))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        forward = run.forward()
    forward.features = None
    assert any(ref() is not None for ref in alive)
    scalar = run.loss(forward) if route == "loss" else run.backward(forward).losses
    forward.told = None
    if route == "loss":
        scalar.backward()
    assert scalar.isfinite().all()
    assert [loss.isfinite() for loss in forward.losses.values()]
    assert not [ref for ref in alive if ref() is not None]


@pytest.mark.parametrize("method", ["mgda", "mgda-ub", "fixed-weighting", "graddrop"])
def test_features_are_let_go(method: str) -> None:
    """The features themselves too: neither the balancer nor the scalar holds them."""
    run = Run(method, "multitask")
    run.step()
    forward = run.forward()
    held = weakref.ref(forward.features)
    scalar = run.loss(forward)
    losses = forward.losses
    del forward
    scalar.backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert held() is None


# The module that makes the features -----------------------------------------------------------


@pytest.mark.parametrize("network", ["plain", "multitask"])
@every_method
def test_the_module_does_as_well_as_its_outputs(method: str, network: str) -> None:
    run = Run(method, network, route="module")
    control = Run(method, network, route="features")
    for _ in range(2):
        run.step(), control.step()
        run.loss(run.forward()).backward()
        control.loss(control.forward()).backward()
        torch.testing.assert_close(run.balancer.last.weights, control.balancer.last.weights)
        alike(taken(run.leaves), taken(control.leaves))


def test_an_evaluation_in_between_does_no_harm() -> None:
    """Forward passes without a graph, and one whose graph no loss reaches, are not used."""
    run, control = Run("mgda-ub", route="module"), Run("mgda-ub", route="features")
    for _ in range(2):
        run.step(), control.step()
        forward = run.forward()
        with torch.no_grad():
            run.forward()
        idle = run.forward()
        run.loss(forward).backward()
        control.loss(control.forward()).backward()
        assert idle.losses
        torch.testing.assert_close(
            run.balancer.last.trunk_weights, control.balancer.last.trunk_weights
        )
        alike(taken(run.leaves), taken(control.leaves))


def test_all_outputs_that_the_losses_reach_are_used() -> None:
    """Two forward passes, each task's loss from one of them, or from both: Z is both outputs."""
    run = Run("mgda-ub", route="module")
    run.step()
    world, x = run.world, run.world.inputs()
    balancer = Balancer(aggregator=MGDA(at="representation"))
    balancer.catch(world.trunk)
    for _ in range(2):
        zs = [world.trunk(x), world.trunk(-x)]
        a = world.heads[0](zs[0]).square().mean() + world.heads[0](zs[1]).sum()
        b = (world.heads[1](zs[1]) - 1).square().mean()
        rows = [
            torch.cat(
                [
                    torch.zeros(z.numel(), dtype=DTYPE) if g is None else g.flatten()
                    for z, g in zip(
                        zs,
                        torch.autograd.grad(loss, zs, retain_graph=True, allow_unused=True),
                        strict=True,
                    )
                ]
            )
            for loss in (a, b)
        ]
        g = torch.stack(rows) @ torch.stack(rows).T
        share = ((g[1, 1] - g[0, 1]) / (g[0, 0] + g[1, 1] - 2 * g[0, 1])).clamp(0, 1)
        balance = balancer.backward({"a": a, "b": b}, features=world.trunk)
        torch.testing.assert_close(
            balance.trunk_weights, torch.stack([share, 1 - share]), rtol=1e-8, atol=1e-8
        )


# Accumulation ---------------------------------------------------------------------------------

PIECES = 3


class Micro:
    """A run over whole batches of twelve samples, or over three parts of four."""

    def __init__(
        self, method: str, network: str, route: str | None = None, replay: bool = False
    ) -> None:
        torch.manual_seed(3)
        told = route or ("module" if method in AT_FEATURES else "none")
        self.run = Run(method, network, **({"route": told}))
        self.route = told
        if replay:
            self.run.balancer.catch(self.run.world.trunk, replay=True)

    def losses(self, step: int, part: slice, share: float) -> tuple[dict[str, Tensor], object]:
        world = self.run.world
        chance = torch.Generator().manual_seed(step)
        x = torch.randn(12, 3, generator=chance, dtype=DTYPE)[part]
        y = torch.randn(12, 3, 1, generator=chance, dtype=DTYPE)[part]
        outputs = world.network(x)
        losses = {
            name: share * (k + 0.5) * (outputs[f"h{k}"] - y[:, k]).square().mean()
            for k, name in enumerate(NAMES)
        }
        told = {"module": world.trunk, "none": None, "outputs": outputs}[self.route]
        return losses, told

    def whole(self, step: int, call: Callable[..., Balance]) -> Balance:
        losses, told = self.losses(step, slice(None), 1.0)
        return call(self.run.balancer, losses, features=told, clock=Clock(step=step))

    def parts(self, step: int, call: Callable[..., Balance]) -> Balance:
        for k in range(PIECES):
            losses, told = self.losses(step, slice(4 * k, 4 * k + 4), 1 / PIECES)
            if k < PIECES - 1:
                self.run.balancer.accumulate(losses, features=told)
        return call(self.run.balancer, losses, features=told, clock=Clock(step=step))


def by_backward(balancer: Balancer, losses: Mapping[str, Tensor], **told: object) -> Balance:
    return balancer.backward(losses, **told)


def by_loss(balancer: Balancer, losses: Mapping[str, Tensor], **told: object) -> Balance:
    balancer.loss(losses, **told).backward()
    return balancer.last


@pytest.mark.parametrize("call", [by_backward, by_loss], ids=["backward", "loss"])
@pytest.mark.parametrize("network", ["plain", "multitask"])
@every_method
def test_accumulated_batches_equal_the_large_one(
    method: str, network: str, call: Callable[..., Balance]
) -> None:
    """One solve over all of them; state and chance advance once."""
    many, one = Micro(method, network), Micro(method, network)
    for step in range(2):
        with quietly():
            balance, wanted = many.parts(step, call), one.whole(step, call)
        torch.testing.assert_close(balance.losses, wanted.losses, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(balance.weights, wanted.weights, rtol=1e-9, atol=1e-9)
        alike(taken(many.run.leaves), taken(one.run.leaves))
        alike(
            taken(list(many.run.balancer.parameters())), taken(list(one.run.balancer.parameters()))
        )
        found, right = state(many.run.balancer), state(one.run.balancer)
        for name, value in right.items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("network", "route"), [("plain", "module"), ("multitask", "module"), ("multitask", "outputs")]
)
@pytest.mark.parametrize("method", [*AT_FEATURES, *LOSS_BASED])
def test_micro_batches_whose_trunk_runs_again_equal_the_large_one(
    method: str, network: str, route: str
) -> None:
    """One pass forward more for each but the last, one backward for each, and no row of theirs."""
    many = Micro(method, network, route, replay=True)
    one = Micro(method, network, route)
    passes: list[str] = []
    first = next(m for m in many.run.world.trunk.modules() if isinstance(m, nn.Linear))
    first.register_forward_hook(lambda *_: passes.append("forward"))
    first.weight.register_hook(lambda _: passes.append("delivered"))
    for step in range(2):
        with quietly():
            balance, wanted = many.parts(step, by_backward), one.whole(step, by_backward)
        torch.testing.assert_close(balance.losses, wanted.losses, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(balance.weights, wanted.weights, rtol=1e-9, atol=1e-9)
        alike(taken(many.run.leaves), taken(one.run.leaves))
        assert passes == ["forward"] * (2 * PIECES - 1) + ["delivered"]
        passes.clear()


def test_accumulated_outputs_of_a_multitask_network() -> None:
    many = Micro("mgda", "multitask", "outputs")
    one = Micro("mgda", "multitask", "outputs")
    for step in range(2):
        balance, wanted = many.parts(step, by_backward), one.whole(step, by_backward)
        torch.testing.assert_close(balance.trunk_weights, wanted.trunk_weights)
        alike(taken(many.run.leaves), taken(one.run.leaves))


@pytest.mark.parametrize("method", ["mgda", "upgrad", "uncertainty", "graddrop", "mgda-ub"])
def test_a_task_may_be_missing_in_some_micro_batches(method: str) -> None:
    """b speaks in the second part alone: its loss and its gradient are those of that part."""
    many = Micro(method, "plain")
    parts = [many.losses(0, slice(4 * k, 4 * k + 4), 1 / PIECES) for k in range(PIECES)]
    totals = {name: sum(losses[name] for losses, _ in parts) for name in ("a", "c")}
    totals["b"] = parts[1][0]["b"]
    leaves = many.run.leaves
    able = [p for p in leaves if p.requires_grad]
    rows = {
        name: torch.autograd.grad(totals[name], able, retain_graph=True, allow_unused=True)
        for name in NAMES
    }
    parts = [many.losses(0, slice(4 * k, 4 * k + 4), 1 / PIECES) for k in range(PIECES)]
    for k, (losses, told) in enumerate(parts):
        spoken = {name: loss for name, loss in losses.items() if name != "b" or k == 1}
        if k < PIECES - 1:
            many.run.balancer.accumulate(spoken, features=told)
        else:
            balance = many.run.balancer.backward(spoken, features=told, clock=Clock())
    assert balance.tasks == NAMES
    torch.testing.assert_close(
        balance.losses, torch.stack([totals[name].detach() for name in NAMES])
    )
    if balance.trunk_weights is None:
        return
    shared = {id(p) for p in many.run.world.trunk.parameters()}
    for k, leaf in enumerate(able):
        weights = balance.trunk_weights if id(leaf) in shared else balance.weights
        terms = [
            w * rows[n][k] for n, w in zip(NAMES, weights, strict=True) if rows[n][k] is not None
        ]
        exact(leaf.grad, sum(terms[1:], terms[0]), f"leaf {k}", size=1.0)


@pytest.mark.parametrize("call", [by_backward, by_loss], ids=["backward", "loss"])
@pytest.mark.parametrize("method", ["mgda", "upgrad", "uncertainty", "graddrop", "fixed-weighting"])
def test_counts_make_means_over_all_labels(method: str, call: Callable[..., Balance]) -> None:
    """Micro-batches of 2, 7 and 3 samples, of which each loss is the mean over its own."""
    many, one = Micro(method, "plain"), Micro(method, "plain")
    places = (slice(0, 2), slice(2, 9), slice(9, 12))
    for step in range(2):
        for place in places:
            losses, told = many.losses(step, place, 1.0)
            counts = dict.fromkeys(losses, place.stop - place.start)
            if place is not places[-1]:
                many.run.balancer.accumulate(losses, features=told, counts=counts)
        balance = call(
            many.run.balancer, losses, features=told, clock=Clock(step=step), counts=counts
        )
        wanted = one.whole(step, call)
        torch.testing.assert_close(balance.losses, wanted.losses, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(balance.weights, wanted.weights, rtol=1e-9, atol=1e-9)
        alike(taken(many.run.leaves), taken(one.run.leaves))
        taken(list(many.run.balancer.parameters())), taken(list(one.run.balancer.parameters()))


@pytest.mark.parametrize("replay", [False, True])
def test_accumulating_repeats_dropout_and_updates_batch_statistics_once(replay: bool) -> None:
    """Also where the trunk of the first part is passed a second time."""
    torch.manual_seed(2)
    trunk = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5)).double()
    heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)]).double()
    control = copy.deepcopy(trunk)
    x = torch.randn(8, 3, dtype=DTYPE)

    def losses(z: Tensor, k: int) -> dict[str, Tensor]:
        return {
            "a": heads[0](z).square().mean() / 2,
            "b": (heads[1](z) + 1 - k).square().mean(),
        }

    gramian, rows = torch.zeros(2, 2, dtype=DTYPE), []
    for k, part in enumerate(x.chunk(2)):
        torch.manual_seed(10 + k)
        z = control(part)
        at_z = []
        for loss in losses(z, k).values():
            at_z.append(torch.autograd.grad(loss, z, retain_graph=True)[0].flatten())
            rows.append(torch.autograd.grad(loss, list(control.parameters()), retain_graph=True))
        gramian += torch.stack(at_z) @ torch.stack(at_z).T
    spread = gramian[0, 0] + gramian[1, 1] - 2 * gramian[0, 1]
    share = float(((gramian[1, 1] - gramian[0, 1]) / spread).clamp(0, 1))
    balancer = Balancer(aggregator=MGDA(at="representation"))
    balancer.catch(trunk, replay=replay)
    for k, part in enumerate(x.chunk(2)):
        torch.manual_seed(10 + k)
        if k == 0:
            balancer.accumulate(losses(trunk(part), k), features=trunk)
        else:
            before = torch.random.get_rng_state()
            z = trunk(part)
            after = torch.random.get_rng_state()
            balance = balancer.backward(losses(z, k), features=trunk)
            assert torch.equal(torch.random.get_rng_state(), after)
            assert not torch.equal(before, after)
    assert float(balance.trunk_weights[0]) == pytest.approx(share, rel=1e-8)
    for k, parameter in enumerate(trunk.parameters()):
        by_task = [rows[0][k] + rows[2][k], rows[1][k] + rows[3][k]]
        exact(parameter.grad, share * by_task[0] + (1 - share) * by_task[1], f"{k}", size=1.0)
    for one, other in zip(trunk.buffers(), control.buffers(), strict=True):
        torch.testing.assert_close(one, other)


class Moody(nn.Module):
    """Returns what Python's own generator decides, which nobody winds back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4).double()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * self.calls


def accumulated(trunk: nn.Module, at: Balancer, inputs: Sequence[Tensor], replay: bool) -> Balancer:
    """Micro-batches through `trunk` and two heads; the losses are held to the end."""
    torch.manual_seed(1)
    heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)]).double()
    at.catch(trunk, replay=replay)
    held = []
    for k, x in enumerate(inputs):
        z = trunk(x)
        losses = {"a": heads[0](z).square().mean(), "b": (heads[1](z) - 1).square().mean()}
        held.append(losses)
        if k < len(inputs) - 1:
            at.accumulate(losses, features=trunk)
        else:
            at.backward(losses, features=trunk)
    return at


@pytest.mark.parametrize("aggregator", [MGDA, GradDrop], ids=["mgda", "graddrop"])
def test_a_trunk_with_a_state_runs_again_as_it_was(aggregator: type[MGDA]) -> None:
    """Spectral normalisation moves its buffers in every forward pass; the last stand afterwards."""
    grads, buffers = [], []
    inputs = [torch.randn(5, 3, dtype=DTYPE) for _ in range(3)]
    for replay in (False, True):
        torch.manual_seed(0)
        layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4).double())
        trunk = nn.Sequential(layer, nn.Dropout(0.3))
        accumulated(trunk, Balancer(aggregator=aggregator(at="representation")), inputs, replay)
        grads.append(taken(list(trunk.parameters())))
        buffers.append([b.clone() for b in trunk.buffers()])
    alike(*grads)
    for one, other in zip(*buffers, strict=True):
        assert torch.equal(one, other)


def test_a_trunk_whose_inputs_have_a_graph_is_not_run_again() -> None:
    """What lies behind them gets its gradient too."""
    grads = []
    x = [torch.randn(5, 3, dtype=DTYPE) for _ in range(2)]
    for replay in (False, True):
        torch.manual_seed(0)
        stem, trunk = nn.Linear(3, 3).double(), nn.Linear(3, 4).double()
        balancer = Balancer(aggregator=MGDA(at="representation"))
        accumulated(trunk, balancer, [stem(part) for part in x], replay)
        grads.append(taken([*stem.parameters(), *trunk.parameters()]))
    assert all(g is not None for g in grads[1])
    alike(*grads)


@pytest.mark.parametrize("what", ["input", "parameter", "state"])
def test_a_trunk_that_cannot_run_again_is_told_of(what: str) -> None:
    trunk = Moody() if what == "state" else nn.Linear(3, 4).double()
    inputs = [torch.randn(5, 3, dtype=DTYPE) for _ in range(2)]
    balancer = Balancer(aggregator=MGDA(at="representation"))
    if what != "state":
        changed = inputs[0] if what == "input" else trunk.weight

        def change(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            if given[0] is inputs[1]:
                with torch.no_grad():
                    changed.mul_(2)

        trunk.register_forward_pre_hook(change)
    told = "something else" if what == "state" else "changed in place"
    with pytest.raises(RuntimeError, match=told):
        accumulated(trunk, balancer, inputs, replay=True)
    assert all(p.grad is None for p in trunk.parameters())


def test_passes_that_nobody_holds_are_not_kept_for_running_again() -> None:
    """An evaluation with gradients, say: its inputs go with its outputs."""
    trunk = nn.Linear(3, 4).double()
    balancer = Balancer(aggregator=MGDA(at="representation"))
    balancer.catch(trunk, replay=True)
    batches = [torch.randn(5, 3, dtype=DTYPE) for _ in range(4)]
    inputs = [weakref.ref(x) for x in batches]
    for _ in inputs:
        loss = trunk(batches.pop(0)).square().mean()
        assert loss.requires_grad
        del loss
    assert [ref() is not None for ref in inputs] == [False] * 3 + [True]


def test_what_waits_for_the_weights_keeps_no_activation() -> None:
    """Although the user holds the losses of the micro-batch."""
    alive: list[weakref.ref[Saved]] = []

    def pack(tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        alive.append(weakref.ref(saved))
        return saved

    trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)]).double()
    balancer = Balancer(aggregator=MGDA(at="representation"))
    balancer.catch(trunk, replay=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        z = trunk(torch.randn(5, 3, dtype=DTYPE))
        losses = {"a": heads[0](z).square().mean(), "b": (heads[1](z) - 1).square().mean()}
    assert any(ref() is not None for ref in alive)
    balancer.accumulate(losses, features=trunk)
    assert not [ref for ref in alive if ref() is not None]
    again = trunk(torch.randn(5, 3, dtype=DTYPE))
    with pytest.raises(NonFiniteError, match="'b'"):
        balancer.backward(
            {"a": heads[0](again).mean(), "b": (heads[1](again) * torch.inf).mean()}, features=trunk
        )
    assert losses["a"].isfinite()


def test_accumulating_leaves_no_trace_where_a_micro_batch_is_not_finite() -> None:
    many = Micro("mgda", "plain")
    losses, told = many.losses(0, slice(0, 4), 0.5)
    losses["a"] = losses["a"] * float("nan")
    with pytest.raises(NonFiniteError, match="'a'"):
        many.run.balancer.accumulate(losses, features=told)
    assert all(leaf.grad is None for leaf in many.run.leaves)


def test_a_copy_of_model_and_balancer_catches_the_copys_features() -> None:
    torch.manual_seed(0)
    network = MultiTaskNetwork(nn.Linear(4, 3), {"a": nn.Linear(3, 1), "b": nn.Linear(3, 1)})
    balancer = Balancer(aggregator=MGDA(at="representation"))
    balancer.catch(network.trunk)
    for _ in range(3):  # the copies are made in the middle of a run
        losses = {task: y.square().mean() for task, y in network(torch.ones(8, 4)).items()}
        balance = balancer.backward(losses, features=network.trunk)
        assert balance.norms is not None
        network, balancer = copy.deepcopy((network, balancer))


def test_the_hooks_of_leaves_run_once_where_heads_are_fused() -> None:
    heads = {"h0": nn.Linear(4, 1), "h1": nn.Linear(4, 1)}
    network = MultiTaskNetwork(nn.Linear(3, 4), heads, fused=True)
    calls: list[Tensor] = []
    network.trunk.weight.register_hook(calls.append)
    outputs = network(torch.randn(5, 3))
    losses = {"a": outputs["h0"].square().mean(), "b": (outputs["h1"] - 1).square().mean()}
    Balancer(aggregator=MGDA(), model=network).backward(losses)
    assert len(calls) == 1
