"""Pure mathematics on small matrices: what a solver returns comes with its certificate.

Every solver takes a stack of Gramians G = J Jᵀ `[..., m, m]` (leading dimensions are independent
problems: a stack gives exactly the stack of single solutions), works on the CPU in float64 whatever
comes in, returns weights in the dtype and on the device of the input, and is not differentiable.
What it returns is a `Solution`: the weights, ‖Jᵀw‖², the gap that certifies them, and a status.
Near-optimal is not what these are: the active-set methods end at the solution.

- `min_norm`: the shortest vector in the convex hull of the gradients; `min_norm_gap` certifies
  weights from elsewhere, `frank_wolfe` is the approximation of the literature;
- `simplex_qp`: any convex quadratic on the simplex; `project_simplex`: the nearest point of it;
- `project_cone`: the nearest direction that harms no task; `project_cone_gap` certifies;
- `nash_weights`: the bargaining solution, and its α-fair relatives;
- `cagrad_weights`: the direction near the mean that serves the worst-off task best.
"""

from .bargaining import nash_weights
from .cagrad import cagrad_weights
from .cone import project_cone, project_cone_gap
from .simplex import frank_wolfe, min_norm, min_norm_gap, project_simplex, simplex_qp
from .solution import Solution

__all__ = [
    "Solution",
    "cagrad_weights",
    "frank_wolfe",
    "min_norm",
    "min_norm_gap",
    "nash_weights",
    "project_cone",
    "project_cone_gap",
    "project_simplex",
    "simplex_qp",
]
