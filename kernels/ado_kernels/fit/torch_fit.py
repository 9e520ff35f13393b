"""The fit in plain PyTorch, float64: the oracle of the Triton kernel, and the fit where Numba is not wanted.

All searches of many domains advance together; one that has arrived waits for the others. The searches are those of
search.py (four kinks and every alpha of the grid), screened on a few points, then followed on all of them.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ado_kernels.fit.descent import LEAST_RAISED, MAX_DAMPING, NEGLIGIBLE, RAISE
from ado_kernels.fit.padded import Padded, pad_history
from ado_kernels.fit.problem import (
    ALPHA_HIGH_KINK,
    ALPHA_LOW_KINK,
    LOG_BETA_KINK,
    LOG_EPS_KINK,
    FitOptions,
    FitResult,
    as_result,
)
from ado_kernels.fit.search import (
    COARSE_PASSES,
    COARSE_TOLERANCE,
    FULL_PASSES,
    NUM_BINS,
    NUM_FACES,
    SEED,
    TOLERANCE,
    VANISHED,
    WIDTHS,
)
from ado_kernels.fit.step import FACE_ALPHA_HIGH, FACE_ALPHA_LOW, FACE_LOG_BETA, FACE_LOG_EPS, NO_FACE
from ado_kernels.fit.torch_step import gain_of_one, model_step, penalty

_ELEMENTS = 1 << 21  # searches times points that advance together


def fit(counts: np.ndarray, loss_KT: np.ndarray, options: FitOptions) -> FitResult:
    """Fits every domain; counts (T,) or (K, T), loss_KT (K, T) float64 with NaN where a point is missing."""
    history = pad_history(counts, loss_KT, options)
    num_domains, num_points = history.x_KM.shape
    together = max(1, _ELEMENTS // ((NUM_FACES - 1 + len(options.grid_alpha)) * max(num_points, 1)))
    theta_KP, objective_K = np.full((num_domains, 3), np.nan), np.full(num_domains, np.nan)
    for first in range(0, num_domains, together):
        some = np.arange(first, min(first + together, num_domains))
        some = some[history.num_points_K[some] > 0]
        if some.size:
            theta_KP[some], objective_K[some] = _fit_domains(history.rows(some), options)
    return as_result(theta_KP, objective_K, history.residual_scale(theta_KP), history.num_points_K)


def _fit_domains(history: Padded, options: FitOptions) -> tuple[np.ndarray, np.ndarray]:
    searches = Searches(history, options)
    for width in WIDTHS:
        searches.minimise(max(width, options.delta), searches.face_N, COARSE_PASSES, COARSE_TOLERANCE)
    free_N = torch.full_like(searches.face_N, NO_FACE)
    searches.minimise(options.delta, free_N, FULL_PASSES, TOLERANCE)
    before = searches.best()
    searches.escape()
    searches.minimise(options.delta, free_N, FULL_PASSES, TOLERANCE)
    after = searches.best()
    escaped = after[1] < before[1]
    theta_KP = torch.where(escaped[:, None], after[0], before[0])
    return theta_KP.numpy(), torch.where(escaped, after[1], before[1]).numpy()


class Searches:
    """K domains times S starts: N = K S searches, their parameters theta_NP and values f_N."""

    def __init__(self, history: Padded, options: FitOptions) -> None:
        self.points = tuple(torch.from_numpy(value) for value in (history.x_KM, history.y_KM, history.w_KM))
        self.delta = options.delta
        self.alpha_G = torch.tensor(options.grid_alpha, dtype=torch.float64)
        faces = [FACE_LOG_BETA, FACE_LOG_EPS, FACE_ALPHA_HIGH, FACE_ALPHA_LOW] + [NO_FACE] * len(options.grid_alpha)
        num_domains = len(history.x0_K)
        self.num_starts = len(faces)
        self.face_N = torch.tensor(faces).repeat(num_domains)
        self.x0_N = torch.from_numpy(history.x0_K).repeat_interleave(self.num_starts)
        self.theta_NP = self._screen(options, faces)
        self.f_N = torch.full((len(self.face_N),), math.inf, dtype=torch.float64)

    def _screen(self, options: FitOptions, faces: list[int]) -> Tensor:
        """For every domain and start the best of the grid on about NUM_BINS of its points."""
        grids = (options.grid_log_beta, options.grid_log_eps, options.grid_alpha)
        grid_GP = torch.cartesian_prod(*(torch.tensor(grid, dtype=torch.float64) for grid in grids)).reshape(-1, 3)
        stride = max(1, self.points[0].shape[1] // NUM_BINS)
        x, y, w = (value[:, ::stride] for value in self.points)
        starts = []
        for start, face in enumerate(faces):
            some_GP = _on_face(grid_GP, face)
            if face == NO_FACE:
                some_GP = grid_GP[grid_GP[:, 2] == self.alpha_G[start - NUM_FACES + 1]]
            value_KG = torch.stack(
                [_huber(y - _log_law(theta_P, x), WIDTHS[0], w).sum(dim=1) for theta_P in some_GP], dim=1
            )
            starts.append(some_GP[value_KG.argmin(dim=1)])
        return torch.stack(starts, dim=1).reshape(-1, 3)

    def best(self) -> tuple[Tensor, Tensor]:
        """(theta_KP, f_K) of each domain's least search."""
        f_KS = self.f_N.view(-1, self.num_starts)
        at_K = f_KS.argmin(dim=1) + torch.arange(len(f_KS)) * self.num_starts
        return self.theta_NP[at_K], self.f_N[at_K]

    def minimise(self, delta: float, face_N: Tensor, max_passes: int, tolerance: float) -> None:
        """descent.minimise for all searches: the same damping, the same ways to stop."""
        self.theta_NP = _on_face(self.theta_NP, face_N)
        self.f_N = torch.empty(len(face_N), dtype=torch.float64)
        active = torch.arange(len(face_N))
        theta_NP = self.theta_NP.clone()
        sums = self._sums(active, theta_NP, delta)
        f_N = sums[0] + _penalty(theta_NP)
        damping_N = torch.ones_like(f_N)
        small_N = torch.zeros_like(active)
        for _ in range(max_passes - 1):
            new_NP, change_N = model_step(theta_NP, sums, self.x0_N[active], damping_N, face_N[active])
            goal_N = tolerance * (f_N + ALPHA_LOW_KINK)
            worth_N = -change_N > NEGLIGIBLE * goal_N
            alone_N = gain_of_one(theta_NP, sums, face_N[active]) > NEGLIGIBLE * goal_N
            go_N = (worth_N | alone_N) & (damping_N < MAX_DAMPING) & (small_N < 2)
            self.theta_NP[active], self.f_N[active] = theta_NP, f_N
            if not go_N.any():
                return
            active, theta_NP, new_NP, sums = active[go_N], theta_NP[go_N], new_NP[go_N], [s[go_N] for s in sums]
            f_N, damping_N, small_N, goal_N, change_N, worth_N = (
                value[go_N] for value in (f_N, damping_N, small_N, goal_N, change_N, worth_N)
            )
            trial = self._sums(active, new_NP, delta)
            gain_N = f_N - trial[0] - _penalty(new_NP)
            better_N = (gain_N > 0) & worth_N
            ratio_N = gain_N / -change_N
            small_N = torch.where(better_N, torch.where((gain_N < goal_N) & (ratio_N > 0.25), small_N + 1, 0), small_N)
            factor_N = torch.where(ratio_N > 0.75, 0.1, torch.where(ratio_N < 0.25, 4.0, 1.0))
            damping_N = torch.where(better_N, damping_N * factor_N, damping_N.clamp(min=LEAST_RAISED) * RAISE)
            theta_NP = torch.where(better_N[:, None], new_NP, theta_NP)
            sums = [torch.where(better_N, after, before) for after, before in zip(trial, sums, strict=True)]
            f_N = torch.where(better_N, f_N - gain_N, f_N)
        self.theta_NP[active], self.f_N[active] = theta_NP, f_N

    def escape(self) -> None:
        """search._escape where a law vanished into a constant; other searches stay."""
        vanished_N = self.theta_NP[:, 0] - self.theta_NP[:, 2] * self.x0_N - self.theta_NP[:, 1] < math.log(VANISHED)
        x, y, w = self._spread()
        r_NM = y - self.theta_NP[:, 1, None]
        alpha_G = torch.cat([torch.tensor([ALPHA_LOW_KINK, ALPHA_HIGH_KINK], dtype=torch.float64), self.alpha_G])
        fall_GN = []
        for alpha in alpha_G:
            shape_NM = torch.exp(-alpha * (x - self.x0_N[:, None]))
            fall_N = (w * r_NM.clamp(-self.delta, self.delta) * shape_NM).sum(dim=1)
            curve_N = (w * self.delta / r_NM.abs().clamp(min=self.delta) * shape_NM**2).sum(dim=1)
            fall_GN.append(fall_N / curve_N.sqrt())
        fall_N, at_N = torch.stack(fall_GN).max(dim=0)
        alpha_N = alpha_G[at_N]
        seeded_N = self.theta_NP[:, 1] + math.log(SEED) + alpha_N * self.x0_N
        seed_NP = torch.stack([seeded_N, self.theta_NP[:, 1], alpha_N], dim=1)
        self.theta_NP = torch.where((vanished_N & (fall_N > 0))[:, None], seed_NP, self.theta_NP)

    def _spread(self) -> tuple[Tensor, ...]:
        return tuple(value.repeat_interleave(self.num_starts, dim=0) for value in self.points)

    def _sums(self, active: Tensor, theta_NP: Tensor, delta: float) -> list[Tensor]:
        """points.newton_sums for the active searches: 16 of (N,)."""
        x, y, w = (value[active // self.num_starts] for value in self.points)
        log_beta, log_eps, alpha = (theta_NP[:, p, None] for p in range(3))
        u = torch.exp((log_beta - log_eps - alpha * x).clamp(-700.0, 700.0))
        q = 1.0 / (1.0 + u)
        p = u * q
        r = y - log_eps - torch.log1p(u)
        size = r.abs()
        slope = w * r.clamp(-delta, delta)
        inside = w * (size <= delta)
        outside = w * delta / size.clamp(min=delta) - inside
        xp = x * p
        products = (p * p, p * q, -p * xp, q * q, -q * xp, xp * xp)
        terms = [_huber(r, delta, w), -slope * p, -slope * q, slope * xp]
        terms += [weight * product for weight in (inside, outside) for product in products]
        return [term.sum(dim=1) for term in terms]


def _huber(r: Tensor, delta: float, w: Tensor) -> Tensor:
    inner = r.abs().clamp(max=delta)
    return w * inner * (r.abs() - 0.5 * inner)


def _log_law(theta_P: Tensor, x: Tensor) -> Tensor:
    return torch.logaddexp(theta_P[0] - theta_P[2] * x, theta_P[1])


def _penalty(theta_NP: Tensor) -> Tensor:
    return penalty((theta_NP[:, 0], theta_NP[:, 1], theta_NP[:, 2]))


def _on_face(theta_NP: Tensor, face: int | Tensor) -> Tensor:
    """theta_NP with the parameter that the face holds put onto its kink."""
    face_N = torch.as_tensor(face)
    log_beta, log_eps, alpha = theta_NP.unbind(dim=1)
    log_beta = torch.where(face_N == FACE_LOG_BETA, LOG_BETA_KINK, log_beta)
    log_eps = torch.where(face_N == FACE_LOG_EPS, LOG_EPS_KINK, log_eps)
    alpha = torch.where(face_N == FACE_ALPHA_LOW, ALPHA_LOW_KINK, alpha)
    return torch.stack([log_beta, log_eps, torch.where(face_N == FACE_ALPHA_HIGH, ALPHA_HIGH_KINK, alpha)], dim=1)
