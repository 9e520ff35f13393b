"""linear_cross_entropy against torch (eager, compiled, its own fused one), Liger-Kernel, Apple's CCE and quack.

Forward and backward together, and the loss alone; peak memory; how far loss and gradients are from float32 ones made
chunk by chunk (float64 on a CPU). Rows per chunk and both methods of ours are swept through the launch table; the
phases of one chunk are timed one by one. Ours has no float32 logits in memory; "exponentials" is the method that does
not round them. Floors: three matmuls (one for the loss) at the square matmul's rate, and at their own (ceilings.py).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from ado_kernels.ops.launch import using
from ado_kernels.ops.linear_cross_entropy.problem import Chunk, Problem, matmul_into
from benchmarks.kernels.ceilings import FORWARD, TRAINING, own_floor_ms
from benchmarks.kernels.harness import Bench, Builder, Work
from benchmarks.kernels.linear_cross_entropy_baselines import (
    BEST,
    NUM_DOMAINS,
    Function,
    implementations,
    methods,
    ours,
)

# Up to 3760: a third of torch.compile's memory at width 768 (predictions.md).
CHUNK_ROWS = (2048, 2816, 3328, 4096, 5632, 8192, 16384)
REFERENCE_ROWS = 2048
# Of a gradient's norm. bf16 logits of 4 to 8 are off by 2^-6 / sqrt(12) = 0.45 % rms, and so is each softmax entry;
# of 8 to 16, as a trained model's, twice that; three roundings of gradients add 0.2 % each. (Rounding so on a CPU gives
# 0.2 to 0.5 %.) A part that is missing, halved or half too large is 50 % or more. A loss is a mean of thousands.
GRADIENT_TOLERANCE, LOSS_TOLERANCE_NATS = 0.02, 1e-3


@dataclass(frozen=True)
class Shape:
    """N rows, V words, H width; peaked: logits as of a trained model, which CCE's filter needs."""

    num_rows: int
    vocabulary: int
    width: int
    peaked: bool = False

    def __str__(self) -> str:
        return f"N={self.num_rows} V={self.vocabulary} H={self.width}" + (" peaked" if self.peaked else "")

    @property
    def matmul_flops(self) -> float:
        return 2.0 * self.num_rows * self.vocabulary * self.width


@dataclass(frozen=True)
class Inputs:
    """hidden (N, H), weight (V, H), targets (N,) int64, domain ids (N,) int64."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    ids: torch.Tensor

    def call(self, function: Function) -> torch.Tensor:
        return function(self.hidden, self.weight, self.targets, self.ids)


BAR_SHAPES = (Shape(16384, 50304, 768), Shape(16384, 50304, 2048))
SMOKE_SHAPES = (Shape(512, 2048, 64),)
# Peaked logits are what CCE's filter is for; the others show how the least and the largest sizes scale.
OTHER_SHAPES = {
    Shape(16384, 50304, 768, peaked=True): ("ours", "Liger", "CCE", "CCE, cce_kahan_full_c"),
    Shape(4096, 50304, 768): ("ours", "Liger", "torch eager"),
    Shape(65536, 50304, 768): ("ours", "Liger", "torch.compile"),
    Shape(8192, 128256, 4096): ("ours", "Liger", "F.linear_cross_entropy"),
}


def run_bars(bench: Bench) -> None:
    """Training and loss alone at the shapes that have bars, against the implementations that these name."""
    for shape in bar_shapes(bench):
        inputs = draw(bench, shape)
        compare_training(bench, shape, inputs, BEST)
        compare_loss_only(bench, shape, inputs, BEST)


def run_rest(bench: Bench) -> None:
    """The remaining implementations there, where the time goes, rows per chunk, other shapes."""
    remaining = [name for name in implementations(bench) if name not in BEST]
    for shape in bar_shapes(bench):
        inputs = draw(bench, shape)
        compare_training(bench, shape, inputs, remaining)
        compare_loss_only(
            bench, shape, inputs, ("torch eager", "ours by exponentials")
        )  # others' losses differ in nothing
    for shape in BAR_SHAPES if bench.on_gpu and not bench.smoke else ():
        inputs = draw(bench, shape)
        _phases(bench, shape, inputs)
        _sweep_chunks(bench, shape, inputs)
    for shape, names in () if bench.smoke else OTHER_SHAPES.items():
        compare_training(bench, shape, draw(bench, shape), names)


def bar_shapes(bench: Bench) -> tuple[Shape, ...]:
    return SMOKE_SHAPES if bench.smoke else BAR_SHAPES


def draw(bench: Bench, shape: Shape) -> Inputs:
    """Random inputs; peaked: the target's logit stands out by about 8."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    weight = torch.randn(shape.vocabulary, shape.width, device=bench.device) * 0.02
    targets = torch.randint(0, shape.vocabulary, (shape.num_rows,), device=bench.device)
    hidden = torch.randn(shape.num_rows, shape.width, device=bench.device)
    if shape.peaked:
        hidden = hidden + weight[targets] * (8.0 / (0.02**2 * shape.width))
    ids = torch.randint(0, NUM_DOMAINS, (shape.num_rows,), device=bench.device)
    return Inputs(hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets, ids)


