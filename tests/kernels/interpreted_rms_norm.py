"""RMSNorm's Triton kernels against float64, under the interpreter (run by test_interpreter.py).

Tolerances (tests/rounding.py): sums of D <= 300 terms or as many rows, in float32 or float64; the interpreter TRUNCATES
float32 to bf16 (the GPU rounds), so one unit of bf16, 2^-7 relative, beside the float32 part. fp16 rounds.
"""

import pytest
import torch
import triton
import triton.language as tl

from ado_kernels.ops.launch import using
from ado_kernels.ops.rms_norm import rms_norm_reference
from ado_kernels.ops.rms_norm.gpu import backward_gpu, forward_gpu, sum_partials
from ado_kernels.ops.triton_operands import num_blocks
from tests.rounding import rounding

EPS = 1e-6
SUMS = {torch.float64: rounding(300, torch.float64)}  # else float32
STORED = {torch.float16: 2**-10, torch.bfloat16: 2**-7}
pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(autouse=True)
def _few_programs():
    """Five programs instead of hundreds (each costs milliseconds here), so that every one of them also loops."""
    with using("rms_norm_backward", programs=5):
        yield


def draw(*shape, dtype):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def assert_close(actual, expected, dtype):
    scale, sums = expected.abs().max().item(), SUMS.get(dtype, rounding(300))
    one_unit = STORED.get(dtype, 0.0)
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=sums + one_unit, atol=(sums + one_unit / 8) * scale
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 64), (7, 33), (37, 300)])
@pytest.mark.parametrize("has_weight", [True, False])
@pytest.mark.parametrize("has_residual", [True, False])
def test_forward_and_backward(dtype, num_rows, width, has_weight, has_residual):
    x, dy, dtotal = (draw(num_rows, width, dtype=dtype) for _ in range(3))
    weight = draw(width, dtype=dtype) if has_weight else None
    residual = draw(num_rows, width, dtype=dtype) if has_residual else None
    y, rstd, total = forward_gpu(x, residual, weight, EPS)
    # The kernel norms the ROUNDED sum: the oracle starts from it as well.
    base = (total if has_residual else x).double().requires_grad_()
    wide_weight = None if weight is None else weight.double().requires_grad_()
    expected = rms_norm_reference(base, wide_weight, EPS)
    assert y.dtype == dtype
    assert_close(y, expected, dtype)
    if has_residual:
        assert_close(total, x.double() + residual.double(), dtype)
    dx, dweight = backward_gpu(dy, dtotal if has_residual else None, base.detach().to(dtype), weight, rstd)
    expected.backward(dy.double())
    assert_close(dx, base.grad + (dtotal.double() if has_residual else 0.0), dtype)
    if has_weight:
        assert_close(dweight, wide_weight.grad, dtype)
    else:
        assert dweight.numel() == 0


def test_rows_of_a_wider_tensor_and_a_transposed_one():
    wide = draw(5, 200, dtype=torch.float32)
    for x in (wide[:, 7:107], wide.t()):
        y, rstd, _ = forward_gpu(x, None, None, EPS)
        assert_close(y, rms_norm_reference(x.double(), None, EPS), torch.float32)
        dx, _ = backward_gpu(x, None, x, None, rstd)
        assert dx.shape == x.shape
        assert not dx.isnan().any()


def test_more_row_tiles_than_programs():
    # Width 64 has tiles of 16 rows: 200 rows make 13 tiles, the last one cut, for five programs.
    x, dy = draw(200, 64, dtype=torch.float32), draw(200, 64, dtype=torch.float32)
    weight = draw(64, dtype=torch.float32)
    _, rstd, _ = forward_gpu(x, None, weight, EPS)
    dx, dweight = backward_gpu(dy, None, x, weight, rstd)
    base, wide_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    rms_norm_reference(base, wide_weight, EPS).backward(dy.double())
    assert_close(dx, base.grad, torch.float32)
    assert_close(dweight, wide_weight.grad, torch.float32)


def test_more_partials_than_are_added_at_once():
    """As many as in training; every other test here has five."""
    partial = draw(600, 33, dtype=torch.float32)
    assert_close(sum_partials(partial, torch.float32), partial.double().sum(dim=0), torch.float32)


def test_rows_beyond_32_bit_offsets(far_apart):
    x, dy = draw(4, 33, dtype=torch.float16), draw(4, 33, dtype=torch.float16)
    near, far = (x, dy), (far_apart(x), far_apart(dy))
    (y, rstd, total), (far_y, _, far_total) = (forward_gpu(each[0], each[1], None, EPS) for each in (near, far))
    assert torch.equal(y, far_y)
    assert torch.equal(total, far_total)
    grads = [backward_gpu(each[1], each[1], each[0], None, rstd)[0] for each in (near, far)]
    assert torch.equal(*grads)


def test_no_rows():
    x, weight = draw(0, 64, dtype=torch.float32), draw(64, dtype=torch.float32)
    y, rstd, _ = forward_gpu(x, None, weight, EPS)
    dx, dweight = backward_gpu(y, None, x, weight, rstd)
    assert y.shape == dx.shape == (0, 64)
    assert dweight.tolist() == [0.0] * 64


@triton.jit
def _count(size_ptr, out_ptr, BLOCK: tl.constexpr):
    tl.store(out_ptr, num_blocks(tl.load(size_ptr), BLOCK))


@pytest.mark.parametrize("size", [0, 1, 8, 9, 2**31 - 8, 2**31 - 1])
def test_blocks_are_counted_up_to_the_largest_number_of_32_bits(size):
    out = torch.full((1,), -1, dtype=torch.int64)
    _count[(1,)](torch.tensor([size], dtype=torch.int32), out, BLOCK=8)
    assert out.item() == -(-size // 8)
