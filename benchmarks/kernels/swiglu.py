"""How fast is SwiGLU? Against eager torch, torch.compile and Liger-Kernel, on separate tensors and a fused projection.

Prints ms, share of the memory's floor and others' time over ours, forward and backward. Bars: table.py. Fused, the
input is the projection of both halves and its gradient one tensor: what cutting and joining costs is timed as well.
"""

import torch
import torch.nn.functional as F

from ado_kernels import swiglu
from ado_kernels.ops.swiglu import swiglu_reference
from benchmarks.kernels.harness import Bench, Function, Make

SHAPES, SMOKE_SHAPES = ((16384, 5632), (16384, 2048), (8192, 14336)), ((256, 344),)


def run(bench: Bench) -> None:
    """Every shape on separate tensors, the first one, which has bars, fused as well."""
    shapes = SMOKE_SHAPES if bench.smoke else SHAPES
    for shape in shapes:
        compare(bench, *shape, fused=False)
    compare(bench, *shapes[0], fused=True)


def compare(bench: Bench, num_rows: int, width: int, fused: bool) -> None:
    """Forward reads both halves and writes one; backward reads three and writes two."""
    both, dout = (torch.randn(num_rows, n * width, device=bench.device).bfloat16() for n in (2, 1))
    inputs = (both,) if fused else [half.contiguous() for half in both.chunk(2, dim=-1)]

    def shaped(function: Function) -> Function:
        return (lambda both: function(*both.chunk(2, dim=-1))) if fused else function

    def plain(gate, up):
        return F.silu(gate) * up

    def liger():
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        return shaped(LigerSiLUMulFunction.apply)

    makes: dict[str, Make] = {
        "ours": lambda: shaped(swiglu),
        "Liger": liger,
        "torch.compile": lambda: bench.compiled(shaped(plain)),
        "torch eager": lambda: shaped(plain),
    }
    case, traffic = f"{num_rows}x{width} {'fused' if fused else 'separate'}", (3 * dout.nbytes, 5 * dout.nbytes)
    bench.compare_passes("swiglu", case, makes, inputs, (dout,), traffic, shaped(swiglu_reference))
