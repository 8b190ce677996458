"""Equality with TorchJD where both have the method, and the disagreements, each pinned.

TorchJD solves some of its problems with optional packages that are not installed here (cvxpy, ECOS,
quadprog). For those the answers of version 0.18 are written down, and an independent solver checks
ours on random matrices.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchjd.aggregation as peer
from scipy.optimize import minimize, nnls
from torch import Tensor
from torchjd.linalg import DualConeProjector

import evenhand as eh
from evenhand import Clock, TaskGradients
from samplers import chance

SIZES = [(2, 3), (3, 6), (5, 8), (8, 20)]
THREE = torch.tensor([[1, 2, -2, 0], [-3, 1, 1, 2], [0, -1, 4, -5]], dtype=torch.float64)
DOCS = torch.tensor([[-4.0, 1, 1], [6, 1, 1]], dtype=torch.float64)  # TorchJD's own example


def matrices(m: int, n: int, count: int = 5) -> list[Tensor]:
    """Random Jacobians with conflict."""
    rows = torch.randn(count, m, n, dtype=torch.float64, generator=chance("torchjd", m, n))
    return list(rows - 0.5 * rows.mean(1, keepdim=True))


def view(jacobian: Tensor, step: int = 0) -> TaskGradients:
    return TaskGradients.of(jacobian=jacobian, clock=Clock(step=step))


def ours(
    method: eh.Weighting | eh.Aggregator | eh.Running, jacobian: Tensor, step: int = 0
) -> Tensor:
    """The direction."""
    out = method(view(jacobian, step))
    rule = method.method if isinstance(method, eh.Running) else method
    return out @ jacobian if isinstance(rule, eh.Weighting) else out


def preference(m: int) -> tuple[dict[str, float], Tensor]:
    p = torch.rand(m, dtype=torch.float64, generator=chance("preference", m)) + 0.1
    return {f"task{i}": float(p[i]) for i in range(m)}, p


def close(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def norm(x: Tensor, gramian: Tensor) -> float:
    return float((x @ gramian @ x).clamp_min(0).sqrt())


# Closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_imtl_g_aligned_and_config(m: int, n: int) -> None:
    named, p = preference(m)
    for j in matrices(m, n):
        close(ours(eh.IMTLG(), j), peer.IMTLG()(j))
        close(ours(eh.ConFIG(), j), peer.ConFIG()(j))
        close(ours(eh.ConFIG(named), j), peer.ConFIG(pref_vector=p)(j))
        for scale in ("min", "median", "rmse"):
            theirs = peer.AlignedMTL(pref_vector=p, scale_mode=scale)(j)
            close(ours(eh.AlignedMTL(named, scale=scale), j), theirs)
            close(ours(eh.AlignedMTL(scale=scale), j), peer.AlignedMTL(scale_mode=scale)(j))


def test_config_and_aligned_of_dependent_gradients() -> None:
    rows = matrices(3, 9, count=1)[0]
    j = torch.cat((rows, rows[:2] + rows[1:]))
    close(ours(eh.ConFIG(), j), peer.ConFIG()(j), 1e-7)
    for scale in ("min", "median", "rmse"):
        close(ours(eh.AlignedMTL(scale=scale), j), peer.AlignedMTL(scale_mode=scale)(j), 1e-7)


def test_imtl_g_has_weights_for_opposite_gradients() -> None:
    """Those of the paper's closed form, w ∝ 1/‖g_i‖ and v = 0; TorchJD's v favours a task."""
    j = torch.tensor([[3.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    w = eh.IMTLG()(view(j))
    close(w, torch.tensor([0.25, 0.75], dtype=torch.float64))
    g, u = j, j / j.norm(dim=1, keepdim=True)
    released = g[0] @ (u[:1] - u[1:]).T @ torch.linalg.inv((g[:1] - g[1:]) @ (u[:1] - u[1:]).T)
    close(w[1:], released)
    close(w @ j, torch.zeros(2, dtype=torch.float64))
    close(peer.IMTLG()(j), torch.tensor([5.0, 0.0], dtype=torch.float64))


def test_imtl_g_knows_short_gradients() -> None:
    """A gradient 1e8 times shorter than the others is no dependent one, as it is to TorchJD."""
    scale = torch.tensor([1.0, 1e-8, 1.0], dtype=torch.float64)
    j = scale.unsqueeze(1) * THREE
    projections = ours(eh.IMTLG(), j) @ (j / j.norm(dim=1, keepdim=True)).T
    close(projections / projections[0], torch.ones(3, dtype=torch.float64))
    theirs = peer.IMTLG()(j) @ (j / j.norm(dim=1, keepdim=True)).T
    assert (theirs / theirs[0] - 1).abs().max() > 0.1


# Random orders --------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_pcgrad(m: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same orders given, the same direction."""
    plain = torch.randperm
    for step, j in enumerate(matrices(m, n)):
        direction = ours(eh.PCGrad(), j, step)
        generator = Clock(step=step).generator("pcgrad")
        monkeypatch.setattr(torch, "randperm", lambda k, at=generator: plain(k, generator=at))
        close(direction, peer.PCGrad()(j))
        monkeypatch.undo()


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_gradvac(m: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same orders given, the same directions and targets over several steps (their ε = 0)."""
    names = [f"task{i}" for i in range(m)]
    vaccine, theirs = eh.Running(eh.GradVac(beta=0.5), names), peer.GradVac(beta=0.5, eps=0.0)
    plain = torch.randperm
    for step, j in enumerate(matrices(m, n, count=8)):
        direction = ours(vaccine, j, step)
        generator = Clock(step=step).generator("gradvac")
        drawn = iter([plain(m, generator=generator) for _ in range(m)])
        rows = iter(range(m))

        def others(count: int, drawn=drawn, rows=rows) -> Tensor:  # type: ignore[no-untyped-def]
            i, order = next(rows), next(drawn)
            left = order[order != i]
            return left - (left > i).long()  # they number the tasks without the i-th

        monkeypatch.setattr(torch, "randperm", others)
        close(direction, theirs(j), 1e-7)
        monkeypatch.undo()
    seen = ~torch.eye(m, dtype=torch.bool)
    close(vaccine.state["phi"][seen], theirs.gramian_weighting._phi_t[seen], 1e-7)


def test_graddrop(monkeypatch: pytest.MonkeyPatch) -> None:
    leak = torch.tensor([0.1, 0.0, 0.7, 0.2, 1.0], dtype=torch.float64)
    named = {f"task{i}": float(leak[i]) for i in range(5)}
    plain = torch.rand
    for step, j in enumerate(matrices(5, 50)):
        direction = ours(eh.GradDrop(named), j, step)
        generator = Clock(step=step).generator("graddrop")
        lots = plain(50, generator=generator).double()
        monkeypatch.setattr(torch, "rand", lambda *_, lots=lots, **__: lots)
        close(direction, peer.GradDrop(leak=leak)(j))
        monkeypatch.undo()


# Robust means ---------------------------------------------------------------------------------


def test_trimmed_mean() -> None:
    for j in matrices(8, 20):
        for trim in (0, 1, 3):
            close(ours(eh.TrimmedMean(trim), j), peer.TrimmedMean(trim)(j))


def test_krum_squares_distances() -> None:
    """The paper's score is a sum of squares, TorchJD's one of distances: they may disagree."""
    g = torch.Generator().manual_seed(0)
    differ = 0
    for _ in range(100):
        j = torch.randn(7, 2, dtype=torch.float64, generator=g)
        distances = torch.cdist(j, j).sort().values[:, 1:5]
        close(ours(eh.Krum(byzantine=1), j), j[distances.square().sum(1).argmin()])
        close(peer.Krum(n_byzantine=1)(j), j[distances.sum(1).argmin()])
        differ += int(distances.square().sum(1).argmin() != distances.sum(1).argmin())
    assert 0 < differ < 50


# Projections on the dual cone -----------------------------------------------------------------


class Projector(DualConeProjector):
    """TorchJD's projection by scipy's nnls, with the normalisation and ε that it has by default."""

    def __init__(self, reg_eps: float) -> None:
        self.reg_eps = reg_eps

    def __call__(self, U: Tensor, G: Tensor) -> Tensor:
        g = G / G.diagonal().sum() + self.reg_eps * torch.eye(len(G), dtype=G.dtype)
        root = torch.linalg.cholesky(g).mT.numpy()
        rows = U.reshape(-1, len(G)).numpy()
        projected = np.stack([u + nnls(root, -root @ u)[0] for u in rows])
        return torch.from_numpy(projected).reshape(U.shape)


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_upgrad_and_dualproj(m: int, n: int) -> None:
    named, p = preference(m)
    exact = Projector(reg_eps=0.0)
    for j in matrices(m, n):
        close(ours(eh.UPGrad(), j), peer.UPGrad(projector=exact)(j), 1e-8)
        close(ours(eh.UPGrad(named), j), peer.UPGrad(p, projector=exact)(j), 1e-8)
        close(ours(eh.DualProj(), j), peer.DualProj(projector=exact)(j), 1e-8)
        close(ours(eh.DualProj(named), j), peer.DualProj(p, projector=exact)(j), 1e-8)


def test_upgrad_and_dualproj_are_not_regularised() -> None:
    """TorchJD's documented example is 2e-3 from the projection, by the ε on the diagonal."""
    regular = Projector(reg_eps=1e-4)
    documented = torch.tensor([0.2929, 1.9004, 1.9004], dtype=torch.float64)
    close(peer.UPGrad(projector=regular)(DOCS), documented, 1e-4)
    # By hand: with g_1·g_2 = −22, π(g_1) = g_1 + 22/38 g_2 and π(g_2) = g_2 + 22/18 g_1.
    w = torch.tensor([1 + 22 / 18, 1 + 22 / 38], dtype=torch.float64) / 2
    close(ours(eh.UPGrad(), DOCS), w @ DOCS)
    # The mean (1, 1, 1) conflicts with g_1 only: λ = 2/18.
    close(ours(eh.DualProj(), DOCS), torch.tensor([5.0, 10, 10], dtype=torch.float64) / 9)
    documented = torch.tensor([0.5563, 1.1109, 1.1109], dtype=torch.float64)
    close(peer.DualProj(projector=regular)(DOCS), documented, 1e-4)


# Bargaining, fairness, conflict aversion ------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), SIZES)
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_fairgrad(m: int, n: int, alpha: float) -> None:
    for j in matrices(m, n):
        close(ours(eh.FairGrad(alpha), j), peer.FairGrad(alpha)(j), 1e-6)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 5.0])
