"""How fast is RMSNorm, alone and with the residual's addition? Against torch, torch.compile, Liger-Kernel and quack.

Prints ms, share of the memory's floor and others' time over ours, forward and backward. Bars: table.py.
"""

import torch
import torch.nn.functional as F

from ado_kernels import rms_norm
from ado_kernels.ops.rms_norm import rms_norm_reference
from benchmarks.kernels.harness import Bench, Make

EPS = 1e-6
BF16, FP32 = torch.bfloat16, torch.float32
BAR_CASES = ((16384, 2048, BF16), (16384, 4096, BF16))
OTHER_CASES = ((16384, 2048, FP32), (16384, 768, BF16), (16384, 8192, BF16), (65536, 512, BF16), (4096, 2048, BF16))
SMOKE_CASES = ((512, 256, BF16),)


def run(bench: Bench) -> None:
    """Both operations at the shapes that have bars, the norm alone at others."""
    bar_cases = SMOKE_CASES if bench.smoke else BAR_CASES
    for case in bar_cases:
        norm(bench, *case, norms(bench))
        add_norm(bench, *case)
    for case in () if bench.smoke else OTHER_CASES:
        norm(bench, *case, {name: norms(bench)[name] for name in ("ours", "Liger", "torch.compile")})


def norm(bench: Bench, num_rows: int, width: int, dtype: torch.dtype, makes: dict[str, Make]) -> None:
    """Forward reads x and writes y; backward reads x and dy and writes dx."""
    x, dy = (torch.randn(num_rows, width, device=bench.device).to(dtype) for _ in range(2))
    weight = torch.ones(width, device=bench.device, dtype=dtype)
    traffic, case = (2 * x.nbytes, 3 * x.nbytes), f"{num_rows}x{width} {str(dtype)[6:]}"
    bench.compare_passes("rms_norm", case, makes, (x, weight), (dy,), traffic, rms_norm_reference)


def norms(bench: Bench) -> dict[str, Make]:
    """Implementations of y(x, weight).

    Liger as it is by default, dx written over dy: without that its RMSNorm (0.8.5) fills dx with zeros first, a whole
    stream more.
    """

    def plain(x, weight):
        return F.rms_norm(x, weight.shape, weight, EPS)

    def liger():
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        return lambda x, weight: LigerRMSNormFunction.apply(x, weight, EPS)

    def quack():
        from quack import rmsnorm

        return lambda x, weight: rmsnorm(x, weight, eps=EPS)

    return {
        "ours": lambda: lambda x, weight: rms_norm(x, weight, EPS),
        "Liger": liger,
        "torch.compile": lambda: bench.compiled(plain),
        "quack": quack,
        "torch eager": lambda: plain,
    }


def add_norm(bench: Bench, num_rows: int, width: int, dtype: torch.dtype) -> None:
    """Forward reads x and the residual, writes y and the sum; backward reads the sum and two gradients, writes one."""
    x, residual, dy, dtotal = (torch.randn(num_rows, width, device=bench.device).to(dtype) for _ in range(4))
    inputs = (x, residual, torch.ones(width, device=bench.device, dtype=dtype))

    def plain(x, residual, weight):
        total = x + residual
        return F.rms_norm(total, weight.shape, weight, EPS), total

    def liger():
        from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

        return lambda x, residual, weight: LigerFusedAddRMSNormFunction.apply(x, residual, weight, EPS)

    def quack():
        from quack import rmsnorm

        return lambda x, residual, weight: rmsnorm(x, weight, residual=residual, eps=EPS, prenorm=True)

    makes: dict[str, Make] = {
        "ours": lambda: lambda x, residual, weight: rms_norm(x, weight, EPS, residual),
        "Liger": liger,
        "torch.compile": lambda: bench.compiled(plain),
        "quack": quack,
        "torch eager": lambda: plain,
    }
    bench.compare_passes(
        "add_rms_norm",
        f"{num_rows}x{width} {str(dtype)[6:]}",
        makes,
        inputs,
        (dy, dtotal),
        (4 * x.nbytes, 4 * x.nbytes),
        lambda x, residual, weight: rms_norm_reference(x, weight, EPS, residual),
        roundings=2,
    )
