"""The fit on a CPU: nogil Numba functions that fit one domain, on as many threads as Numba is set to.

Plain threads and not Numba's own parallel loops: those share one pool per process, which aborts when two Python threads
fit at the same time (workqueue) or after a fork (OpenMP). Even asking Numba for its number of threads would start that
pool, and OpenMP's would then change how many threads torch uses; the setting NUMBA_NUM_THREADS is read instead. Every
domain is computed by one thread from its own numbers alone, so the result is the same to the bit for any number of
threads and any order of domains.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import config, njit

from ado_kernels.fit.numba_search import Grid, search
from ado_kernels.fit.numba_smoothing import filter_weights, present_points, smooth_kept, window_that_fits
from ado_kernels.fit.objective import FitOptions, FitResult, Floats, Ints, as_result
from ado_kernels.numba_cache import ensure_compiled


@njit(cache=True, nogil=True)
def _log_points(count_T: Floats, step_M: Ints, loss_M: Floats) -> tuple[Floats, Floats]:
    """log n and log loss at the kept steps whose smoothed loss is positive."""
    x = np.empty(step_M.size)
    y = np.empty(step_M.size)
    size = 0
    for t in range(step_M.size):
        if loss_M[t] > 0.0:
            x[size] = np.log(count_T[step_M[t]])
            y[size] = np.log(loss_M[t])
            size += 1
    return x[:size].copy(), y[:size].copy()


def _fit_domain(count_T: Floats, loss_T: Floats, options: FitOptions, grid: Grid) -> tuple[Floats, float, float, int]:
    step, value = present_points(count_T, loss_T)
    weights = filter_weights(window_that_fits(step.size, options.smooth_window))
    step_M, smooth_M = smooth_kept(step, value, weights, options.ignore_steps, options.every)
    x_M, y_M = _log_points(count_T, step_M, smooth_M)
    theta_P = np.full(3, np.nan)
    if x_M.size == 0:
        return theta_P, np.nan, np.nan, 0
    f = search(x_M, y_M, grid, theta_P)
    residual_M = y_M - np.logaddexp(theta_P[0] - theta_P[2] * x_M, theta_P[1])
    return theta_P, f, float(np.median(np.abs(residual_M))), x_M.size


def fit(counts: Floats, loss_KT: Floats, options: FitOptions) -> FitResult:
    """Fits every domain; counts (T,) or (K, T) float64, loss_KT (K, T) float64 with NaN where a point is missing."""
    ensure_compiled("fit")
    num_domains = loss_KT.shape[0]
    grid = Grid(
        np.asarray(options.grid_log_beta),
        np.asarray(options.grid_log_eps),
        np.asarray(options.grid_alpha),
        options.delta,
    )

    def fit_one(k: int) -> tuple[Floats, float, float, int]:
        return _fit_domain(counts if counts.ndim == 1 else counts[k], loss_KT[k], options, grid)

    num_threads = min(config.NUMBA_NUM_THREADS, num_domains)  # type: ignore[attr-defined]
    if num_threads > 1:
        with ThreadPoolExecutor(num_threads) as pool:
            found = list(pool.map(fit_one, range(num_domains)))
    else:
        found = [fit_one(k) for k in range(num_domains)]
    return as_result(
        np.array([row[0] for row in found]).reshape(num_domains, 3),
        np.array([row[1] for row in found]),
        np.array([row[2] for row in found]),
        np.array([row[3] for row in found], dtype=np.int64),
    )
