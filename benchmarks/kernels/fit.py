"""How fast is the scaling-law fit on a GPU? From NumPy to NumPy by Triton and by Numba; on the device alone.

"ours" is Triton on a GPU and Numba, with all threads, without one; beside it Numba with all threads. Prints ms and time
over ours. Bar, which fails the run: F of 99 in 100 domains is at most 1e-6 above Numba's, relative to F + 0.001 (F
holds the constant -0.001 and may be negative). Histories are those of bench_fit.py.
"""

from typing import Any

import numpy as np
import torch

from ado_kernels import scaling_law_fit
from ado_kernels.fit.objective import FitOptions, FitResult
from benchmarks.bench_fit import history
from benchmarks.common import median_s
from benchmarks.kernels.harness import Bench

SIZES = tuple((num_domains, num_steps) for num_steps in (6000, 600, 60000) for num_domains in (22, 1, 128, 1000))
BAR, LEAST_SHARE = 1e-6, 0.99


def run(bench: Bench) -> None:
    """Milliseconds of every way, and Triton's F against Numba's."""
    for num_domains, num_steps in ((2, 300),) if bench.smoke else SIZES:
        case, data = f"K={num_domains} T={num_steps}", history(num_domains, num_steps)
        if bench.out_of_time("fit", case):
            continue
        if not bench.on_gpu:
            _timed(bench, case, "ours", data, "numba")
            continue
        ours = _timed(bench, case, "ours", data, "triton")
        _device_only(bench, case, *data)
        judge(bench, case, above(ours, _timed(bench, case, "Numba", data, "numba")))


def above(one: FitResult, other: FitResult) -> np.ndarray:
    """(K,) by how much F of `one` exceeds that of `other`, relative to F + 0.001; NaN where one of them failed."""
    return (one.objective - other.objective) / (other.objective + 0.001)


def judge(bench: Bench, case: str, above_K: np.ndarray) -> None:
    """Records how Triton's F compares; too few domains within the bar fail the run."""
    share = float(np.mean(above_K <= BAR))
    bench.emit("fit", f"{case} F", worst_above_numba=float(np.max(above_K)), within_bar_frac=share, bar=BAR)
    if share < LEAST_SHARE:
        bench.failed.append(f"fit, {case}: Triton's F is within {BAR} of Numba's in {share:.1%} of domains")


def _timed(bench: Bench, case: str, name: str, data: tuple[np.ndarray, np.ndarray], backend: str) -> FitResult:
    """What the call returned; its median wall time of three is recorded."""
    found: list[FitResult] = []
    seconds = median_s(lambda: found.append(scaling_law_fit(*data, backend=backend)), repeats=3)
    _emit(bench, case, name, {"ms": 1e3 * seconds})
    return found[0]


def _device_only(bench: Bench, case: str, counts_T: np.ndarray, loss_KT: np.ndarray) -> None:
    """From tensors on the device to tensors on the device."""
    from ado_kernels.fit.triton_fit import fit_on_device

    counts, losses = (torch.from_numpy(values).to(bench.device) for values in (counts_T, loss_KT))
    _emit(bench, case, "on the device alone", bench.time(lambda: fit_on_device(counts, losses, FitOptions())))


def _emit(bench: Bench, case: str, name: str, times: dict[str, Any]) -> None:
    ours = times if name == "ours" else bench.find("fit", case)
    bench.emit("fit", case, implementation=name, **times, times_ours=times["ms"] / ours["ms"])
