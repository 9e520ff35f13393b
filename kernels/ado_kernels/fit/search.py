"""The global search of one domain's fit: starts screened on few points, the best refined on all.

The history is binned into NUM_BINS points of equal width in log n. For each alpha of the grid the best of the
(log_beta, log_eps) starts goes on; it follows the minimum on the bins while the Huber width narrows to delta; the best
few by F on all points are refined on all points.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from ado_kernels.fit.newton import minimise, penalty_value
from ado_kernels.fit.points import huber_sum

NUM_BINS = 96
NUM_REFINED = 8
_WIDE = 0.3


class Grid(NamedTuple):
    """Starts and Huber width, as arrays that Numba takes."""

    log_beta: np.ndarray
    log_eps: np.ndarray
    alpha: np.ndarray
    delta: float


@njit(cache=True, nogil=True, error_model="numpy")
def bin_points(x_M, y_M):
    """Means of x and y over NUM_BINS equal widths of x, and how many points each holds; empty bins are left out."""
    scale = NUM_BINS / (x_M[-1] - x_M[0])
    total = np.zeros((3, NUM_BINS))
    for t in range(x_M.size):
        j = min(int((x_M[t] - x_M[0]) * scale), NUM_BINS - 1)
        total[0, j] += x_M[t]
        total[1, j] += y_M[t]
        total[2, j] += 1.0
    size = 0
    for j in range(NUM_BINS):
        if total[2, j] > 0.0:
            total[0, size] = total[0, j] / total[2, j]
            total[1, size] = total[1, j] / total[2, j]
            total[2, size] = total[2, j]
            size += 1
    return total[0, :size].copy(), total[1, :size].copy(), total[2, :size].copy()


@njit(cache=True, nogil=True)
def _best_start(grid, alpha, points, theta_P):
    trial_P = np.empty(3)
    trial_P[2] = alpha
    best = np.inf
    for log_beta in grid.log_beta:
        for log_eps in grid.log_eps:
            trial_P[0] = log_beta
            trial_P[1] = log_eps
            value = huber_sum(trial_P, points[0], points[1], points[2], _WIDE)
            if value < best:
                best = value
                theta_P[:] = trial_P


@njit(cache=True, nogil=True)
def search(x_M, y_M, grid, theta_P):
    """Writes the best parameters found into theta_P and returns F there; x = log n increasing, y = log loss."""
    points = (x_M, y_M, np.ones(x_M.size))
    coarse = points
    if x_M.size > 160:
        coarse = bin_points(x_M, y_M)
    start_GP = np.empty((grid.alpha.size, 3))
    value_G = np.empty(grid.alpha.size)
    for j in range(grid.alpha.size):
        start_P = start_GP[j]
        _best_start(grid, grid.alpha[j], coarse, start_P)
        for width in (_WIDE, 0.03, 0.01, 0.003, 0.001):
            minimise(start_P, coarse, max(width, grid.delta), 1.0 if width < _WIDE else 0.0, 15, 1e-3)
        value_G[j] = huber_sum(start_P, x_M, y_M, points[2], grid.delta)
        value_G[j] += penalty_value(start_P[0], start_P[1], start_P[2])
    order_G = np.argsort(value_G)
    best = np.inf
    for j in order_G[:NUM_REFINED]:
        f, _ = minimise(start_GP[j], points, grid.delta, 0.0, 200, 1e-9)
        if f < best:
            best = f
            theta_P[:] = start_GP[j]
    return best
