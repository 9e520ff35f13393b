"""The fit on a GPU: three launches (smooth, search, choose), no synchronisation before the K x 4 results come back.

One program per domain and start, all in float64: 22 domains are 264 programs. Histories with missing points are
smoothed on the CPU (the filter runs over the points present, whose number differs by domain). Under
TRITON_INTERPRET=1 the same kernels run on a CPU, slowly.
"""

import os

import numpy as np
import torch
import triton
from torch import Tensor

from ado_kernels.fit.padded import pad_history
from ado_kernels.fit.problem import (
    ALPHA_HIGH_KINK,
    ALPHA_LOW_KINK,
    LOG_BETA_KINK,
    LOG_EPS_KINK,
    FitOptions,
    FitResult,
    as_result,
)
from ado_kernels.fit.search import COARSE_TOLERANCE, NUM_BINS, TOLERANCE, WIDTHS
from ado_kernels.fit.smoothing import filter_weights, window_that_fits
from ado_kernels.fit.step import FACE_ALPHA_HIGH, FACE_ALPHA_LOW, FACE_LOG_BETA, FACE_LOG_EPS, NO_FACE
from ado_kernels.fit.triton_kernels import choose_kernel, search_kernel, smooth_kernel

BLOCK = 128
NUM_WARPS = 4


def device() -> str:
    """Where the kernels can run: "cuda", or "cpu" under the interpreter. Raises RuntimeError where they cannot."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    raise RuntimeError(
        "backend 'triton' needs a CUDA GPU and torch sees none here.\n"
        "  Use backend='numba' (same minima), or set TRITON_INTERPRET=1 to run the kernels slowly on the CPU."
    )


def fit(counts: np.ndarray, loss_KT: np.ndarray, options: FitOptions) -> FitResult:
    """Fits every domain; counts (T,) or (K, T), loss_KT (K, T) float64 with NaN where a point is missing."""
    where = device()
    usable_KT = np.isfinite(loss_KT) & (loss_KT > 0.0)
    if usable_KT.all() and loss_KT.shape[1] > options.ignore_steps:
        x_KM, y_KM, w_KM = _smooth(counts, loss_KT, options, where)
    else:
        history = pad_history(counts, loss_KT, options)
        x_KM, y_KM, w_KM = (torch.from_numpy(value).to(where) for value in (history.x_KM, history.y_KM, history.w_KM))
    num_domains, num_points = x_KM.shape
    best_K4 = torch.full((num_domains, 4), torch.nan, dtype=torch.float64, device=where)
    if num_points:
        _search(x_KM, y_KM, w_KM, options, best_K4)
    residual_KM = y_KM - torch.logaddexp(best_K4[:, :1] - best_K4[:, 2:3] * x_KM, best_K4[:, 1:2])
    residual_KM = torch.where(w_KM > 0.0, residual_KM.abs(), torch.nan)
    scale_K = residual_KM.nanmedian(dim=1).values if num_points else best_K4[:, 3]
    rows = torch.cat([best_K4, scale_K[:, None], w_KM.sum(dim=1)[:, None]], dim=1).cpu().numpy()
    theta_KP = np.where(rows[:, 5:] > 0.0, rows[:, :3], np.nan)
    return as_result(theta_KP, np.where(rows[:, 5] > 0.0, rows[:, 3], np.nan), rows[:, 4], rows[:, 5].astype(np.int64))


def _smooth(counts: np.ndarray, loss_KT: np.ndarray, options: FitOptions, where: str) -> tuple[Tensor, ...]:
    num_domains, num_steps = loss_KT.shape
    window = window_that_fits(num_steps, options.smooth_window)
    num_kept = len(range(options.ignore_steps, num_steps, options.every))
    loss, count, weight = (torch.from_numpy(value).to(where) for value in (loss_KT, counts, filter_weights(window)))
    x_KM, y_KM, w_KM = (torch.empty(num_domains, num_kept, dtype=torch.float64, device=where) for _ in range(3))
    smooth_kernel[(num_domains, triton.cdiv(num_kept, BLOCK))](
        loss, count, weight, x_KM, y_KM, w_KM, num_steps, num_kept, options.ignore_steps, options.every,
        num_steps if count.ndim == 2 else 0, WINDOW=window, BLOCK=BLOCK, num_warps=NUM_WARPS,
    )  # fmt: skip
    return x_KM, y_KM, w_KM


def _search(x_KM: Tensor, y_KM: Tensor, w_KM: Tensor, options: FitOptions, best_K4: Tensor) -> None:
    where = x_KM.device
    num_domains, num_points = x_KM.shape
    start_SGP, face_S = _starts(options)
    alphas = [ALPHA_LOW_KINK, ALPHA_HIGH_KINK, *options.grid_alpha]
    alphas += alphas[:1] * (triton.next_power_of_2(len(alphas)) - len(alphas))
    stages = [(max(width, options.delta), COARSE_TOLERANCE) for width in WIDTHS] + [(options.delta, TOLERANCE)] * 2
    x0_K = (x_KM * w_KM).sum(dim=1) / w_KM.sum(dim=1).clamp(min=1.0)
    num_searches = len(face_S)
    found = torch.empty(num_domains, num_searches, 4, dtype=torch.float64, device=where)
    search_kernel[(num_domains * num_searches,)](
        x_KM, y_KM, w_KM, x0_K,
        torch.from_numpy(start_SGP).to(where),
        torch.tensor(face_S, dtype=torch.int32, device=where),
        torch.tensor(alphas, dtype=torch.float64, device=where),
        torch.tensor(stages, dtype=torch.float64, device=where),
        found, num_points, num_searches, max(1, num_points // NUM_BINS),
        STARTS=start_SGP.shape[1], ALPHAS=len(alphas), BLOCK=BLOCK, num_warps=NUM_WARPS,
    )  # fmt: skip
    choose_kernel[(num_domains,)](found, best_K4, num_searches, BLOCK=triton.next_power_of_2(num_searches))


def _starts(options: FitOptions) -> tuple[np.ndarray, list[int]]:
    """Starts (S, G, 3) of every search, G a power of two (the first one repeated), and the faces they stand on."""
    grids = (options.grid_log_beta, options.grid_log_eps, options.grid_alpha)
    kinks = [(FACE_LOG_BETA, 0, LOG_BETA_KINK), (FACE_LOG_EPS, 1, LOG_EPS_KINK)]
    kinks += [(FACE_ALPHA_HIGH, 2, ALPHA_HIGH_KINK), (FACE_ALPHA_LOW, 2, ALPHA_LOW_KINK)]
    searches = [(face, [*grids[:p], (kink,), *grids[p + 1 :]]) for face, p, kink in kinks]
    searches += [(NO_FACE, [*grids[:2], (alpha,)]) for alpha in options.grid_alpha]
    lists = [np.stack([axis.ravel() for axis in np.meshgrid(*own, indexing="ij")], axis=1) for _, own in searches]
    size = triton.next_power_of_2(max(map(len, lists)))
    padded = [np.concatenate([own, np.repeat(own[:1], size - len(own), axis=0)]) for own in lists]
    return np.stack(padded), [face for face, _ in searches]
