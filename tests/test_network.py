"""Who is shared, what rests, and what a frozen part costs: nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from evenhand import MGDA, Balancer, MultiTaskNetwork, Phase, frozen
from samplers import inputs, losses_of, same, small_network, snapshot

ALL = ("a", "b", "c")
SHARED = Phase(ALL, trains=("shared",))
OWN = Phase(ALL, trains=("own",))


# MultiTaskNetwork -----------------------------------------------------------------------------


def test_a_network_needs_a_head() -> None:
    with pytest.raises(ValueError, match="at least one head"):
        MultiTaskNetwork(nn.Linear(1, 1), {})


def test_outputs_come_by_task_with_their_features() -> None:
    network = small_network()
    outputs = network(inputs())
    assert list(outputs) == ["a", "b", "c"]
    assert torch.equal(outputs["b"], network.head("b")(outputs.features))


def test_only_the_heads_asked_for_are_evaluated() -> None:
    network = small_network(norm=True)
    seen = network.head("c")[1].num_batches_tracked
    assert list(network(inputs(), tasks=["b", "a"])) == ["b", "a"]
    assert int(seen) == 0


def test_task_names_are_free() -> None:
    heads = {name: nn.Linear(2, 1) for name in ("forward", "1.5", "", "ü.weight")}
    network = MultiTaskNetwork(nn.Linear(3, 2), heads)
    assert list(network(torch.ones(1, 3))) == list(heads)


def test_blocks_of_a_network() -> None:
    network = small_network(norm=True)
    blocks = network.blocks()
    assert set(blocks.shared) == set(network.trunk.parameters())
    assert all(set(blocks.own[t]) == set(network.head(t).parameters()) for t in ALL)
    assert blocks.last_layer == tuple(network.trunk[4].parameters())
    assert set(blocks.all) == set(network.parameters())


def test_tied_parameters_are_shared() -> None:
    heads = {task: nn.Linear(3, 2) for task in ALL}
    heads["a"].weight = heads["b"].weight
    trunk = nn.Linear(2, 3)
    heads["c"].bias = nn.Parameter(torch.zeros(2))
    trunk.register_parameter("also_c", heads["c"].bias)
    blocks = MultiTaskNetwork(trunk, heads).blocks()
    assert any(p is heads["a"].weight for p in blocks.shared)
    assert blocks.own["a"] == (heads["a"].bias,)
    assert blocks.own["c"] == (heads["c"].weight,)
    assert len(set(blocks.all)) == len(blocks.all)


def test_a_trunk_without_parameters_has_no_last_layer() -> None:
    blocks = MultiTaskNetwork(nn.Flatten(), {"a": nn.Linear(2, 1)}).blocks()
    assert blocks.shared == ()
    assert blocks.last_layer == ()


# frozen --------------------------------------------------------------------------------------


def test_resting_freezes_what_does_not_move_and_gives_it_back() -> None:
    network = small_network(norm=True, dropout=0.5)
    network.head("b").eval()
    network.trunk[0].bias.requires_grad_(False)
    before = _flags(network)
    with frozen(network, OWN):
        assert not any(p.requires_grad for p in network.trunk.parameters())
        assert not any(m.training for m in network.trunk.modules())
        assert all(p.requires_grad for p in network.heads.parameters())
        assert network.head("a").training
        assert not network.head("b").training
    assert _flags(network) == before
    with frozen(network, Phase(("a",))):
        assert not any(p.requires_grad for p in network.head("c").parameters())
        assert network.trunk.training
        assert not network.head("c").training
    assert _flags(network) == before


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_flags_and_buffers_come_back_when_an_exception_passes(mode, error) -> None:
    network = small_network(norm=True, dropout=0.5)
    flags, state = _flags(network), snapshot(network.state_dict())
    identities = [id(buffer) for buffer in network.trunk.buffers()]

    def fail() -> None:
        with frozen(network, OWN, mode=mode):
            network(inputs())
            raise error

    with pytest.raises(error):
        fail()
    assert _flags(network) == flags
    assert same(
        {k: v for k, v in network.state_dict().items() if k.startswith("trunk")},
        {k: v for k, v in state.items() if k.startswith("trunk")},
    )
    assert [id(buffer) for buffer in network.trunk.buffers()] == identities


@pytest.mark.parametrize("phase", [SHARED, OWN, Phase(("b",), trains=("own",)), Phase(("b",))])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_resting_buffers_do_not_move(phase, mode) -> None:
    network = small_network(norm=True)
    before = snapshot(dict(network.named_buffers()))
    with frozen(network, phase, mode=mode):
        network(inputs())
    moving = set(network.blocks().training(phase))
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm1d):
            moved = not torch.equal(module.running_mean, before[f"{name}.running_mean"])
            assert moved == (module.weight in moving)


def test_the_two_modes_normalise_differently() -> None:
    network = small_network(norm=True)
    x = inputs()
    plain = network(x).features.detach()
    with frozen(network, OWN, mode="train"):
        assert torch.equal(network(x).features, plain)
    with frozen(network, OWN, mode="eval"):
        assert not torch.allclose(network(x).features, plain)


def test_parameterless_modules_inside_a_resting_part_rest_too() -> None:
    trunk = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.Dropout())
    network = MultiTaskNetwork(trunk, {"a": nn.Linear(2, 1)})
    with frozen(network, Phase(("a",), trains=("own",))):
        assert not trunk[1].training
        assert not trunk[2].training


def test_a_part_the_user_froze_keeps_its_mode() -> None:
    network = small_network(norm=True)
    network.trunk.requires_grad_(False)
    with frozen(network, OWN):
        assert network.trunk.training
    assert not any(p.requires_grad for p in network.trunk.parameters())


def test_resting_a_foreign_model_needs_its_blocks() -> None:
    model = nn.ModuleDict({"trunk": nn.Linear(2, 2), "a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
    with pytest.raises(ValueError, match="blocks="), frozen(model, OWN):
        pass
    balancer = Balancer(model=model)
    z = model["trunk"](torch.ones(3, 2))
    balancer.backward({"a": model["a"](z).sum(), "b": model["b"](z).sum()})
    with frozen(model, Phase(("b",), trains=("own",)), blocks=balancer.blocks):
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert [name for name, on in flags.items() if on] == ["b.weight", "b.bias"]


def test_an_unknown_mode_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="'eval' or 'train'"),
        frozen(small_network(), OWN, mode="frozen"),
    ):
        pass


def _flags(network: nn.Module) -> list[bool]:
    return [p.requires_grad for p in network.parameters()] + [m.training for m in network.modules()]


# What a phase costs: counted in tensors that autograd keeps and in nodes that it visits ---------


def test_an_own_phase_builds_no_trunk_graph() -> None:
    network = small_network(norm=True)
    with _keeping() as joint:
        losses_of(network(inputs()))
    with _keeping() as own, frozen(network, OWN):
        outputs = network(inputs())
        losses_of(outputs)
    with _keeping() as heads_alone:
        features = network.trunk(inputs()).detach()
        joint_trunk = len(heads_alone)
        losses_of({task: network.head(task)(features) for task in ALL})
    assert outputs.features.grad_fn is None
    assert not outputs.features.requires_grad
    assert [t.shape for t in own] == [t.shape for t in heads_alone[joint_trunk:]]
    assert len(own) < len(joint) - joint_trunk  # the heads' first weights are not kept either
    trunk = {p.data_ptr() for p in network.trunk.parameters()}
    assert trunk & {t.data_ptr() for t in joint}
    assert not trunk & {t.data_ptr() for t in own}


def test_a_shared_phase_keeps_nothing_for_the_weights_of_heads() -> None:
    # A layer keeps its input for the gradient of its weight only.
    network = small_network()
    for phase, kept in ((Phase(ALL), True), (SHARED, False)):
        with frozen(network, phase):
            features = network(inputs()).features
            with _keeping() as tensors:
                assert network.head("a")[0](features).requires_grad
        assert any(t.data_ptr() == features.data_ptr() for t in tensors) == kept


@pytest.mark.parametrize("rested", [True, False])
@pytest.mark.parametrize("phase", [Phase(ALL), SHARED, OWN, Phase(("b",), trains=("own",))])
def test_backward_visits_only_what_the_phase_moves(phase, rested) -> None:
    network = small_network()
    with frozen(network, phase if rested else Phase(ALL)):
        outputs = network(inputs(), tasks=phase.tasks)
    losses = losses_of(outputs)
    visited = _visits(outputs.features, losses.values())
    Balancer(model=network, tasks=ALL).backward(losses, features=outputs.features, phase=phase)
    assert visited["trunk"] == ("shared" in phase.trains)
    assert visited["heads"] > 0
    filled = {p for p in network.parameters() if p.grad is not None}
    assert filled == set(network.blocks().training(phase))


def test_one_trunk_pass_serves_all_tasks_at_the_representation() -> None:
    network = small_network()
    passes = {}
    for at in ("representation", "parameters"):
        outputs = network(inputs())
        losses = losses_of(outputs)
        visited = _visits(outputs.features, losses.values())
        balancer = Balancer(aggregator=MGDA(at=at), model=network)
        balancer.backward(losses, features=outputs.features)
        passes[at] = visited["trunk"]
    assert passes == {"representation": 1, "parameters": 3}


@contextmanager
def _keeping() -> Iterator[list[Tensor]]:
    """The tensors that autograd keeps for a backward pass."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _visits(features: Tensor, losses: Iterable[Tensor]) -> Counter[str]:
    """Counts, from now on, how often the trunk's last node and the losses' nodes are visited."""
    visits: Counter[str] = Counter()
    if features.grad_fn is not None:
        features.grad_fn.register_prehook(lambda _: visits.update(["trunk"]))
    for loss in losses:
        loss.grad_fn.register_prehook(lambda _: visits.update(["heads"]))
    return visits


class Listening(nn.Linear):
    """A module that looks at what is assigned to it."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "training":
            self.heard = [*getattr(self, "heard", []), value]


def test_a_module_with_a_setter_of_its_own_hears_that_it_rests() -> None:
    network = MultiTaskNetwork(Listening(2, 3), {"a": nn.Linear(3, 1)})
    network.trunk.heard = []
    with frozen(network, Phase(("a",), trains=("own",))):
        assert not network.trunk.training
    assert network.trunk.heard == [False, True]
