"""The field's methods against their papers' own words: vectors where the code has Gramians."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

import evenhand as eh
from evenhand import Clock, TaskGradients
from evenhand.weighting.pcgrad import visiting_orders
from samplers import chance, jacobian

PAIR = torch.tensor([[3.0, 4.0], [5.0, -12.0]], dtype=torch.float64)
NAMES = (*"abcdefgh", *(f"t{i}" for i in range(200)))


def view(
    j: Tensor, step: int = 0, speaking: tuple[int, ...] | None = None, total: int | None = None
) -> TaskGradients:
    """The rows of j belong to the tasks `speaking` (all by default) of `total`."""
    index = tuple(range(j.shape[-2])) if speaking is None else speaking
    return TaskGradients.of(
        jacobian=j,
        tasks=[NAMES[i] for i in index],
        index=torch.tensor(index),
        total=total or len(index),
        clock=Clock(step=step),
    )


def weigh(method: eh.Weighting | eh.Aggregator, j: Tensor, step: int = 0) -> Tensor:
    out: Tensor = method(view(j, step))
    return out


def units(j: Tensor) -> Tensor:
    return j / j.norm(dim=-1, keepdim=True)


def close(one: Tensor, other: Tensor | float | list[float], tolerance: float = 1e-9) -> None:
    expected = torch.as_tensor(other, dtype=one.dtype).expand_as(one)
    torch.testing.assert_close(one, expected, rtol=tolerance, atol=tolerance)


# What is given --------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({}, ValueError, "give losses, a jacobian or a gramian"),
        ({"jacobian": torch.empty(0, 3)}, ValueError, r"jacobian must be.*m ≥ 1.*\[0, 3\]"),
        ({"jacobian": torch.ones(3)}, ValueError, r"jacobian must be \[\.\.\., m, n\].*\[3\]"),
        ({"jacobian": torch.tensor([[1.0], [NAN]])}, ValueError, r"jacobian\[1, 0\] is not finite"),
        ({"jacobian": torch.ones(2, 2).int()}, TypeError, "jacobian must be a floating point"),
        ({"gramian": torch.empty(0, 0)}, ValueError, r"gramian must be.*m ≥ 1"),
        ({"gramian": torch.ones(2, 3)}, ValueError, "gramian must be square"),
        ({"gramian": torch.full((2, 2), torch.inf)}, ValueError, r"gramian\[0, 0\] is not finite"),
        ({"losses": torch.empty(0)}, ValueError, r"losses must be.*m ≥ 1"),
        ({"losses": torch.tensor([1.0, NAN])}, ValueError, r"losses\[1\] is not finite"),
        ({"jacobian": torch.full((2, 3), 1e30)}, ValueError, "overflow torch.float32"),
    ],
)
def test_what_holds_no_gradients_is_refused(
    given: dict[str, Tensor], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        eh.ConFIG()(TaskGradients.of(**given))


# PCGrad and GradVac ---------------------------------------------------------------------------


def pcgrad_one_by_one(j: Tensor, orders: Tensor) -> Tensor:
    """Algorithm 1 in the space of parameters."""
    total = torch.zeros_like(j[0])
    for i, row in enumerate(j):
        changed = row.clone()
        for k in orders[i]:
            if k != i and changed @ j[k] < 0:
                changed -= (changed @ j[k]) / (j[k] @ j[k]) * j[k]
        total += changed
    return total


def gradvac_one_by_one(j: Tensor, orders: Tensor, phi: Tensor, beta: float) -> Tensor:
    """The paper's algorithm in the space of parameters; `phi` is brought up to date."""
    total = torch.zeros_like(j[0])
    for i, row in enumerate(j):
        changed = row.clone()
        for k in orders[i]:
            if k == i:
                continue
            cosine = changed @ j[k] / (changed.norm() * j[k].norm())
            usual = phi[i, k].clone()
            if cosine < usual:
                sine, usual_sine = (1 - cosine**2).sqrt(), (1 - usual**2).sqrt()
                turn = changed.norm() * (usual * sine - cosine * usual_sine)
                changed += turn / (j[k].norm() * usual_sine) * j[k]
            phi[i, k] = (1 - beta) * usual + beta * cosine
        total += changed
    return total