def test_fairgrad_solves_for_short_gradients(alpha: float) -> None:
    """Where least squares from w = 1/m stays where it began."""
    gramian = 1e-10 * THREE @ THREE.T
    w = eh.FairGrad(alpha)(TaskGradients.of(gramian=gramian))
    close(gramian @ w * w ** (1 / alpha), torch.ones(3, dtype=torch.float64))
    theirs = peer.FairGrad(alpha).gramian_weighting(gramian)
    assert (gramian @ theirs * theirs ** (1 / alpha) - 1).abs().max() > 0.9


def test_nash_mtl() -> None:
    """TorchJD 0.18 with ECOS 2.0.14, max_norm 0 and 1; then with gradients 1000 times shorter."""
    theirs = torch.tensor([0.65176946, 0.42822633, 0.30469613], dtype=torch.float64)
    close(eh.NashMTL()(view(THREE)), theirs, 1e-7)
    clipped = torch.tensor([0.37629927, 0.24723659, 0.17591639], dtype=torch.float64)
    close(eh.NashMTL(max_norm=1.0)(view(THREE)), clipped, 1e-7)
    theirs = torch.tensor([654.0482610, 430.8492473, 301.7830146], dtype=torch.float64)
    short = 1e-3 * THREE
    w = eh.NashMTL()(view(short))
    close(short @ short.T @ w * w, torch.ones(3, dtype=torch.float64))
    assert (short @ short.T @ theirs * theirs - 1).abs().max() > 0.05


