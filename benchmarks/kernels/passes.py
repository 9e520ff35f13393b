"""A differentiable operation timed forward, backward, and both together, as in training: the graph is kept."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.kernels.harness import Bench, Builder, Work

Function = Callable[..., Any]
Make = Callable[[], Function]  # imports or compiles an implementation, within the time allowed for that


@dataclass(frozen=True)
class Operation:
    """One case: the inputs, all differentiable, the gradients of the outputs, and the bytes of each pass."""

    name: str
    case: str
    inputs: tuple[torch.Tensor, ...]
    grads: tuple[torch.Tensor, ...]
    forward_bytes: float
    backward_bytes: float

    def compare(self, bench: Bench, makes: dict[str, Make]) -> None:
        """Times these implementations in all three passes; each is made once."""
        made = {name: functools.cache(make) for name, make in makes.items()}
        for which, num_bytes in (
            ("forward", self.forward_bytes),
            ("backward", self.backward_bytes),
            ("forward+backward", self.forward_bytes + self.backward_bytes),
        ):
            builders = {name: self.builder(make, which) for name, make in made.items()}
            bench.compare(f"{self.name} {which}", self.case, builders, Work(num_bytes=num_bytes))

    def builder(self, make: Make, which: str) -> Builder:
        """Builds the call of one pass; the backward pass alone keeps its graph and repeats."""

        def build() -> Callable[[], Any]:
            function = make()
            # Copies: Liger writes gradients over what it was given (SwiGLU over its inputs, RMSNorm over dy), which the
            # next implementation reads. Its own repeated calls then read what it wrote: no matter for their time.
            leaves = [tensor.clone().requires_grad_() for tensor in self.inputs]
            grads = tuple(tensor.clone() for tensor in self.grads)
            if which == "forward":
                return lambda: function(*leaves)
            if which == "backward":
                outputs = function(*leaves)
                return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)
            return lambda: torch.autograd.grad(function(*leaves), leaves, grads)

        return build
