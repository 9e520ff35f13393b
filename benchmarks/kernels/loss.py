"""linear_cross_entropy against torch (eager, compiled, its own fused one), Liger-Kernel, Apple's CCE and quack.

Times of forward and backward together, peak memory, and the error of loss and gradients against float64 (small
shapes). Rows per chunk and both methods of ours are swept through the launch table; the phases of one chunk are timed
one by one.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ado_kernels import linear_cross_entropy
from ado_kernels.ops.launch import METHODS, using
from ado_kernels.ops.linear_cross_entropy.problem import Chunk, Problem
from benchmarks.kernels.harness import Bench

NUM_DOMAINS = 22
CHUNK_ROWS = (2048, 4096, 5632, 8192, 16384)


@dataclass(frozen=True)
class Shape:
    """N rows, V words, H width; peaked: logits as of a trained model, which CCE's filter needs."""

    num_rows: int
    vocabulary: int
    width: int
    peaked: bool = False

    def __str__(self) -> str:
        return f"N={self.num_rows} V={self.vocabulary} H={self.width}" + (" peaked" if self.peaked else "")


SHAPES = (
    Shape(16384, 50304, 768),
    Shape(16384, 50304, 2048),
    Shape(16384, 50304, 768, peaked=True),
    Shape(4096, 50304, 768),
    Shape(65536, 50304, 768),
    Shape(8192, 128256, 4096),
)


def run_linear_cross_entropy(bench: Bench) -> None:
    """Every shape against every baseline, then the sweep of chunk sizes, phases, and evaluation without gradients."""
    shapes = (Shape(512, 2048, 64),) if bench.smoke else SHAPES
    for shape in shapes:
        inputs = draw(bench, shape)
        floor = bench.flops_floor_ms(6 * shape.num_rows * shape.vocabulary * shape.width)
        names = IMPLEMENTATIONS if shape is shapes[0] or not bench.smoke else {"ours": _ours}
        builders = {name: _training(function, inputs) for name, function in names.items()}
        bench.compare("linear_cross_entropy", str(shape), builders, floor)
    for shape in shapes[:2]:
        inputs = draw(bench, shape)
        if bench.on_gpu:
            _sweep_chunks(bench, shape, inputs)
            _phases(bench, shape, inputs)
        floor = bench.flops_floor_ms(2 * shape.num_rows * shape.vocabulary * shape.width)
        builders = {name: _evaluation(IMPLEMENTATIONS[name], inputs) for name in ("ours", "torch eager")}
        bench.compare("linear_cross_entropy, loss only", str(shape), builders, floor)
        if not bench.out_of_time():
            _cost_of_domains(bench, shape, inputs)


