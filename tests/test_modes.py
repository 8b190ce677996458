"""Every way of taking the tasks' gradients against the plain one, on layers of every kind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from evenhand import MGDA, Balancer, Equal, MultiTaskNetwork, OnlineMinNorm, TaskGradients
from evenhand.autodiff import chunking as timing
from evenhand.comparison.job import Job
from evenhand.comparison.plan import training
from evenhand.comparison.request import Settings, load_problem
from evenhand.linalg import min_norm
from evenhand.network import Outputs
from evenhand.weighting.base import Weighting
from samplers import chance, flat_grad, plain_jacobian

TASKS = ("a", "b", "c", "d")
Losses = dict[str, Tensor]


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(
        one, other, rtol=1e-10, atol=1e-10 * float(other.detach().abs().max())
    )


# The models -----------------------------------------------------------------------------------


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(-1)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Twice(nn.Module):
    """One layer in two places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


class Idle(nn.Module):
    """Has a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(5, 6), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x).tanh()


def points(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=chance("modes", *shape))


def squares(network: nn.Module, x: Tensor) -> tuple[Outputs, Losses]:
    outputs = network(x)
    losses = {t: (y - 0.3 * i).square().mean() for i, (t, y) in enumerate(outputs.items())}
    return outputs, losses


def equations(network: nn.Module, x: Tensor) -> tuple[Outputs, Losses]:
    """u' = λu for every task: the losses contain derivatives of the network."""
    x = x.clone().requires_grad_()
    outputs = network(x)
    losses = {}
    for i, (task, u) in enumerate(outputs.items()):
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        losses[task] = (slope.sum(1, keepdim=True) - (i - 1.5) * u).square().mean()
    return outputs, losses


@dataclass(frozen=True)
class Model:
    trunk: Callable[[], nn.Module]
    width: int
    inputs: Callable[[], Tensor] = lambda: points(7, 5)
    run: Callable[[nn.Module, Tensor], tuple[Outputs, Losses]] = squares
    linear: bool = True

    def network(self, fused: bool = False) -> MultiTaskNetwork:
        torch.manual_seed(0)

        def head(i: int) -> nn.Module:
            if self.linear:
                return nn.Linear(self.width, 1 + i % 2, bias=i != 2)
            return nn.Sequential(nn.Linear(self.width, 4), nn.Tanh(), nn.Linear(4, 1))

        trunk, heads = self.trunk(), {t: head(i) for i, t in enumerate(TASKS)}
        return MultiTaskNetwork(trunk, heads, fused=fused).double().train()

    def forward(self, network: nn.Module) -> tuple[Outputs, Losses]:
        torch.manual_seed(1)  # the same dropout in every mode
        with sdpa_kernel(SDPBackend.MATH) if self.trunk is Attention else nullcontext():
            return self.run(network, self.inputs())


def layers(*modules: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(make() for make in modules))


linear = partial(nn.Linear, 5, 6)
MODELS: Mapping[str, Model] = {
    "linear": Model(layers(linear, nn.Tanh, partial(nn.Linear, 6, 6), nn.Tanh), 6),
    "deep heads": Model(layers(linear, nn.Tanh), 6, linear=False),
    "convolution": Model(
        layers(partial(nn.Conv2d, 1, 3, 3), nn.ReLU, partial(nn.Conv2d, 3, 4, 2), Pool),
        4,
        partial(points, 4, 1, 6, 6),
    ),
    "batch norm": Model(layers(linear, partial(nn.BatchNorm1d, 6), nn.Tanh), 6),
    "layer norm": Model(layers(linear, partial(nn.LayerNorm, 6), nn.Tanh), 6),
    "embedding": Model(
        layers(partial(nn.Embedding, 9, 5), Mean, linear, nn.Tanh),
        6,
        lambda: torch.arange(12).reshape(4, 3) % 7,
    ),
    "attention": Model(Attention, 8, partial(points, 3, 4, 8)),
    "weights in two places": Model(layers(linear, partial(Twice, 6)), 6),
    "in place": Model(layers(linear, partial(nn.ReLU, inplace=True)), 6),
    "in place, deep heads": Model(layers(linear, partial(nn.ReLU, inplace=True)), 6, linear=False),
    "dropout": Model(layers(linear, nn.Tanh, partial(nn.Dropout, 0.4)), 6),
    "unused": Model(Idle, 6),
    "derivatives": Model(layers(linear, nn.Tanh), 6, run=equations, linear=False),
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))


