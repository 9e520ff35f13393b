"""RMSNorm and SwiGLU against eager torch, torch.compile, Liger-Kernel and quack, in bytes of the ideal traffic."""

import torch
import torch.nn.functional as F

from ado_kernels import rms_norm, swiglu
from benchmarks.kernels.harness import Bench

EPS = 1e-6
NORM_SHAPES = ((16384, 2048), (16384, 4096), (16384, 768), (16384, 8192), (65536, 512), (4096, 2048))
RESIDUAL_SHAPES = ((16384, 2048), (16384, 4096))
GLU_SHAPES = ((16384, 5632), (16384, 2048), (8192, 14336))


def run_rms_norm(bench: Bench) -> None:
    """Forward and backward, with and without the residual."""
    for num_rows, width in ((512, 256),) if bench.smoke else NORM_SHAPES:
        _norm_case(bench, num_rows, width, torch.bfloat16)
    if not bench.smoke:
        _norm_case(bench, 16384, 2048, torch.float32)
    for num_rows, width in ((512, 256),) if bench.smoke else RESIDUAL_SHAPES:
        _residual_case(bench, num_rows, width)


def _norm_case(bench: Bench, num_rows: int, width: int, dtype: torch.dtype) -> None:
    x, dy = (torch.randn(num_rows, width, device=bench.device).to(dtype) for _ in range(2))
    weight = torch.ones(width, device=bench.device, dtype=dtype)
    functions = {
        "ours": lambda x, w: rms_norm(x, w, EPS),
        "torch eager": lambda x, w: F.rms_norm(x, (width,), w, EPS),
        "torch.compile": torch.compile(lambda x, w: F.rms_norm(x, (width,), w, EPS), fullgraph=True),
        "Liger": _liger_norm,
        "quack": _quack_norm,
    }
    case = f"{num_rows}x{width} {str(dtype)[6:]}"
    forward = {name: _forward(function, (x, weight)) for name, function in functions.items()}
    bench.compare("rms_norm forward", case, forward, bench.bytes_floor_ms(2 * x.nbytes))
    backward = {name: _backward(function, (x, weight), (dy,)) for name, function in functions.items()}
    bench.compare("rms_norm backward", case, backward, bench.bytes_floor_ms(3 * x.nbytes))


def _residual_case(bench: Bench, num_rows: int, width: int) -> None:
    x, residual, dy, dtotal = (torch.randn(num_rows, width, device=bench.device).bfloat16() for _ in range(4))
    weight = torch.ones(width, device=bench.device, dtype=torch.bfloat16)

    def plain(x, residual, weight):
        total = x + residual
        return F.rms_norm(total, (width,), weight, EPS), total

    functions = {
        "ours": lambda x, residual, weight: rms_norm(x, weight, EPS, residual),
        "torch eager": plain,
        "torch.compile": torch.compile(plain, fullgraph=True),
    }
    case = f"{num_rows}x{width} bfloat16"
    forward = {name: _forward(function, (x, residual, weight)) for name, function in functions.items()}
    bench.compare("add_rms_norm forward", case, forward, bench.bytes_floor_ms(4 * x.nbytes))
    backward = {name: _backward(f, (x, residual, weight), (dy, dtotal)) for name, f in functions.items()}
    bench.compare("add_rms_norm backward", case, backward, bench.bytes_floor_ms(4 * x.nbytes))


def run_swiglu(bench: Bench) -> None:
    """Forward and backward, separate tensors and the halves of a fused projection."""
    functions = {
        "ours": swiglu,
        "torch eager": lambda gate, up: F.silu(gate) * up,
        "torch.compile": torch.compile(lambda gate, up: F.silu(gate) * up, fullgraph=True),
        "Liger": _liger_glu,
    }
    for num_rows, width in ((256, 344),) if bench.smoke else GLU_SHAPES:
        fused, dout = (torch.randn(num_rows, n * width, device=bench.device).bfloat16() for n in (2, 1))
        for layout in ("separate", "fused"):
            gate, up = fused.chunk(2, dim=-1)
            if layout == "separate":
                gate, up = gate.contiguous(), up.contiguous()
            case = f"{num_rows}x{width} {layout}"
            forward = {name: _forward(function, (gate, up)) for name, function in functions.items()}
            bench.compare("swiglu forward", case, forward, bench.bytes_floor_ms(3 * dout.nbytes))
            backward = {name: _backward(function, (gate, up), (dout,)) for name, function in functions.items()}
            bench.compare("swiglu backward", case, backward, bench.bytes_floor_ms(5 * dout.nbytes))


def _forward(function, inputs):
    def build():
        return lambda: function(*inputs)

    return build


def _backward(function, inputs, grads):
    def build():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)

    return build


def _liger_norm(x, weight):
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(x, weight, EPS, 0.0, "llama", False)


def _liger_glu(gate, up):
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return LigerSiLUMulFunction.apply(gate, up)


def _quack_norm(x, weight):
    from quack import rmsnorm

    return rmsnorm(x, weight, eps=EPS)
