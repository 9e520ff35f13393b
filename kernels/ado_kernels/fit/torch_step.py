"""The step of step.py in plain PyTorch: N searches at once, every piece of the penalty a lane.

Float64, any device. The formulas stand in step.py; here they are written without branches, which is also how the
Triton kernel has them. Shapes: N searches, Q pieces, P parameters.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ado_kernels.fit.problem import ALPHA_HIGH_KINK, ALPHA_LOW_KINK, LOG_BETA_KINK, LOG_EPS_KINK
from ado_kernels.fit.step import (
    ALPHA_PULL,
    BETA_PULL,
    EPS_PULL,
    FACE_ALPHA_HIGH,
    FACE_ALPHA_LOW,
    FACE_LOG_BETA,
    FACE_LOG_EPS,
    FREE,
    HELD,
    HELD_HIGH,
    SHRINK,
    SMALLEST_ALPHA,
    TINY,
    VANISHING,
)


class Pieces(NamedTuple):
    """State of each parameter in each piece (Q,): the 45 combinations and 3 in which the reducible part vanishes."""

    beta: Tensor
    eps: Tensor
    alpha: Tensor

    @classmethod
    def on(cls, device: torch.device) -> "Pieces":
        rows = [(i, j, k) for i in range(3) for j in range(3) for k in range(5)]
        rows += [(VANISHING, j, FREE) for j in range(3)]
        return cls(*torch.tensor(rows, device=device).T)

    def allowed_NQ(self, face_N: Tensor) -> Tensor:
        """Which pieces a search held on a face may use."""
        face = face_N[:, None]
        vanishing = self.beta == VANISHING
        return (
            ((face != FACE_LOG_BETA) | (self.beta == HELD))
            & ((face != FACE_LOG_EPS) | (self.eps == HELD))
            & ((face != FACE_ALPHA_LOW) | (self.alpha == HELD) | vanishing)
            & ((face != FACE_ALPHA_HIGH) | (self.alpha == HELD_HIGH) | vanishing)
        )


def penalty(theta_P: tuple[Tensor, ...]) -> Tensor:
    """The four penalty terms of F."""
    log_beta, log_eps, alpha = theta_P
    high = (alpha - ALPHA_HIGH_KINK).clamp(min=0) + (log_beta - LOG_BETA_KINK).clamp(min=0)
    return high - alpha.clamp(max=ALPHA_LOW_KINK) - (log_eps - LOG_EPS_KINK).clamp(max=0)


def gain_of_one(theta_NP: Tensor, sums: list[Tensor], face_N: Tensor) -> Tensor:
    """step.gain_of_one for N searches."""
    log_beta, log_eps, alpha = theta_NP.unbind(dim=1)
    beta = _pull_left(sums[1], log_beta > LOG_BETA_KINK, log_beta >= LOG_BETA_KINK)
    eps = _pull_left(-sums[2], log_eps < LOG_EPS_KINK, log_eps <= LOG_EPS_KINK)
    left = 1.0 * (alpha > ALPHA_HIGH_KINK) - 1.0 * (alpha <= ALPHA_LOW_KINK)
    right = 1.0 * (alpha >= ALPHA_HIGH_KINK) - 1.0 * (alpha < ALPHA_LOW_KINK)
    slope = _pull_left(sums[3], left, right)
    gain_NP = torch.stack(
        [
            (face_N != FACE_LOG_BETA) * beta.square() / (sums[4] + sums[10] + TINY),
            (face_N != FACE_LOG_EPS) * eps.square() / (sums[7] + sums[13] + TINY),
            (face_N != FACE_ALPHA_LOW) * (face_N != FACE_ALPHA_HIGH) * slope.square() / (sums[9] + sums[15] + TINY),
        ],
        dim=1,
    )
    return 0.5 * gain_NP.amax(dim=1)


def _pull_left(slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return (slope + left).clamp(min=0) + (slope + right).clamp(max=0)


def model_step(theta_NP: Tensor, sums: list[Tensor], x0_N: Tensor, damping_N: Tensor, face_N: Tensor):
    """(new_NP, change_N): the model's minimum and the change of F it predicts; sums: 16 of (N,), as newton_sums."""
    pieces = Pieces.on(theta_NP.device)
    theta = tuple(theta_NP[:, p, None] for p in range(3))
    gradient = tuple(value[:, None] for value in sums[1:4])
    damping, scale = damping_N[:, None], damping_N.clamp(min=1.0)[:, None]
    h = [scale * sums[4 + i][:, None] + damping * sums[10 + i][:, None] for i in range(6)]
    x0 = x0_N[:, None]
    alpha = torch.where(theta[2].abs() > SMALLEST_ALPHA, theta[2], SMALLEST_ALPHA)
    law = (theta[1].exp(), (theta[0] - alpha * x0).exp(), (LOG_BETA_KINK - alpha * x0).exp(), alpha, x0)
    jacobian = _tangent(pieces, law)
    a = _pulled_back(jacobian, h)
    pull = (_of_state(BETA_PULL, pieces.beta), _of_state(EPS_PULL, pieces.eps), _of_state(ALPHA_PULL, pieces.alpha))
    vanishing = pieces.beta == VANISHING
    kink = _of_state((0.0, ALPHA_LOW_KINK, ALPHA_HIGH_KINK, 0.0, 0.0), pieces.alpha)
    on_kink = (pieces.alpha == HELD) | (pieces.alpha == HELD_HIGH)
    held = ((pieces.beta == HELD) | vanishing, pieces.eps == HELD, on_kink | vanishing)
    start = (
        torch.where(vanishing, SHRINK - 1.0, LOG_BETA_KINK - theta[0]),
        (LOG_EPS_KINK - theta[1]).expand(-1, len(kink)),
        torch.where(on_kink, kink - theta[2], 0.0),
    )
    pulled = tuple(g + p for g, p in zip(gradient, pull, strict=True))
    d, positive = _solve_held(a, _transposed(jacobian, pulled), held, start)
    new_alpha = torch.where(on_kink, kink, theta[2] + d[2])
    new, d = _retract(pieces, theta, law, new_alpha, d)
    g = _transposed(jacobian, gradient)
    value = g[0] * d[0] + g[1] * d[1] + g[2] * d[2] + penalty(new) - penalty(theta)
    value = value + 0.5 * (a[0] * d[0] ** 2 + a[3] * d[1] ** 2 + a[5] * d[2] ** 2)
    value = value + a[1] * d[0] * d[1] + a[2] * d[0] * d[2] + a[4] * d[1] * d[2]
    usable = positive & pieces.allowed_NQ(face_N) & value.isfinite()
    change_N, best_N = torch.where(usable, value, math.inf).min(dim=1)
    new_NP = torch.stack([value.gather(1, best_N[:, None])[:, 0] for value in new], dim=1)
    return new_NP, change_N


