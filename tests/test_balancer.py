"""The balancer in a user's own loop, with the user's own model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from evenhand import (
    MGDA,
    Balancer,
    Equal,
    Fixed,
    NonFiniteError,
    Outcome,
    Phase,
    StatefulAggregator,
    StatefulWeighting,
    TaskGradients,
    Traits,
    Weighting,
)
from evenhand.linalg import Solution
from evenhand.weighting import mgda
from evenhand.weighting.state import State, put, take
from samplers import (
    chance,
    flat_grad,
    inputs,
    losses_of,
    plain_jacobian,
    same,
    small_network,
    snapshot,
)

ALL = ("a", "b", "c")


class Model(nn.Module):
    """A user's network: no trunk, no heads, just layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.second = nn.Linear(5, 3)
        self.a, self.b, self.c = nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(3, 1)
        self.double()

    def features(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()).tanh()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.features(x)
        return {"a": self.a(z), "b": self.b(z), "c": self.c(z)}

    @property
    def trunk(self) -> list[nn.Parameter]:
        return [*self.first.parameters(), *self.second.parameters()]


class Steps(StatefulWeighting):
    """Weights that grow with the number of calls in which a task spoke; reads the Gramian."""

    def init(self, total: int) -> State:
        return {"count": torch.zeros(total, dtype=torch.float64)}

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        count = take(state["count"], g)
        return Outcome((1 + count).to(g.gramian), {"count": put(state["count"], g, count + 1)})


class Momentum(StatefulAggregator):
    """A direction that is the method's own state."""

    def init(self, total: int) -> State:
        return {"direction": torch.zeros(0)}

    def merge_from(self, g: TaskGradients, state: State) -> Outcome:
        direction = g.jacobian.sum(0)
        return Outcome(direction, {"direction": direction})


def count_of(balancer: Balancer, slot: str) -> list[float]:
    return balancer.states.tree()[slot]["count"].tolist()


class Pairs(Weighting):
    """Looks at a second batch."""

    traits = Traits(needs="norms", batches=2)

    def weigh(self, g: TaskGradients) -> Tensor:
        (other,) = g.samples
        return other.norms / g.norms


def reached(model: nn.Module, losses: dict[str, Tensor]) -> Tensor:
    """The plain Jacobian by all parameters of a model."""
    return plain_jacobian(losses.values(), model.parameters())


# Drop-in use ----------------------------------------------------------------------------------


def test_ten_lines_in_a_loop_of_ones_own() -> None:
    model = Model()
    balancer = Balancer(aggregator=MGDA())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    totals = []
    for step in range(12):
        losses = losses_of(model(inputs()))
        optimizer.zero_grad()
        balance = balancer.backward(losses)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert flat_grad(model.parameters()).norm() <= 1 + 1e-9
        optimizer.step()
        scheduler.step()
        totals.append(float(balance.losses.sum()))
        assert balancer.state_dict()["_extra_state"]["step"] == step + 1
    assert totals[-1] < 0.8 * totals[0]
    assert balance.tasks == ALL
    assert torch.equal(balance.weights, torch.ones(3, dtype=torch.float64))
    assert balance.trunk_weights.sum() == pytest.approx(1)
    assert balance.norms.shape == (3,)
    assert torch.allclose(balance.cosines.diagonal(), torch.ones(3, dtype=torch.float64))
    assert not any(t.requires_grad for t in (balance.losses, balance.weights, balance.norms))


def test_empty_slots_are_the_plain_sum() -> None:
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    balance = Balancer().backward(losses_of(model(inputs())))
    sum(losses_of(twin(inputs())).values()).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-12)
    assert balance.norms is None
    assert balance.cosines is None


def test_backward_adds_to_grad_as_torch_does() -> None:
    model = Model()
    balancer = Balancer(aggregator=MGDA())
    alone = []
    for batch in (0, 1):
        model.zero_grad()
        balancer.backward(losses_of(model(inputs(batch)), batch))
        alone.append(flat_grad(model.parameters()))
    model.zero_grad()
    for batch in (0, 1):
        balancer.backward(losses_of(model(inputs(batch)), batch))
    assert torch.allclose(flat_grad(model.parameters()), alone[0] + alone[1], rtol=1e-12)


@pytest.mark.parametrize("aggregator", [None, MGDA, Momentum])
def test_grad_is_memory_of_its_own(aggregator) -> None:
    one, other = (nn.Parameter(torch.randn(3)) for _ in range(2))
    scale = torch.randn(3)
    balancer = Balancer(aggregator=aggregator and aggregator())
    losses = {"a": (one + other) @ scale, "b": (one + other).sum() + one.square().sum()}
    balancer.backward(losses)
    kept, state = other.grad.clone(), copy.deepcopy(balancer.state_dict())
    scale_before = scale.clone()
    one.grad.zero_()
    assert torch.equal(other.grad, kept)
    assert torch.equal(scale, scale_before)
    assert same(balancer.state_dict(), state)