def compare_training(bench: Bench, shape: Shape, inputs: Inputs, names: Iterable[str]) -> None:
    """Forward and backward, with the errors of loss and gradients."""
    if bench.out_of_time():
        bench.emit("linear_cross_entropy", str(shape), skipped="out of time")
        return
    makes = implementations(bench)
    builders = {name: training(makes[name], inputs) for name in names if name in makes}
    expected = reference(bench, inputs)
    own = own_floor_ms(bench, TRAINING, shape.matmul_flops, shape.width)
    bench.compare(
        "linear_cross_entropy",
        str(shape),
        builders,
        Work(num_flops=3 * shape.matmul_flops, own_floor_ms=own),
        examine=lambda result: examined(result, expected, inputs.targets),
    )


def compare_loss_only(bench: Bench, shape: Shape, inputs: Inputs, names: Iterable[str]) -> None:
    """The loss without gradients, as in evaluation."""
    makes = implementations(bench)
    builders = {name: evaluation(makes[name], inputs) for name in names if name in makes}
    own = own_floor_ms(bench, FORWARD, shape.matmul_flops, shape.width)
    work = Work(num_flops=shape.matmul_flops, own_floor_ms=own)
    bench.compare("linear_cross_entropy, loss only", str(shape), builders, work)


def training(make: Callable[[], Function], inputs: Inputs) -> Builder:
    """A call that returns loss, gradient of hidden, gradient of weight."""

    def build():
        function = make()

        def call():
            loss = inputs.call(function)
            return loss.detach(), *torch.autograd.grad(loss, (inputs.hidden, inputs.weight))

        return call

    return build


def evaluation(make: Callable[[], Function], inputs: Inputs) -> Builder:
    """A call that returns the loss; inputs that need no gradient, or Liger would compute them all the same."""
    plain = Inputs(inputs.hidden.detach(), inputs.weight.detach(), inputs.targets, inputs.ids)

    def build():
        function = make()

        def call():
            with torch.no_grad():
                return plain.call(function)

        return call

    return build


