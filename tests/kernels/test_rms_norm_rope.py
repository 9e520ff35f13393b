"""rms_norm_rope on a CPU against torch's rms_norm and complex multiplication in float64: values, gradients, errors.

Tolerances as in test_rms_norm.py: sums of Q terms, or of a row's tokens and heads for the weight's gradient, of the
largest entry.
"""

import pytest
import torch
import torch.nn.functional as F

from ado_kernels import rms_norm_rope
from ado_kernels.ops.rms_norm_rope import rms_norm_rope_reference
from tests.kernels.devices import assert_close_to_wide, on_one_and_two_threads
from tests.rounding import UNIT

MOST_TERMS = 600  # rows x tokens x heads of the largest shape
EPS = 1e-5


def draw(shape, dtype=torch.float32):
    x, dy = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(2))
    weight = torch.randn(shape[-1], dtype=torch.float64).to(dtype)
    angle = torch.rand(shape[1], shape[-1] // 2, dtype=torch.float64) * 100
    return x.requires_grad_(), weight.requires_grad_(), angle.cos().float(), angle.sin().float(), dy


def oracle(x, weight, cos, sin):
    """Pairs (i, i + Q/2) as complex numbers, turned by multiplication."""
    first, second = F.rms_norm(x, x.shape[-1:], weight, EPS).chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.complex(cos, sin)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


def assert_close(actual, expected, dtype):
    assert_close_to_wide(actual, expected, dtype, MOST_TERMS)


@pytest.mark.parametrize("dtype", list(UNIT))
@pytest.mark.parametrize("shape", [(2, 5, 3, 64), (1, 7, 1, 2), (3, 50, 4, 34), (0, 4, 2, 8)])
def test_against_torch(dtype, shape):
    x, weight, cos, sin, dy = draw(shape, dtype)
    wide_x, wide_weight = (leaf.detach().double().requires_grad_() for leaf in (x, weight))
    expected = oracle(wide_x, wide_weight, cos.double(), sin.double())
    y = rms_norm_rope(x, weight, cos, sin, EPS)
    assert (y.dtype, y.shape) == (dtype, x.shape)
    assert_close(y, expected, dtype)
    y.backward(dy)
    expected.backward(dy.double())
    assert_close(x.grad, wide_x.grad, dtype)
    assert_close(weight.grad, wide_weight.grad, dtype)


def test_reference_is_the_oracle():
    x, weight, cos, sin, _ = draw((2, 5, 3, 8), torch.float64)
    torch.testing.assert_close(
        rms_norm_rope_reference(x, weight, cos, sin, EPS), oracle(x, weight, cos.double(), sin.double())
    )


def test_gradcheck():
    x, weight, cos, sin, _ = draw((2, 3, 2, 6), torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm_rope(x, w, cos, sin, EPS), (x, weight))


def test_strided_inputs_and_gradients():
    x, weight, cos, sin, _ = draw((2, 5, 3, 8))
    heads_first = x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    for each in (x, heads_first):
        rms_norm_rope(each, weight, cos, sin).transpose(1, 2).square().sum().backward()
    assert torch.equal(heads_first.grad, x.grad)


def test_weight_gradient_does_not_depend_on_the_number_of_threads():
    x, weight, cos, sin, dy = draw((4, 100, 6, 64))
    first, second = on_one_and_two_threads(
        lambda: torch.autograd.grad(rms_norm_rope(x, weight, cos, sin), weight, dy)[0]
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("x", "weight", "table", "message"),
    [
        ((3, 4, 8), (8,), (4, 4), r"shape \(B, T, H, Q\)"),
        ((1, 3, 4, 7), (7,), (3, 3), "Q even, got"),
        ((1, 3, 4, 8), (4,), (3, 4), r"weight has shape \(4,\)"),
        ((1, 3, 4, 8), (8,), (4, 4), r"\(4, 4\) and \(4, 4\), x needs \(3, 4\)"),
    ],
)
def test_wrong_shapes_are_named(x, weight, table, message):
    with pytest.raises(ValueError, match=message):
        rms_norm_rope(torch.ones(x), torch.ones(weight), torch.ones(table), torch.ones(table))


def test_tables_that_need_a_gradient_are_refused():
    x, weight, cos, sin, _ = draw((1, 3, 4, 8))
    with pytest.raises(ValueError, match="no gradient of cos and sin"):
        rms_norm_rope(x, weight, cos, sin.requires_grad_())
    with torch.no_grad():
        rms_norm_rope(x, weight, cos, sin)
