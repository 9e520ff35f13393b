"""Right before fast: errors against float64, equal bits in three runs, forward and backward in a CUDA graph.

What is wrong here fails the run. The lists of shapes that pytest covers are in tests/kernels/test_gpu.py; here one of
each operation at full width, in float32 and bf16.

Errors are of a result's largest entry and of its norm, whichever is more. Limits: float32 sums over the width or the
vocabulary in lanes stay under 1e-5; a bf16 result is rounded once, by at most half a unit, 2^-8 of itself, and twice
where a sum with a residual was rounded before. linear_cross_entropy in bf16: gradients see linear_cross_entropy.py;
losses of 9 nats are off by 0.002 rms each, a domain's sum over 150 of them by 2e-5 of itself.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from ado_kernels import domain_loss, linear_cross_entropy, rms_norm, rms_norm_rope, swiglu
from ado_kernels.ops.domain_loss import domain_loss_reference
from ado_kernels.ops.launch import using
from ado_kernels.ops.linear_cross_entropy import linear_cross_entropy_reference
from ado_kernels.ops.rms_norm import rms_norm_reference
from ado_kernels.ops.rms_norm_rope import rms_norm_rope_reference
from ado_kernels.ops.swiglu import swiglu_reference
from benchmarks.kernels.harness import Bench
from benchmarks.kernels.linear_cross_entropy import GRADIENT_TOLERANCE
from benchmarks.kernels.linear_cross_entropy_baselines import NUM_DOMAINS, methods

Tensors = list[torch.Tensor]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8}


@dataclass(frozen=True)
class Operation:
    """A function, its float64 oracle, how many leading inputs get gradients, and the largest error of each result.

    split: cuts the results (outputs, then gradients) into the parts that are compared. around: entered for ours.
    """

    name: str
    function: Callable
    oracle: Callable
    draw: Callable[[], Tensors]
    leaves: int
    limits: dict[str, float]
    split: Callable[[Tensors, Tensors], Tensors] = lambda results, inputs: results
    around: Callable[[], AbstractContextManager] = nullcontext


def run_checks(bench: Bench) -> None:
    """Every operation in every dtype; what is out of its limits is recorded and fails the run."""
    for dtype in ROUNDING:
        for operation in operations(bench, dtype):
            case = f"{operation.name} {str(dtype)[6:]}"
            if bench.out_of_time():
                bench.emit("correctness", case, skipped="out of time")
                continue
            try:
                found = _check(bench, operation)
            except Exception as error:  # noqa: BLE001 - that it cannot be captured, say; the others must be checked
                found = {"wrong": [f"{type(error).__name__}: {error}"[:300]]}
            bench.emit("correctness", case, **found)
            if found["wrong"]:
                bench.failed.append(f"correctness, {case}: {', '.join(found['wrong'])}")


def _check(bench: Bench, operation: Operation) -> dict:
    """Errors by part, and under "wrong" what is not as it must be."""
    inputs, fresh = operation.draw(), operation.draw()
    with operation.around():
        first, *others = [run(operation.function, inputs, operation.leaves) for _ in range(3)]
        replayed = _replayed(bench, operation, inputs, fresh)
    errors, replay_errors = _errors(operation, first, inputs), _errors(operation, replayed, fresh)
    wrong = [f"{part} is off by {error:.1e}" for part, error in errors.items() if not error <= operation.limits[part]]
    wrong += [
        f"{part} of a graph's replay is off by {error:.1e}"
        for part, error in replay_errors.items()
        if not error <= operation.limits[part]
    ]
    if not all(torch.equal(one, two) for run_ in others for one, two in zip(first, run_, strict=True)):
        wrong.append("bits differ between runs")
    return {"errors": errors, "replay_errors": replay_errors, "wrong": wrong}


def _errors(operation: Operation, results: Tensors, inputs: Tensors) -> dict[str, float]:
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    expected = run(operation.oracle, wide, operation.leaves)
    pairs = zip(operation.split(results, inputs), operation.split(expected, inputs), strict=True)
    return {part: error(*pair) for part, pair in zip(operation.limits, pairs, strict=True)}


def error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """The larger of max |ours - expected| / max |expected| and |ours - expected| / |expected|."""
    expected = expected.double()
    difference = ours.double() - expected
    largest, norm = expected.abs().max().clamp(min=1e-300), expected.norm().clamp(min=1e-300)
    return max((difference.abs().max() / largest).item(), (difference.norm() / norm).item())


def run(function: Callable, inputs: Tensors, leaves: int) -> Tensors:
    """Outputs, then gradients of the first `leaves` inputs."""
    inputs = [tensor.detach().requires_grad_(i < leaves) for i, tensor in enumerate(inputs)]
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    differentiable = [output for output in outputs if output.requires_grad]
    if not leaves:
        return list(outputs)
    # Gradients that vary along the rows (with ones, a sum over a normed row would vanish), the same in every dtype.
    seeds = [torch.linspace(-1, 1, out.numel() + 1, device=out.device)[1:].bfloat16() for out in differentiable]
    seeds = [seed.view(out.shape).to(out.dtype) for seed, out in zip(seeds, differentiable, strict=True)]
    return [tensor.detach() for tensor in (*outputs, *torch.autograd.grad(differentiable, inputs[:leaves], seeds))]


def _replayed(bench: Bench, operation: Operation, inputs: Tensors, fresh: Tensors) -> Tensors:
    """Forward and backward recorded in a graph on `inputs`, then replayed on `fresh` values copied into them.

    A host synchronisation makes the recording fail; a value that was read when it was made shows in the results.
    """
    held = [tensor.clone() for tensor in inputs]
    results, replay = bench.captured(lambda: run(operation.function, held, operation.leaves))
    for tensor, new in zip(held, fresh, strict=True):
        tensor.copy_(new)
    replay()
    return [result.clone() for result in results]


def operations(bench: Bench, dtype: torch.dtype) -> Iterator[Operation]:
    """All operations, the loss by every method that this device and dtype can take."""
    rows, width = (96, 64) if bench.smoke else (4096, 768)
    unit = ROUNDING[dtype]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=bench.device).to(dtype)

    def add_norm(norm: Callable) -> Callable:
        return lambda x, residual, weight: norm(x, weight, 1e-6, residual)

    yield Operation(
        "rms_norm",
        rms_norm,
        rms_norm_reference,
        lambda: [draw(rows, width), draw(width)],
        2,
        {"y": unit, "dx": unit, "dweight": unit},
    )
    yield Operation(
        "add_rms_norm",
        add_norm(rms_norm),
        add_norm(rms_norm_reference),
        lambda: [draw(rows, width), draw(rows, width), draw(width)],
        3,
        {"y": 2 * unit, "sum": unit, "dx": 2 * unit, "dresidual": 2 * unit, "dweight": 2 * unit},
    )
    yield Operation(
        "swiglu",
        swiglu,
        swiglu_reference,
        lambda: [draw(rows, width), draw(rows, width)],
        2,
        {"out": unit, "dgate": unit, "dup": unit},
    )
    yield _rope(bench, dtype, rows, width)
    for method in methods(bench.device):
        if method != "exponentials" or dtype == torch.bfloat16:
            yield _loss(bench, dtype, method)
    yield Operation(
        "domain_loss",
        lambda losses, ids: domain_loss(losses, ids, NUM_DOMAINS),
        lambda losses, ids: domain_loss_reference(losses, ids, NUM_DOMAINS),
        lambda: [draw(rows).abs(), torch.randint(-1, NUM_DOMAINS, (rows,), device=bench.device)],
        0,
        {"sums": 1e-11, "counts": 0.0},
    )


def _rope(bench: Bench, dtype: torch.dtype, rows: int, width: int) -> Operation:
    heads, unit = (4, rows // 4, width // 64, 64), ROUNDING[dtype]
    angle = torch.rand(rows // 4, 32, device=bench.device)
    cos, sin = angle.cos(), angle.sin()

    def turn(function: Callable) -> Callable:
        return lambda x, weight: function(x, weight, cos, sin)

    def draw() -> Tensors:
        return [torch.randn(shape, device=bench.device).to(dtype) for shape in (heads, (64,))]

    limits = {"y": unit, "dx": unit, "dweight": unit}
    return Operation("rms_norm_rope", turn(rms_norm_rope), turn(rms_norm_rope_reference), draw, 2, limits)


def _loss(bench: Bench, dtype: torch.dtype, method: str) -> Operation:
    rows, vocabulary, width = (96, 300, 64) if bench.smoke else (4096, 8192, 768)
    narrow = dtype == torch.bfloat16
    losses, gradients = (1e-3, GRADIENT_TOLERANCE) if narrow else (ROUNDING[dtype], ROUNDING[dtype])

    def draw() -> Tensors:
        hidden, weight = (torch.randn(n, width, device=bench.device) for n in (rows, vocabulary))
        targets = torch.randint(0, vocabulary // 2, (rows,), device=bench.device)
        targets[::7] = -100
        ids = torch.randint(-1, NUM_DOMAINS, (rows,), device=bench.device)
        return [hidden.to(dtype), (weight * 0.05).to(dtype), targets, ids]

    def split(results: Tensors, inputs: Tensors) -> Tensors:
        """The upper half of the words is no target: there the weight's gradient is that of the softmax alone."""
        *others, dweight = results
        return [*others, dweight[: vocabulary // 2], dweight[vocabulary // 2 :]]

    def call(function: Callable) -> Callable:
        return lambda *inputs: function(*inputs, NUM_DOMAINS)

    limits = {"loss": losses, "sums": losses, "counts": 0.0}
    limits |= dict.fromkeys(("dhidden", "dweight of targets", "dweight of other words"), gradients)
    return Operation(
        f"linear_cross_entropy by {method}",
        call(linear_cross_entropy),
        call(linear_cross_entropy_reference),
        draw,
        2,
        limits,
        split,
        lambda: using("linear_cross_entropy", method=method),
    )