@pytest.mark.parametrize("m", [2, 6, 70])
def test_pcgrad_is_its_algorithm_gradient_by_gradient(m: int) -> None:
    """With more tasks than are taken together at a time, too."""
    for step in range(5 if m < 10 else 1):
        j = jacobian("conflicting", m, seed=step)
        orders = visiting_orders(view(j, step), "pcgrad")
        close(weigh(eh.PCGrad(), j, step) @ j, pcgrad_one_by_one(j, orders))


@pytest.mark.parametrize("m", [2, 6, 70])
def test_gradvac_is_its_algorithm_gradient_by_gradient(m: int) -> None:
    vaccine, phi = eh.GradVac(beta=0.5), torch.zeros(m, m, dtype=torch.float64)
    state = vaccine.init(m)
    for step in range(4 if m < 10 else 2):
        j = jacobian("conflicting", m, seed=step)
        orders = visiting_orders(view(j, step), "gradvac")
        weights, state, _ = vaccine.advance(view(j, step), state)
        v = weights @ j
        close(v, gradvac_one_by_one(j, orders, phi, 0.5), 1e-7)
        close(state["phi"], phi, 1e-7)


def test_pcgrad_draws_an_order_per_task_and_step() -> None:
    j = jacobian("independent", 8)
    first, again, later = (visiting_orders(view(j, step), "pcgrad") for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert len({tuple(order) for order in first.tolist()}) > 1
    assert torch.equal(first.sort(-1).values, torch.arange(8).expand(8, 8))


def test_pcgrad_of_two_tasks_conflicts_with_neither() -> None:
    w = weigh(eh.PCGrad(), PAIR)
    close(w, [1 + 33 / 25, 1 + 33 / 169])
    assert (PAIR @ (w @ PAIR) >= 0).all()


def test_gradvac_turns_gradients_to_their_targets() -> None:
    """With φ̂_12 = .3 and φ̂_21 = −.9: g_1' meets g_2 at cosine .3, g_2' stays."""
    state = {"phi": torch.tensor([[0.0, 0.3], [-0.9, 0.0]], dtype=torch.float64)}
    w, state, _ = eh.GradVac(beta=0.1).advance(view(PAIR), state)
    close(w[:1], 1.0)
    turned = PAIR[0] + (w[1] - 1) * PAIR[1]
    close(units(turned) @ units(PAIR)[1], 0.3)
    before = float(units(PAIR)[0] @ units(PAIR)[1])
    close(state["phi"][0, 1], 0.9 * 0.3 + 0.1 * before)
    close(state["phi"][1, 0], 0.9 * -0.9 + 0.1 * before)


def test_gradvac_starts_as_pcgrad() -> None:
    """Until cosines have been seen the targets are zero."""
    for step in range(5):
        j = jacobian("conflicting", 3, seed=step)
        by_one = [weigh(eh.PCGrad(), j, s) for s in range(20)]
        w = eh.GradVac()(view(j, step))
        assert any(torch.allclose(w, known) for known in by_one)


def test_gradvac_keeps_pairs_that_wait() -> None:
    vaccine = eh.Running(eh.GradVac(beta=0.5), tuple("abc"))
    vaccine(view(jacobian("independent", 3)))
    before = vaccine.state["phi"]
    vaccine(view(jacobian("independent", 2, seed=1), 1, speaking=(0, 2), total=3))
    changed = torch.tensor([[False, False, True], [False, False, False], [True, False, False]])
    assert torch.equal(vaccine.state["phi"] != before, changed)


def test_gradvac_sees_no_cosine_of_nothing() -> None:
    """Nor asks for one that no coefficient reaches."""
    vaccine = eh.Running(eh.GradVac(beta=1.0), tuple("ab"))
    opposite = torch.tensor([[1.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    for step, j in enumerate(
        (torch.ones(2, 2).double(), opposite, PAIR * torch.tensor([[0], [1]]))
    ):
        assert vaccine(view(j, step)).isfinite().all()
        close(vaccine.state["phi"].diagonal(), 0.0)
        close(vaccine.state["phi"][0, 1], [1.0, -1.0, -1.0][step])


# Directions by angle --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["independent", "conflicting", "spread", "agreeing"])
def test_imtl_g_projects_equally(kind: str) -> None:
    j = jacobian(kind, 5)
    w = weigh(eh.IMTLG(), j)
    close(w.sum(), 1.0)
    projections = units(j) @ (w @ j)
    close(projections / projections[0], 1.0, 1e-7)


def test_imtl_g_of_dependent_gradients() -> None:
    """Equal ones share; where only their line exists, v still has equal projections."""
    rows = jacobian("independent", 2)
    w = weigh(eh.IMTLG(), torch.cat((rows, 3 * rows[1:])))
    close(w[1], 3 * w[2])
    close(weigh(eh.IMTLG(), torch.cat((rows, 0 * rows[:1])))[2], 0.0)


def test_imtl_g_may_climb() -> None:
    """The paper's Σw = 1 turns v round where a short gradient has a negative share."""
    angles = torch.tensor([0.0, 0.7, 1.4], dtype=torch.float64)
    u = torch.stack((angles.cos(), angles.sin(), torch.full_like(angles, 1.5)), 1)
    j = units(u) * torch.tensor([[1.0], [0.01], [1.0]], dtype=torch.float64)
    w = weigh(eh.IMTLG(), j)
    close(w.sum(), 1.0)
    projections = units(j) @ (w @ j)
    close(projections / projections[0], 1.0)
    assert (projections < 0).all()


def test_config_has_the_cosines_preferred() -> None:
    j = jacobian("spread", 4)
    for preference, precise in product(([1.0, 1, 1, 1], [1.0, 2, 3, 0]), (False, True)):
        method = eh.ConFIG(dict(zip("abcd", preference, strict=True)), precise=precise)
        v = weigh(method, j) @ j
        cosines = units(j) @ v / v.norm()
        close(cosines / cosines[0], preference, 1e-7)
        close(v.norm(), float((j @ v).sum() / v.norm()))


def test_config_from_the_rows_is_more_precise_where_gradients_are_nearly_dependent() -> None:
    """Against the definition in float64 on float32 rows whose singular values span 1 to 1000."""
    at = chance("config")
    left, right = (
        torch.linalg.qr(torch.randn(n, 6, dtype=torch.float64, generator=at)).Q for n in (6, 300)
    )
    j = (left * torch.logspace(0, -3, 6, dtype=torch.float64) @ right.T).float()
    unit = units(j.double())
    x = torch.linalg.pinv(unit) @ torch.full((6,), 1 / 6, dtype=torch.float64)
    wanted = (j.double() @ x).sum() * x / x.norm().square()
    errors = [
        float((weigh(eh.ConFIG(precise=p), j).double() @ j.double() - wanted).norm())
        / float(wanted.norm())
        for p in (False, True)
    ]
    assert errors[1] <= 2e-4
    assert errors[0] >= 10 * errors[1]


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_aligned_mtl_makes_components_equally_long(scale: str) -> None:
    """Bᵀ J has one singular value; which one, `scale` says."""
    j = jacobian("independent", 4)
    columns = [
        weigh(eh.AlignedMTL({n: float(n == one) for n in "abcd"}, scale=scale), j) for one in "abcd"
    ]
    aligned = torch.linalg.svdvals(torch.stack(columns, 1).T @ j)
    values = torch.linalg.svdvals(j)
    wanted = {
        "min": values[-1],
        "median": values[2],
        "rmse": values.square().mean().sqrt(),
    }
    close(aligned, float(wanted[scale]))


# Solved ones ----------------------------------------------------------------------------------


def test_nash_mtl_shares_the_length() -> None:
    j = jacobian("spread", 5)
    w = weigh(eh.NashMTL(), j)
    v = w @ j
    close(v.norm(), 5**0.5)
    close(w * (j @ v), 1.0)
    factor = torch.logspace(-2, 2, 5, dtype=torch.float64)
    close(weigh(eh.NashMTL(), factor.unsqueeze(1) * j), (w / factor).tolist(), 1e-7)
    close((weigh(eh.NashMTL(max_norm=0.5), j) @ j).norm(), 0.5)
    close(weigh(eh.NashMTL(max_norm=9.0), j), w.tolist())


def test_nash_mtl_leaves_a_dead_task_out() -> None:
    w = weigh(eh.NashMTL(), torch.cat((PAIR, torch.zeros(1, 2).double())))
    close(w[:2], weigh(eh.NashMTL(), PAIR).tolist())
    close(w[2], 0.0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0])
def test_fairgrad_is_stationary_for_its_utility(alpha: float) -> None:
    """Σ (g_i·d)^(1−α)/(1−α) falls in all directions from v on the sphere."""
    j = jacobian("conflicting", 3)
    v = weigh(eh.FairGrad(alpha), j) @ j

    def utility(d: Tensor) -> Tensor:
        descent = j @ d
        assert (descent > 0).all()
        terms = descent.log() if alpha == 1 else descent ** (1 - alpha) / (1 - alpha)
        return terms.sum()

    best = utility(v)
    for seed in range(20):
        step = torch.randn(v.shape, dtype=v.dtype, generator=chance("fair", seed))
        other = v + 1e-3 * (j @ v).min() * step / (step.norm() * j.norm(dim=1).max())
        assert utility(v.norm() * other / other.norm()) < best


def test_fairgrad_goes_from_the_sum_to_the_weakest() -> None:
    j = jacobian("agreeing", 4)
    total = units(j.sum(0))
    close(weigh(eh.FairGrad(0.0), j), 0.25)
    close(units(weigh(eh.FairGrad(1e-2), j) @ j), total.tolist(), 1e-1)
    descents = [float((j @ units(weigh(eh.FairGrad(a), j) @ j)).min()) for a in (0.1, 1, 10, 50)]
    assert descents == sorted(descents)


@pytest.mark.parametrize("kind", ["independent", "conflicting", "agreeing"])
def test_cagrad_stays_in_its_ball(kind: str) -> None:
    j = jacobian(kind, 4)
    mean = j.mean(0)
    close(weigh(eh.CAGrad(c=0.0), j) @ j, mean.tolist())
    worst = []
    for c in (0.2, 0.9, 1.5):
        v = weigh(eh.CAGrad(c), j) @ j
        close((v - mean).norm(), float(c * mean.norm()), 1e-7)
        worst.append(float((j @ v).min()))
    assert worst == sorted(worst)


def test_upgrad_and_dualproj_leave_harmony_alone() -> None:
    j = jacobian("agreeing", 4)
    assert (j @ j.T > 0).all()
    for method in (eh.UPGrad, eh.DualProj):
        close(weigh(method(), j), 0.25)
        named = dict(zip("abcd", (1.0, 0.0, 3.0, 0.5), strict=True))
        close(weigh(method(named), j), list(named.values()))


# Preferences ----------------------------------------------------------------------------------


def test_a_preference_goes_by_name_and_share() -> None:
    j = jacobian("agreeing", 2)
    for preference, wanted in (
        ({"a": 1.0, "b": 5.0, "c": 2.0}, [1.0, 2.0]),
        (None, [1 / 3, 1 / 3]),
    ):
        method = eh.DualProj(preference)
        close(method(view(j, speaking=(0, 2), total=3)), wanted)


@pytest.mark.parametrize("method", [eh.AlignedMTL, eh.UPGrad, eh.DualProj, eh.ConFIG])
def test_a_preference_is_checked(method: type[eh.UPGrad]) -> None:
    for wrong in ({"a": -1.0}, {"a": float("nan")}, {"a": 0.0}):
        with pytest.raises(ValueError, match="preference"):
            method(wrong)
    with pytest.raises(ValueError, match="give one number for each"):
        method({"a": 1.0}).require("ab")


# Robust and random ones -----------------------------------------------------------------------


def test_krum_and_the_trimmed_mean_ignore_an_outlier() -> None:
    j = jacobian("agreeing", 7)
    wild = torch.cat((j, -1e6 * j[:1]))
    w = weigh(eh.Krum(byzantine=1, selected=3), wild)
    assert w[7] == 0
    assert sorted(w.tolist())[-3:] == [1 / 3] * 3
    v = weigh(eh.TrimmedMean(trim=1), wild)
    assert (v <= j.amax(0)).all()
    assert (v >= j.amin(0)).all()
    close(weigh(eh.TrimmedMean(trim=3), j), j.median(0).values.tolist())


def test_krum_needs_company() -> None:
    close(weigh(eh.Krum(), PAIR[:1]), 1.0)
    close(weigh(eh.Krum(), PAIR), [1.0, 0.0])
    with pytest.raises(ValueError, match="at least 5 tasks"):
        weigh(eh.Krum(byzantine=1), jacobian("independent", 4))
    close(weigh(eh.Krum(selected=3), PAIR), 0.5)
    with pytest.raises(ValueError, match="at least 3 tasks"):
        weigh(eh.TrimmedMean(trim=1), PAIR)


def test_graddrop_keeps_one_sign_and_means_the_sum() -> None:
    j = torch.tensor([[3.0, -1.0, 2.0, 0.0], [-1.0, -2.0, 0.5, 0.0]], dtype=torch.float64)
    drops = torch.stack([weigh(eh.GradDrop(), j, step) for step in range(4000)])
    assert set(drops[:, 0].tolist()) == {3.0, -1.0}
    close(drops[:, 1:], [-3.0, 2.5, 0.0])
    assert abs(float(drops[:, 0].mean()) - 2.0) < 4 * float(drops[:, 0].std()) / 4000**0.5
    close(weigh(eh.GradDrop(leak=1.0), j), j.sum(0).tolist())
    leaks = weigh(eh.GradDrop(leak={"a": 0.25, "b": 1.0}, f=lambda p: (p > 0.5).to(p)), j)
    close(leaks, [2.0, -3.0, 2.5, 0.0])  # sign by majority: only b's −1 could drop, and it leaks
    leaks = weigh(eh.GradDrop(leak={"a": 1.0, "b": 0.25}, f=lambda p: (p > 0.5).to(p)), j)
    close(leaks, [2.75, -3.0, 2.5, 0.0])


# Arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: eh.GradVac(beta=1.5), "beta"),
        (lambda: eh.CAGrad(c=-0.1), "c="),
        (lambda: eh.CAGrad(c=float("inf")), "c="),
        (lambda: eh.NashMTL(max_norm=0.0), "max_norm"),
        (lambda: eh.FairGrad(alpha=-0.1), "alpha"),
        (lambda: eh.AlignedMTL(scale="mean"), "min, median, rmse"),
        (lambda: eh.Krum(byzantine=-1), "byzantine"),
        (lambda: eh.Krum(selected=0), "selected"),
        (lambda: eh.GradDrop(leak=1.1), "leak"),
        (lambda: eh.GradDrop(leak={"a": -0.1}), "leak"),
        (lambda: eh.GradDrop(leak={"a": 0.1}).require("ab"), "give one number for each"),
        (lambda: eh.TrimmedMean(trim=-1), "trim"),
    ],
)
def test_arguments_are_checked(make: object, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        make()  # type: ignore[operator]


def test_reprs_tell_arguments() -> None:
    assert repr(eh.CAGrad(c=0.3)) == "CAGrad(c=0.3)"
    assert repr(eh.AlignedMTL({"a": 1.0}, scale="rmse")) == (
        "AlignedMTL(preference={'a': 1.0}, scale='rmse')"
    )
    assert repr(eh.UPGrad()) == "UPGrad()"
    assert repr(eh.NashMTL(max_norm=1.0)) == "NashMTL(max_norm=1.0)"