def reference(bench: Bench, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """loss, gradient of hidden, gradient of weight in float32 (float64 on a CPU), a few rows at a time."""
    wide = torch.float32 if bench.on_gpu else torch.float64
    hidden_NH, weight_VH = inputs.hidden.detach().to(wide), inputs.weight.detach().to(wide)
    dhidden_NH, dweight_VH = torch.empty_like(hidden_NH), torch.zeros_like(weight_VH)
    total, num_rows = torch.zeros((), dtype=torch.float64, device=bench.device), len(hidden_NH)
    for start in range(0, num_rows, REFERENCE_ROWS):
        rows = slice(start, start + REFERENCE_ROWS)
        target_C1 = inputs.targets[rows, None]
        logits_CV = hidden_NH[rows] @ weight_VH.t()
        partition_C1 = torch.logsumexp(logits_CV, dim=1, keepdim=True)
        total += (partition_C1 - logits_CV.gather(1, target_C1)).sum(dtype=torch.float64)
        g_CV = logits_CV.sub_(partition_C1).exp_()
        g_CV.scatter_add_(1, target_C1, torch.full_like(partition_C1, -1.0))
        dhidden_NH[rows] = g_CV @ weight_VH
        dweight_VH.addmm_(g_CV.t(), hidden_NH[rows])
    return total / num_rows, dhidden_NH / num_rows, dweight_VH / num_rows


def examined(result: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], targets: torch.Tensor) -> dict:
    """Errors: of the loss in nats, of gradients over their norms; words that are no target have a part of their own.

    The target's -1 makes up nearly all of the weight's gradient: in one norm the softmax could be missing unseen.
    """
    loss, dhidden, dweight = result
    nats = (loss.double() - expected[0]).abs().item()
    elsewhere = torch.ones(len(dweight), dtype=torch.bool, device=dweight.device)
    elsewhere[targets] = False
    errors = {
        "dX": norm_error(dhidden, expected[1]),
        "dW": norm_error(dweight, expected[2]),
        "dW elsewhere": norm_error(dweight[elsewhere], expected[2][elsewhere]),
    }
    right = nats <= LOSS_TOLERANCE_NATS and all(error <= GRADIENT_TOLERANCE for error in errors.values())
    return {"errors": {"loss_nats": nats, **errors}, "wrong": not right}


def norm_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """|ours - expected| / |expected|."""
    return ((ours.to(expected.dtype) - expected).norm() / expected.norm()).item()


def _sweep_chunks(bench: Bench, shape: Shape, inputs: Inputs) -> None:
    """Both methods at every number of rows per chunk."""
    work = Work(num_flops=3 * shape.matmul_flops)
    for rows in CHUNK_ROWS:
        for method in methods(bench.device):
            with using("linear_cross_entropy", rows=rows, method=method):
                case, builders = f"{shape} rows={rows} {method}", {"ours": training(lambda: ours, inputs)}
                bench.compare("linear_cross_entropy chunk", case, builders, work)


def _phases(bench: Bench, shape: Shape, inputs: Inputs) -> None:
    """One chunk of 4096 rows: every kernel of both methods on its own."""
    from ado_kernels.ops.linear_cross_entropy import exponentials, softmax_pass

    hidden, weight, targets = inputs.hidden.detach()[:4096], inputs.weight.detach(), inputs.targets[:4096]
    logits = hidden @ weight.t()
    losses, squares = (torch.empty(len(targets), device=bench.device) for _ in range(2))
    dhidden, dweight = (torch.zeros(tensor.shape, device=bench.device) for tensor in (hidden, weight))

    def chunk(hidden_grad: bool, weight_grad: bool) -> Chunk:
        problem = Problem(hidden, weight, targets, -100, 0.0, hidden_grad, weight_grad, hidden.dtype)
        return Chunk(problem, hidden, weight, targets, logits, losses, squares, dhidden, dweight, first=False)

    both, only_hidden, only_weight, neither = (
        chunk(*wanted) for wanted in ((True, True), (True, False), (False, True), (False, False))
    )
    matmul = Work(num_flops=2 * logits.numel() * shape.width)
    two = Work(num_flops=2 * matmul.num_flops)
    phases = {
        "logits": (lambda: matmul_into(logits, hidden, weight.t()), matmul),
        "softmax gradient": (lambda: softmax_pass.softmax_gradient(both), Work(num_bytes=2 * logits.nbytes)),
        "dX": (lambda: matmul_into(dhidden, logits, weight), matmul),
        "dW": (lambda: matmul_into(dweight, logits.t(), hidden, add=True), matmul),
    }
    if "exponentials" in methods(bench.device):
        phases |= {
            "exponentials, losses": (lambda: exponentials.run_chunk(neither), matmul),
            "exponentials, losses and dX": (lambda: exponentials.run_chunk(only_hidden), two),
            "exponentials, losses and dW": (lambda: exponentials.run_chunk(only_weight), two),
        }
    for name, (call, work) in phases.items():
        bench.compare("linear_cross_entropy phase", f"{shape} {name}", {"ours": lambda call=call: call}, work)