def test_an_lbfgs_closure() -> None:
    model = Model()
    balancer = Balancer(weighting=Fixed({"a": 1.0, "b": 0.5, "c": 0.25}))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = losses_of(model(inputs()))
        balance = balancer.backward(losses)
        return balance.weights @ balance.losses

    start = float(closure())
    optimizer.step(closure)
    assert float(closure()) < 0.5 * start


@pytest.mark.parametrize("aggregator", [None, Equal, MGDA, lambda: MGDA(at="representation")])
@pytest.mark.parametrize("known", [True, False])
def test_the_graph_may_be_kept_for_another_backward(aggregator, known) -> None:
    network = small_network()
    outputs = network(inputs())
    losses = losses_of(outputs)
    balancer = Balancer(aggregator=aggregator and aggregator())
    if (
        not known
        and isinstance(aggregator and aggregator(), MGDA)
        and aggregator().at != "parameters"
    ):
        pytest.skip("needs features")
    features = outputs.features if known else None
    balancer.backward(losses, features=features, retain_graph=True)
    once = flat_grad(network.parameters())
    balancer.backward(losses, features=features)
    assert torch.allclose(flat_grad(network.parameters()), 2 * once, rtol=1e-12)


def test_without_retain_graph_the_trunk_is_freed() -> None:
    network = small_network()
    for aggregator in (None, MGDA(at="representation")):
        outputs = network(inputs())
        balancer = Balancer(aggregator=aggregator)
        balancer.backward(losses_of(outputs), features=outputs.features)
        with pytest.raises(RuntimeError, match="second time"):
            outputs.features.sum().backward()


def test_looking_touches_nothing() -> None:
    model = Model()
    balancer = Balancer(aggregator=Steps())
    balancer.backward(losses_of(model(inputs())))
    grads, state = flat_grad(model.parameters()), copy.deepcopy(balancer.state_dict())
    losses = losses_of(model(inputs()))
    g = balancer.gradients(losses)
    plain = plain_jacobian(losses.values(), model.trunk)
    assert torch.allclose(g.gramian, plain @ plain.T, rtol=1e-12)
    assert torch.allclose(g.norms, plain.norm(dim=1), rtol=1e-12)
    assert torch.equal(flat_grad(model.parameters()), grads)
    assert same(balancer.state_dict(), state)
    balancer.backward(losses)


# Sharing --------------------------------------------------------------------------------------


def test_sharing_is_found_from_the_graph() -> None:
    model = Model()
    balancer = Balancer(aggregator=MGDA())
    with pytest.raises(ValueError, match="first backward"):
        _ = balancer.blocks
    balancer.backward(losses_of(model(inputs())))
    blocks = balancer.blocks
    assert set(blocks.shared) == set(model.trunk)
    assert {t: set(own) for t, own in blocks.own.items()} == {
        t: set(getattr(model, t).parameters()) for t in ALL
    }


def test_a_parameter_that_some_tasks_reach_is_shared_among_them() -> None:
    model = Model()
    balancer = Balancer(aggregator=MGDA(), tasks=ALL)
    early = model.first(inputs()).tanh()
    late = model.second(early).tanh()
    losses = {
        "a": model.a(late).square().mean(),
        "b": model.b(late).sum(),
        "c": early.square().sum() + model.c(torch.ones(2, 3).double()).square().sum(),
    }
    g = balancer.gradients(losses)
    assert set(balancer.blocks.shared) == set(model.trunk)
    plain = plain_jacobian(losses.values(), balancer.blocks.shared)
    assert torch.equal(g.jacobian, plain)
    columns = torch.cat(
        [
            torch.full((p.numel(),), any(p is q for q in model.second.parameters()))
            for p in balancer.blocks.shared
        ]
    )
    assert columns.sum() == 18
    assert not g.jacobian[2, columns].any()
    assert g.jacobian[:2, columns].any(dim=1).all()
    assert torch.allclose(g.gramian, plain @ plain.T, rtol=1e-12)
    balance = balancer.backward(losses)
    merged = balance.trunk_weights @ plain
    assert torch.allclose(flat_grad(balancer.blocks.shared), merged, atol=1e-12)


def test_tied_weights_are_shared() -> None:
    model = Model()
    model.b.weight = model.a.weight
    balancer = Balancer(aggregator=MGDA())
    losses = losses_of(model(inputs()))
    g = balancer.gradients(losses)
    assert set(balancer.blocks.shared) == {*model.trunk, model.a.weight}
    plain = plain_jacobian(losses.values(), balancer.blocks.shared)
    assert torch.allclose(g.gramian, plain @ plain.T, rtol=1e-12)
    outputs = model.features(inputs())
    tied = {t: getattr(model, t)(outputs).square().mean() for t in ALL}
    balance = Balancer(aggregator=MGDA()).backward(tied, features=outputs)
    again = model.features(inputs())
    losses = {t: getattr(model, t)(again).square().mean() for t in ALL}
    plain = plain_jacobian(losses.values(), [*model.trunk, model.a.weight])
    model_grad = flat_grad([*model.trunk, model.a.weight])
    assert torch.allclose(model_grad, balance.trunk_weights @ plain, atol=1e-12)


