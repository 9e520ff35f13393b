"""How long the scaling-law fit takes, and how far it is ahead of scipy's L-BFGS-B from the same 512 starts.

Bars on two quiet cores: 22 domains of 60,000 steps (5,900 points each) in 50 ms, 1,000 domains in 2.5 s. Wall times on
a shared machine are medians and say little; the processor time per domain on one core is what to compare. scipy runs
a sample of the starts on one domain; its time is scaled to 512 and said to be.
"""

import statistics
import time

import numba
import numpy as np

from ado_kernels import scaling_law_fit
from ado_kernels.fit.problem import FitOptions, objective
from ado_kernels.fit.smoothing import prepare
from benchmarks.common import median_s, write_result

STEPS = 60_000
OPTIONS = FitOptions(ignore_steps=1000)
SCIPY_STARTS = 4


def record(num_domains: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts (T,) and noisy losses (K, T) of domains with laws of their own."""
    generator = np.random.default_rng(0)
    counts_T = 256.0 * np.arange(1, STEPS + 1)
    eps_K, alpha_K = generator.uniform(1.2, 3.0, (num_domains, 1)), generator.uniform(0.15, 0.7, (num_domains, 1))
    gap_K, noise_K = (
        generator.uniform(0.5, 3.0, (num_domains, 1)),
        10 ** generator.uniform(-2.5, -1.5, (num_domains, 1)),
    )
    law_KT = eps_K + gap_K * (counts_T / 256e3) ** -alpha_K
    return counts_T, law_KT * np.exp(noise_K * generator.standard_normal((num_domains, STEPS)))


def fits(num_domains: int, repeats: int) -> dict[str, float]:
    """Median wall seconds, and milliseconds of processor time per domain with one thread."""
    counts_T, losses_KT = record(num_domains)

    def fit():
        return scaling_law_fit(counts_T, losses_KT, OPTIONS, "numba")

    wall_s = median_s(fit, repeats)
    threads = numba.config.NUMBA_NUM_THREADS
    numba.config.NUMBA_NUM_THREADS = 1
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        fit()
        spent.append(time.process_time() - start)
    numba.config.NUMBA_NUM_THREADS = threads
    return {
        "domains": num_domains,
        "threads": threads,
        "wall_s": wall_s,
        "processor_ms_per_domain": 1e3 * statistics.median(spent) / num_domains,
    }


def against_scipy() -> dict[str, float]:
    """One domain of 5,900 points: ours, and scipy from SCIPY_STARTS of the 512 starts, scaled by their number."""
    from scipy.optimize import minimize

    counts_T, losses_KT = record(1)
    points = counts_T[OPTIONS.ignore_steps :: OPTIONS.every]
    smooth_M = prepare(losses_KT, OPTIONS)[0]
    as_is = FitOptions(smooth_window=0, every=1)
    scaling_law_fit(points, smooth_M[None], as_is, "numba")
    start = time.process_time()
    found = scaling_law_fit(points, smooth_M[None], as_is, "numba")
    ours_s = time.process_time() - start
    grid = [(a, e, p) for a in OPTIONS.grid_log_beta for e in OPTIONS.grid_log_eps for p in OPTIONS.grid_alpha]
    sample = np.random.default_rng(0).choice(len(grid), SCIPY_STARTS, replace=False)
    data = (np.log(points), np.log(smooth_M), OPTIONS.delta)
    start = time.process_time()
    ends = [minimize(objective, grid[i], args=data, method="L-BFGS-B", options={"maxiter": 200}).fun for i in sample]
    scipy_s = (time.process_time() - start) * len(grid) / SCIPY_STARTS
    return {
        "ours_ms": 1e3 * ours_s,
        "scipy_s_scaled_to_512_starts": scipy_s,
        "scipy_starts_run": SCIPY_STARTS,
        "ratio": scipy_s / ours_s,
        "scipy_best_above_ours": (min(ends) - found.objective[0]) / (found.objective[0] + 0.001),
    }


def main() -> None:
    small, large = fits(22, repeats=7), fits(1000, repeats=1)
    write_result(
        "fit",
        {
            "steps": STEPS,
            "points": len(range(OPTIONS.ignore_steps, STEPS, OPTIONS.every)),
            "fits": [small, large],
            "bars_s": {"22": 0.05, "1000": 2.5},
            "scipy": against_scipy(),
        },
    )


if __name__ == "__main__":
    main()
