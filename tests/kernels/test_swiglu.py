"""swiglu on a CPU against torch in float64: values, gradients, views, errors.

Tolerances (tests/rounding.py): a few roundings, of the product of the gradient and the other half where silu's slope
passes through zero: its terms cancel there. bf16 and fp16 are rounded once from float32, and fp16 in steps of 2^-24
near zero.
"""

import pytest
import torch
import torch.nn.functional as F

from ado_kernels import swiglu
from ado_kernels.ops.swiglu import swiglu_reference
from tests.rounding import UNIT, rounding, stored


@pytest.mark.parametrize("dtype", list(UNIT))
@pytest.mark.parametrize("shape", [(1,), (3, 5000), (2, 3, 40), (0, 8)])
def test_against_torch(dtype, shape):
    gate, up, dout = (torch.randn(shape, dtype=torch.float64).mul(3).to(dtype) for _ in range(3))
    gate.requires_grad_(), up.requires_grad_()
    wide_gate, wide_up = gate.detach().double().requires_grad_(), up.detach().double().requires_grad_()
    expected = F.silu(wide_gate) * wide_up
    expected.backward(dout.double())
    out = swiglu(gate, up)
    out.backward(dout)
    assert out.dtype == gate.grad.dtype == dtype
    largest = (dout * up).detach().double().abs().max().item() if out.numel() else 0.0
    few = rounding(1, torch.float64 if dtype == torch.float64 else torch.float32)
    close = {"rtol": stored(dtype, 1), "atol": few * largest + (2**-25 if dtype == torch.float16 else 0.0)}
    for ours, theirs in ((out, expected), (gate.grad, wide_gate.grad), (up.grad, wide_up.grad)):
        torch.testing.assert_close(ours.detach().double(), theirs.detach(), **close)


def test_gradcheck():
    inputs = [torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(swiglu, inputs)


def test_halves_of_one_projection_are_not_written_to():
    fused = torch.randn(6, 34, requires_grad=True)
    before = fused.detach().clone()
    gate, up = fused.chunk(2, dim=-1)
    swiglu(gate, up).backward(torch.ones(1, 17).expand(6, 17))
    assert torch.equal(fused, before)
    expected = torch.autograd.grad(swiglu_reference(*fused.chunk(2, dim=-1)).sum(), fused)[0]
    close = 2 * rounding(1)  # both in float32
    torch.testing.assert_close(fused.grad, expected, rtol=close, atol=close * fused.abs().max().item())


def test_extremes():
    gate = torch.tensor([-1e30, -200.0, -88.0, 0.0, 88.0, 200.0, 1e30, float("nan")], requires_grad=True)
    out = swiglu(gate, torch.ones(8))
    out.backward(torch.ones(8))
    assert out[:2].tolist() == [0.0, 0.0]
    assert abs(out[2].item()) < 1e-30
    assert out[3:7].tolist() == [0.0, 88.0, 200.0, torch.tensor(1e30).item()]
    assert gate.grad[:2].tolist() == [0.0, 0.0]
    assert gate.grad[3:7].tolist() == [0.5, 1.0, 1.0, 1.0]
    assert out[7].isnan()
    assert gate.grad[7].isnan()


def test_differing_inputs_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) torch.float32 and \(2, 4\)"):
        swiglu(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="bfloat16"):
        swiglu(torch.ones(2), torch.ones(2).bfloat16())
