"""How long the scaling-law fit takes, how low it gets, and how far it is ahead of L-BFGS-B from the same 512 starts.

Bars. Two quiet cores: 22 domains of 60,000 steps (5,900 points each) in 50 ms, 1,000 domains in 2.5 s. A GPU
(`--backend triton`): 1 ms and 20 ms for histories on the device; from host arrays is told beside it. Lowness:
(F - best) / (best + 0.001) of every refit of the golden records (tests/golden, or --golden DIR), at most 1e-6 for 99 of
100 domains, and the same against the reference's own end at most 1e-6 for all. Told without a bar: the fit as the
policy calls it, with its bounded history as a transposed view; and scipy, with the gradient of F, in wall seconds on
one thread like ours, which runs a sample of the starts on one domain: its time is scaled to 512.
"""

import argparse
import json
import os
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from ado_kernels import scaling_law_fit
from ado_kernels.fit import search
from ado_kernels.fit.descent import minimise
from ado_kernels.fit.problem import (
    ALPHA_HIGH_KINK,
    ALPHA_LOW_KINK,
    LOG_BETA_KINK,
    LOG_EPS_KINK,
    FitOptions,
    objective,
)
from ado_kernels.fit.smoothing import prepare
from ado_stream.policy.history import LossHistory
from benchmarks.common import bar, in_own_process, median_s, print_bars, write_result

STEPS = 60_000
OPTIONS = FitOptions(ignore_steps=1000)
SCIPY_STARTS = 32
BARS_S = {"numba": {22: 0.05, 1000: 2.5}, "triton": {22: 1e-3, 1000: 20e-3}}
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
GOLDEN = Path(__file__).parents[1] / "tests" / "golden"