def draw(bench: Bench, shape: Shape) -> tuple[torch.Tensor, ...]:
    """hidden, weight, targets, domain ids."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    weight = torch.randn(shape.vocabulary, shape.width, device=bench.device) * 0.02
    targets = torch.randint(0, shape.vocabulary, (shape.num_rows,), device=bench.device)
    hidden = torch.randn(shape.num_rows, shape.width, device=bench.device)
    if shape.peaked:
        hidden = hidden + weight[targets] * (8.0 / (0.02**2 * shape.width))
    ids = torch.randint(0, NUM_DOMAINS, (shape.num_rows,), device=bench.device)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets, ids


def _training(function, inputs):
    def build():
        return lambda: torch.autograd.grad(function(*inputs), inputs[:2])

    return build


def _evaluation(function, inputs):
    def build():
        def call():
            with torch.no_grad():
                return function(*inputs)

        return call

    return build


def _sweep_chunks(bench: Bench, shape: Shape, inputs: tuple[torch.Tensor, ...]) -> None:
    """Both methods at every number of rows per chunk."""
    floor = bench.flops_floor_ms(6 * shape.num_rows * shape.vocabulary * shape.width)
    for rows in CHUNK_ROWS:
        for method in METHODS:
            with using("linear_cross_entropy", rows=rows, method=method):
                case, builders = f"{shape} rows={rows} {method}", {"ours": _training(_ours, inputs)}
                bench.compare("linear_cross_entropy chunk", case, builders, floor)


def _phases(bench: Bench, shape: Shape, inputs: tuple[torch.Tensor, ...]) -> None:
    """One chunk of 4096 rows: every kernel of both methods on its own."""
    from ado_kernels.ops.linear_cross_entropy import exponentials, softmax_pass

    hidden, weight, targets = (tensor.detach()[: 4096 if i != 1 else None] for i, tensor in enumerate(inputs[:3]))
    logits = hidden @ weight.t()
    losses, squares = (torch.empty(len(targets), device=bench.device) for _ in range(2))
    total = torch.zeros(weight.shape, device=bench.device)

    def chunk(hidden_grad: bool, weight_grad: bool) -> Chunk:
        problem = Problem(hidden, weight, targets, -100, 0.0, hidden_grad, weight_grad, hidden.dtype)
        grads = torch.empty_like(hidden), total
        return Chunk(problem, hidden, weight, targets, logits, losses, squares, *grads, first=False)

    matmul = bench.flops_floor_ms(2 * logits.numel() * shape.width)
    both, only_hidden, only_weight, neither = (
        chunk(*wanted) for wanted in ((True, True), (True, False), (False, True), (False, False))
    )
    phases = {
        "logits": (lambda: torch.mm(hidden, weight.t(), out=logits), matmul),
        "softmax gradient": (lambda: softmax_pass.softmax_gradient(both), bench.bytes_floor_ms(2 * logits.nbytes)),
        "dX": (lambda: torch.mm(logits, weight), matmul),
        "dW": (lambda: softmax_pass.accumulate(total, logits.t(), hidden, first=False), matmul),
        "exponentials, losses": (lambda: exponentials.run_chunk(neither), matmul),
        "exponentials, losses and dX": (lambda: exponentials.run_chunk(only_hidden), 2 * matmul),
        "exponentials, losses and dW": (lambda: exponentials.run_chunk(only_weight), 2 * matmul),
    }
    for name, (call, floor) in phases.items():
        bench.compare("linear_cross_entropy phase", f"{shape} {name}", {"ours": lambda call=call: call}, floor)


def _cost_of_domains(bench: Bench, shape: Shape, inputs: tuple[torch.Tensor, ...]) -> None:
    """The per-domain reduction alone, as a share of the training call: the bar is 1 %."""
    from ado_kernels import domain_loss

    losses = torch.rand(shape.num_rows, device=bench.device)
    reduction = bench.time_ms(lambda: domain_loss(losses, inputs[3], NUM_DOMAINS))
    whole = bench.time_ms(_training(_ours, inputs)())
    bench.emit("domain_loss", str(shape), ms=reduction, share_of_linear_cross_entropy=reduction / whole)


def _ours(hidden, weight, targets, ids):
    return linear_cross_entropy(hidden, weight, targets, ids, NUM_DOMAINS)[0]


def _by_exponentials(*inputs):
    with using("linear_cross_entropy", method="exponentials"):
        return _ours(*inputs)


def _eager(hidden, weight, targets, _):
    return F.cross_entropy((hidden @ weight.t()).float(), targets)


_compiled = torch.compile(_eager, fullgraph=True)


def _torch_fused(hidden, weight, targets, _):
    return F.linear_cross_entropy(hidden, weight, targets, options=torch.nn.LinearCrossEntropyOptions())


def _liger(accumulate):
    def call(hidden, weight, targets, _):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        return LigerFusedLinearCrossEntropyLoss(accum_dtype=accumulate)(weight, hidden, targets)

    return call


def _cce(implementation):
    def call(hidden, weight, targets, _):
        from cut_cross_entropy import linear_cross_entropy as cut_cross_entropy

        return cut_cross_entropy(hidden, weight, targets, impl=implementation)

    return call


def _quack(hidden, weight, targets, _):
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy(hidden, weight, targets, chunk_size=4096)


IMPLEMENTATIONS = {
    "ours": _ours,
    "ours by exponentials": _by_exponentials,
    "torch eager": _eager,
    "torch.compile": _compiled,
    "F.linear_cross_entropy": _torch_fused,
    "Liger": _liger(None),
    "Liger float32 accumulation": _liger(torch.float32),
    "CCE": _cce("cce"),
    "CCE kahan full": _cce("cce_kahan_full_c"),
    "quack": _quack,
}
