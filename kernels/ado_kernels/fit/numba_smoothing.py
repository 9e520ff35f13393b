"""Savitzky-Golay smoothing and thinning of one domain's losses, at the kept steps only.

Equals scipy.signal.savgol_filter(losses, window, 3, mode="interp") where no point is missing: a cubic is fitted to
every window; the first and last half windows are read off the first and last full window's cubic. Missing points (NaN,
infinite, not positive) are skipped: the filter runs over the points present, in order; a missing step stays missing.
"""

import functools

import numpy as np
from numba import njit

from ado_kernels.fit.objective import FitOptions, Floats, Ints

DEGREE = 3


def window_that_fits(num_steps: int, window: int) -> int:
    """The odd window used for `num_steps` present points: at most `window`; 1 (no smoothing) if a cubic cannot fit."""
    largest = min(window, num_steps - 1 + num_steps % 2)
    return largest if largest > DEGREE else 1


@functools.lru_cache(maxsize=64)
def filter_weights(window: int) -> Floats:
    """(window, window) float64: row i turns a window of losses into its cubic's value at position i."""
    position = np.linspace(-1.0, 1.0, window) if window > 1 else np.zeros(1)
    # A fit by least squares projects onto the cubics: Q Q' for an orthonormal basis Q of them.
    basis, _ = np.linalg.qr(np.vander(position, min(DEGREE + 1, window)))
    return np.ascontiguousarray(basis @ basis.T)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def _dot(weight_W: Floats, value_T: Floats, start: int) -> float:
    total = 0.0
    for i in range(weight_W.size):
        total += weight_W[i] * value_T[start + i]
    return total


@njit(cache=True, nogil=True)
def present_points(count_T: Floats, loss_T: Floats) -> tuple[Ints, Floats]:
    """Steps (P,) int64 and losses (P,) of the usable points: finite, positive loss and positive count."""
    step = np.empty(loss_T.size, np.int64)
    value = np.empty(loss_T.size)
    size = 0
    for t in range(loss_T.size):
        if np.isfinite(loss_T[t]) and loss_T[t] > 0.0 and count_T[t] > 0.0:
            step[size] = t
            value[size] = loss_T[t]
            size += 1
    return step[:size], value[:size]


@njit(cache=True, nogil=True)
def smooth_kept(step: Ints, value: Floats, weight_WW: Floats, ignore_steps: int, every: int) -> tuple[Ints, Floats]:
    """Kept steps (M,) and their smoothed losses (M,): step >= ignore_steps, (step - ignore_steps) % every == 0."""
    window = weight_WW.shape[0]
    half = window // 2
    last_start = step.size - window
    kept = np.empty(step.size, np.int64)
    smooth = np.empty(step.size)
    size = 0
    for i in range(step.size):
        if step[i] < ignore_steps or (step[i] - ignore_steps) % every != 0:
            continue
        start = min(max(i - half, 0), last_start)  # near the ends the window stops, and row i - start is off its centre
        kept[size] = step[i]
        smooth[size] = _dot(weight_WW[i - start], value, start)
        size += 1
    return kept[:size], smooth[:size]


def prepare_losses(loss_KT: Floats, options: FitOptions) -> Floats:
    """(K, M) smoothed losses at the steps that `options` keeps, NaN where a kept step is missing."""
    num_kept = len(range(options.ignore_steps, loss_KT.shape[1], options.every))
    prepared_KM = np.full((loss_KT.shape[0], num_kept), np.nan)
    always = np.ones(loss_KT.shape[1])
    for k in range(loss_KT.shape[0]):
        step, value = present_points(always, loss_KT[k])
        weights = filter_weights(window_that_fits(step.size, options.smooth_window))
        kept, smooth = smooth_kept(step, value, weights, options.ignore_steps, options.every)
        prepared_KM[k, (kept - options.ignore_steps) // options.every] = smooth
    return prepared_KM
