"""Local minimisation of F for one domain: damped steps of `step.py` until nothing is left to gain.

The damping slides between Newton's matrix (only points inside the Huber width curve F) and the reweighted one that
majorises F: far from the minimum most points are outside, where Newton's model has no floor. A model that sees no gain
is not the end: its least piece may overshoot, past a kink or the range of a parameter, where a shorter step would gain.
The end is where no parameter alone has a slope to follow.
"""

import numpy as np
from numba import njit

from ado_kernels.fit.points import NUM_SUMS, newton_sums
from ado_kernels.fit.problem import ALPHA_HIGH_KINK, ALPHA_LOW_KINK, LOG_BETA_KINK, LOG_EPS_KINK
from ado_kernels.fit.step import (
    FACE_ALPHA_HIGH,
    FACE_ALPHA_LOW,
    FACE_LOG_BETA,
    FACE_LOG_EPS,
    copy_into,
    gain_of_one,
    model_step,
    penalty_value,
)

MAX_DAMPING = 1e10
LEAST_RAISED, RAISE = 1e-4, 16.0  # after a step that did not gain
NEGLIGIBLE = 0.01  # of the gain that counts as one


@njit(cache=True, nogil=True)
def put_on_face(theta_P, face):
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
def minimise(theta_P, points, delta, face, max_passes, tolerance):
    """Moves theta_P to a local minimum of F, on `face` if one is given; returns (F, passes over the points).

    Stops when two good steps in a row gain under `tolerance` relative to F + 0.001, or when neither the model nor a
    parameter by itself could gain a hundredth of that.
    """
    put_on_face(theta_P, face)
    x0 = (points[0] * points[2]).sum() / points[2].sum()
    sums = np.empty(NUM_SUMS)
    trial = np.empty(NUM_SUMS)
    new_P = np.empty(3)
    newton_sums(theta_P, points, delta, sums)
    f = sums[0] + penalty_value(theta_P[0], theta_P[1], theta_P[2])
    damping = 1.0
    passes = 1
    small_gains = 0
    while passes < max_passes and damping < MAX_DAMPING and small_gains < 2:
        predicted = -model_step(theta_P, sums, x0, damping, face, new_P)
        goal = tolerance * (f + ALPHA_LOW_KINK)
        if not predicted > NEGLIGIBLE * goal:
            if not gain_of_one(theta_P, sums, face) > NEGLIGIBLE * goal:
                break
            damping = max(damping, LEAST_RAISED) * RAISE
            continue
        newton_sums(new_P, points, delta, trial)
        passes += 1
        gain = f - trial[0] - penalty_value(new_P[0], new_P[1], new_P[2])
        if not gain > 0.0:
            damping = max(damping, LEAST_RAISED) * RAISE
            continue
        small_gains = small_gains + 1 if gain < goal and gain > 0.25 * predicted else 0
        if gain > 0.75 * predicted:
            damping *= 0.1
        elif gain < 0.25 * predicted:
            damping *= 4.0
        copy_into(theta_P, new_P)
        copy_into(sums, trial)
        f -= gain
    return f, passes
