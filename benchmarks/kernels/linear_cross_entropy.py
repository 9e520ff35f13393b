"""How fast is linear_cross_entropy, and in how much memory? Against torch, Liger-Kernel, Apple's CCE and quack.

Torch three times: eager, compiled, and its own fused one. Prints ms, shares of the floors, others' time over ours, peak
memory, and errors of loss and gradients against float32 ones made chunk by chunk (float64 on a CPU); the loss alone;
both methods of ours by rows per chunk; the phases of one chunk. Ours has no float32 logits in memory; "exponentials" is
the method that does not round them. Floors: three matmuls (one for the loss) at the square matmul's rate, and at their
own (ceilings.py). Bars: table.py. Calls as of Liger-Kernel ead96b61, quack c8ec317, ml-cross-entropy d42911f.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ado_kernels import linear_cross_entropy
from ado_kernels.ops.launch import METHODS, device_architecture, read_table, using
from ado_kernels.ops.linear_cross_entropy.problem import Chunk, Problem
from benchmarks.kernels.ceilings import FORWARD, TRAINING, own_floor_ms
from benchmarks.kernels.harness import Bench, Call, Work

NUM_DOMAINS = 22
# Up to 3760: a third of torch.compile's memory at width 768 (predictions.md).
CHUNK_ROWS = (2048, 2816, 3328, 4096, 5632, 8192, 16384)
REFERENCE_ROWS = 2048
# Of a gradient's norm. bf16 logits of 4 to 8 are off by 2^-6 / sqrt(12) = 0.45 % rms, and so is each softmax entry;
# of 8 to 16, as a trained model's, twice that; three roundings of gradients add 0.2 % each. (Rounding so on a CPU gives
# 0.2 to 0.5 %.) A part that is missing, halved or half too large is 50 % or more. A loss is a mean of thousands.
GRADIENT_TOLERANCE, LOSS_TOLERANCE_NATS = 0.02, 1e-3
Function = Callable[..., torch.Tensor]


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
    """hidden (N, H) and weight (V, H), which need gradients; targets (N,) and domain ids (N,), int64."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    ids: torch.Tensor


BAR_SHAPES = (Shape(16384, 50304, 768), Shape(16384, 50304, 2048))
SMOKE_SHAPES = (Shape(512, 2048, 64),)
BEST = ("ours", "Liger", "torch.compile", "F.linear_cross_entropy", "CCE", "quack")  # those that bars name
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
        compare(bench, shape, inputs, BEST)
        compare(bench, shape, inputs, BEST, with_grad=False)


def run_rest(bench: Bench) -> None:
    """The remaining implementations there, where the time goes, rows per chunk, other shapes."""
    for shape in bar_shapes(bench):
        inputs = draw(bench, shape)
        compare(bench, shape, inputs, [name for name in implementations(bench) if name not in BEST])
        # The other remaining ones differ in their gradients alone.
        compare(bench, shape, inputs, ("torch eager", "ours by exponentials"), with_grad=False)
        if bench.on_gpu and not bench.smoke:
            _phases(bench, shape, inputs)
            _chunks(bench, shape, inputs)
    for shape, names in () if bench.smoke else OTHER_SHAPES.items():
        compare(bench, shape, draw(bench, shape), names)


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


def compare(bench: Bench, shape: Shape, inputs: Inputs, names: Iterable[str], with_grad: bool = True) -> None:
    """Forward and backward with the errors of loss and gradients, or the loss alone, as in evaluation."""
    section = "linear_cross_entropy" if with_grad else "linear_cross_entropy, loss only"
    if bench.out_of_time(section, str(shape)):
        return
    makes = implementations(bench)
    build = training if with_grad else evaluation
    builds = {name: build(makes[name], inputs) for name in names if name in makes}
    own = own_floor_ms(bench, TRAINING if with_grad else FORWARD, shape.matmul_flops, shape.width)
    work = Work(num_flops=(3 if with_grad else 1) * shape.matmul_flops, own_floor_ms=own)
    expected = reference(bench, inputs)
    bench.compare(section, str(shape), builds, work, lambda result: examined(result, expected, inputs.targets))


def training(make: Callable[[], Function], inputs: Inputs) -> Callable[[], Call]:
    """Builds a call that returns loss, gradient of hidden, gradient of weight."""

    def build() -> Call:
        function, leaves = make(), (inputs.hidden, inputs.weight)

        def call() -> tuple[torch.Tensor, ...]:
            loss = function(*leaves, inputs.targets, inputs.ids)
            return loss.detach(), *torch.autograd.grad(loss, leaves)

        return call

    return build


def evaluation(make: Callable[[], Function], inputs: Inputs) -> Callable[[], Call]:
    """Builds a call that returns (loss,); of inputs that need no gradient, or Liger would compute them all the same."""
    hidden, weight = inputs.hidden.detach(), inputs.weight.detach()

    def build() -> Call:
        function = torch.no_grad()(make())
        return lambda: (function(hidden, weight, inputs.targets, inputs.ids),)

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
    loss, *gradients = result
    nats = (loss.double() - expected[0]).abs().item()
    errors: dict[str, float] = {}
    if gradients:
        dhidden, dweight = gradients
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


