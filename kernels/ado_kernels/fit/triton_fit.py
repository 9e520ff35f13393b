"""The fit on a GPU: five kernels (smooth, bin, coarse, refine, choose) and no synchronisation before the results.

It is bound by latency, not by arithmetic: a search is a chain of some fifty dependent Newton steps. So most of that
chain runs on 96 binned points, by one warp per domain and search without a barrier; only distinct ends are refined on
all points, side by side. Everything is float64.
"""

import functools
import os

import numpy as np
import torch
import triton
from torch import Tensor

from ado_kernels.fit.numba_search import NUM_BINS
from ado_kernels.fit.objective import (
    ALPHA_HIGH_KINK,
    ALPHA_LOW_KINK,
    LOG_BETA_KINK,
    LOG_EPS_KINK,
    FitOptions,
    FitResult,
    Floats,
    as_result,
)
from ado_kernels.fit.triton_points import History, Points, bin_kernel, smooth_kernel
from ado_kernels.fit.triton_search import choose_kernel, coarse_kernel, refine_kernel

SMOOTH = {"BLOCK": 128, "num_warps": 4}
BIN = {"BLOCK": 512, "num_warps": 4}
COARSE = {"BLOCK": 64, "num_warps": 1}  # one warp reduces by shuffles, without a barrier
REFINE = {"BLOCK": 512, "num_warps": 8}


def available_device() -> str:
    """Where the kernels can run: "cuda", or "cpu" under the interpreter. Raises RuntimeError where they cannot."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    raise RuntimeError(
        "backend 'triton' needs a CUDA GPU and torch sees none here.\n"
        "  Use backend='numba' (same minima), or set TRITON_INTERPRET=1 to run the kernels slowly on the CPU."
    )


def fit(counts: Floats, loss_KT: Floats, options: FitOptions) -> FitResult:
    """Fits every domain; counts (T,) or (K, T), loss_KT (K, T) float64 with NaN where a point is missing."""
    device = available_device()
    counts_there, loss_there = torch.from_numpy(counts).to(device), torch.from_numpy(loss_KT).to(device)
    row_K6 = fit_on_device(counts_there, loss_there, options).cpu().numpy()
    return as_result(row_K6[:, :3], row_K6[:, 3], row_K6[:, 4], row_K6[:, 5].astype(np.int64))


def fit_on_device(counts: Tensor, loss_KT: Tensor, options: FitOptions) -> Tensor:
    """(K, 6) float64 on the device: log_beta, log_eps, alpha, F, median |r|, number of points; NaN without a point.

    counts: (T,) or (K, T) float64, increasing along T; loss_KT: (K, T) float64, NaN, infinite or not positive where a
    point is missing. No host synchronisation, and no shape depends on a value: a CUDA graph can capture it.
    """
    num_domains, num_steps = loss_KT.shape
    num_points = len(range(options.ignore_steps, num_steps, options.every))
    points = _empty(num_domains, num_points, loss_KT.device)
    best_K4 = loss_KT.new_full((num_domains, 4), torch.nan)
    if num_points and num_domains:
        with torch.cuda.device_of(loss_KT):  # a launch uses the current device
            _smooth(_history(counts, loss_KT), points, options)
            _search(points, options, best_K4)
    present_KM = points.w > 0.0
    num_K = present_KM.sum(dim=1, keepdim=True)
    best_K4 = torch.where(num_K > 0, best_K4, torch.nan)
    law_KM = torch.logaddexp(best_K4[:, :1] - best_K4[:, 2:3] * points.x, best_K4[:, 1:2])
    residual_KM = torch.where(present_KM, (points.y - law_KM).abs(), torch.nan)
    scale_K1 = residual_KM.nanmedian(dim=1, keepdim=True).values if num_points else best_K4[:, 3:]
    return torch.cat([best_K4, scale_K1, num_K.double()], dim=1)


def _history(counts: Tensor, loss_KT: Tensor) -> History:
    """The present losses compacted to the front of each row, so that the filter can run over them.

    By a scatter and not by a boolean mask, whose output shape would have to be read back by the host.
    """
    present_KT = torch.isfinite(loss_KT) & (loss_KT > 0.0)
    rank_KT = torch.where(present_KT, present_KT.cumsum(dim=1), 0)
    num_domains, num_steps = loss_KT.shape
    value_KT = loss_KT.new_empty(num_domains, num_steps + 1)  # missing ones go to the last column
    value_KT.scatter_(1, torch.where(present_KT, rank_KT - 1, num_steps), loss_KT)
    count_stride = counts.stride(0) if counts.ndim == 2 else 0
    return History(value_KT, rank_KT, present_KT.sum(dim=1), counts, count_stride, num_steps)


def _smooth(history: History, points: Points, options: FitOptions) -> None:
    grid = (points.x.shape[0], triton.cdiv(points.size, SMOOTH["BLOCK"]))
    smooth_kernel[grid](history, points, options.ignore_steps, options.every, options.smooth_window, **SMOOTH)


def _search(points: Points, options: FitOptions, best_K4: Tensor) -> None:
    """Fills best (K, 4) with theta and F of each domain's least minimum."""
    num_domains, where = len(best_K4), best_K4.device
    bins = points
    if points.size > 2 * NUM_BINS:
        bins = _empty(num_domains, NUM_BINS, where)
        bin_kernel[(num_domains, NUM_BINS)](points, bins, **BIN)
    start_SGP, alpha_A = _starts(options.grid_log_beta, options.grid_log_eps, options.grid_alpha, where)
    num_searches, num_starts = start_SGP.shape[:2]
    programs = (num_domains, num_searches)
    lanes = triton.next_power_of_2(num_searches)
    coarse, refined = best_K4.new_empty(2, *programs, best_K4.shape[1])
    delta = options.delta
    coarse_kernel[programs](bins, start_SGP, coarse, DELTA=delta, STARTS=num_starts, **COARSE)
    refine_kernel[programs](points, coarse, refined, DELTA=delta, SEARCHES=lanes, **REFINE)
    choose_kernel[(num_domains,)](
        points, refined, alpha_A, best_K4, num_searches, len(alpha_A), DELTA=delta, SEARCHES=lanes, **REFINE
    )


