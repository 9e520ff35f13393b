"""SwiGLU's Triton kernels against float64, under the interpreter (run by test_interpreter.py).

Tolerances (tests/rounding.py): exp, a division and three products; the interpreter truncates to bf16, one unit of 2^-7.
The absolute part, of the largest product of gradient and other half, covers gradients that cancel near the zero of
silu's slope.
"""

import pytest
import torch
import triton
import triton.language as tl

from ado_kernels.ops.swiglu import swiglu_reference
from ado_kernels.ops.swiglu.gpu import BLOCK, _position, backward_gpu, forward_gpu
from tests.rounding import rounding

STORED = {torch.float16: 2**-10, torch.bfloat16: 2**-7}
pytestmark = pytest.mark.usefixtures("poisoned")


def check(gate, up, dout):
    dtype = gate.dtype
    few, one_unit = rounding(1, dtype if dtype == torch.float64 else torch.float32), STORED.get(dtype, 0.0)
    largest = (dout.double() * up.double()).abs().max().item()
    close = {"rtol": few + one_unit, "atol": few * largest + one_unit / 16}
    wide_gate, wide_up = gate.double().requires_grad_(), up.double().requires_grad_()
    expected = swiglu_reference(wide_gate, wide_up)
    expected.backward(dout.double())
    before = [tensor.clone() for tensor in (gate, up, dout)]
    out, (dgate, dup) = forward_gpu(gate, up), backward_gpu(dout, gate, up)
    torch.testing.assert_close(out.double(), expected.detach(), **close)
    torch.testing.assert_close(dgate.double(), wide_gate.grad, **close)
    torch.testing.assert_close(dup.double(), wide_up.grad, **close)
    assert all(torch.equal(old, new) for old, new in zip(before, (gate, up, dout), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (3, 2051), (2, 3, 40)])
def test_separate_tensors(dtype, shape):
    check(*(torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(3)))


def test_halves_of_a_fused_projection_and_an_expanded_gradient():
    fused = torch.randn(5, 2, 74)
    gate, up = fused.flatten(1).chunk(2, dim=-1)
    check(gate, up, torch.randn(5, 1).expand(5, 74))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # infinity is right: 1 / (1 + inf) = 0
def test_large_arguments_saturate():
    gate = torch.tensor([-200.0, -90.0, 90.0, 200.0])
    check(gate, torch.ones(4), torch.ones(4))


def test_rows_beyond_32_bit_offsets(far_apart):
    near = [torch.randn(4, 50).half() for _ in range(3)]
    far = [far_apart(each) for each in near]
    assert torch.equal(forward_gpu(*near[:2]), forward_gpu(*far[:2]))
    assert all(map(torch.equal, backward_gpu(*near), backward_gpu(*far)))


def test_nothing():
    assert forward_gpu(torch.empty(0, 8), torch.empty(0, 8)).shape == (0, 8)
    assert backward_gpu(*[torch.empty(0, 8)] * 3)[0].shape == (0, 8)


@triton.jit
def _position_of(program_ptr, width, out_ptr, BLOCK: tl.constexpr):
    row, columns, mask = _position(tl.load(program_ptr), width, BLOCK)
    tl.store(out_ptr, row)
    tl.store(out_ptr + 1, tl.min(columns))
    tl.store(out_ptr + 2, tl.sum(mask.to(tl.int64)))


def test_the_last_block_of_a_row_of_nearly_2_to_the_31():
    """The number of a row's blocks is computed in 32 bits, where width + BLOCK - 1 is negative."""
    width, out = 2**31 - 5, torch.full((3,), -1, dtype=torch.int64)
    last = width // BLOCK
    _position_of[(1,)](torch.tensor([last], dtype=torch.int32), width, out, BLOCK=BLOCK)
    assert out.tolist() == [0, last * BLOCK, BLOCK - 5]
