"""The global search of one domain's fit: starts screened on few points, the distinct minima refined on all.

Minima that are not the least one sit at the ends of F's long valleys, which are the penalties' kinks. So the search
runs held on each kink (log_beta = 6.5, log_eps = 0.5, alpha = 0.8, alpha = 0.001) and freely from each alpha of the
grid: the best of the grid's starts there is followed on binned points (equal widths of log n) while the Huber width
narrows to delta; every distinct end is then refined freely on all points; the least F wins. (To refine only ends near
the least would save a tenth of the time and miss the minimum of five times as many odd records.) A law that vanished
into a constant is restarted with a small reducible part along the alpha where that lowers F fastest.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from ado_kernels.fit.numba_descent import minimise, put_on_face
from ado_kernels.fit.numba_points import Points, fast_exp, huber_sum
from ado_kernels.fit.numba_step import copy_into
from ado_kernels.fit.objective import ALPHA_HIGH_KINK, ALPHA_LOW_KINK, Floats
from ado_kernels.fit.step_algebra import FACE_LOG_BETA, FACE_LOG_EPS, NO_FACE

NUM_BINS = 96
WIDTHS = (0.3, 0.03, 0.0)  # Huber widths of the coarse search, none below delta
NUM_FACES = 5  # the free search and the four kinks
COARSE_PASSES = 12
FULL_PASSES = 300
COARSE_TOLERANCE = 1e-3  # relative to F + 0.001, as the next
TOLERANCE = 1e-9
SAME = 1e-6  # coarse ends closer than this in F, relative to F + 0.001, count as one minimum
VANISHED = 3e-4  # reducible part over eps below which a law counts as constant
SEED = 1e-3  # reducible part over eps at x0 from which such a law is restarted


class Grid(NamedTuple):
    """Starts and Huber width, as arrays that Numba takes."""

    log_beta: Floats
    log_eps: Floats
    alpha: Floats
    delta: float


@njit(cache=True, nogil=True, error_model="numpy")
def bin_points(x_M: Floats, y_M: Floats) -> Points:
    """(x, y, weight): means over NUM_BINS equal widths of x and how many points each holds; no empty bins."""
    width = x_M[-1] - x_M[0]
    scale = NUM_BINS / width if width > 0.0 else 0.0  # a domain that was never drawn has one count throughout
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
def _best_start(grid: Grid, start: int, points: Points, theta_P: Floats) -> int:
    """Writes the best of the grid's starts into theta_P, judged by a wide Huber loss; returns the face to hold.

    start: a face, or NUM_FACES + k for the free search from the k-th alpha.
    """
    face = start if start < NUM_FACES else NO_FACE
    first = start - NUM_FACES if start >= NUM_FACES else 0
    num_alphas = grid.alpha.size if start < NUM_FACES else 1
    trial_P = np.empty(3)
    best = np.inf
    for i in range(1 if face == FACE_LOG_BETA else grid.log_beta.size):
        for j in range(1 if face == FACE_LOG_EPS else grid.log_eps.size):
            for k in range(1 if face > FACE_LOG_EPS else num_alphas):  # on a face of alpha, one alpha
                trial_P[0] = grid.log_beta[i]
                trial_P[1] = grid.log_eps[j]
                trial_P[2] = grid.alpha[first + k]
                put_on_face(trial_P, face)
                value = huber_sum(trial_P, points, WIDTHS[0])
                if value < best:
                    best = value
                    copy_into(theta_P, trial_P)
    return face


@njit(cache=True, nogil=True, error_model="numpy")
def _restart_vanished(theta_P: Floats, grid: Grid, points: Points) -> bool:
    """Gives a vanished law a small reducible part along the alpha where F falls fastest; False if none lowers F."""
    x_M, y_M, _ = points
    x0 = x_M.mean()
    best = 0.0
    for k in range(grid.alpha.size + 2):
        alpha = ALPHA_LOW_KINK if k == 0 else ALPHA_HIGH_KINK
        if k >= 2:
            alpha = grid.alpha[k - 2]
        fall = curve = 0.0
        for t in range(x_M.size):
            r = y_M[t] - theta_P[1]
            shape = fast_exp(-alpha * (x_M[t] - x0))
            fall += min(max(r, -grid.delta), grid.delta) * shape
            curve += grid.delta / max(abs(r), grid.delta) * shape * shape
        # The majorising parabola along this direction promises a fall of fall^2 / (2 curve).
        if fall / np.sqrt(curve) > best:
            best = fall / np.sqrt(curve)
            theta_P[0] = theta_P[1] + np.log(SEED) + alpha * x0
            theta_P[2] = alpha
    return best > 0.0


@njit(cache=True, nogil=True)
def _coarse_minima(grid: Grid, points: Points, theta_GP: Floats, value_G: Floats) -> int:
    """Writes the distinct ends of the coarse searches and returns how many there are."""
    found = 0
    passes = np.int64(COARSE_PASSES)
    for start in range(1, NUM_FACES + grid.alpha.size):  # face 0 is none: free searches have one start for each alpha
        theta_P = theta_GP[found]
        face = _best_start(grid, start, points, theta_P)
        value = 0.0
        for width in WIDTHS:  # wide first: more points lie inside, where F is curved
            value, _ = minimise(theta_P, points, max(width, grid.delta), face, passes, COARSE_TOLERANCE)
        known = False
        for j in range(found):
            known = known or abs(value - value_G[j]) < SAME * (value + ALPHA_LOW_KINK)
        value_G[found] = value
        found += 0 if known else 1  # a known end's row is overwritten by the next
    return found


@njit(cache=True, nogil=True)
def search(x_M: Floats, y_M: Floats, grid: Grid, theta_P: Floats) -> float:
    """Writes the best parameters found into theta_P and returns F there; x = log n increasing, y = log loss."""
    no_face, passes = (
        np.int64(NO_FACE),
        np.int64(FULL_PASSES),
    )  # variables: Numba would compile a second copy of minimise for literals
    points = (x_M, y_M, np.ones(x_M.size))
    coarse = bin_points(x_M, y_M) if x_M.size > 2 * NUM_BINS else points
    theta_GP = np.empty((NUM_FACES + grid.alpha.size, 3))
    value_G = np.empty(NUM_FACES + grid.alpha.size)
    best = np.inf
    for j in range(_coarse_minima(grid, coarse, theta_GP, value_G)):
        f, _ = minimise(theta_GP[j], points, grid.delta, no_face, passes, TOLERANCE)
        if f < best:
            best = f
            copy_into(theta_P, theta_GP[j])
    trial_P = theta_P.copy()
    vanished = theta_P[0] - theta_P[2] * x_M.mean() - theta_P[1] < np.log(VANISHED)
    if vanished and _restart_vanished(trial_P, grid, points):
        f, _ = minimise(trial_P, points, grid.delta, no_face, passes, TOLERANCE)
        if f < best:
            best = f
            copy_into(theta_P, trial_P)
    return best