def history(num_domains: int, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Counts (T,) and noisy losses (K, T) of domains with laws of their own."""
    generator = np.random.default_rng(0)
    counts_T = 256.0 * np.arange(1, steps + 1)
    eps_K, alpha_K = generator.uniform(1.2, 3.0, (num_domains, 1)), generator.uniform(0.15, 0.7, (num_domains, 1))
    gap_K, noise_K = (
        generator.uniform(0.5, 3.0, (num_domains, 1)),
        10 ** generator.uniform(-2.5, -1.5, (num_domains, 1)),
    )
    law_KT = eps_K + gap_K * (counts_T / 256e3) ** -alpha_K
    return counts_T, law_KT * np.exp(noise_K * generator.standard_normal((num_domains, steps)))


def fits(num_domains: int, backend: str, repeats: int) -> dict[str, Any]:
    """Median wall seconds of a fit from host arrays: of all steps, and of what the policy keeps of them."""
    counts_T, losses_KT = history(num_domains)
    kept = policys(counts_T, losses_KT)
    found: dict[str, Any] = {
        "domains": num_domains,
        "host_s": median_s(lambda: scaling_law_fit(counts_T, losses_KT, OPTIONS, backend), repeats),
        "policy_s": median_s(lambda: scaling_law_fit(*kept, backend), repeats),
        "policy_rows": kept[1].shape[1],
    }
    if backend == "triton":
        found["device_s"] = on_device_s(counts_T, losses_KT, repeats=20)
    return found


def newton_steps(num_domains: int) -> dict[str, Any]:
    """How long the search's chains are: passes over the bins of every coarse search, over all points of every end
    that differs; and how many of those a domain has. What bounds the fit on a GPU (kernels/predictions.md)."""
    counts_T, losses_KT = history(num_domains)
    x_M = np.log(counts_T[OPTIONS.ignore_steps :: OPTIONS.every])
    grid = search.Grid(
        *map(np.asarray, (OPTIONS.grid_log_beta, OPTIONS.grid_log_eps, OPTIONS.grid_alpha)), OPTIONS.delta
    )
    coarse, full, ends = [], [], []
    for y_M in np.log(prepare(losses_KT, OPTIONS)):
        bins, values = search.bin_points(x_M, y_M), []
        for start in range(1, search.NUM_FACES + grid.alpha.size):
            theta_P, passes = np.empty(3), 0
            face = search._best_start(grid, start, bins, theta_P)
            for width in search.WIDTHS:
                how = max(width, grid.delta), face, np.int64(search.COARSE_PASSES), search.COARSE_TOLERANCE
                value, more = minimise(theta_P, bins, *how)
                passes += more
            coarse.append(passes)
            if all(abs(value - other) >= search.SAME * (value + ALPHA_LOW_KINK) for other in values):
                how = grid.delta, np.int64(search.NO_FACE), np.int64(search.FULL_PASSES), search.TOLERANCE
                full.append(minimise(theta_P, (x_M, y_M, np.ones(x_M.size)), *how)[1])
                values.append(value)
        ends.append(len(values))
    found = {"coarse passes": coarse, "passes over all points": full, "ends of a domain": ends}
    return {name: {"mean": statistics.mean(counts), "most": max(counts)} for name, counts in found.items()}


def policys(counts_T: np.ndarray, losses_KT: np.ndarray) -> tuple[np.ndarray, np.ndarray, FitOptions]:
    """Counts, losses and options as AdoPolicy gives them to the fit after these steps."""
    kept = LossHistory(len(losses_KT))
    one_K = np.ones(len(losses_KT))
    for samples, loss_K in zip(counts_T.tolist(), losses_KT.T, strict=True):
        kept.record(samples, loss_K, one_K, one_K > 0)
    return *kept.points(), replace(OPTIONS, ignore_steps=-(-OPTIONS.ignore_steps // kept.stride))


def on_device_s(counts_T: np.ndarray, losses_KT: np.ndarray, repeats: int) -> float:
    """Median seconds between CUDA events around a fit of tensors that lie on the device."""
    import torch

    from ado_kernels.fit.triton_fit import fit_on_device

    counts, losses = (torch.from_numpy(value).to("cuda") for value in (counts_T, losses_KT))
    taken_ms = []
    for _ in range(repeats + 5):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        fit_on_device(counts, losses, OPTIONS)
        stop.record()
        stop.synchronize()
        taken_ms.append(start.elapsed_time(stop))
    return statistics.median(taken_ms[5:]) / 1e3


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
    smooth_M = prepare(losses_KT, OPTIONS)[0]
    as_is = FitOptions(smooth_window=0, every=1)
    found = scaling_law_fit(points_M, smooth_M[None], as_is, "numba")
    ours_s = median_s(lambda: scaling_law_fit(points_M, smooth_M[None], as_is, "numba"), repeats=15)
    grid = [(a, e, p) for a in OPTIONS.grid_log_beta for e in OPTIONS.grid_log_eps for p in OPTIONS.grid_alpha]
    sample = np.random.default_rng(0).choice(len(grid), num_starts, replace=False)
    data = (np.log(points_M), np.log(smooth_M), OPTIONS.delta)
    ends: list[float] = []

    def scipys() -> None:
        options = {"maxiter": 200}
        ends.extend(
            minimize(value_and_gradient, grid[i], args=data, jac=True, method="L-BFGS-B", options=options).fun
            for i in sample
        )

    scipy_s = median_s(scipys, repeats=1, warmup=0) * len(grid) / num_starts
    return {
        "points": len(points_M),
        "ours_ms": 1e3 * ours_s,
        "scipy_s_scaled_to_512_starts": scipy_s,
        "scipy_starts_run": num_starts,
        "ratio": scipy_s / ours_s,
        "scipy_best_above_ours": (min(ends) - found.objective[0]) / (found.objective[0] + 0.001),
    }


def lowness(backend: str, golden: Path = GOLDEN) -> dict[str, Any]:
    """How far the fits of the golden records' histories end above the best known minimum and above the reference's end,
    relative to F + 0.001.
    """
    above_best, above_reference = [], []
    for path in sorted(golden.glob("*.npz")):
        for found, *_, best_K, reference_K in golden_fits(path, backend):
            above_best.append((found.objective - best_K) / (best_K + 0.001))
            above_reference.append((found.objective - reference_K) / (reference_K + 0.001))
    above_N, above_reference_N = np.concatenate(above_best), np.concatenate(above_reference)
    return {
        "fits": above_N.size,
        "worst": above_N.max(),
        "within_1e-6_frac": (above_N <= 1e-6).mean(),
        "worst_above_reference": above_reference_N[np.isfinite(above_reference_N)].max(),  # else it was not computed
    }


def golden_fits(path: Path, backend: str) -> Iterator[tuple[Any, ...]]:
    """(our fit, counts, losses, options, points, F's best known, the reference's own) of each refit of a record.

    Refits of fewer than 50 points are left out: any law through one point is as good.
    """
    record, known = np.load(path), np.load(path.parent / "objective" / path.name)
    meta = json.loads(str(record["meta"]))
    losses_TK = filled(record["loss"], record["counts"])
    counts_T = meta["B"] * np.arange(1, len(losses_TK) + 1.0)
    options = FitOptions(ignore_steps=meta["ignore_steps"])
    refits = zip(
        record["refit_step"], record["refit_points"], known["objective_best"], known["objective_reference"], strict=True
    )
    for step, points, best_K, reference_K in refits:
        if points >= 50:
            history = counts_T[: step + 1], np.ascontiguousarray(losses_TK[: step + 1].T)
            yield scaling_law_fit(*history, options, backend), *history, options, points, best_K, reference_K


def filled(loss_TK: np.ndarray, count_TK: np.ndarray) -> np.ndarray:
    """The record's losses as the reference fitted them: a missing one repeats the last, at first the batch's mean."""
    loss_TK = loss_TK.astype(np.float64)
    seen_K = ~np.isnan(loss_TK[0])
    loss_TK[0, ~seen_K] = np.average(loss_TK[0, seen_K], weights=count_TK[0, seen_K])
    for late_K, early_K in zip(loss_TK[1:], loss_TK, strict=False):
        np.copyto(late_K, early_K, where=np.isnan(late_K))
    return loss_TK


def bars(backend: str, timed: list[dict[str, Any]], low: dict[str, Any]) -> list[dict]:
    """Every bar with what was measured, and whether it holds."""
    key = "device_s" if backend == "triton" else "host_s"
    held = [
        bar(f"seconds, {fit['domains']} domains ({key})", fit[key], BARS_S[backend][fit["domains"]]) for fit in timed
    ]
    within, worst = float(low["within_1e-6_frac"]), float(low["worst_above_reference"])
    held.append(bar("golden fits within 1e-6 of the best F", within, 0.99, at_least=True))
    held.append(bar("golden fits: most above the reference's own F", worst, 1e-6))
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=tuple(BARS_S), default="numba", help="triton: the GPU's part alone")
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="a folder of golden records")
    args = parser.parse_args()
    timed = [fits(22, args.backend, repeats=7), fits(1000, args.backend, repeats=3)]
    low = lowness(args.backend, args.golden)
    chains, scipys = newton_steps(22), None
    if args.backend == "numba":
        with mock.patch.dict(os.environ, ONE_THREAD):
            scipys = in_own_process(against_scipy)
    held = bars(args.backend, timed, low)
    write_result(
        "fit" if args.backend == "numba" else f"fit_{args.backend}",
        {
            "steps": STEPS,
            "backend": args.backend,
            "fits": timed,
            "search": chains,
            "golden": low,
            "scipy": scipys,
            "bars": held,
        },
    )
    print_bars(held)


if __name__ == "__main__":
    main()
