"""Where the GPU tests run, and how they compare. On a GPU: every shape, on it. Without one: a few small shapes on the
CPU's operations, so that the tests themselves are known to work before a GPU sees them.
"""

import pytest
import torch

from tests.rounding import rounding, stored

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
gpu_only = pytest.mark.gpu  # left out without one: see tests/conftest.py
WIDEST = 2048  # terms of a sum over a row
# One rounding of what was summed in float32, with room for a tie.
ROUNDING = {torch.float32: rounding(WIDEST), torch.float16: 2**-10.5, torch.bfloat16: 2**-7.5}


def each(name, every, few):
    """Parametrises: with `every` on a GPU, with `few` without."""
    return pytest.mark.parametrize(name, every if ON_GPU else few)


def draw(*shape, dtype=torch.float32):
    return torch.randn(*shape, device=DEVICE).to(dtype)


def run(function, inputs, leaves, seeds=None):
    """Outputs, then gradients of the first `leaves` inputs."""
    inputs = [tensor.detach().requires_grad_(i < leaves) for i, tensor in enumerate(inputs)]
    outputs = function(*inputs)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    differentiable = [output for output in outputs if output.requires_grad]
    seeds = [seed.to(out.dtype) for seed, out in zip(seeds or [], differentiable, strict=False)] or None
    return [*outputs, *torch.autograd.grad(differentiable, inputs[:leaves], seeds)] if leaves else outputs


def wide(inputs):
    """The same rounded numbers in float64."""
    return [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]


def assert_close(ours, expected, tolerance, noise=ROUNDING[torch.float32]):
    """Each entry within `tolerance` of itself, or `noise` of the largest: what sums leave where terms cancel."""
    for one, other in zip(ours, expected, strict=True):
        scale = other.detach().double().abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(
            one.detach().double(), other.detach().double(), rtol=tolerance, atol=noise * scale, equal_nan=True
        )


def assert_close_to_wide(actual, expected, dtype, num_terms):
    """Sums of so many terms in float32 (float64 stays), of the largest entry; rounded once to `dtype`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert_close([actual], [expected], stored(dtype, num_terms), rounding(num_terms, wide))


def on_one_and_two_threads(function):
    """What `function` returns with one of torch's threads, and with two."""
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(function())
    finally:
        torch.set_num_threads(threads)
    return results


def assert_rows_close(ours, expected, whole, row):
    """|ours - expected| within `whole` of |expected| over all rows, within `row` in each; rows of zeros exactly."""
    ours, expected = ours.double(), expected.double()
    errors, norms = (ours - expected).norm(dim=1), expected.norm(dim=1)
    assert errors[norms == 0].eq(0).all(), "a row that must be zero is not"
    assert errors.norm() <= whole * norms.norm(), f"off by {errors.norm() / norms.norm():.1e}"
    assert (errors <= row * norms).all(), f"a row is off by {(errors / norms.clamp(min=1e-300)).max():.1e}"
