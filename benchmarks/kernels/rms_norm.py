"""RMSNorm, alone and with the residual's addition, against eager torch, torch.compile, Liger-Kernel and quack."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ado_kernels import rms_norm
from benchmarks.kernels.harness import Bench
from benchmarks.kernels.passes import Make, Operation

EPS = 1e-6
EAGER, COMPILED = "torch eager", "torch.compile"
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
    for operation, makes in _bar_cases(bench):
        operation.compare(bench, {name: make for name, make in makes.items() if name != EAGER})


def run_rest(bench: Bench) -> None:
    """Other shapes, without the slowest to compile; then eager torch at those that have bars."""
    for num_rows, width, dtype in () if bench.smoke else OTHER_CASES:
        makes = norms(bench, width)
        norm(bench, num_rows, width, dtype).compare(bench, {name: makes[name] for name in ("ours", "Liger", COMPILED)})
    for operation, makes in _bar_cases(bench):
        operation.compare(bench, {EAGER: makes[EAGER]})


def _bar_cases(bench: Bench) -> Iterator[tuple[Operation, dict[str, Make]]]:
    for num_rows, width in SMOKE_SHAPES if bench.smoke else BAR_SHAPES:
        yield norm(bench, num_rows, width, torch.bfloat16), norms(bench, width)
        yield add_norm(bench, num_rows, width), add_norms(bench, width)


def norm(bench: Bench, num_rows: int, width: int, dtype: torch.dtype) -> Operation:
    """Forward reads x and writes y; backward reads x and dy and writes dx."""
    x, dy = (torch.randn(num_rows, width, device=bench.device).to(dtype) for _ in range(2))
    weight = torch.ones(width, device=bench.device, dtype=dtype)
    case = f"{num_rows}x{width} {str(dtype)[6:]}"
    return Operation("rms_norm", case, (x, weight), (dy,), 2 * x.nbytes, 3 * x.nbytes)


def add_norm(bench: Bench, num_rows: int, width: int) -> Operation:
    """Forward reads x and the residual, writes y and the sum; backward reads the sum and two gradients, writes one."""
    x, residual, dy, dtotal = (torch.randn(num_rows, width, device=bench.device).bfloat16() for _ in range(4))
    weight = torch.ones(width, device=bench.device, dtype=torch.bfloat16)
    inputs, grads = (x, residual, weight), (dy, dtotal)
    return Operation("add_rms_norm", f"{num_rows}x{width} bfloat16", inputs, grads, 4 * x.nbytes, 4 * x.nbytes)


def norms(bench: Bench, width: int) -> dict[str, Make]:
    """Implementations of y(x, weight)."""

    def plain(x, weight):
        return F.rms_norm(x, (width,), weight, EPS)

    return {
        "ours": lambda: lambda x, weight: rms_norm(x, weight, EPS),
        "Liger": _liger,
        COMPILED: lambda: bench.compiled(plain),
        "quack": _quack,
        EAGER: lambda: plain,
    }


def add_norms(bench: Bench, width: int) -> dict[str, Make]:
    """Implementations of (y, x + residual) of (x, residual, weight)."""

    def plain(x, residual, weight):
        total = x + residual
        return F.rms_norm(total, (width,), weight, EPS), total

    return {
        "ours": lambda: lambda x, residual, weight: rms_norm(x, weight, EPS, residual),
        "Liger": _liger_add,
        COMPILED: lambda: bench.compiled(plain),
        "quack": _quack_add,
        EAGER: lambda: plain,
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