@pytest.mark.parametrize(
    ("c", "theirs"),
    [(0.4, (0.55995645, 0.33333341, 0.33333334)), (0.9, (0.8967567, 0.5363513, 0.36891846))],
)
def test_cagrad(c: float, theirs: tuple[float, ...]) -> None:
    """TorchJD 0.18 with cvxpy 1.9 and Clarabel 0.11, whose tolerance leaves five digits."""
    close(eh.CAGrad(c)(view(THREE)), torch.tensor(theirs, dtype=torch.float64), 3e-6)


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9, 1.5])
@pytest.mark.parametrize(("m", "n"), SIZES)
def test_cagrad_against_slsqp(m: int, n: int, c: float) -> None:
    """The dual problem as the paper has it, to a general solver."""
    for j in matrices(m, n):
        gramian = j @ j.T
        mean = torch.full((m,), 1 / m, dtype=torch.float64)
        radius = c * norm(mean, gramian)

        def dual(x: np.ndarray, gramian=gramian, mean=mean, radius=radius) -> float:  # type: ignore[no-untyped-def, type-arg]
            w = torch.from_numpy(x)
            return float(w @ gramian @ mean) + radius * norm(w, gramian)

        found = minimize(
            dual,
            mean.numpy(),
            method="SLSQP",
            bounds=[(0, 1)] * m,
            constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        v = ours(eh.CAGrad(c), j)
        assert (v - mean @ j).norm() <= radius * (1 + 1e-9)
        assert abs(float((j @ v).min()) - found.fun) <= 1e-6 * max(1.0, abs(found.fun))
