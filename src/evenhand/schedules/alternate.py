"""Alternate training: trunk and heads take turns."""

from __future__ import annotations

from collections.abc import Sequence

from evenhand.arguments import checked
from evenhand.schedules.base import Schedule, Stateless
from evenhand.schedules.clock import Clock, Phase


@checked
def alternate_steps() -> Schedule:
    """SAT-SG: a step on the trunk, then one on the heads with a fresh batch and the new trunk.

    Bellavia, Della Santa & Papini, "ATE-SG" (arXiv 2312.16340), Algorithm 3.1:

        sample B1;  θ    ← θ    − α_k ∇_θ  ℓ(θ, θ_ts; B1)
        sample B2;  θ_ts ← θ_ts − β_k ∇_ts ℓ(θ_new, θ_ts; B2)

    A call draws two batches, and an epoch ends when N_b batches have been drawn, whoever drew
    them: an epoch is about N_b/2 steps of either kind. α and β are the rates of the two optimizers.

    Example:
        >>> for phase in alternate_steps()(Clock(), ("a", "b")):
        ...     print(phase.trains, "on batch", phase.batch)
        ('shared',) on batch 0
        ('own',) on batch 1
    """
    return Stateless(
        lambda clock, tasks: (
            Phase(tasks, trains=("shared",), batch=0),
            Phase(tasks, trains=("own",), batch=1),
        ),
        "alternate_steps()",
    )


@checked
def alternate_epochs(shared: int, own: int) -> Schedule:
    """ATE-SG: `shared` epochs on the trunk, then `own` epochs on the heads, and again.

    Bellavia, Della Santa & Papini, "ATE-SG" (arXiv 2312.16340), Algorithms 3.2 and A.1 with
    E_sh = `shared` and E_ts = `own`; the epoch counter counts epochs of either kind. How batches
    are drawn is the data's affair: with replacement is Algorithm 3.2, a fresh permutation per
    epoch Algorithm A.1 (see `Stream`). The authors' code can overrun the cap on epochs by a
    phase; here the cap holds inside a phase too.

    Raises:
        ValueError: an epoch count is negative, or both are zero.
    """
    if shared < 0 or own < 0 or shared + own == 0:
        raise ValueError(
            f"alternate_epochs(shared={shared}, own={own}): epoch counts are >= 0, one of them > 0"
        )

    def phases(clock: Clock, tasks: tuple[str, ...]) -> Sequence[Phase]:
        if clock.epoch % (shared + own) < shared:
            return (Phase(tasks, trains=("shared",), lasts=shared),)
        return (Phase(tasks, trains=("own",), lasts=own),)

    return Stateless(phases, f"alternate_epochs(shared={shared}, own={own})", counted=True)
