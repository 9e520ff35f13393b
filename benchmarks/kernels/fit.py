"""How fast is the scaling-law fit on a GPU? From NumPy to NumPy by Triton and by Numba; on the device alone.

"ours" is Triton on a GPU and Numba, with all threads, without one; beside it Numba with all threads and with one.
Prints ms, ms per domain and time over ours. Bar, which fails the run: F of 99 in 100 domains is at most 1e-6 above
Numba's, relative to F + 0.001 (F holds the constant -0.001 and may be negative). Histories are those of bench_fit.py.
"""

import functools
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numba
import numpy as np
import torch

from ado_kernels import scaling_law_fit
from ado_kernels.fit.objective import FitOptions, FitResult
from benchmarks.bench_fit import history
from benchmarks.kernels.harness import Bench, judged_ms

SIZES = tuple((num_domains, num_steps) for num_steps in (6000, 600, 60000) for num_domains in (22, 1, 128, 1000))
REPEAT_BELOW_S = 0.5
BAR, LEAST_SHARE = 1e-6, 0.99


def run_fit(bench: Bench) -> None:
    """Milliseconds of every way, and Triton's F against Numba's."""
    backend = "triton" if bench.on_gpu else "numba"
    for each in {backend, "numba"}:
        scaling_law_fit(*history(2, 300), backend=each)  # compiles
    for num_domains, num_steps in ((2, 300),) if bench.smoke else SIZES:
        case = f"K={num_domains} T={num_steps}"
        if bench.out_of_time("fit", case):
            continue
        data = history(num_domains, num_steps)
        by, by_numba = (functools.partial(scaling_law_fit, *data, backend=each) for each in (backend, "numba"))
        ours = _timed(bench, case, "ours", by)
        if bench.on_gpu:
            _device_only(bench, case, *data)
            judge(bench, case, above(ours, _timed(bench, case, "Numba", by_numba)))
        with patch.object(numba.config, "NUMBA_NUM_THREADS", 1):
            _timed(bench, case, "Numba, one thread", by_numba)


def above(one: FitResult, other: FitResult) -> np.ndarray:
    """(K,) by how much F of `one` exceeds that of `other`, relative to F + 0.001; NaN where one of them failed."""
    return (one.objective - other.objective) / (other.objective + 0.001)


def judge(bench: Bench, case: str, above_K: np.ndarray) -> None:
    """Records how Triton's F compares; too few domains within the bar fail the run."""
    share = float(np.mean(above_K <= BAR))
    bench.emit("fit", f"{case} F", worst_above_numba=float(np.max(above_K)), within_bar_frac=share, bar=BAR)
    if share < LEAST_SHARE:
        bench.failed.append(f"fit, {case}: Triton's F is within {BAR} of Numba's in {share:.1%} of domains")


def _timed(bench: Bench, case: str, name: str, call: Callable[[], FitResult]) -> FitResult:
    """What the call returned; its median wall time of three is recorded, of one where that is long."""
    seconds: list[float] = []
    while not seconds or (len(seconds) < 3 and seconds[0] < REPEAT_BELOW_S):
        start = time.perf_counter()
        found = call()
        seconds.append(time.perf_counter() - start)
    _emit(bench, case, name, {"ms": float(np.median(seconds)) * 1e3}, len(found.objective))
    return found


def _device_only(bench: Bench, case: str, counts_T: np.ndarray, loss_KT: np.ndarray) -> None:
    """From tensors on the device to tensors on the device, by both clocks."""
    from ado_kernels.fit.triton_fit import fit_on_device

    counts, losses = (torch.from_numpy(values).to(bench.device) for values in (counts_T, loss_KT))
    times = bench.times(lambda: fit_on_device(counts, losses, FitOptions()))
    _emit(bench, case, "on the device alone", times, len(loss_KT))


def _emit(bench: Bench, case: str, name: str, times: dict[str, Any], num_domains: int) -> None:
    ours = times if name == "ours" else bench.find("fit", case)
    ratio = judged_ms(times) / judged_ms(ours)
    per_domain = judged_ms(times) / num_domains
    bench.emit("fit", case, implementation=name, **times, times_ours=ratio, ms_per_domain=per_domain)
