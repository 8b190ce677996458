"""The landscape of two losses over two parameters on which methods are compared by eye.

Above θ_2 = 0 each loss has a narrow, curved valley with steep walls, and what lowers one raises the
other; below, both are bowls, with minima at θ_1 = 7 and θ_1 = −7. The Pareto set runs between the
minima, almost level at θ_2 ≈ −8.4. Whoever descends into a valley and stays has been stopped by
conflicting gradients far from the front.

Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning" (NeurIPS 2021, arXiv
2110.14048): their toy problem, three starts, Adam at 1e-3, 100,000 steps. Navon et al., "Multi-Task
Learning as a Bargaining Game" (ICML 2022, arXiv 2202.01017): the same with the first loss times
0.1, five starts, 35,000 steps; later papers draw that one. The formulas are those of the released
codes, which agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evenhand.aggregation import Aggregator
from evenhand.balancer import Balancer
from evenhand.network import MultiTaskNetwork
from evenhand.recipes import RECIPES, Composition, recipe
from evenhand.schedules import Clock, Phase
from evenhand.sharing import HardSharing
from evenhand.weighting import Weighting

TASKS = ("1", "2")
STARTS = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
"""Where Navon et al. start from."""
CAGRAD_STARTS = ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0))
"""Where Liu et al. start from."""
SCALE = 0.1
"""What Navon et al. multiply the first loss by; 1 in Liu et al."""


def losses(theta: Tensor, scale: float = SCALE) -> Tensor:
    """(L_1, L_2) at θ [..., 2], as [..., 2].

        L_i = c f_i + c' g_i          c = max(tanh(θ_2/2), 0),   c' = max(tanh(−θ_2/2), 0)
        f_1 = log max(|½(−θ_1 − 7) − tanh(−θ_2)|, 5e-6) + 6
        f_2 = log max(|½(−θ_1 + 3) + tanh(−θ_2) + 2|, 5e-6) + 6
        g_i = ((θ_1 ∓ 7)² + 0.1 (θ_2 + 8)²)/10 − 20

    and L_1 times `scale`.
    """
    x, y = theta.unbind(-1)
    bend = torch.tanh(-y)
    above, below = torch.tanh(y / 2).clamp_min(0), torch.tanh(-y / 2).clamp_min(0)
    valley_1 = (0.5 * (-x - 7) - bend).abs().clamp_min(5e-6).log() + 6
    valley_2 = (0.5 * (-x + 3) + bend + 2).abs().clamp_min(5e-6).log() + 6
    bowl_1 = ((x - 7) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20
    bowl_2 = ((x + 7) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20
    first, second = above * valley_1 + below * bowl_1, above * valley_2 + below * bowl_2
    return torch.stack((scale * first, second), -1)


def pareto_set(count: int = 101) -> Tensor:
    """Points of the Pareto set from the second loss's minimum to the first's, [count, 2], float64.

    With θ_1 between −7 and 7, a convex combination of the gradients vanishes for the θ_2 with θ_2 +
    8 = 25 (1 − c'²) ḡ/c', ḡ = (49 − θ_1² + 0.1 (θ_2 + 8)²)/10 − 20, a contraction. (The released
    plots draw θ_2 = −8.3552 throughout.) The scale of the losses does not matter.
    """
    x = torch.linspace(-7, 7, count, dtype=torch.float64)
    y = torch.full_like(x, -8.4)
    for _ in range(60):
        below = torch.tanh(-y / 2)
        bowls = (49 - x**2 + 0.1 * (y + 8) ** 2) / 10 - 20
        y = 25 * (1 - below**2) * bowls / below - 8
    return torch.stack((x, y), -1)


@dataclass(frozen=True)
class Paths:
    """Where a method went from each of s starts.

    Attributes:
        steps: the k steps at which it was looked at, from 0, int64 [k].
        theta: θ there, [k, s, 2].
        losses: (L_1, L_2) there, [k, s, 2].
    """

    steps: Tensor
    theta: Tensor
    losses: Tensor


Walk = Callable[[Weighting | None, Weighting | Aggregator | None], Paths]
"""From what fills the two slots to where it goes."""


def trajectory(
    weighting: Weighting | None = None,
    aggregator: Weighting | Aggregator | None = None,
    *,
    starts: Sequence[tuple[float, float]] = STARTS,
    steps: int = 35_000,
    lr: float = 1e-3,
    weights_lr: float = 0.025,
    scale: float = SCALE,
    every: int = 100,
    seed: int = 0,
) -> Paths:
    """Adam's way from every start, its gradients balanced by the method; the plain sum by default.

    The starts are members of one stack, so they cost little more than one, and each is balanced
    by itself. Methods that read losses see them above their lower bounds, −20 and −20 times
    `scale`, since some take logarithms. The losses are exact: "further batches", for methods that
    want some, are the same again.

    Args:
        weighting: a fresh method for the weighting slot.
        aggregator: a fresh method for the aggregator slot.
        starts: θ at step 0.
        steps: how many steps to take.
        lr: Adam's rate for θ. At 1e-2 with 3,500 steps most methods go the same ways as in the
            papers; some leave a valley early that would hold them longer.
        weights_lr: Adam's rate for learned weights, if any (the default of Nash-MTL's code).
        scale: of the first loss.
        every: look at every so many steps, and at the last.
        seed: of all chance in the method.

    Raises:
        ValueError: steps, every or the number of starts is less than 1.

    Example:
        >>> from evenhand import MGDA
        >>> paths = trajectory(aggregator=MGDA(), steps=20, every=10)
        >>> paths.steps.tolist(), paths.theta.shape
        ([0, 10, 20], torch.Size([3, 5, 2]))
    """
    if steps < 1 or every < 1 or not starts:
        raise ValueError(f"steps={steps}, every={every}, {len(starts)} starts: all must be >= 1")
    network = _network(torch.tensor(starts, dtype=torch.float64), scale)
    (theta,) = network.parameters()
    balancer = Balancer(weighting, aggregator, tasks=TASKS, model=network, leading=(len(starts),))
    adam = _adam(theta, lr, balancer, weights_lr)
    further = max((method.traits.batches for method in balancer.methods), default=1) - 1
    after = any(method.traits.after for method in balancer.methods)
    seen = []
    for step in range(steps):
        if step % every == 0:
            seen.append(theta.detach().clone())
        outputs, samples = network(None), [network(None) for _ in range(further)]
        clock = Clock(step=step, seed=seed)
        adam.zero_grad()
        balancer.backward(outputs, features=outputs.features, samples=samples, clock=clock)
        adam.step()
        if after:
            with torch.no_grad():
                balancer.updated(network(None), clock)
    points = torch.stack([*seen, theta.detach()])
    return Paths(torch.tensor([*range(0, steps, every), steps]), points, losses(points, scale))


def _adam(theta: Tensor, lr: float, balancer: Balancer, weights_lr: float) -> torch.optim.Adam:
    adam = torch.optim.Adam([theta], lr=lr)
    learned = list(balancer.parameters())
    for scalar in learned:  # each start has its own
        scalar.data = scalar.data.expand(len(theta)).clone()
    if learned:
        adam.add_param_group({"params": learned, "lr": weights_lr})
    return adam


def paths(names: Sequence[str], run: Walk = trajectory) -> dict[str, Paths]:
    """The way of each recipe; `run` may be a partial `trajectory` with other settings.

    Raises:
        ValueError: a recipe is unknown, or is more than a way of balancing (see `recipe_names`).
    """
    found = {}
    for name in names:
        composition = _balancing(name)
        if composition is None:
            raise ValueError(
                f"recipe {name!r} trains several networks, or moves trunk and heads at different "
                f"times: there is nothing to draw. Those that can be: {', '.join(recipe_names())}"
            )
        found[name] = run(composition.weighting, composition.aggregator)
    return found


def recipe_names() -> tuple[str, ...]:
    """The recipes that are ways of balancing one network's tasks, and can be drawn."""
    return tuple(entry.name for entry in RECIPES if _balancing(entry.name) is not None)


def _balancing(name: str) -> Composition | None:
    compositions: Mapping[str, Composition] = recipe(name).compose(TASKS)
    if len(compositions) > 1:
        return None
    (composition,) = compositions.values()
    plain = tuple(composition.schedule(Clock(), TASKS)) == (Phase(TASKS),)
    plain = plain and composition.network == HardSharing()
    return composition if plain and not composition.own_moments else None


class _Point(nn.Module):
    """A trunk that knows one answer, θ."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta)

    def forward(self, x: None) -> Tensor:
        return self.theta.clone()


class _Loss(nn.Module):
    """A head without parameters: the loss above its lower bound."""

    def __init__(self, number: int, scale: float) -> None:
        super().__init__()
        self.number, self.scale = number, scale

    def forward(self, theta: Tensor) -> Tensor:
        bound = -20 * (self.scale if self.number == 0 else 1)
        return losses(theta, self.scale)[..., self.number] - bound


def _network(starts: Tensor, scale: float) -> MultiTaskNetwork:
    heads = {task: _Loss(number, scale) for number, task in enumerate(TASKS)}
    return MultiTaskNetwork(_Point(starts), heads)
