"""How fast is linear_cross_entropy, and in how much memory? Against torch, Liger-Kernel, Apple's CCE and quack.

Torch three times: eager, compiled, and its own fused one. Prints ms, share of the floor (three matmuls, one for the
loss alone, at the square matmul's rate), others' time over ours, peak memory, and errors of loss and gradients against
float32 ones made chunk by chunk (float64 on a CPU); and ours by rows per chunk. Bars: table.py. Calls as of
Liger-Kernel ead96b61, quack c8ec317, ml-cross-entropy d42911f.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ado_kernels import linear_cross_entropy
from ado_kernels.ops.launch import using
from benchmarks.kernels.harness import Bench, Call, Function, Make

NUM_DOMAINS = 22
# Up to 3760: a third of torch.compile's memory at width 768 (predictions.md).
CHUNK_ROWS = (2048, 2816, 3328, 4096, 5632, 8192, 16384)
REFERENCE_ROWS = 2048
# Loss in nats, then gradients by rows. bf16 logits of 4 to 8 are off by 2^-6 / sqrt(12) = 0.45 % rms, and so is each
# softmax entry; of 8 to 16, as a trained model's, twice that; three roundings of gradients add 0.2 % each. A part that
# is missing, halved or half too large is 50 % of a row or more. A loss is a mean of thousands.
TOLERANCES = (1e-3, 0.05, 0.05)


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
# Peaked logits are what CCE's filter is for; the others show how the least and the largest sizes scale.
OTHER_SHAPES = {
    Shape(16384, 50304, 768, peaked=True): ("ours", "Liger", "CCE", "CCE, cce_kahan_full_c"),
    Shape(4096, 50304, 768): ("ours", "Liger", "torch eager"),
    Shape(65536, 50304, 768): ("ours", "Liger", "torch.compile"),
    Shape(8192, 128256, 4096): ("ours", "Liger", "F.linear_cross_entropy"),
}


def run(bench: Bench) -> None:
    """Training and loss alone at the shapes that have bars, rows per chunk there, training at other shapes."""
    makes = implementations(bench)
    for shape in bar_shapes(bench):
        inputs = draw(bench, shape)
        compare(bench, shape, inputs, makes)
        compare(bench, shape, inputs, makes, with_grad=False)
        for rows in CHUNK_ROWS if bench.on_gpu and not bench.smoke else ():
            with using("linear_cross_entropy", rows=rows):
                builds = {"ours": training(lambda: ours, inputs)}
                flops = 3 * shape.matmul_flops
                bench.compare("linear_cross_entropy chunk", f"{shape} rows={rows}", builds, num_flops=flops)
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
    num_results, build = (3, training) if with_grad else (1, evaluation)
    makes = implementations(bench)
    bench.compare(
        section,
        str(shape),
        {name: build(makes[name], inputs) for name in names},
        num_flops=num_results * shape.matmul_flops,  # a matmul each: logits, and one for either gradient
        expected=lambda: reference(bench, inputs)[:num_results],
        tolerances=TOLERANCES[:num_results],
    )


def training(make: Make, inputs: Inputs) -> Callable[[], Call]:
    """Builds a call that returns loss, gradient of hidden, gradient of weight."""

    def build() -> Call:
        function, leaves = make(), (inputs.hidden, inputs.weight)

        def call() -> tuple[torch.Tensor, ...]:
            loss = function(*leaves, inputs.targets, inputs.ids)
            return loss.detach(), *torch.autograd.grad(loss, leaves)

        return call

    return build


def evaluation(make: Make, inputs: Inputs) -> Callable[[], Call]:
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


def implementations(bench: Bench) -> dict[str, Make]:
    """Name -> what imports or compiles a mean loss of (hidden, weight, targets, ids)."""

    def eager(hidden, weight, targets, _):
        return F.cross_entropy((hidden @ weight.t()).float(), targets)

    return {
        "ours": lambda: ours,
        "Liger": lambda: _liger(None),
        "torch.compile": lambda: bench.compiled(eager),
        "F.linear_cross_entropy": lambda: _torch_fused(None),
        "CCE": lambda: _cce("cce"),
        "quack": _quack,
        "torch eager": lambda: eager,
        "F.linear_cross_entropy by 4096": lambda: _torch_fused(4096),
        "Liger, float32 accumulation": lambda: _liger(torch.float32),
        "CCE, cce_kahan_full_c": lambda: _cce("cce_kahan_full_c"),
    }


def ours(hidden, weight, targets, ids):
    """Ours as the launch table has it."""
    return linear_cross_entropy(hidden, weight, targets, ids, NUM_DOMAINS)[0]


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
