"""Right before fast: errors against float64, equal bits in three runs, capture in a CUDA graph.

The lists of shapes that pytest covers on a GPU are in tests/kernels/test_gpu.py; here a few at full size, recorded.
"""

import torch

from ado_kernels import domain_loss, linear_cross_entropy, rms_norm, rms_norm_rope, swiglu
from ado_kernels.ops.domain_loss import domain_loss_reference
from ado_kernels.ops.linear_cross_entropy import linear_cross_entropy_reference
from ado_kernels.ops.rms_norm import rms_norm_reference
from ado_kernels.ops.rms_norm_rope import rms_norm_rope_reference
from ado_kernels.ops.swiglu import swiglu_reference
from benchmarks.kernels.harness import Bench


def run_checks(bench: Bench) -> None:
    """Per operation: largest error of every output and gradient relative to the largest entry, and determinism."""
    for name, (function, reference, inputs, leaves) in _operations(bench).items():
        if bench.out_of_time():
            bench.emit("correctness", name, skipped="out of time")
            continue
        ours = _outputs(function, inputs, leaves)
        wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
        expected = _outputs(reference, wide, leaves)
        errors = [_relative(one, other) for one, other in zip(ours, expected, strict=True)]
        again = [_outputs(function, inputs, leaves) for _ in range(2)]
        same = all(torch.equal(one, other) for run in again for one, other in zip(ours, run, strict=True))
        bench.emit("correctness", name, relative_errors=errors, same_bits_in_three_runs=same)
        if bench.on_gpu:
            bench.emit("cuda graph", name, **_capture(function, inputs))


def _operations(bench: Bench) -> dict:
    """name -> (function, reference, inputs, how many leading inputs get gradients)."""
    rows, width, vocabulary = (96, 64, 300) if bench.smoke else (4096, 768, 8192)
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    x, residual, up = (torch.randn(rows, width, device=bench.device).to(dtype) for _ in range(3))
    weight = torch.randn(width, device=bench.device).to(dtype)
    vocabulary_weight = (torch.randn(vocabulary, width, device=bench.device) * 0.05).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,), device=bench.device)
    targets[::7] = -100
    ids = torch.randint(-1, 22, (rows,), device=bench.device)
    heads = (4, rows // 4, width // 64, 64)
    angle = torch.rand(rows // 4, 32, device=bench.device)
    cos, sin = angle.cos(), angle.sin()
    return {
        "rms_norm": (rms_norm, rms_norm_reference, [x, weight], 2),
        "add_rms_norm": (
            lambda x, residual, weight: rms_norm(x, weight, 1e-6, residual),
            lambda x, residual, weight: rms_norm_reference(x, weight, 1e-6, residual),
            [x, residual, weight],
            3,
        ),
        "rms_norm_rope": (
            lambda x, weight: rms_norm_rope(x.view(heads), weight, cos, sin),
            lambda x, weight: rms_norm_rope_reference(x.view(heads), weight, cos, sin),
            [x, weight[:64]],
            2,
        ),
        "swiglu": (swiglu, swiglu_reference, [x, up], 2),
        "linear_cross_entropy": (
            lambda *inputs: linear_cross_entropy(*inputs, 22),
            lambda *inputs: linear_cross_entropy_reference(*inputs, 22),
            [x, vocabulary_weight, targets, ids],
            2,
        ),
        "domain_loss": (
            lambda losses, ids: domain_loss(losses, ids, 22),
            lambda losses, ids: domain_loss_reference(losses, ids, 22),
            [torch.rand(rows, device=bench.device), ids],
            0,
        ),
    }


def _outputs(function, inputs, leaves: int) -> list[torch.Tensor]:
    inputs = [tensor.detach().requires_grad_(i < leaves) for i, tensor in enumerate(inputs)]
    outputs = function(*inputs)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    differentiable = [output for output in outputs if output.requires_grad]
    grads = ()
    if leaves:
        # A gradient that varies along the rows: with ones, a sum over a normed row would vanish.
        seeds = [torch.linspace(-1, 1, max(out.numel(), 1), device=out.device) for out in differentiable]
        seeds = [s.view(o.shape).to(o.dtype) for s, o in zip(seeds, differentiable, strict=True)]
        grads = torch.autograd.grad(differentiable, inputs[:leaves], seeds)
    return [tensor.detach() for tensor in (*outputs, *grads)]


def _relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    scale = expected.double().abs().max().clamp(min=1e-300)
    return ((ours.double() - expected.double()).abs().max() / scale).item()


def _capture(function, inputs) -> dict:
    """Captures the forward call after a warm-up; a host synchronisation would make the capture fail."""
    function(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            function(*inputs)
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError as error:
        return {"failed": str(error)[:300]}
    return {"captured": True}