def _chunks(bench: Bench, shape: Shape, inputs: Inputs) -> None:
    """Both methods at every number of rows per chunk."""
    for rows in CHUNK_ROWS:
        for method in methods(bench.device):
            with using("linear_cross_entropy", rows=rows, method=method):
                case, builds = f"{shape} rows={rows} {method}", {"ours": training(lambda: ours, inputs)}
                bench.compare("linear_cross_entropy chunk", case, builds, Work(num_flops=3 * shape.matmul_flops))


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

    one = Work(num_flops=2 * logits.numel() * shape.width)
    two = Work(num_flops=2 * one.num_flops)
    matmul, neither, both = softmax_pass.matmul_into, chunk(False, False), chunk(True, True)
    phases: dict[str, tuple[Callable[[], Call], Work]] = {
        "logits": (lambda: lambda: matmul(logits, hidden, weight.t()), one),
        "softmax gradient": (lambda: lambda: softmax_pass.softmax_gradient(both), Work(num_bytes=2 * logits.nbytes)),
        "dX": (lambda: lambda: matmul(dhidden, logits, weight), one),
        "dW": (lambda: lambda: matmul(dweight, logits.t(), hidden, add=True), one),
    }
    if "exponentials" in methods(bench.device):
        run, of_hidden, of_weight = exponentials.run_chunk, chunk(True, False), chunk(False, True)
        phases |= {
            "exponentials, losses": (lambda: lambda: run(neither), one),
            "exponentials, losses and dX": (lambda: lambda: run(of_hidden), two),
            "exponentials, losses and dW": (lambda: lambda: run(of_weight), two),
        }
    for name, (build, work) in phases.items():
        bench.compare("linear_cross_entropy phase", f"{shape} {name}", {"ours": build}, work)


def implementations(bench: Bench) -> dict[str, Callable[[], Function]]:
    """Name -> what imports or compiles a mean loss of (hidden, weight, targets, ids), those of `BEST` first."""
    makes: dict[str, Callable[[], Function]] = {
        "ours": lambda: ours,
        "Liger": lambda: _liger(None),
        "torch.compile": lambda: bench.compiled(_eager),
        "F.linear_cross_entropy": lambda: _torch_fused(None),
        "CCE": lambda: _cce("cce"),
        "quack": _quack,
        "torch eager": lambda: _eager,
        "F.linear_cross_entropy by 4096": lambda: _torch_fused(4096),
        "Liger, float32 accumulation": lambda: _liger(torch.float32),
        "CCE, cce_kahan_full_c": lambda: _cce("cce_kahan_full_c"),
    }
    if "exponentials" in methods(bench.device):
        makes["ours by exponentials"] = lambda: _by_exponentials
    return makes


def methods(device: torch.device) -> list[str]:
    """The methods of ours that the launcher takes on this device, by its own rule."""
    op, found = "linear_cross_entropy", []
    for method in METHODS:
        with suppress(ValueError):
            read_table({(op, 0, ""): {"method": METHODS[0]}, (op, 0, device_architecture(device)): {"method": method}})
            found.append(method)
    return found


def ours(hidden, weight, targets, ids):
    """Ours as the launch table has it."""
    return linear_cross_entropy(hidden, weight, targets, ids, NUM_DOMAINS)[0]


def _by_exponentials(hidden, weight, targets, ids):
    """Ours by this method; AssertionError where the operation would silently fall back to the other."""
    from ado_kernels.ops.linear_cross_entropy.exponentials import can_take

    assert can_take(Problem(hidden, weight, targets, -100, 0.0, True, True, hidden.dtype))
    with using("linear_cross_entropy", method="exponentials"):
        return ours(hidden, weight, targets, ids)


def _eager(hidden, weight, targets, _):
    return F.cross_entropy((hidden @ weight.t()).float(), targets)


def _torch_fused(rows: int | None) -> Function:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise ImportError(f"torch {torch.__version__} has no F.linear_cross_entropy with options (2.13 does)")
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
    return lambda hidden, weight, targets, _: F.linear_cross_entropy(hidden, weight, targets, options=options)


def _liger(accumulate: torch.dtype | None) -> Function:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(accum_dtype=accumulate)
    return lambda hidden, weight, targets, _: loss(weight, hidden, targets)


def _cce(preset: str) -> Function:
    from cut_cross_entropy import LinearCrossEntropyImpl
    from cut_cross_entropy import linear_cross_entropy as cut_cross_entropy

    if preset.upper() not in LinearCrossEntropyImpl.__members__:
        raise ImportError(f"this cut_cross_entropy has no {preset} (25.1.1, PyPI's, does not)")
    return lambda hidden, weight, targets, _: cut_cross_entropy(hidden, weight, targets, impl=preset)


def _quack() -> Function:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return lambda hidden, weight, targets, _: chunked_linear_cross_entropy(hidden, weight, targets, chunk_size=4096)
