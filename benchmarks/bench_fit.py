"""How long does the scaling-law fit take, how low does it get, and how far is it ahead of L-BFGS-B?

    python -m benchmarks fit [--golden DIR]

Prints seconds of a fit of 60,000 steps (5,900 points a domain), its cost in evaluations, how low
F ends on the golden records (tests/golden, or --golden DIR), and the time of scipy's L-BFGS-B, with the gradient of F,
from the same 512 starts: on one thread like ours, a sample of the starts run on one domain and scaled.

Bars. Cost: an evaluation is F once on every point of every domain by a plain Numba loop, timed in turn with the fit, in
processor seconds of all threads, the best of each; 22 domains and 1,000 take at most 40 evaluations. Lowness:
(F - best) / (best + 0.001) of every refit at most 1e-6 for 99 of 100 domains, and the same against the reference's own
end at most 1e-6 for all. Without a bar: the fit as the policy calls it, its history a transposed view. (On a GPU:
benchmarks/kernels/fit.py.)
"""

import argparse
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numba
import numpy as np

from ado_kernels import scaling_law_fit
from ado_kernels.fit.numba_smoothing import prepare_losses
from ado_kernels.fit.objective import (
    ALPHA_HIGH_KINK,
    ALPHA_LOW_KINK,
    LOG_BETA_KINK,
    LOG_EPS_KINK,
    FitOptions,
    objective,
)
from ado_stream.policy.loss_history import LossHistory
from benchmarks.common import bar, in_own_process, median_s, seconds_in_turn, size, write_result
from tests.kernels.golden import golden_fits

STEPS, MANY = size((60_000, 1000), (2_000, 30))
OPTIONS = FitOptions(ignore_steps=1000)
SCIPY_STARTS = size(32, 2)
MOST_EVALUATIONS = 40
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
GOLDEN = Path(__file__).parents[1] / "tests" / "golden"


