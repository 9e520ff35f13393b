"""Host cost of a registered operation, for one trivial body registered in three ways; is a compiled model one graph?

An eager RMSNorm takes 31 us on the device: what the host spends on a call is of that order. Compiled graphs and CUDA
graphs remove it.
"""

import time

import torch

from ado_kernels import rms_norm
from ado_model import ModelConfig, Transformer
from benchmarks.kernels.harness import COMPILE_BUDGET_S, Alarm, Bench, Call

ONE_GRAPH = "loss of a 2-layer model"


def _two_empties(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op("ado_benchmark::by_custom_op", mutates_args=())
def _by_custom_op(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _two_empties(x)


_library = torch.library.Library("ado_benchmark", "FRAGMENT")
_library.define("by_impl(Tensor x) -> (Tensor, Tensor)")
_library.impl("by_impl", _two_empties, "CompositeExplicitAutograd")


def _no_grad(ctx, *grads):
    return grads[0]


torch.library.register_autograd("ado_benchmark::by_custom_op", _no_grad)
torch.library.register_autograd("ado_benchmark::by_impl", _no_grad, lib=_library)


class _ByFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return _two_empties(x)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0]


def run_overhead(bench: Bench) -> None:
    """Microseconds of one eager call on a tiny tensor, with and without a gradient; then the compiled model."""
    x = torch.randn(4, 64, device=bench.device)
    weight = torch.ones(64, device=bench.device)
    operations = {
        "body alone": _two_empties,
        "custom_op": torch.ops.ado_benchmark.by_custom_op,
        "Library.impl": torch.ops.ado_benchmark.by_impl,
        "autograd.Function": _ByFunction.apply,
        "rms_norm": lambda x: rms_norm(x, weight),
        "F.rms_norm": lambda x: torch.nn.functional.rms_norm(x, (64,), weight),
    }
    for name, operation in operations.items():
        for kind, leaf in (("no grad", x), ("grad", x.clone().requires_grad_())):
            us = _host_us(bench, lambda operation=operation, leaf=leaf: operation(leaf))
            bench.emit("host overhead", f"{name}, {kind}", us=us)
    _one_graph(bench)


def _host_us(bench: Bench, call: Call) -> float:
    """Wall microseconds a call while the device keeps up."""
    for _ in range(20):
        call()
    bench.synchronize()
    repeats = 20 if bench.smoke else 1000
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    bench.synchronize()
    return (time.perf_counter() - start) / repeats * 1e6


def _one_graph(bench: Bench) -> None:
    """Whether Dynamo takes the loss of a model of two blocks, every operation of ours in it, as one graph.

    By fullgraph: torch._dynamo.explain (2.11) counts no break that has no operation before it. Eager as a backend, so
    that nothing but Dynamo decides.
    """
    config = ModelConfig(num_layers=2, width=64, num_heads=2, vocab_size=320, context_length=32)
    model = Transformer(config).to(bench.device)
    tokens = torch.randint(0, config.vocab_size, (2, 32), device=bench.device)
    ids = torch.zeros(2, dtype=torch.int64, device=bench.device)
    torch._dynamo.reset()
    compiled = torch.compile(lambda: model.loss(tokens, tokens, ids, 1)[0], fullgraph=True, backend="eager")
    try:
        with Alarm(COMPILE_BUDGET_S):
            compiled()
            bench.synchronize()
    except Exception as error:  # noqa: BLE001 - what Dynamo raises has no base in common, and it runs our code
        bench.emit("torch.compile", ONE_GRAPH, fullgraph=False, failed=f"{type(error).__name__}: {error}"[:1500])
        bench.failed.append(f"torch.compile, {ONE_GRAPH}: not one graph")
    else:
        bench.emit("torch.compile", ONE_GRAPH, fullgraph=True)
