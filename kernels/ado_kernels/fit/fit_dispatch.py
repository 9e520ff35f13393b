"""`scaling_law_fit`: checks the arrays, picks the backend, NumPy in and out. Importable without torch.

backend "numba" (CPU threads) or "triton" (a CUDA GPU, or any machine under TRITON_INTERPRET=1). Both minimise the F of
objective.py and reach the same minima. "auto" is numba, unless torch is loaded, sees a CUDA GPU and domains times kept
points reach GPU_POINTS: then triton.
"""

import importlib
import sys

import numpy as np

from ado_kernels.fit.objective import FitOptions, FitResult, Floats

BACKENDS = ("auto", "numba", "triton")
GPU_POINTS = 500_000  # domains times kept points from which "auto" takes a GPU
_BLOCK_STEPS = 512  # 22 domains x 512 float64 fit the second-level cache


def scaling_law_fit(
    counts: Floats, losses: Floats, options: FitOptions | None = None, backend: str = "auto"
) -> FitResult:
    """Scaling laws of K domains from their loss histories: smoothed, thinned, then F minimised per domain.

    counts: (T,) or (K, T) cumulative samples, positive, not decreasing along T.
    losses: (K, T) nats; NaN, infinite or not positive: that point is missing and is skipped.
    Raises ValueError for impossible arrays or an unknown backend, RuntimeError for a backend this machine lacks.
    """
    options = options or FitOptions()
    losses, counts = _as_rows(losses), _as_rows(counts)
    _check_arrays(counts, losses)
    if backend not in BACKENDS:
        raise ValueError(f"unknown fit backend {backend!r}; the backends are: {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = _choose_backend(losses, options)
    fit = importlib.import_module(f"ado_kernels.fit.{backend}_fit").fit
    if not options.log_unit:
        result: FitResult = fit(counts, losses, options)
        return result
    result = fit(counts, losses * np.exp(options.log_unit), options)
    return result._replace(theta=result.theta - options.log_unit * np.array([1.0, 1.0, 0.0]))


def _as_rows(value: Floats) -> Floats:
    """float64 with a domain's steps adjacent. A history stored step by step is transposed in blocks that fit in cache:
    a fifth of the time of one copy."""
    value = np.asarray(value, dtype=np.float64)
    if value.flags.c_contiguous or value.ndim != 2:
        return np.ascontiguousarray(value)
    rows = np.empty(value.shape)
    for start in range(0, value.shape[1], _BLOCK_STEPS):
        block = slice(start, start + _BLOCK_STEPS)
        rows[:, block] = value[:, block]
    return rows


def _choose_backend(losses: Floats, options: FitOptions) -> str:
    """The GPU where torch is already loaded, sees one, and the fit is large enough to outweigh the copies."""
    torch = sys.modules.get("torch")
    large = losses.shape[0] * len(range(options.ignore_steps, losses.shape[1], options.every)) >= GPU_POINTS
    return "triton" if large and torch is not None and torch.cuda.is_available() else "numba"


def _check_arrays(counts: Floats, losses: Floats) -> None:
    if losses.ndim != 2:
        raise ValueError(f"losses must have shape (K, T), got {losses.shape}")
    if counts.shape not in (losses.shape, losses.shape[1:]):
        raise ValueError(f"counts must have shape {losses.shape[1:]} or {losses.shape}, got {counts.shape}")
    if not np.isfinite(counts).all() or (counts <= 0).any():
        raise ValueError("counts must be finite and above 0: they are cumulative samples")
    if (np.diff(counts, axis=-1) < 0).any():
        raise ValueError("counts must not decrease along time: they are cumulative samples")