def _empty(num_domains: int, size: int, where: torch.device) -> Points:
    x, y, w = torch.empty(3, num_domains, size, dtype=torch.float64, device=where)
    return Points(x, y, w, size)


@functools.lru_cache(maxsize=16)
def _starts(
    log_beta: tuple[float, ...], log_eps: tuple[float, ...], alpha: tuple[float, ...], where: torch.device
) -> tuple[Tensor, Tensor]:
    """Starts (S, G, P) of every search in numba_search.py's order, G a power of two; and the alphas of a restart."""
    kink_PF = (LOG_BETA_KINK,), (LOG_EPS_KINK,), (ALPHA_HIGH_KINK,), (ALPHA_LOW_KINK,)
    searches = [(kink_PF[0], log_eps, alpha), (log_beta, kink_PF[1], alpha)]
    searches += [(log_beta, log_eps, each) for each in (*kink_PF[2:], *((value,) for value in alpha))]
    lists = [np.stack([axis.ravel() for axis in np.meshgrid(*grid, indexing="ij")], axis=1) for grid in searches]
    size = triton.next_power_of_2(max(map(len, lists)))  # shorter lists repeat their first start
    start_SGP = np.stack([np.concatenate([grid, np.repeat(grid[:1], size - len(grid), axis=0)]) for grid in lists])
    restarts = torch.tensor([ALPHA_LOW_KINK, ALPHA_HIGH_KINK, *alpha], dtype=torch.float64, device=where)
    return torch.from_numpy(start_SGP).to(where), restarts