def test_what_is_balanced_grows_from_call_to_call() -> None:
    model = Model()
    balancer = Balancer(aggregator=MGDA(), tasks=ALL)
    balancer.backward({"a": losses_of(model(inputs()))["a"]})
    assert not balancer.blocks.shared  # one task alone has reached the trunk so far
    losses = losses_of(model(inputs()))
    balancer.backward({"b": losses["b"], "c": losses["c"]})
    assert set(balancer.blocks.shared) == set(model.trunk)
    assert set(balancer.blocks.own["a"]) == set(model.a.parameters())


def test_shared_says_what_is_balanced_and_the_rest_gets_the_plain_sum() -> None:
    model = Model()
    balance = Balancer(aggregator=MGDA()).backward(
        losses_of(model(inputs())), shared=model.first.parameters()
    )
    losses = losses_of(model(inputs())).values()
    first, second = [*model.first.parameters()], [*model.second.parameters()]
    by_first, by_second = plain_jacobian(losses, first), plain_jacobian(losses, second)
    assert torch.allclose(flat_grad(first), balance.trunk_weights @ by_first, atol=1e-12)
    assert torch.allclose(flat_grad(second), by_second.sum(0), atol=1e-12)
    with pytest.raises(ValueError, match="shared="):
        Balancer().backward(losses_of(model(inputs())), own={"a": model.a.parameters()})
    with pytest.raises(TypeError, match=r"shared= holds a Linear.*parameters\(\)"):
        Balancer().backward(losses_of(model(inputs())), shared=[model.first])
    with pytest.raises(ValueError, match=r"stands in shared= and in own= of 'a'"):
        Balancer().backward(
            losses_of(model(inputs())), shared=model.trunk, own={"a": model.trunk[:1]}
        )
    apart = {"a": model.a(torch.ones(1, 3).double()).sum(), "b": model.b.bias.sum()}
    with pytest.warns(UserWarning, match="no parameter is reached by several"):
        Balancer(aggregator=MGDA()).backward(apart)


def test_what_is_shared_is_remembered() -> None:
    model = Model()
    balancer = Balancer(aggregator=MGDA())
    balancer.backward(losses_of(model(inputs())))
    model.zero_grad()
    balancer.backward({"b": losses_of(model(inputs()))["b"]})
    assert set(balancer.blocks.shared) == set(model.trunk)
    assert model.a.weight.grad is None
    assert model.b.weight.grad is not None


def test_a_phase_of_the_heads_finds_the_trunk_in_the_graph() -> None:
    own = Phase(ALL, moves=("own",))
    for named in (False, True):
        model = Model()
        shared = {"shared": model.trunk} if named else {}
        Balancer().backward(losses_of(model(inputs())), phase=own, **shared)
        assert all(p.grad is None for p in model.trunk)
        assert all(getattr(model, t).weight.grad is not None for t in ALL)
    with pytest.raises(ValueError, match=r"shared=.*MultiTaskNetwork"):
        # One task in the first call, and nobody has said what is shared.
        Balancer(tasks=ALL).backward(
            {"a": losses_of(model(inputs()))["a"]}, phase=Phase(("a",), moves=("shared",))
        )


def test_a_single_task_shares_its_whole_network_with_nobody() -> None:
    model = Model()
    balancer = Balancer(aggregator=MGDA())
    loss = losses_of(model(inputs()))["a"]
    balancer.backward({"a": loss})
    plain = plain_jacobian([losses_of(model(inputs()))["a"]], [*model.trunk, *model.a.parameters()])
    assert torch.allclose(flat_grad([*model.trunk, *model.a.parameters()]), plain[0], rtol=1e-12)


def test_a_parameter_that_nobody_reaches_is_warned_of_once() -> None:
    model = Model()
    model.spare = nn.Linear(2, 2).double()
    balancer = Balancer(model=model)
    with pytest.warns(UserWarning, match=r"2 parameter\(s\).*spare.weight, spare.bias"):
        balancer.backward(losses_of(model(inputs())))
    balancer.backward(losses_of(model(inputs())))


def test_a_phase_warns_of_nothing_that_rests() -> None:
    network = small_network()
    balancer = Balancer(model=network, tasks=ALL)
    for moves in (("shared",), ("own",), ("shared", "own")):
        phase = Phase(ALL, moves=moves)
        outputs = network(inputs())
        balancer.backward(losses_of(outputs), features=outputs.features, phase=phase)


def test_names_of_shared_parameters_are_saved() -> None:
    model = Model()
    balancer = Balancer(aggregator=MGDA(), model=model)
    balancer.backward(losses_of(model(inputs())))
    state = balancer.state_dict()
    for _ in range(2):  # a resumed run saves them again
        model = Model()
        resumed = Balancer(aggregator=MGDA(), model=model)
        resumed.load_state_dict(state)
        resumed.backward({"a": losses_of(model(inputs()))["a"]})
        assert set(resumed.blocks.shared) == set(model.trunk)
        assert set(resumed.blocks.own["c"]) == set(model.c.parameters())
        state = resumed.state_dict()


