"""Local minimisation of F: damped Newton steps whose model keeps the penalties' kinks exact.

Each step minimises  g.d + d'(H + lambda D)d / 2 + penalty(theta + d)  over d. The penalty is separable and piecewise
linear: coordinate by coordinate either a kink holds it or a slope pulls it. That makes 3 x 3 x 5 small linear systems;
every solution is a point the model may be evaluated at and one of them is the model's minimum, so the least value wins.
"""

import numpy as np
from numba import njit

from ado_kernels.fit.points import NUM_SUMS, newton_sums
from ado_kernels.fit.problem import ALPHA_HIGH_KINK, ALPHA_LOW_KINK, LOG_BETA_KINK, LOG_EPS_KINK

_TINY_CURVATURE = 1e-12


@njit(cache=True, nogil=True)
def penalty_value(log_beta, log_eps, alpha):
    """The four penalty terms of F."""
    high = max(alpha - ALPHA_HIGH_KINK, 0.0) + max(log_beta - LOG_BETA_KINK, 0.0)
    return high - min(alpha, ALPHA_LOW_KINK) - min(log_eps - LOG_EPS_KINK, 0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _solve_held(a, g, held, d):
    """Minimises g.d + d'a d / 2 over the coordinates not held; held ones keep d. False if `a` is not positive."""
    a00, a01, a02, a11, a12, a22 = a
    r0, r1, r2 = -g[0], -g[1], -g[2]
    if held[0]:
        r1 -= a01 * d[0]
        r2 -= a02 * d[0]
        a00, a01, a02, r0 = 1.0, 0.0, 0.0, d[0]
    if held[1]:
        r0 -= a01 * d[1]
        r2 -= a12 * d[1]
        a01, a11, a12, r1 = 0.0, 1.0, 0.0, d[1]
    if held[2]:
        r0 -= a02 * d[2]
        r1 -= a12 * d[2]
        a02, a12, a22, r2 = 0.0, 0.0, 1.0, d[2]
    l10 = a01 / a00
    l20 = a02 / a00
    d1 = a11 - l10 * a01
    t12 = a12 - l10 * a02
    d2 = a22 - l20 * a02 - t12 * t12 / d1
    if not (a00 > 0.0 and d1 > 0.0 and d2 > 0.0):
        return False
    y1 = r1 - l10 * r0
    y2 = r2 - l20 * r0 - t12 / d1 * y1
    d[2] = y2 / d2
    d[1] = (y1 - t12 * d[2]) / d1
    d[0] = (r0 - a01 * d[1] - a02 * d[2]) / a00
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def _model_step(theta_P, sums, damping, new_P):
    """Writes the model's minimum into new_P and returns the model's change there (inf: no positive model)."""
    g0, g1, g2 = sums[1], sums[2], sums[3]
    a00 = sums[4] + damping * max(abs(sums[4]), _TINY_CURVATURE)
    a11 = sums[7] + damping * max(abs(sums[7]), _TINY_CURVATURE)
    a22 = sums[9] + damping * max(abs(sums[9]), _TINY_CURVATURE)
    a = (a00, sums[5], sums[6], a11, sums[8], a22)
    here = penalty_value(theta_P[0], theta_P[1], theta_P[2])
    d = np.empty(3)
    best = np.inf
    for piece in range(45):
        i, j, k = piece // 15, piece // 5 % 3, piece % 5
        held = (i == 1, j == 1, k == 1 or k == 3)
        d[0] = LOG_BETA_KINK - theta_P[0]
        d[1] = LOG_EPS_KINK - theta_P[1]
        d[2] = (ALPHA_LOW_KINK if k == 1 else ALPHA_HIGH_KINK) - theta_P[2]
        pull_k = 1.0 if k == 4 else (-1.0 if k == 0 else 0.0)
        g = (g0 + (1.0 if i == 2 else 0.0), g1 - (1.0 if j == 0 else 0.0), g2 + pull_k)
        if not _solve_held(a, g, held, d):
            continue
        value = g0 * d[0] + g1 * d[1] + g2 * d[2]
        value += 0.5 * (a00 * d[0] * d[0] + a11 * d[1] * d[1] + a22 * d[2] * d[2])
        value += sums[5] * d[0] * d[1] + sums[6] * d[0] * d[2] + sums[8] * d[1] * d[2]
        value += penalty_value(theta_P[0] + d[0], theta_P[1] + d[1], theta_P[2] + d[2]) - here
        if value < best:
            best = value
            new_P[0] = LOG_BETA_KINK if held[0] else theta_P[0] + d[0]
            new_P[1] = LOG_EPS_KINK if held[1] else theta_P[1] + d[1]
            new_P[2] = (ALPHA_LOW_KINK if k == 1 else ALPHA_HIGH_KINK) if held[2] else theta_P[2] + d[2]
    return best


@njit(cache=True, nogil=True, error_model="numpy")
def minimise(theta_P, points, delta, reweighted, max_passes, tolerance):
    """Moves theta_P to a local minimum of F and returns (F, passes over the points).

    points: (x_M, y_M, weight_M). Stops when two good steps gain under `tolerance` relative to F + 0.001.
    """
    x_M, y_M, weight_M = points
    sums = np.empty(NUM_SUMS)
    trial = np.empty(NUM_SUMS)
    new_P = np.empty(3)
    newton_sums(theta_P, x_M, y_M, weight_M, delta, reweighted, sums)
    f = sums[0] + penalty_value(theta_P[0], theta_P[1], theta_P[2])
    damping = 1e-3
    passes = 1
    small_gains = 0
    while passes < max_passes and damping < 1e10:
        predicted = _model_step(theta_P, sums, damping, new_P)
        if not predicted < 0.0:
            damping = max(damping, 1e-6) * 10.0
            if predicted == 0.0 or (predicted < np.inf and damping > 1e3):
                break
            continue
        newton_sums(new_P, x_M, y_M, weight_M, delta, reweighted, trial)
        passes += 1
        gain = f - trial[0] - penalty_value(new_P[0], new_P[1], new_P[2])
        goal = tolerance * (f + ALPHA_LOW_KINK)
        if gain > 0.0:
            theta_P[:] = new_P
            sums[:] = trial
            f -= gain
            if gain > -0.75 * predicted:
                damping *= 0.1
            elif gain < -0.25 * predicted:
                damping *= 4.0
            small_gains = small_gains + 1 if gain < goal and gain > -0.25 * predicted else 0
            if small_gains == 2:
                break
        else:
            if -predicted < 0.01 * goal:
                break
            damping = max(damping, 1e-7) * 8.0
    return f, passes
