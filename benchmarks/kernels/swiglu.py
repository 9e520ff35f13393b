"""How fast is SwiGLU? Against eager torch, torch.compile and Liger-Kernel, on separate tensors and a fused projection.

Prints ms, share of the memory's floor and others' time over ours, forward and backward. Bars: table.py. Fused, the
input is the projection of both halves and its gradient one tensor: what cutting and joining costs is timed as well.
"""

import torch
import torch.nn.functional as F

from ado_kernels import swiglu
from ado_kernels.ops.swiglu import swiglu_reference
from benchmarks.kernels.harness import Bench
from benchmarks.kernels.passes import Function, Make, Passes

BAR_SHAPE, SMOKE_SHAPE = (16384, 5632), (256, 344)
OTHER_SHAPES = ((16384, 2048), (8192, 14336))


def run_bars(bench: Bench) -> None:
    """Separate tensors of the shape that has bars, against the implementations that these name."""
    makes = implementations(bench, fused=False)
    del makes["torch eager"]
    glu(bench, _bar_shape(bench), fused=False).compare(bench, makes)


def run_rest(bench: Bench) -> None:
    """The fused layout there, other shapes, eager torch."""
    glu(bench, _bar_shape(bench), fused=True).compare(bench, implementations(bench, fused=True))
    makes = implementations(bench, fused=False)
    for shape in () if bench.smoke else OTHER_SHAPES:
        glu(bench, shape, fused=False).compare(bench, makes)
    glu(bench, _bar_shape(bench), fused=False).compare(bench, {"torch eager": makes["torch eager"]})


def _bar_shape(bench: Bench) -> tuple[int, int]:
    return SMOKE_SHAPE if bench.smoke else BAR_SHAPE


def glu(bench: Bench, shape: tuple[int, int], fused: bool) -> Passes:
    """Forward reads both halves and writes one; backward reads three and writes two."""
    num_rows, width = shape
    both, dout = (torch.randn(num_rows, n * width, device=bench.device).bfloat16() for n in (2, 1))
    inputs = (both,) if fused else tuple(half.contiguous() for half in both.chunk(2, dim=-1))
    case = f"{num_rows}x{width} {'fused' if fused else 'separate'}"
    reference = _of_halves(swiglu_reference) if fused else swiglu_reference
    return Passes("swiglu", case, inputs, (dout,), 3 * dout.nbytes, 5 * dout.nbytes, reference)


def implementations(bench: Bench, fused: bool) -> dict[str, Make]:
    """Implementations of silu(gate) * up, of (gate, up) or of the fused projection."""
    shaped = _of_halves if fused else lambda function: function
    return {
        "ours": lambda: shaped(swiglu),
        "Liger": lambda: shaped(_liger()),
        "torch.compile": lambda: bench.compiled(shaped(_plain)),
        "torch eager": lambda: shaped(_plain),
    }


def _of_halves(function: Function) -> Function:
    return lambda both: function(*both.chunk(2, dim=-1))


def _plain(gate, up):
    return F.silu(gate) * up


def _liger():
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return LigerSiLUMulFunction.apply