def plain(model: Model) -> tuple[MultiTaskNetwork, Tensor]:
    """The network with each task's own gradient in its head, and the Jacobian of the trunk."""
    network = model.network()
    _, losses = model.forward(network)
    trunk = list(network.trunk.parameters())
    jacobian = plain_jacobian(losses.values(), trunk)
    sum(losses.values()).backward()
    return network, jacobian


def agree(network: MultiTaskNetwork, twin: MultiTaskNetwork, direction: Tensor) -> None:
    """The trunk's gradient is `direction`, the heads' are those of `twin`."""
    close(flat_grad(network.trunk.parameters()), direction)
    for p, q in zip(network.heads.parameters(), twin.heads.parameters(), strict=True):
        close(p.grad, q.grad)


# The modes ------------------------------------------------------------------------------------

FEATURES: Mapping[str, Callable[[Outputs], object]] = {
    "outputs": lambda outputs: outputs,
    "features": lambda outputs: outputs.features,
    "nothing": lambda outputs: None,
}


@pytest.mark.parametrize("told", FEATURES)
@pytest.mark.parametrize("factored", ["never", "always"])
@pytest.mark.parametrize("jacobian", ["looped", "batched", 3])
@each_model
@pytest.mark.filterwarnings("ignore:no task reaches 1 parameter")
def test_the_jacobian(model, jacobian, factored, told) -> None:
    twin, expected = plain(model)
    network = model.network()
    balancer = Balancer(aggregator=MGDA(), model=network, jacobian=jacobian, factored=factored)
    outputs, losses = model.forward(network)
    balance = balancer.backward(losses, features=FEATURES[told](outputs))
    weights = min_norm(expected @ expected.T).weights
    close(balance.trunk_weights, weights)
    close(balance.norms, expected.norm(dim=1))
    agree(network, twin, weights @ expected)


@pytest.mark.parametrize("told", FEATURES)
@each_model
@pytest.mark.filterwarnings("ignore:no task reaches 1 parameter")
def test_the_product(model, told) -> None:
    """Mirror descent sees J d, and the update is d."""
    twin, expected = plain(model)
    network = model.network()
    method = OnlineMinNorm(check=1)
    balancer = Balancer(aggregator=method, model=network)
    outputs, losses = model.forward(network)
    balance = balancer.backward(losses, features=FEATURES[told](outputs))
    even = torch.full((4,), 0.25, dtype=torch.float64)
    agree(network, twin, even @ expected)
    close(balance.trunk_weights, even)
    product = expected @ (even @ expected)
    moved = torch.exp(-0.5 * product / product.abs().max())
    state = balancer.states.tree()["aggregator"]
    close(state["shares"], moved / moved.sum())
    least = min_norm(expected @ expected.T).squared_norm
    close(state["excess"], (even @ expected).square().sum() / least)


