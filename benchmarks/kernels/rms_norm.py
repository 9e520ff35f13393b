"""How fast is RMSNorm, alone and with the residual's addition? Against torch, torch.compile, Liger-Kernel and quack.

Prints ms, share of the memory's floor and others' time over ours, forward and backward. Bars: table.py.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ado_kernels import rms_norm
from ado_kernels.ops.rms_norm import rms_norm_reference
from benchmarks.kernels.harness import Bench
from benchmarks.kernels.passes import Make, Passes

EPS = 1e-6
BAR_SHAPES = ((16384, 2048), (16384, 4096))
SMOKE_SHAPES = ((512, 256),)
OTHER_CASES = (
    (16384, 2048, torch.float32),
    (16384, 768, torch.bfloat16),
    (16384, 8192, torch.bfloat16),
    (65536, 512, torch.bfloat16),
    (4096, 2048, torch.bfloat16),
)


def run_bars(bench: Bench) -> None:
    """The shapes that have bars, against the implementations that these name."""
    for passes, makes in _bar_cases(bench):
        passes.compare(bench, {name: make for name, make in makes.items() if name != "torch eager"})


def run_rest(bench: Bench) -> None:
    """Other shapes, without the slowest to compile; then eager torch at those that have bars."""
    for num_rows, width, dtype in () if bench.smoke else OTHER_CASES:
        makes = norms(bench, width)
        chosen = {name: makes[name] for name in ("ours", "Liger", "torch.compile")}
        norm(bench, num_rows, width, dtype).compare(bench, chosen)
    for passes, makes in _bar_cases(bench):
        passes.compare(bench, {"torch eager": makes["torch eager"]})


def _bar_cases(bench: Bench) -> Iterator[tuple[Passes, dict[str, Make]]]:
    for num_rows, width in SMOKE_SHAPES if bench.smoke else BAR_SHAPES:
        yield norm(bench, num_rows, width, torch.bfloat16), norms(bench, width)
        yield add_norm(bench, num_rows, width), add_norms(bench, width)


def norm(bench: Bench, num_rows: int, width: int, dtype: torch.dtype) -> Passes:
    """Forward reads x and writes y; backward reads x and dy and writes dx."""
    x, dy = (torch.randn(num_rows, width, device=bench.device).to(dtype) for _ in range(2))
    weight = torch.ones(width, device=bench.device, dtype=dtype)
    case = f"{num_rows}x{width} {str(dtype)[6:]}"
    return Passes("rms_norm", case, (x, weight), (dy,), 2 * x.nbytes, 3 * x.nbytes, rms_norm_reference)


def add_norm(bench: Bench, num_rows: int, width: int) -> Passes:
    """Forward reads x and the residual, writes y and the sum; backward reads the sum and two gradients, writes one."""
    x, residual, dy, dtotal = (torch.randn(num_rows, width, device=bench.device).bfloat16() for _ in range(4))
    weight = torch.ones(width, device=bench.device, dtype=torch.bfloat16)
    inputs, grads, num_bytes = (x, residual, weight), (dy, dtotal), 4 * x.nbytes
    case = f"{num_rows}x{width} bfloat16"
    return Passes("add_rms_norm", case, inputs, grads, num_bytes, num_bytes, _add_reference, roundings=2)


def _add_reference(x, residual, weight):
    return rms_norm_reference(x, weight, EPS, residual)


def norms(bench: Bench, width: int) -> dict[str, Make]:
    """Implementations of y(x, weight)."""

    def plain(x, weight):
        return F.rms_norm(x, (width,), weight, EPS)

    return {
        "ours": lambda: lambda x, weight: rms_norm(x, weight, EPS),
        "Liger": _liger,
        "torch.compile": lambda: bench.compiled(plain),
        "quack": _quack,
        "torch eager": lambda: plain,
    }


def add_norms(bench: Bench, width: int) -> dict[str, Make]:
    """Implementations of (y, x + residual) of (x, residual, weight)."""

    def plain(x, residual, weight):
        total = x + residual
        return F.rms_norm(total, (width,), weight, EPS), total

    return {
        "ours": lambda: lambda x, residual, weight: rms_norm(x, weight, EPS, residual),
        "Liger": _liger_add,
        "torch.compile": lambda: bench.compiled(plain),
        "quack": _quack_add,
        "torch eager": lambda: plain,
    }


# Liger as it is by default, dx written over dy: without that its RMSNorm (0.8.5) fills dx with zeros first, a whole
# stream more. Its add + RMSNorm allocates dx by default.


def _liger():
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return lambda x, weight: LigerRMSNormFunction.apply(x, weight, EPS)


def _liger_add():
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    return lambda x, residual, weight: LigerFusedAddRMSNormFunction.apply(x, residual, weight, EPS)


def _quack():
    from quack import rmsnorm

    return lambda x, weight: rmsnorm(x, weight, eps=EPS)


def _quack_add():
    from quack import rmsnorm

    return lambda x, residual, weight: rmsnorm(x, weight, residual=residual, eps=EPS, prenorm=True)
