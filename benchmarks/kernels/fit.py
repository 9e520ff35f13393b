"""The scaling-law fit: Numba with all threads and with one, Triton from NumPy to NumPy, and on the device alone.

Laws with 1 % noise. F is compared relative to F + 0.001, because F holds the constant -0.001 and may be negative.
"""

import time
from collections.abc import Callable

import numba
import numpy as np
import torch

from ado_kernels import scaling_law_fit
from ado_kernels.fit.problem import FitOptions, FitResult
from benchmarks.kernels.harness import Bench, judged_ms

SIZES = tuple((num_domains, num_steps) for num_steps in (600, 6000, 60000) for num_domains in (22, 1, 128, 1000))
REPEAT_BELOW_S = 0.5
BAR = 1e-6  # of F + 0.001: as tests/kernels/test_fit_minimum.py


def run_fit(bench: Bench) -> None:
    """Milliseconds of every backend and how far Triton's F lies above Numba's; above the bar is a failure."""
    backends = ("numba", "triton") if bench.on_gpu else ("numba",)
    for backend in backends:
        scaling_law_fit(*history(2, 300), backend=backend)  # compiles
    for num_domains, num_steps in ((2, 300),) if bench.smoke else SIZES:
        case = f"K={num_domains} T={num_steps}"
        if bench.out_of_time():
            bench.emit("fit", case, skipped="out of time")
            continue
        counts_T, loss_KT = history(num_domains, num_steps)
        fits = {backend: _timed(bench, f"{case} {backend}", counts_T, loss_KT, backend) for backend in backends}
        _timed_on_one_thread(bench, case, counts_T, loss_KT)
        if bench.on_gpu:
            _device_only(bench, case, counts_T, loss_KT)
            worst = above(fits["triton"], fits["numba"])
            bench.emit("fit", case, triton_above_numba=worst, bar=BAR)
            if not worst <= BAR:
                bench.failed.append(f"fit, {case}: Triton's F is {worst:.1e} above Numba's")


def history(num_domains: int, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts (T,) and losses (K, T)."""
    generator = np.random.default_rng(0)
    counts_T = np.arange(1, num_steps + 1) * 256.0
    loss_KT = 2.0 + 3.0 * counts_T ** -generator.uniform(0.1, 0.5, (num_domains, 1))
    return counts_T, loss_KT * np.exp(0.01 * generator.standard_normal(loss_KT.shape))


def above(one: FitResult, other: FitResult) -> float:
    """By how much F of `one` exceeds that of `other` at worst, relative to F + 0.001; NaN where one of them failed."""
    return float(np.max((one.objective - other.objective) / (other.objective + 0.001)))


def _timed(bench: Bench, case: str, counts_T: np.ndarray, loss_KT: np.ndarray, backend: str) -> FitResult:
    seconds, fit = _median_s(lambda: scaling_law_fit(counts_T, loss_KT, backend=backend))
    bench.emit("fit", case, ms=seconds * 1e3, ms_per_domain=seconds * 1e3 / len(loss_KT))
    return fit


def _timed_on_one_thread(bench: Bench, case: str, counts_T: np.ndarray, loss_KT: np.ndarray) -> None:
    threads = numba.config.NUMBA_NUM_THREADS
    numba.config.NUMBA_NUM_THREADS = 1
    try:
        _timed(bench, f"{case} numba, one thread", counts_T, loss_KT, "numba")
    finally:
        numba.config.NUMBA_NUM_THREADS = threads


def _device_only(bench: Bench, case: str, counts_T: np.ndarray, loss_KT: np.ndarray) -> None:
    """From tensors on the device to tensors on the device, by events and by a graph's replay."""
    from ado_kernels.fit.triton_fit import fit_on_device

    counts, losses = torch.from_numpy(counts_T).to(bench.device), torch.from_numpy(loss_KT).to(bench.device)

    def call() -> torch.Tensor:
        return fit_on_device(counts, losses, FitOptions())

    record = {"ms": bench.time_ms(call), **bench.graph_ms(call)}
    bench.emit("fit", f"{case} triton, device only", **record, ms_per_domain=judged_ms(record) / len(loss_KT))


def _median_s(call: Callable[[], FitResult]) -> tuple[float, FitResult]:
    """Seconds of one call, the median of three where they are few; and what it returned."""
    seconds = []
    while not seconds or (len(seconds) < 3 and seconds[0] < REPEAT_BELOW_S):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)), result