class Looks(Weighting):
    """Keeps what it sees of the features."""

    def __init__(self) -> None:
        super().__init__(at="representation")
        self.seen: list[Tensor] = []

    def weigh(self, g: TaskGradients) -> Tensor:
        weights = torch.linspace(0.2, 1.4, len(g.tasks), dtype=g.losses.dtype)
        self.seen[:] = [g.gramian, g.jacobian, g.product(weights)]
        return weights


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("told", ["outputs", "features"])
@each_model
@pytest.mark.filterwarnings("ignore:no task reaches 1 parameter")
def test_at_the_representation(model, told, fused) -> None:
    if model.run is equations:
        pytest.skip("the trunk is reached beyond the features")
    if fused and (not model.linear or told == "features"):
        pytest.skip("linear heads that are told of")
    twin, expected = plain(model)
    outputs, losses = model.forward(twin)
    rows = plain_jacobian(losses.values(), [outputs.features])
    network = model.network(fused)
    method = Looks()
    outputs, losses = model.forward(network)
    balancer = Balancer(aggregator=method, model=network)
    balance = balancer.backward(losses, features=FEATURES[told](outputs))
    gramian, jacobian, product = method.seen
    close(gramian, rows @ rows.T)
    close(jacobian, rows)
    close(product, rows @ (balance.trunk_weights @ rows))
    agree(network, twin, balance.trunk_weights @ expected)


# Heads and how they read ----------------------------------------------------------------------


def test_many_linear_heads_stay_factors() -> None:
    """Neither the Gramian nor the combination is made from m gradients as large as Z."""
    torch.manual_seed(0)
    heads = {f"t{i}": nn.Linear(30, 2) for i in range(12)}
    network = MultiTaskNetwork(nn.Linear(5, 30), heads, fused=True).double()
    x = points(50, 5)
    losses = {t: y.square().mean() for t, y in network(x).items()}
    rows = plain_jacobian(losses.values(), list(network.trunk.parameters()))
    outputs = network(x)
    losses = {t: y.square().mean() for t, y in outputs.items()}
    balancer = Balancer(aggregator=MGDA(at="representation"), model=network)
    with torch.profiler.profile(record_shapes=True) as profiler:
        balance = balancer.backward(losses, features=outputs)
    shapes = [str(event.input_shapes) for event in profiler.events()]
    assert not any("[12, 50, 30]" in shape or "[12, 1500]" in shape for shape in shapes)
    close(flat_grad(network.trunk.parameters()), balance.trunk_weights @ rows)


def test_fused_heads_are_the_same_heads() -> None:
    model = MODELS["linear"]
    one, other = model.network(), model.network(fused=True)
    other.load_state_dict(one.state_dict())
    (outputs, _), (fused, _) = model.forward(one), model.forward(other)
    for task in TASKS:
        close(fused[task], outputs[task])
    assert list(other(model.inputs(), tasks=["c", "a"])) == ["c", "a"]
    with pytest.raises(ValueError, match="not that of 'a'"):
        MultiTaskNetwork(nn.Linear(2, 2), {"a": nn.Sequential(nn.Linear(2, 1))}, fused=True)


def test_an_output_that_was_written_to() -> None:
    model = MODELS["linear"]
    twin, network = model.network(), model.network()
    balancer = Balancer(aggregator=Equal(mean=True), model=network)
    losses = []
    for net in (twin, network):
        outputs, _ = model.forward(net)
        outputs["b"].mul_(2)
        losses.append({t: y.square().mean() for t, y in outputs.items()})
    balancer.backward(losses[1], features=outputs)
    (sum(losses[0].values()) / 4).backward()
    close(flat_grad(network.trunk.parameters()), flat_grad(twin.trunk.parameters()))


@pytest.mark.parametrize("linear", [True, False])
def test_a_loss_that_sees_another_tasks_output(linear) -> None:
    """Head b is frozen, and task a's loss compares its output with b's."""
    model = Model(layers(partial(nn.Linear, 5, 6), nn.Tanh), 6, linear=linear)
    network = model.network()
    network.head("b").requires_grad_(False)

    def losses() -> tuple[Outputs, Losses]:
        outputs, found = model.forward(network)
        found["a"] = (outputs["a"] - outputs["b"][:, :1]).square().mean()
        return outputs, found

    trunk = list(network.trunk.parameters())
    expected = plain_jacobian(losses()[1].values(), trunk)
    outputs, found = losses()
    g = Balancer(aggregator=MGDA(), model=network).gradients(found, features=outputs)
    close(g.jacobian, expected)