# Features -------------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """Features of two levels, one made from the other; one task reads the upper one only."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(4, 3), nn.Linear(3, 2)
        self.a, self.b = nn.Linear(2, 1), nn.Linear(5, 1)
        self.double()

    def trunk(self, x: Tensor) -> list[Tensor]:
        low = self.low(x).tanh()
        return [low, self.high(low).tanh()]

    def losses(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        both = torch.cat([low, high], dim=1)
        return losses_of({"a": self.a(high), "b": self.b(both)})


@pytest.mark.parametrize("at", ["parameters", "representation"])
def test_features_may_be_a_pyramid(at) -> None:
    model = Pyramid()
    balancer = Balancer(aggregator=MGDA(at=at))
    levels = model.trunk(inputs())
    balance = balancer.backward(model.losses(*levels), features={"levels": levels})
    shared = [*model.low.parameters(), *model.high.parameters()]
    assert set(balancer.blocks.shared) == set(shared)
    levels = model.trunk(inputs())
    if at == "representation":  # how the heads depend on each level, the other one held fixed
        levels = [level.detach().requires_grad_() for level in levels]
    targets = shared if at == "parameters" else levels
    place = plain_jacobian(model.losses(*levels).values(), targets)
    expected = MGDA()(TaskGradients.of(jacobian=place))
    assert torch.allclose(balance.trunk_weights, expected, atol=1e-10)
    assert torch.allclose(balance.norms, place.norm(dim=1), rtol=1e-10)
    plain = plain_jacobian(model.losses(*model.trunk(inputs())).values(), shared)
    assert torch.allclose(flat_grad(shared), expected @ plain, atol=1e-10)
    own = plain_jacobian(model.losses(*levels).values(), [*model.a.parameters()])[0]
    assert torch.allclose(flat_grad(model.a.parameters()), own, atol=1e-10)


def test_features_must_be_tensors() -> None:
    model = Model()
    with pytest.raises(TypeError, match="nests of tensors, found str"):
        Balancer().backward(losses_of(model(inputs())), features=["z"])


def test_a_path_round_the_features_is_noticed() -> None:
    model = Model()

    def losses() -> tuple[Tensor, dict[str, Tensor]]:
        z = model.features(inputs())
        outputs = {"a": model.a(z), "b": model.b(z), "c": model.c(z)}
        found = losses_of(outputs)
        found["c"] = found["c"] + model.first(inputs()).square().mean()
        return z, found

    z, found = losses()
    balance = Balancer(aggregator=MGDA()).backward(found, features=z)
    plain = plain_jacobian(losses()[1].values(), model.trunk)
    assert torch.allclose(flat_grad(model.trunk), balance.trunk_weights @ plain, atol=1e-12)
    z, found = losses()
    with pytest.raises(ValueError, match="beyond them"):
        Balancer(aggregator=MGDA(at="representation")).backward(found, features=z)


@pytest.mark.parametrize("known", [True, False])
def test_heads_that_work_in_place(known) -> None:
    network = small_network()
    for task in ALL:
        network.head(task)[1] = nn.ReLU(inplace=True)
    balancer = Balancer(aggregator=MGDA(), model=network if known else None)
    outputs = network(inputs())
    balance = balancer.backward(losses_of(outputs), features=outputs.features if known else None)
    trunk = list(network.trunk.parameters())
    plain = plain_jacobian(losses_of(network(inputs())).values(), trunk)
    assert torch.allclose(flat_grad(trunk), balance.trunk_weights @ plain, atol=1e-12)


@pytest.mark.parametrize("known", [True, False])
def test_losses_with_derivatives_by_the_inputs(known) -> None:
    """A physics-informed loss: the inputs need gradients and are nobody's parameters."""
    model = Model()

    def losses() -> tuple[Tensor, dict[str, Tensor]]:
        x = inputs().requires_grad_()
        z = model.features(x)
        u = model.a(z)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return z, {"a": (slope[:, 0] + u[:, 0]).square().mean(), "b": model.b(z).square().mean()}

    z, found = losses()
    balancer = Balancer(aggregator=MGDA())
    balance = balancer.backward(found, features=z if known else None)
    assert set(balancer.blocks.shared) == set(model.trunk)
    plain = plain_jacobian(losses()[1].values(), model.trunk)
    assert torch.allclose(flat_grad(model.trunk), balance.trunk_weights @ plain, atol=1e-12)


def test_two_sums_may_be_open_at_a_time() -> None:
    model = Model()
    balancer = Balancer()
    first, second = (balancer.loss(losses_of(model(inputs(k)), k)) for k in (0, 1))
    first.backward(retain_graph=True)
    first.backward()
    told = balancer.last
    second.backward()
    assert balancer.state_dict()["_extra_state"]["step"] == 2
    assert not torch.equal(balancer.last.losses, told.losses)


def test_a_network_that_is_compiled_as_a_whole_hides_its_features() -> None:
    """Its outputs and features come from one node, so the outputs do not lead to the features."""
    network, twin = small_network(), small_network()
    twin.load_state_dict(network.state_dict())
    compiled = torch.compile(network, backend="aot_eager")
    balancer = Balancer(aggregator=MGDA(), model=network)
    for loss in (balancer.loss, balancer.backward):
        outputs = compiled(inputs())
        with pytest.raises(ValueError, match="compile trunk and heads apart"):
            loss(losses_of(outputs), features=outputs)
    expected = Balancer(aggregator=MGDA(), model=twin).backward(losses_of(twin(inputs())))
    for _ in range(2):
        network.zero_grad()
        balance = balancer.backward(losses_of(compiled(inputs())))
        assert torch.allclose(balance.trunk_weights, expected.trunk_weights, rtol=1e-10)
        assert torch.allclose(
            flat_grad(network.parameters()), flat_grad(twin.parameters()), rtol=1e-10
        )


# Tasks ----------------------------------------------------------------------------------------


def test_an_absent_task_keeps_its_grad_and_its_state() -> None:
    network = small_network()
    balancer = Balancer(aggregator=Steps(), tasks=ALL, model=network)
    outputs = network(inputs(), tasks=["a", "c"])
    balance = balancer.backward(losses_of(outputs), features=outputs.features)
    assert balance.tasks == ("a", "c")
    assert count_of(balancer, "aggregator") == [1, 0, 1]
    assert all(p.grad is None for p in network.head("b").parameters())
    grads = [p.grad.clone() for p in network.head("c").parameters()]
    outputs = network(inputs(), tasks=["b"])
    balancer.backward(losses_of(outputs), features=outputs.features)
    assert count_of(balancer, "aggregator") == [1, 1, 1]
    assert same([p.grad for p in network.head("c").parameters()], grads)


def test_a_loader_for_each_task() -> None:
    network = small_network(("a", "b"))
    balancer = Balancer(aggregator=MGDA(), model=network)

    def losses() -> dict[str, Tensor]:
        sizes = {"a": 3, "b": 8}
        return {
            task: losses_of(network(inputs(k, size), tasks=[task]), k)[task]
            for k, (task, size) in enumerate(sizes.items())
        }

    balance = balancer.backward(losses())
    trunk = list(network.trunk.parameters())
    plain = plain_jacobian(losses().values(), trunk)
    assert torch.allclose(flat_grad(trunk), balance.trunk_weights @ plain, atol=1e-12)


def test_features_of_a_loader_for_each_task() -> None:
    network = small_network(("a", "b"))
    outputs = {"a": network(inputs(0, 3), tasks=["a"]), "b": network(inputs(1, 8), tasks=["b"])}
    losses = {task: losses_of(found)[task] for task, found in outputs.items()}
    features = {task: found.features for task, found in outputs.items()}
    balance = Balancer(aggregator=MGDA(at="representation")).backward(losses, features=features)
    assert abs(float(balance.cosines[0, 1])) == 0  # each task has samples of its own


def test_names_are_fixed_in_the_order_given() -> None:
    network = small_network()
    balancer = Balancer(tasks=["c", "a", "b"])
    assert balancer.backward(losses_of(network(inputs()))).tasks == ("c", "a", "b")
    with pytest.raises(ValueError, match=r"unknown task 'd': the tasks are c, a, b"):
        balancer.backward({"d": network(inputs())["a"].sum()})
    with pytest.raises(ValueError, match="unknown task 'd'"):
        balancer.backward(losses_of(network(inputs())), phase=Phase(("d",)))
    with pytest.raises(ValueError, match="belongs to the tasks"):
        balancer.bind(["a", "b", "c"])
    for wrong in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="different names"):
            Balancer(tasks=wrong)


