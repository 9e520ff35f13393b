"""Does it pay to fuse QK-norm and rotary embedding in the 124M model? Bytes counted, then both ways measured.

The count needs no GPU: bytes that fusion saves in a training step over the copy's rate, as a share of the step's floor,
which is its matmuls at the matmul rate plus the bytes of its other elementwise operations. The real step is longer than
its floor, so the real share is smaller; on a GPU the time saved is measured as well. No bar.
"""

import torch

from ado_kernels import rms_norm, rms_norm_rope
from ado_kernels.ops.rms_norm_rope import rms_norm_rope_reference
from ado_model import PRESETS
from benchmarks.kernels.harness import Bench, Function, Make

H200_RATES = (4.3e12, 790e12)  # bytes/s of a copy, FLOP/s of bf16 matmuls: for the count
BYTES = 2  # of a bf16 number


def run(bench: Bench) -> None:
    """The count for the 124M model, then one layer's queries: fused, apart, compiled."""
    bench.emit("rms_norm_rope", "124M, share of the step's floor", rates=H200_RATES, **step_share(*H200_RATES))
    shape = (2, 64, 2, 64) if bench.smoke else (16, 1024, 12, 64)
    x, dy = (torch.randn(shape, device=bench.device).bfloat16() for _ in range(2))
    weight = torch.ones(shape[-1], device=bench.device)
    angle = torch.rand(shape[1], shape[-1] // 2, device=bench.device)
    cos, sin = angle.cos(), angle.sin()

    def reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm_rope_reference(x, weight, cos, sin)

    def norm_then(rotate: Function) -> Function:
        return lambda x, weight: rotate(rms_norm(x, weight), cos, sin)

    makes: dict[str, Make] = {
        "ours": lambda: lambda x, weight: rms_norm_rope(x, weight, cos, sin),
        "norm, then rope": lambda: norm_then(_rotate),
        "norm, then compiled rope": lambda: norm_then(bench.compiled(_rotate)),
        "torch.compile": lambda: bench.compiled(reference),
        "torch eager": lambda: reference,
    }
    case, traffic = "x".join(map(str, shape)), (2 * x.nbytes, 3 * x.nbytes)
    bench.compare_passes("rms_norm_rope", case, makes, (x, weight), (dy,), traffic, reference)


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