def history(num_domains: int, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Counts (T,) and noisy losses (K, T) of domains with laws of their own."""
    generator = np.random.default_rng(0)
    counts_T = 256.0 * np.arange(1, steps + 1)
    eps_K, alpha_K = generator.uniform(1.2, 3.0, (num_domains, 1)), generator.uniform(0.15, 0.7, (num_domains, 1))
    gap_K, log_noise_K = generator.uniform(0.5, 3.0, (num_domains, 1)), generator.uniform(-2.5, -1.5, (num_domains, 1))
    law_KT = eps_K + gap_K * (counts_T / 256e3) ** -alpha_K
    return counts_T, law_KT * np.exp(10**log_noise_K * generator.standard_normal((num_domains, steps)))


def fits(num_domains: int, repeats: int) -> dict[str, Any]:
    """Median wall seconds of a fit from host arrays, of all steps and of what the policy keeps; and evaluations."""
    counts_T, losses_KT = history(num_domains)
    kept = policys(counts_T, losses_KT)

    def fit() -> None:
        scaling_law_fit(counts_T, losses_KT, OPTIONS, "numba")

    fit_s, one_s = seconds_in_turn([fit, lambda: evaluate(counts_T, losses_KT)], repeats, clock=time.process_time)
    return {
        "domains": num_domains,
        "host_s": median_s(fit, repeats),
        "policy_s": median_s(lambda: scaling_law_fit(*kept, "numba"), repeats),
        "policy_rows": kept[1].shape[1],
        "evaluation_s": min(one_s),
        "evaluations": min(fit_s) / min(one_s),
    }


def evaluate(counts_T: np.ndarray, losses_KT: np.ndarray) -> float:
    """F once on all points that a fit keeps, unsmoothed, without penalties, summed over domains."""
    kept = slice(OPTIONS.ignore_steps, None, OPTIONS.every)
    x_M = np.log(counts_T[kept])
    return sum(_evaluate_one(x_M, np.log(loss_T[kept]), OPTIONS.delta) for loss_T in losses_KT)


@numba.njit
def _evaluate_one(x_M, y_M, delta):  # type: ignore[no-untyped-def]
    total = 0.0
    for m in range(x_M.size):
        gap = abs(y_M[m] - 0.7 - math.log1p(math.exp(1.3 - 0.4 * x_M[m])))
        total += 0.5 * gap * gap if gap <= delta else delta * (gap - 0.5 * delta)
    return total


def policys(counts_T: np.ndarray, losses_KT: np.ndarray) -> tuple[np.ndarray, np.ndarray, FitOptions]:
    """Counts, losses and options as AdoPolicy gives them to the fit after these steps."""
    kept = LossHistory(len(losses_KT))
    one_K = np.ones(len(losses_KT))
    for samples, loss_K in zip(counts_T.tolist(), losses_KT.T, strict=True):
        kept.record(samples, loss_K, one_K, one_K > 0)
    return *kept.points(), replace(OPTIONS, ignore_steps=-(-OPTIONS.ignore_steps // kept.stride))


def value_and_gradient(
    theta_P: np.ndarray, log_count_M: np.ndarray, log_loss_M: np.ndarray, delta: float
) -> tuple[float, np.ndarray]:
    """F of one domain and its gradient (P,), for scipy; at a kink the gradient of the side that is free of penalty."""
    log_beta, log_eps, alpha = theta_P
    gap_M = log_beta - alpha * log_count_M
    law_M = np.logaddexp(gap_M, log_eps)
    pull_M = -np.clip(log_loss_M - law_M, -delta, delta)
    of_gap_M = pull_M * np.exp(gap_M - law_M)
    gradient_P = np.array([of_gap_M.sum(), (pull_M - of_gap_M).sum(), -(of_gap_M @ log_count_M)])
    gradient_P += [
        float(log_beta > LOG_BETA_KINK),
        -float(log_eps < LOG_EPS_KINK),
        float(alpha > ALPHA_HIGH_KINK) - float(alpha < ALPHA_LOW_KINK),
    ]
    return objective(theta_P, log_count_M, log_loss_M, delta), gradient_P


def against_scipy(num_starts: int = SCIPY_STARTS, steps: int = STEPS) -> dict[str, Any]:
    """One domain, smoothed beforehand: ours, and scipy from `num_starts` of the 512 starts; call it on one thread."""
    from scipy.optimize import minimize

    counts_T, losses_KT = history(1, steps)
    points_M = counts_T[OPTIONS.ignore_steps :: OPTIONS.every]
    smooth_M = prepare_losses(losses_KT, OPTIONS)[0]
    as_is = FitOptions(smooth_window=0, every=1)
    found = scaling_law_fit(points_M, smooth_M[None], as_is, "numba")
    ours_s = median_s(lambda: scaling_law_fit(points_M, smooth_M[None], as_is, "numba"), repeats=15)
    grid = [(a, e, p) for a in OPTIONS.grid_log_beta for e in OPTIONS.grid_log_eps for p in OPTIONS.grid_alpha]
    sample = np.random.default_rng(0).choice(len(grid), num_starts, replace=False)
    data = (np.log(points_M), np.log(smooth_M), OPTIONS.delta)
    ends: list[float] = []

    def scipys() -> None:
        for i in sample:
            end = minimize(value_and_gradient, grid[i], data, "L-BFGS-B", jac=True, options={"maxiter": 200})
            ends.append(end.fun)

    scipy_s = median_s(scipys, repeats=1, warmup=0) * len(grid) / num_starts
    return {
        "points": len(points_M),
        "ours_ms": 1e3 * ours_s,
        "scipy_s_scaled_to_512_starts": scipy_s,
        "scipy_starts_run": num_starts,
        "ratio": scipy_s / ours_s,
        "scipy_best_above_ours": (min(ends) - found.objective[0]) / (found.objective[0] + 0.001),
    }


def lowness(golden: Path = GOLDEN) -> dict[str, Any]:
    """How far the fits of the golden records' histories end above the best known minimum and above the reference's end,
    relative to F + 0.001.
    """
    above_best, above_reference = [], []
    for path in sorted(golden.glob("*.npz"), key=lambda path: path.stat().st_size)[: size(None, 1)]:
        for found, *_, best_K, reference_K in golden_fits(path, "numba"):
            above_best.append((found.objective - best_K) / (best_K + 0.001))
            above_reference.append((found.objective - reference_K) / (reference_K + 0.001))
    above_N, above_reference_N = np.concatenate(above_best), np.concatenate(above_reference)
    return {
        "fits": above_N.size,
        "worst": above_N.max(),
        "within_1e-6_frac": (above_N <= 1e-6).mean(),
        "worst_above_reference": above_reference_N[np.isfinite(above_reference_N)].max(),  # else it was not computed
    }


def bars(timed: list[dict[str, Any]], low: dict[str, Any]) -> list[dict[str, Any]]:
    """Every bar with what was measured, and whether it holds."""
    held = [bar(f"evaluations, {fit['domains']} domains", fit["evaluations"], MOST_EVALUATIONS) for fit in timed]
    within, worst = float(low["within_1e-6_frac"]), float(low["worst_above_reference"])
    held.append(bar("golden fits within 1e-6 of the best F", within, 0.99, at_least=True))
    held.append(bar("golden fits: most above the reference's own F", worst, 1e-6))
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="a folder of golden records")
    args = parser.parse_args()
    timed = [fits(22, repeats=7), fits(MANY, repeats=3)]
    low = lowness(args.golden)
    with mock.patch.dict(os.environ, ONE_THREAD):
        scipy = in_own_process(against_scipy)
    write_result("fit", {"steps": STEPS, "fits": timed, "golden": low, "scipy": scipy}, bars(timed, low))


if __name__ == "__main__":
    main()
