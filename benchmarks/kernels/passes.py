"""A differentiable operation timed forward, backward, and both together, and its results against float64."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.kernels.harness import Bench, Call, Work

Function = Callable[..., Any]
Make = Callable[[], Function]  # imports or compiles an implementation


@dataclass(frozen=True)
class Passes:
    """A differentiable operation on these inputs, timed forward, backward and both together, as in training.

    grads: of the outputs. reference: the operation in plain torch, whose results in float64 ours must equal up to
    `roundings` roundings to the inputs' dtype; NaN anywhere is wrong.
    """

    name: str
    case: str
    inputs: tuple[torch.Tensor, ...]
    grads: tuple[torch.Tensor, ...]
    forward_bytes: float
    backward_bytes: float
    reference: Function
    roundings: int = 1

    def compare(self, bench: Bench, makes: dict[str, Make]) -> None:
        """Times these implementations in all three passes; each is made once."""
        made = {name: functools.cache(make) for name, make in makes.items()}
        for which, num_bytes in (
            ("forward", self.forward_bytes),
            ("backward", self.backward_bytes),
            ("forward+backward", self.forward_bytes + self.backward_bytes),
        ):
            builds: dict[str, Callable[[], Call]] = {
                name: functools.partial(self.build, make, which) for name, make in made.items()
            }
            expected = self.build(lambda: self.reference, which, torch.float64)
            examine = functools.partial(self.examined, expected)
            bench.compare(f"{self.name} {which}", self.case, builds, Work(num_bytes=num_bytes), examine)

    def build(self, make: Make, which: str, dtype: torch.dtype | None = None) -> Call:
        """The call of one pass; the backward pass alone keeps its graph and repeats.

        On copies: Liger writes gradients over what it was given (SwiGLU over its inputs, RMSNorm over dy), which the
        next implementation reads. Its own repeated calls then read what it wrote: no matter for their time.
        """
        function = make()
        leaves = [tensor.to(dtype or tensor.dtype, copy=True).requires_grad_() for tensor in self.inputs]
        grads = tuple(tensor.to(dtype or tensor.dtype, copy=True) for tensor in self.grads)
        if which == "forward":
            return lambda: function(*leaves)
        if which == "backward":
            outputs = function(*leaves)
            return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)
        return lambda: torch.autograd.grad(function(*leaves), leaves, grads)

    def examined(self, expected: Call, result: Any) -> dict[str, Any]:
        """The largest error of what one pass returned. A float32 sum over the width, in lanes, stays under 1e-5."""
        results, wanted = (value if isinstance(value, tuple) else (value,) for value in (result, expected()))
        error = max(error_of(*pair) for pair in zip(results, wanted, strict=True))
        rounding = max(1e-5, torch.finfo(self.inputs[0].dtype).eps / 2)
        return {"error": error, "wrong": not error <= self.roundings * rounding}


def error_of(result: torch.Tensor, expected: torch.Tensor) -> float:
    """The larger of max |result - expected| / max |expected| and |result - expected| / |expected|; NaN for a NaN."""
    difference, expected = result.detach().double() - expected.detach(), expected.detach()
    largest, norm = expected.abs().max().clamp(min=1e-300), expected.norm().clamp(min=1e-300)
    return torch.maximum(difference.abs().max() / largest, difference.norm() / norm).item()
