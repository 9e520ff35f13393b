"""Does it pay to fuse QK-norm and rotary embedding in the 124M model? Bytes counted, then both ways measured.

The count needs no GPU: bytes that fusion saves in a training step over the copy's rate, as a share of the step's floor,
which is its matmuls at the measured matmul rate plus the bytes of its other elementwise operations. The real step is
longer than its floor, so the real share is smaller; on a GPU the time saved is measured as well. No bar.
"""

import torch

from ado_kernels import rms_norm, rms_norm_rope
from ado_kernels.ops.rms_norm_rope import rms_norm_rope_reference
from ado_model import PRESETS
from benchmarks.kernels.harness import Bench
from benchmarks.kernels.passes import Function, Passes

# An H200 (measured, for the count where no GPU is at hand): bytes/s of a copy, FLOP/s of bf16 matmuls.
H200_RATES = (4.3e12, 790e12)
BYTES = 2  # of a bf16 number
SHAPE, SMOKE_SHAPE = (16, 1024, 12, 64), (2, 64, 2, 64)


def run_rms_norm_rope(bench: Bench) -> None:
    """The count for the 124M model, then one layer's queries: fused, apart, compiled."""
    copy, matmul = bench.copy_bytes_per_s, bench.matmul_flop_per_s
    rates = (copy, matmul) if bench.on_gpu and copy and matmul else H200_RATES
    bench.emit("rms_norm_rope", "124M, share of the step's floor", rates=rates, **step_share(*rates))
    shape = SMOKE_SHAPE if bench.smoke else SHAPE
    x, dy = (torch.randn(shape, device=bench.device).bfloat16() for _ in range(2))
    weight = torch.ones(shape[-1], device=bench.device)
    angle = torch.rand(shape[1], shape[-1] // 2, device=bench.device)
    cos, sin = angle.cos(), angle.sin()

    def reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm_rope_reference(x, weight, cos, sin)

    def norm_then(rotate: Function) -> Function:
        return lambda x, weight: rotate(rms_norm(x, weight), cos, sin)

    case = "x".join(map(str, shape))
    Passes("rms_norm_rope", case, (x, weight), (dy,), 2 * x.nbytes, 3 * x.nbytes, reference).compare(
        bench,
        {
            "ours": lambda: lambda x, weight: rms_norm_rope(x, weight, cos, sin),
            "norm, then rope": lambda: norm_then(_rotate),
            "norm, then compiled rope": lambda: norm_then(bench.compiled(_rotate)),
            "torch.compile": lambda: bench.compiled(reference),
            "torch eager": lambda: reference,
        },
    )


def step_share(bytes_per_s: float, flop_per_s: float) -> dict[str, float]:
    """Per token of a 124M training step: bytes that fusion saves, and their share of the step's floor."""
    config = PRESETS["124M"]
    # Elements moved per token and layer, forward + backward: queries and keys apart (norm 2 + 3, rope 2 + 2) or fused
    # (2 + 3); two additions with norms (4 + 4 each); SwiGLU (3 + 5 of the MLP's width).
    apart, fused = 2 * (2 + 3 + 2 + 2) * config.width, 2 * (2 + 3) * config.width
    others = 2 * (4 + 4) * config.width + (3 + 5) * config.mlp_width
    saved_bytes = BYTES * config.num_layers * (apart - fused)
    floor_s = config.flops_per_token() / flop_per_s + BYTES * config.num_layers * (apart + others) / bytes_per_s
    return {"saved_bytes_per_token": saved_bytes, "share_of_floor_frac": saved_bytes / bytes_per_s / floor_s}


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
