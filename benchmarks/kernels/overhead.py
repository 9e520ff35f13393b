"""What does the host spend on a registered operation?

An eager RMSNorm takes 31 us on the device, which is of the order of the host's call; compiled graphs and CUDA graphs
remove that. Prints microseconds a call of one trivial body registered in three ways and of rms_norm, with and without
a gradient. No bar. (That the compiled model is one graph is a test: tests/model/test_model_transformer.py.)
"""

import torch

from ado_kernels import rms_norm
from benchmarks.common import median_s
from benchmarks.kernels.harness import Bench


def _two_empties(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op("ado_benchmark::by_custom_op", mutates_args=())
def _by_custom_op(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _two_empties(x)


_library = torch.library.Library("ado_benchmark", "FRAGMENT")
_library.define("by_impl(Tensor x) -> (Tensor, Tensor)")
_library.impl("by_impl", _two_empties, "CompositeExplicitAutograd")
torch.library.register_autograd("ado_benchmark::by_custom_op", lambda ctx, *grads: grads[0])
torch.library.register_autograd("ado_benchmark::by_impl", lambda ctx, *grads: grads[0], lib=_library)


class _ByFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return _two_empties(x)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0]


def run_overhead(bench: Bench) -> None:
    """Wall time of eager calls on a tiny tensor while the device keeps up."""
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
    num_calls = 20 if bench.smoke else 1000
    for name, operation in operations.items():
        for kind, leaf in (("no grad", x), ("grad", x.clone().requires_grad_())):

            def many(operation=operation, leaf=leaf) -> None:
                for _ in range(num_calls):
                    operation(leaf)
                bench.synchronize()

            bench.emit("host overhead", f"{name}, {kind}", us=median_s(many, repeats=1) / num_calls * 1e6)