def test_a_balancer_whose_method_cannot_serve_the_tasks_is_not_bound() -> None:
    balancer = Balancer(weighting=Fixed({"a": 1.0}))
    with pytest.raises(ValueError, match="give one weight for each"):
        balancer.bind(["a", "b"])
    assert balancer.tasks == ()
    balancer.bind(["a"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda loss: loss.expand(2), r"'b' has shape \(2,\); it must be a scalar"),
    ],
)
def test_a_loss_is_a_scalar_with_a_graph(spoil: Callable[[Tensor], Tensor], message: str) -> None:
    model = Model()
    losses = losses_of(model(inputs()))
    losses["b"] = spoil(losses["b"])
    with pytest.raises(ValueError, match=message):
        Balancer().backward(losses)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("absent", [None, torch.tensor(1.0)])
def test_a_loss_without_a_graph_is_an_absent_task_and_told_of_once(absent) -> None:
    model = Model()
    balancer = Balancer(aggregator=MGDA())
    balancer.backward(losses_of(model(inputs())))
    with pytest.warns(UserWarning, match="the loss of 'b'"):
        balance = balancer.backward({**losses_of(model(inputs())), "b": absent})
    assert balance.tasks == ("a", "c")
    balancer.backward({**losses_of(model(inputs())), "b": absent})
    with pytest.raises(ValueError, match="no_grad"):
        balancer.backward({"a": absent, "b": absent})


