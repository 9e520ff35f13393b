"""Local minimisation of F for one domain: damped steps of numba_step.py until none lowers F.

The damping slides between Newton's matrix (only points inside the Huber width curve F) and the reweighted one that
majorises F: far from the minimum most points are outside, where Newton's model is unbounded below. A model that
predicts no gain does not end the search: its least piece may overshoot, past a kink or the range of a parameter, where
a shorter step would gain. The search ends where no parameter alone has a slope along which F falls.
"""

import numpy as np
from numba import njit

from ado_kernels.fit.numba_points import Points, newton_sums
from ado_kernels.fit.numba_step import copy_into, model_step, penalty_value, single_parameter_gain
from ado_kernels.fit.objective import ALPHA_HIGH_KINK, ALPHA_LOW_KINK, LOG_BETA_KINK, LOG_EPS_KINK, Floats
from ado_kernels.fit.step_algebra import FACE_ALPHA_HIGH, FACE_ALPHA_LOW, FACE_LOG_BETA, FACE_LOG_EPS, LOSS, NUM_SUMS

MAX_DAMPING = 1e10
RAISE_FROM, RAISE_BY = 1e-4, 16.0  # after a step without gain: max(damping, RAISE_FROM) times RAISE_BY
NEGLIGIBLE = 0.01  # share of the least gain that counts: a predicted gain below it ends the search


@njit(cache=True, nogil=True)
def put_on_face(theta_P: Floats, face: int | np.int64) -> None:
    """Moves one parameter of theta_P onto its kink."""
    if face == FACE_LOG_BETA:
        theta_P[0] = LOG_BETA_KINK
    elif face == FACE_LOG_EPS:
        theta_P[1] = LOG_EPS_KINK
    elif face == FACE_ALPHA_LOW:
        theta_P[2] = ALPHA_LOW_KINK
    elif face == FACE_ALPHA_HIGH:
        theta_P[2] = ALPHA_HIGH_KINK


@njit(cache=True, nogil=True, error_model="numpy")
def minimise(
    theta_P: Floats, points: Points, delta: float, face: int | np.int64, max_passes: int | np.int64, tolerance: float
) -> tuple[float, int]:
    """Moves theta_P to a local minimum of F, on `face` if one is given; returns (F, passes over the points).

    Stops when two accurately predicted steps in a row gain under `tolerance` relative to F + 0.001, or when neither the
    model nor any parameter alone could gain a hundredth of that.
    """
    put_on_face(theta_P, face)
    x0 = (points[0] * points[2]).sum() / points[2].sum()
    sums = np.empty(NUM_SUMS)
    trial = np.empty(NUM_SUMS)
    new_P = np.empty(3)
    newton_sums(theta_P, points, delta, sums)
    f = sums[LOSS] + penalty_value(theta_P[0], theta_P[1], theta_P[2])
    damping = 1.0  # the majoriser: at a start most points lie outside delta, where Newton's matrix has nothing
    passes = 1
    small_gains = 0
    while passes < max_passes and damping < MAX_DAMPING and small_gains < 2:
        predicted = -model_step(theta_P, sums, x0, damping, face, new_P)
        least_gain = tolerance * (f + ALPHA_LOW_KINK)
        # `not >` and not `<=`: a NaN counts as no gain here and below.
        if not predicted > NEGLIGIBLE * least_gain:
            if not single_parameter_gain(theta_P, sums, face) > NEGLIGIBLE * least_gain:
                break
            damping = max(damping, RAISE_FROM) * RAISE_BY  # no pass over the points was spent
            continue
        newton_sums(new_P, points, delta, trial)
        passes += 1
        gain = f - trial[LOSS] - penalty_value(new_P[0], new_P[1], new_P[2])
        if not gain > 0.0:
            damping = max(damping, RAISE_FROM) * RAISE_BY
            continue
        # A small gain counts as convergence only where the model predicted it; else the damping is corrected first.
        small_gains = small_gains + 1 if gain < least_gain and gain > 0.25 * predicted else 0
        # Trust-region rule: the ratio of gain to prediction says how far the quadratic model can be trusted.
        if gain > 0.75 * predicted:
            damping *= 0.1
        elif gain < 0.25 * predicted:
            damping *= 4.0
        copy_into(theta_P, new_P)
        copy_into(sums, trial)
        f -= gain
    return f, passes
