"""rms_norm_rope's Triton kernels against float64, under the interpreter (run by test_interpreter.py).

Tolerances as in interpreted_rms_norm.py.
"""

import pytest
import torch

from ado_kernels.ops.launch import using
from ado_kernels.ops.rms_norm_rope import rms_norm_rope_reference
from ado_kernels.ops.rms_norm_rope.gpu import backward_gpu, forward_gpu
from tests.kernels.interpreted_rms_norm import EPS, assert_close

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(autouse=True)
def _few_programs():
    """Five programs instead of hundreds, so that every one of them also loops."""
    with using("rms_norm_rope_backward", programs=5):
        yield


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 64), (2, 5, 3, 34), (3, 29, 4, 64), (2, 3, 2, 200)])
def test_forward_and_backward(dtype, shape):
    x, dy = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(2))
    weight = torch.randn(shape[-1], dtype=torch.float64).to(dtype)
    angle = torch.rand(shape[1], shape[-1] // 2, dtype=torch.float64) * 100
    cos, sin = angle.cos().float(), angle.sin().float()
    wide_x, wide_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = rms_norm_rope_reference(wide_x, wide_weight, cos, sin, EPS)
    y, rstd = forward_gpu(x, weight, cos, sin, EPS)
    assert y.dtype == dtype
    assert_close(y, expected.detach(), dtype)
    dx, dweight = backward_gpu(dy, x, weight, cos, sin, rstd)
    expected.backward(dy.double())
    assert_close(dx, wide_x.grad, dtype)
    assert_close(dweight, wide_weight.grad, dtype)


def test_a_transposed_gradient():
    x, weight, table = torch.randn(2, 5, 3, 8), torch.randn(8), torch.rand(5, 4)
    _, rstd = forward_gpu(x, weight, table, table, EPS)
    dy = torch.randn(2, 3, 5, 8)
    ours = backward_gpu(dy.transpose(1, 2), x, weight, table, table, rstd)
    same = backward_gpu(dy.transpose(1, 2).contiguous(), x, weight, table, table, rstd)
    assert all(torch.equal(one, other) for one, other in zip(ours, same, strict=True))


def test_no_rows():
    x, weight, table = torch.empty(2, 0, 3, 8), torch.randn(8), torch.empty(0, 4)
    y, rstd = forward_gpu(x, weight, table, table, EPS)
    dx, dweight = backward_gpu(y, x, weight, table, table, rstd)
    assert y.shape == dx.shape == x.shape
    assert dweight.tolist() == [0.0] * 8
