"""rms_norm on a CPU against torch's own rms_norm in float64: values, gradients, shapes, errors.

Tolerances (tests/rounding.py): sums over the width, or over rows for the weight's gradient, in float32, of the largest
entry; bf16 and fp16 are rounded once from that. float64 holds the formulas to a billionth of what float32 would.
"""

import pytest
import torch
import torch.nn.functional as F

from ado_kernels import rms_norm
from ado_kernels.ops.rms_norm import rms_norm_reference
from tests.kernels.devices import assert_close_to_wide, on_one_and_two_threads
from tests.rounding import UNIT

MOST_TERMS = 1000  # the widest row; no test has more rows


def assert_close(actual, expected, dtype):
    assert_close_to_wide(actual, expected, dtype, MOST_TERMS)


@pytest.mark.parametrize("dtype", list(UNIT))
@pytest.mark.parametrize("shape", [(5, 64), (2, 3, 33), (1000,), (0, 64), (700, 65)])
@pytest.mark.parametrize("has_weight", [True, False])
def test_against_torch(dtype, shape, has_weight):
    x = torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(shape[-1], dtype=torch.float64).to(dtype).requires_grad_() if has_weight else None
    dy = torch.randn(shape, dtype=torch.float64).to(dtype)
    wide_x = x.detach().double().requires_grad_()
    wide_weight = weight.detach().double().requires_grad_() if has_weight else None
    expected = F.rms_norm(wide_x, shape[-1:], wide_weight, 1e-5)
    y = rms_norm(x, weight, eps=1e-5)
    assert (y.dtype, y.shape) == (dtype, x.shape)
    assert_close(y, expected, dtype)
    y.backward(dy)
    expected.backward(dy.double())
    assert_close(x.grad, wide_x.grad, dtype)
    if has_weight:
        assert_close(weight.grad, wide_weight.grad, dtype)


def test_reference_is_torch_rms_norm():
    x, weight = torch.randn(4, 50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    torch.testing.assert_close(rms_norm_reference(x, weight, 1e-4), F.rms_norm(x, (50,), weight, 1e-4))


@pytest.mark.parametrize("has_weight", [True, False])
def test_gradcheck(has_weight):
    x, residual = (torch.randn(3, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(7, dtype=torch.float64, requires_grad=True) if has_weight else None
    assert torch.autograd.gradcheck(lambda *inputs: rms_norm(inputs[0], weight, 1e-6, inputs[1]), (x, residual))
    if has_weight:
        assert torch.autograd.gradcheck(lambda w: rms_norm(x, w), (weight,))


def test_residual_is_added_and_returned_and_both_outputs_carry_gradients():
    x, residual, dy, dtotal = (torch.randn(6, 40) for _ in range(4))
    weight = torch.randn(40, requires_grad=True)
    grads = []
    for norm in (rms_norm, rms_norm_reference):
        ins = [t.clone().requires_grad_() for t in (x, residual)]
        y, total = norm(ins[0], weight, 1e-6, ins[1])
        assert torch.equal(total, x + residual)
        grads.append(torch.autograd.grad((y, total), (*ins, weight), (dy, dtotal)))
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs, torch.float32)


def test_only_the_sum_is_used():
    x, residual = (torch.randn(2, 8, requires_grad=True) for _ in range(2))
    rms_norm(x, None, 1e-6, residual)[1].sum().backward()
    assert x.grad.eq(1).all()
    assert residual.grad.eq(1).all()


def test_half_branch_joins_a_float32_residual_stream():
    x, residual = torch.randn(4, 16).bfloat16().requires_grad_(), torch.randn(4, 16, requires_grad=True)
    y, total = rms_norm(x, None, 1e-6, residual)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    total.sum().backward()
    assert (x.grad.dtype, residual.grad.dtype) == (torch.bfloat16, torch.float32)


def test_weight_gradient_does_not_depend_on_the_number_of_threads():
    x, dy, weight = torch.randn(333, 96), torch.randn(333, 96), torch.randn(96, requires_grad=True)
    assert torch.equal(*on_one_and_two_threads(lambda: torch.autograd.grad(rms_norm(x, weight), weight, dy)[0]))


@pytest.mark.parametrize(
    "view", [lambda x: x.t(), lambda x: x[:, 3:35], lambda x: x[::2], lambda x: x[:1].expand(9, -1)]
)
def test_strided_inputs(view):
    base = torch.randn(40, 40)
    x = view(base)
    assert_close(rms_norm(x), F.rms_norm(x.double(), x.shape[-1:], None, 1e-6), torch.float32)


@pytest.mark.parametrize(
    ("x", "weight", "residual", "message"),
    [
        (torch.ones(3, 4), torch.ones(5), None, r"weight has shape \(5,\)"),
        (torch.ones(3, 4), None, torch.ones(4), r"residual has shape \(4,\)"),
        (torch.ones(()), None, None, "D > 0"),
        (torch.ones(3, 0), None, None, "D > 0"),
    ],
)
def test_wrong_shapes_are_named(x, weight, residual, message):
    with pytest.raises(ValueError, match=message):
        rms_norm(x, weight, 1e-6, residual)