def test_a_call_needs_a_loss() -> None:
    balancer = Balancer(tasks=ALL)
    with pytest.raises(ValueError, match="none of the tasks a, b has a loss"):
        balancer.backward({"c": Model()(inputs())["c"].sum()}, phase=Phase(("a", "b")))
    with pytest.raises(ValueError, match="none of the tasks"):
        balancer.backward({})


def test_losses_of_one_element_and_of_mixed_precision() -> None:
    network = small_network(("a", "b"))
    outputs = network(inputs())
    losses = {k: loss.reshape(1) for k, loss in losses_of(outputs).items()}
    losses["a"] = losses["a"].float()
    for aggregator in (None, MGDA()):
        Balancer(aggregator=aggregator).backward(losses, retain_graph=True)
    plain = plain_jacobian(losses.values(), network.parameters())
    assert plain.isfinite().all()


def test_slots_take_methods_only() -> None:
    with pytest.raises(TypeError, match="no Weighting"):
        Balancer(weighting=torch.nn.Identity())
    with pytest.raises(TypeError, match="neither a Weighting nor an Aggregator"):
        Balancer(aggregator=MGDA)
    with pytest.raises(TypeError, match="no Weighting"):
        Balancer(weighting=Momentum())


def test_learned_weights_need_names_from_the_start() -> None:
    class LearnedOnes(Equal):
        traits = Traits(needs="nothing", learned=True)

    with pytest.raises(ValueError, match=r"tasks=\[\.\.\.\]"):
        Balancer(weighting=LearnedOnes()).backward(losses_of(Model()(inputs())))


# Phases ---------------------------------------------------------------------------------------


def test_with_a_phase_what_rests_gets_no_grad_and_without_one_it_is_left_alone() -> None:
    network = small_network()
    balancer = Balancer(model=network)
    balancer.backward(losses_of(network(inputs())))
    assert all(p.grad is not None for p in network.parameters())
    balancer.backward({"a": losses_of(network(inputs()))["a"]})
    assert all(p.grad is not None for p in network.parameters())
    balancer.backward(losses_of(network(inputs())), phase=Phase(("a",), moves=("own",)))
    assert {p for p in network.parameters() if p.grad is not None} == set(
        network.head("a").parameters()
    )


def test_where_the_trunk_rests_a_weighting_of_gradients_repeats_its_last_weights() -> None:
    network = small_network()
    balancer = Balancer(weighting=Steps(), model=network)
    own = Phase(ALL, moves=("own",))
    seen = []
    for phase in (own, None, None, own, None, own):
        balance = balancer.backward(losses_of(network(inputs())), phase=phase)
        seen.append(float(balance.weights[0]))
    assert seen == [1, 1, 2, 2, 3, 3]
    assert count_of(balancer, "weighting") == [3, 3, 3]


def test_plus_is_nobodys_task() -> None:
    network = small_network()

    def penalty() -> Tensor:
        return 0.1 * sum(p.square().sum() for p in network.parameters())

    trunk, heads = list(network.trunk.parameters()), list(network.heads.parameters())
    plain = {}
    for phase in (None, Phase(ALL, moves=("own",)), Phase(("a",), moves=("shared",))):
        for aggregator in (None, MGDA(), Momentum(), MGDA(at="representation")):
            for plus in (None, penalty):
                network.zero_grad()
                outputs = network(inputs())
                Balancer(aggregator=copy.deepcopy(aggregator), model=network, tasks=ALL).backward(
                    losses_of(outputs),
                    features=outputs.features,
                    plus=plus and plus(),
                    phase=phase,
                )
                plain[plus] = [None if p.grad is None else p.grad.clone() for p in trunk + heads]
            for p, without, added in zip(trunk + heads, plain[None], plain[penalty], strict=True):
                assert (without is None) == (added is None)
                if without is not None:
                    assert torch.allclose(added, without + 0.2 * p.detach(), rtol=1e-12)


# Several batches ------------------------------------------------------------------------------


def test_further_batches_are_asked_for_by_name() -> None:
    model = Model()
    balancer = Balancer(aggregator=Pairs())
    with pytest.raises(ValueError, match="samples="):
        balancer.backward(losses_of(model(inputs())))
    samples = [losses_of(model(inputs(1)), 1)]
    balance = balancer.backward(losses_of(model(inputs())), samples=samples)
    norms = [
        plain_jacobian(losses_of(model(inputs(k)), k).values(), model.trunk).norm(dim=1)
        for k in (0, 1)
    ]
    assert torch.allclose(balance.trunk_weights, norms[1] / norms[0], rtol=1e-12)
    del samples[0]["b"]
    with pytest.raises(ValueError, match="'b'"):
        balancer.backward(losses_of(model(inputs())), samples=[{"a": model(inputs())["a"].sum()}])


# What is not finite ---------------------------------------------------------------------------