def test_a_closure_with_outputs() -> None:
    model = MODELS["linear"]
    network = model.network()
    balancer = Balancer(weighting=MGDA(), model=network)
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        outputs, losses = model.forward(network)
        balance = balancer.backward(losses, features=outputs)
        return balance.weights @ balance.losses

    start = float(closure())
    optimizer.step(closure)
    assert float(closure()) < start


# How the passes are taken ---------------------------------------------------------------------


class Loner(torch.autograd.Function):
    """An operation that cannot be vectorised."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1.0 if float(gradient.sum()) else 0.0)


class Alone(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Loner.apply(x)


@pytest.mark.parametrize("jacobian", [0, -2, True, 1.5, "fast", None])
def test_modes_that_do_not_exist(jacobian) -> None:
    with pytest.raises(ValueError, match=r"'looped', 'batched', 'measured' or the number"):
        Balancer(jacobian=jacobian)


def test_what_cannot_be_vectorised_is_told() -> None:
    model = Model(layers(linear, Alone), 6)
    network = model.network()
    outputs, losses = model.forward(network)
    with pytest.raises(ValueError, match=r"take Balancer\(jacobian='looped'\)"):
        Balancer(aggregator=MGDA(), jacobian="batched").backward(losses, features=outputs)
    outputs, losses = model.forward(network)
    balancer = Balancer(aggregator=MGDA(), jacobian="measured")
    balancer.backward(losses, features=outputs)
    assert balancer.chunking.measured == 1


def test_what_has_no_second_derivative_is_told() -> None:
    network = MultiTaskNetwork(Attention(), {t: nn.Linear(8, 1) for t in TASKS}).double()
    outputs = network(points(3, 4, 8))
    losses = {t: y.square().mean() for t, y in outputs.items()}
    with pytest.raises(ValueError, match=r"sdpa_kernel\(SDPBackend.MATH\)"):
        Balancer(aggregator=OnlineMinNorm()).backward(losses, features=outputs)


def test_what_was_measured_is_remembered(monkeypatch) -> None:
    model = MODELS["linear"]
    asked: list[int] = []

    def seconds(passes: object, chunk: int) -> float:
        asked.append(chunk)
        return {1: 3.0, 2: 2.0, 8: 4.0}[chunk]

    monkeypatch.setattr(timing, "_seconds", seconds)
    network = model.network()
    first = Balancer(aggregator=MGDA(), jacobian="measured", model=network)
    for _ in range(2):
        outputs, losses = model.forward(network)
        first.backward(losses, features=outputs)
    assert asked == [1, 2, 8]
    again = Balancer(aggregator=MGDA(), jacobian="measured", model=network)
    again.load_state_dict(first.state_dict())
    outputs, losses = model.forward(network)
    again.backward(losses, features=outputs)
    assert asked == [1, 2, 8]
    assert again.chunking.measured == 2


def test_measuring_leaves_no_trace() -> None:
    model = MODELS["linear"]
    twin, expected = plain(model)
    network = model.network()
    outputs, losses = model.forward(network)
    balancer = Balancer(aggregator=MGDA(), jacobian="measured", model=network)
    balance = balancer.backward(losses, features=outputs)
    agree(network, twin, balance.trunk_weights @ expected)


def test_the_benchmark_runs(tmp_path) -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "step.py"
    out = tmp_path / "step.json"
    command = [sys.executable, script, "--quick", "--cases", "d", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cases = json.loads(out.read_text())["cases"]
    assert set(cases) == {"d"}
    for case in cases.values():
        assert {"sg", "exact by hand", "exact", "features", "online"} <= set(case["variants"])
        assert not case["cannot run"]


def test_a_comparison_takes_gradients_as_it_is_told() -> None:
    settings = Settings("digits", jacobian="measured")
    run = training(Job("mgda", "", 0, 0.1), load_problem("digits"), settings)
    assert run.balancer.chunking.wanted == "measured"
    with pytest.raises(ValueError, match="jacobian='fast'"):
        Settings("digits", jacobian="fast")