def _of_state(values: tuple[float, ...], state_Q: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=state_Q.device)[state_Q]


def _tangent(pieces: Pieces, law: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Rows d log_beta and d log_eps over the piece's coordinates, each three of (N, Q)."""
    eps, v, v_held, alpha, x0 = law
    moves_beta = (pieces.beta != HELD) & (pieces.beta != VANISHING)
    moves_eps = pieces.eps != HELD
    both = moves_beta & moves_eps
    beta_row = (
        torch.where(both, 0.0, torch.ones_like(v)),
        torch.where(both, 1.0 / (alpha * v), 0.0),
        torch.where(both, x0 - 1.0 / alpha, torch.where(moves_beta, x0, 0.0)),
    )
    along = torch.where(pieces.beta == HELD, x0 * v_held / eps, 0.0)
    eps_row = (
        torch.where(both, 1.0 / eps, 0.0),
        torch.where(both, -1.0 / (alpha * eps), torch.where(moves_eps, 1.0 / eps, 1.0)),
        torch.where(both, v / (alpha * eps), torch.where(moves_eps, along, 0.0)),
    )
    return beta_row, eps_row


def _pulled_back(jacobian, h: list[Tensor]) -> list[Tensor]:
    """Entries 00, 01, 02, 11, 12, 22 of J' H J + tiny, J being the jacobian's two rows and (0, 0, 1)."""
    b, e = jacobian
    p = [h[0] * b[i] + h[1] * e[i] + (h[2] if i == 2 else 0.0) for i in range(3)]
    q = [h[1] * b[i] + h[3] * e[i] + (h[4] if i == 2 else 0.0) for i in range(3)]
    last = h[2] * b[2] + h[4] * e[2] + h[5]
    return [
        b[0] * p[0] + e[0] * q[0] + TINY,
        b[0] * p[1] + e[0] * q[1],
        b[0] * p[2] + e[0] * q[2],
        b[1] * p[1] + e[1] * q[1] + TINY,
        b[1] * p[2] + e[1] * q[2],
        b[2] * p[2] + e[2] * q[2] + last + TINY,
    ]


def _transposed(jacobian, g) -> list[Tensor]:
    b, e = jacobian
    return [b[i] * g[0] + e[i] * g[1] + (g[2] if i == 2 else 0.0) for i in range(3)]


def _solve_held(a, g, held, start) -> tuple[list[Tensor], Tensor]:
    """Minimiser over the coordinates not held, which keep `start`; and where the matrix is positive."""
    fixed = [torch.where(held[i], start[i], 0.0) for i in range(3)]
    pairs = ((0, a[1], a[2]), (a[1], 0, a[4]), (a[2], a[4], 0))
    r = [
        torch.where(held[i], start[i], -g[i] - sum(pairs[i][j] * fixed[j] for j in range(3) if j != i))
        for i in range(3)
    ]
    a00, a11, a22 = (torch.where(held[i], 1.0, a[n]) for i, n in ((0, 0), (1, 3), (2, 5)))
    a01 = torch.where(held[0] | held[1], 0.0, a[1])
    a02 = torch.where(held[0] | held[2], 0.0, a[2])
    a12 = torch.where(held[1] | held[2], 0.0, a[4])
    l1, l2 = a01 / a00, a02 / a00
    d11, d12 = a11 - l1 * a01, a12 - l1 * a02
    d22 = a22 - l2 * a02 - d12 * d12 / d11
    y1 = r[1] - l1 * r[0]
    z2 = (r[2] - l2 * r[0] - d12 / d11 * y1) / d22
    z1 = (y1 - d12 * z2) / d11
    return [(r[0] - a01 * z1 - a02 * z2) / a00, z1, z2], (a00 > 0) & (d11 > 0) & (d22 > 0)


def _retract(pieces: Pieces, theta, law, new_alpha: Tensor, d: list[Tensor]):
    """Parameters at displacement d, and d corrected to what eps and v were really allowed to move."""
    eps, v, v_held, alpha, x0 = law
    vanishing = pieces.beta == VANISHING
    moves_beta = (pieces.beta != HELD) & ~vanishing
    moves_eps = pieces.eps != HELD
    both = moves_beta & moves_eps
    new_v = torch.minimum(torch.maximum((alpha * v + d[1]) / new_alpha, SHRINK * v), v / SHRINK)
    eps_both = torch.maximum(eps + v + d[0] - new_v, 0.1 * eps)
    moved = torch.where(pieces.beta == HELD, (LOG_BETA_KINK - new_alpha * x0).exp() - v_held, 0.0)
    eps_alone = torch.maximum(eps + d[1] - moved, 0.1 * eps)
    alone = moves_eps & ~moves_beta
    d0 = torch.where(both, eps_both + new_v - eps - v, d[0])
    d1 = torch.where(both, new_v * new_alpha - v * alpha, torch.where(alone, eps_alone - eps + moved, d[1]))
    beta_free = torch.where(both, new_v.log() + new_alpha * x0, theta[0] + d[0] + (new_alpha - alpha) * x0)
    shrunk = torch.where(vanishing, theta[0] + math.log(SHRINK), LOG_BETA_KINK)
    new_eps = torch.where(both, eps_both.log(), torch.where(alone, eps_alone.log(), LOG_EPS_KINK))
    return (torch.where(moves_beta, beta_free, shrunk), new_eps, new_alpha), [d0, d1, d[2]]