def spoiled(z: Tensor) -> Tensor:
    """A term that is finite, with a gradient that is not."""
    return (z - z.detach()).abs().sqrt().sum()


@pytest.mark.parametrize("aggregator", [None, Steps, MGDA, Momentum])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_leaves_no_trace(aggregator, where) -> None:
    network = small_network()
    balancer = Balancer(weighting=Steps(), aggregator=aggregator and aggregator(), model=network)
    for _ in range(2):
        balancer.backward(losses_of(network(inputs())))
    grads, state = flat_grad(network.parameters()), copy.deepcopy(balancer.state_dict())
    outputs = network(inputs())
    losses = losses_of(outputs)
    bad = torch.nan if where == "loss" else spoiled(outputs["b"])
    losses["b"] = losses["b"] + bad
    with pytest.raises(NonFiniteError, match="'b'") as caught:
        balancer.backward(losses)
    assert caught.value.tasks == ("b",)
    assert torch.equal(flat_grad(network.parameters()), grads)
    assert same(balancer.state_dict(), state)


def test_losses_that_read_no_gradient_still_find_who_is_to_blame() -> None:
    network = small_network()
    outputs = network(inputs())
    losses = losses_of(outputs)
    losses["c"] = losses["c"] + spoiled(outputs["c"])
    with pytest.raises(NonFiniteError) as caught:
        Balancer(Fixed({"a": 1.0, "b": 2.0, "c": 3.0}), model=network).backward(losses)
    assert caught.value.tasks == ("c",)
    losses = losses_of(network(inputs()))
    with pytest.raises(NonFiniteError, match="plus="):
        Balancer(model=network).backward(losses, plus=network.trunk[0].weight.sum() * torch.inf)


@pytest.mark.parametrize("aggregator", [None, Equal])
def test_finite_gradients_pass_though_their_sum_overflows(aggregator) -> None:
    parameter = nn.Parameter(torch.zeros(4))
    losses = {task: (parameter * 1.5e38).sum() for task in "ab"}
    Balancer(aggregator=aggregator and aggregator()).backward(losses, shared=[parameter])
    assert torch.equal(parameter.grad, torch.full((4,), 3e38))


def test_an_exception_in_a_method_leaves_no_trace() -> None:
    class Failing(Steps):
        def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
            super().weigh_from(g, state)
            raise ZeroDivisionError

    model = Model()
    balancer = Balancer(weighting=Steps(), aggregator=Failing())
    with pytest.raises(ZeroDivisionError):
        balancer.backward(losses_of(model(inputs())))
    assert count_of(balancer, "weighting") == [0, 0, 0]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("aggregator", [None, MGDA, Momentum])
def test_loss_scaling(aggregator) -> None:
    network = small_network()
    plain, balance = {}, {}
    for scale in (None, 1024.0, torch.tensor(1024.0)):
        network.zero_grad()
        outputs = network(inputs())
        balancer = Balancer(aggregator=aggregator and aggregator(), model=network)
        balance[scale] = balancer.backward(
            losses_of(outputs), features=outputs.features, scale=scale
        )
        plain[scale] = flat_grad(network.parameters())
        assert torch.allclose(plain[scale], (scale or 1) * plain[None], rtol=1e-10)
        assert torch.equal(balance[scale].losses, balance[None].losses)
        if aggregator is MGDA:
            assert torch.allclose(balance[scale].norms, balance[None].norms, rtol=1e-10)
            weights = balance[None].trunk_weights
            assert torch.allclose(balance[scale].trunk_weights, weights, rtol=1e-8)


def test_an_overflow_is_left_to_the_scaler_and_leaves_no_history() -> None:
    network = small_network()
    balancer = Balancer(weighting=Steps(), aggregator=Steps(), model=network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    for overflow in (False, True, False):
        before = snapshot(network.state_dict()), copy.deepcopy(balancer.state_dict())
        outputs = network(inputs())
        losses = losses_of(outputs)
        if overflow:
            losses["b"] = losses["b"] + spoiled(outputs["b"])
        optimizer.zero_grad()
        balance = balancer.backward(losses, scale=scaler.scale(torch.ones(())))
        assert balance.applied != overflow
        scaler.step(optimizer)
        scaler.update()
        moved = not same(network.state_dict(), before[0])
        learned = not same(balancer.state_dict(), before[1])
        assert moved == learned == (not overflow)
    assert scaler.get_scale() == 2.0**9
    assert count_of(balancer, "aggregator") == [2, 2, 2]


def test_bfloat16_parameters() -> None:
    network = small_network().bfloat16()
    outputs = network(inputs().bfloat16())
    balance = Balancer(aggregator=MGDA(), model=network).backward(
        losses_of(outputs), features=outputs.features
    )
    assert balance.norms.dtype == torch.float32
    assert all(p.grad.dtype == torch.bfloat16 for p in network.parameters())


# State ----------------------------------------------------------------------------------------


def test_state_survives_a_round_trip_into_an_unbound_balancer() -> None:
    model = Model()
    balancer = Balancer(weighting=Steps(), aggregator=MGDA(), model=model)
    for _ in range(3):
        balancer.backward(losses_of(model(inputs())))
    state = balancer.state_dict()
    resumed = Balancer(weighting=Steps(), aggregator=MGDA(), model=model)
    resumed.load_state_dict(state)
    assert resumed.tasks == ALL
    assert same(resumed.state_dict(), state)
    assert resumed.backward(losses_of(model(inputs()))).weights.tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match="belongs to the tasks"):
        Balancer(weighting=Steps(), tasks=["x", "y"]).load_state_dict(state)


