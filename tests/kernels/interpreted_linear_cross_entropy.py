"""linear_cross_entropy's Triton kernels against float64, under the interpreter (run by test_interpreter.py).

Tolerances: a float32 softmax over 5,000 columns errs by some 2^-22 relative; bf16 logits are given as they are, so only
the gradient's rounding counts: the interpreter truncates, 2^-7 of the entry. The matmuls run in float32 here. Scalar
arguments (z_loss) reach a kernel as float32, hence 1e-7 for gradients in float64.
"""

from dataclasses import replace

import pytest
import torch

from ado_kernels.ops.linear_cross_entropy import gpu
from ado_kernels.ops.linear_cross_entropy.problem import Problem

IGNORE = -100
GRADIENT = {torch.float64: 1e-7, torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
pytestmark = pytest.mark.usefixtures("poisoned")


def problem_of(hidden, weight, targets, z_loss=0.0, grads=True):
    return Problem(hidden, weight, targets, IGNORE, z_loss, grads, grads, hidden.dtype)


def oracle(logits, targets, z_loss):
    """Losses, squares and the gradient of sum(loss + z_loss lse^2), in float64."""
    logits = logits.double().requires_grad_()
    kept = targets != IGNORE
    partition = torch.logsumexp(logits, dim=-1)
    losses = torch.where(kept, partition - logits.gather(1, torch.where(kept, targets, 0)[:, None])[:, 0], 0.0)
    squares = torch.where(kept, partition.square(), 0.0)
    (losses + z_loss * squares).sum().backward()
    return losses.detach(), squares.detach(), logits.grad


@pytest.mark.parametrize("dtype", list(GRADIENT))
@pytest.mark.parametrize("vocabulary", [5, 300, 5000])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_softmax_gradient(dtype, vocabulary, z_loss):
    logits = (torch.randn(6, vocabulary, dtype=torch.float64) * 4 + 30).to(dtype)
    targets = torch.randint(0, vocabulary, (6,))
    targets[2] = IGNORE
    targets[4] = vocabulary - 1
    expected_losses, expected_squares, expected_gradient = oracle(logits, targets, z_loss)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    losses, squares = torch.empty(6, dtype=wide), torch.empty(6, dtype=wide)
    gpu.softmax_gradient(logits, targets, problem_of(logits, logits, targets, z_loss), losses, squares)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(losses.double(), expected_losses, rtol=tolerance, atol=4 * tolerance)
    torch.testing.assert_close(squares.double(), expected_squares, rtol=4 * tolerance, atol=0)
    least = {torch.float16: 6e-8, torch.float64: 1e-8}.get(dtype, tolerance)
    torch.testing.assert_close(logits.double(), expected_gradient, rtol=GRADIENT[dtype], atol=least)
    assert logits[2].eq(0).all()


def test_loss_only_leaves_the_logits():
    logits = torch.randn(4, 70)
    before, targets = logits.clone(), torch.randint(0, 70, (4,))
    losses, squares = torch.empty(4), torch.empty(4)
    gpu.softmax_gradient(logits, targets, problem_of(logits, logits, targets, grads=False), losses, squares)
    assert torch.equal(logits, before)
    torch.testing.assert_close(losses.double(), oracle(logits, targets, 0.0)[0], rtol=1e-6, atol=1e-6)


def test_a_target_outside_the_vocabulary_is_nan_with_zero_gradient():
    logits = torch.randn(3, 40)
    targets = torch.tensor([1, 40, -7])
    losses, squares = torch.empty(3), torch.empty(3)
    gpu.softmax_gradient(logits, targets, problem_of(logits, logits, targets), losses, squares)
    assert losses.isnan().tolist() == [False, True, True]
    assert logits[1:].eq(0).all()


@pytest.mark.parametrize("grads", [(True, True), (True, False), (False, True), (False, False)])
def test_all_chunks(monkeypatch, grads):
    monkeypatch.setattr(gpu, "launch", lambda op, *_, **__: gpu_launch(rows=3) if "linear" in op else gpu_launch())
    hidden, weight = torch.randn(8, 16), torch.randn(50, 16)
    targets = torch.randint(0, 50, (8,))
    targets[5] = IGNORE
    problem = replace(problem_of(hidden, weight, targets, 1e-2), hidden_grad=grads[0], weight_grad=grads[1])
    result = gpu.linear_cross_entropy_gpu(problem)
    losses, squares, gradient = oracle(hidden.double() @ weight.double().t(), targets, 1e-2)
    torch.testing.assert_close(result.losses_N.double(), losses, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(result.squares_N.double(), squares, rtol=2e-6, atol=2e-6)
    if grads[0]:
        torch.testing.assert_close(result.dhidden_NH.double(), gradient @ weight.double(), rtol=1e-5, atol=1e-5)
    if grads[1]:
        torch.testing.assert_close(result.dweight_VH.double(), gradient.t() @ hidden.double(), rtol=1e-5, atol=1e-5)
    assert result.dhidden_NH.numel() == grads[0] * hidden.numel()
    assert result.dweight_VH.numel() == grads[1] * weight.numel()


def gpu_launch(rows=1):
    from ado_kernels.ops.launch import Launch

    return Launch(rows=rows)


def test_scale_gradient_casts_once():
    gradient = torch.randn(37, 111)
    dloss, inverse = torch.tensor(3.0), torch.tensor(0.125, dtype=torch.float64)
    scaled = gpu.scale_gradient_gpu(gradient, dloss, inverse, torch.float16)
    assert torch.equal(scaled, (gradient * 0.375).half())


def test_no_rows():
    result = gpu.linear_cross_entropy_gpu(
        problem_of(torch.empty(0, 16), torch.randn(50, 16), torch.empty(0, dtype=torch.int64))
    )
    assert result.dhidden_NH.shape == (0, 16)
    assert result.dweight_VH.eq(0).all()