def test_the_model_is_no_part_of_the_balancer() -> None:
    balancer = Balancer(aggregator=MGDA(), model=Model(), tasks=ALL)
    assert list(balancer.parameters()) == []
    assert set(balancer.state_dict()) == {"states.last_weights", "_extra_state"}


def test_chance_comes_from_the_clock_of_the_balancer() -> None:
    class Drawn(Weighting):
        traits = Traits(needs="nothing")

        def weigh(self, g: TaskGradients) -> Tensor:
            draw = torch.rand(g.losses.shape, generator=g.clock.generator("drawn"))
            return draw.to(g.losses)

    model = Model()
    runs = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        balancer = Balancer(weighting=Drawn(), seed=seed)
        runs.append(
            [balancer.backward(losses_of(model(inputs()))).weights.tolist() for _ in range(3)]
        )
    assert runs[0] == runs[1] != runs[2]
    assert len({tuple(weights) for weights in runs[0]}) == 3
    assert chance("unused").initial_seed() != chance("other").initial_seed()


@pytest.mark.parametrize("first", ["named", "heard without features"])
def test_a_way_round_the_features_is_seen_whenever_they_are_given(first) -> None:
    """Whoever said what is shared, and also where the tasks were heard before."""
    torch.manual_seed(0)
    trunk, a, b = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)
    parameters = [p for module in (trunk, a, b) for p in module.parameters()]
    x = torch.randn(5, 3)

    def gradients(balancer: Balancer, features: bool, **named) -> list[torch.Tensor]:
        z = trunk(x).tanh()
        direct = trunk.weight.square().sum()  # past z
        losses = {"a": a(z).square().mean(), "b": b(z).square().mean() + direct}
        balancer.backward(losses, **named, **({"features": z} if features else {}))
        taken = [p.grad for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        return taken

    expected = gradients(Balancer(aggregator=MGDA()), features=False)
    balancer = Balancer(aggregator=MGDA())
    if first == "named":
        got = gradients(balancer, features=True, shared=trunk.parameters())
    else:
        gradients(balancer, features=False)
        got = gradients(balancer, features=True)
    torch.testing.assert_close(got, expected)


def test_plain_leaves_are_parameters_where_there_is_no_other() -> None:
    theta = torch.ones(2, requires_grad=True)
    losses = {"a": theta.sum(), "b": theta.square().sum()}
    balance = Balancer(aggregator=MGDA()).backward(losses)
    assert balance.norms.tolist() == pytest.approx([2**0.5, 8**0.5])
    theta.grad = None
    losses = {"a": theta.sum(), "b": theta.square().sum()}
    Balancer().backward(losses, shared=[theta])
    torch.testing.assert_close(theta.grad, torch.tensor([3.0, 3.0]))


# What solves say ------------------------------------------------------------------------------


def test_how_a_solve_ended_is_told() -> None:
    x = nn.Parameter(torch.tensor([1.0, 1.0]))  # between the two minima
    losses = {"a": x.square().sum(), "b": (x - 3).square().sum()}
    assert Balancer(aggregator=MGDA()).backward(losses, shared=[x]).status == "stationary"
    y = nn.Parameter(torch.tensor([1.0, 5.0]))
    losses = {"a": y.square().sum(), "b": (y - torch.tensor([3.0, 0.0])).square().sum()}
    assert Balancer(aggregator=MGDA()).backward(losses, shared=[y]).status == "optimal"
    losses = {"a": y.square().sum(), "b": y.sum()}
    assert Balancer().backward(losses, shared=[y]).status is None


def test_a_solve_that_misses_its_tolerance_is_told_of_once(monkeypatch) -> None:
    exact = mgda.min_norm

    def poor(gramian: torch.Tensor) -> Solution:
        gap = torch.tensor(0.25, dtype=torch.float64)
        return exact(gramian)._replace(gap=gap, status="inaccurate", iterations=7)

    monkeypatch.setattr(mgda, "min_norm", poor)
    balancer = Balancer(aggregator=MGDA())
    y = nn.Parameter(torch.tensor([1.0, 5.0]))

    def status() -> str | None:
        losses = {"a": y.square().sum(), "b": (y - 3).square().sum()}
        return balancer.backward(losses, shared=[y]).status

    with pytest.warns(RuntimeWarning, match=r"MGDA: a solve ended 2\.5e-01 .* after 7 iterations"):
        assert status() == "inaccurate"
    assert status() == "inaccurate"  # and no second warning, which would be an error here
