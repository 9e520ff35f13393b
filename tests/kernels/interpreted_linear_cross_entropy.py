"""linear_cross_entropy's Triton kernels against float64, under the interpreter (run by test_interpreter.py).

Tolerances (tests/rounding.py): a softmax is a sum over V words of exponentials, a logit one of H products. bf16 logits
are given as they are, so only the gradient's rounding counts: the interpreter truncates, 2^-7 of the entry. torch's
matmuls, which have no float32 sums of narrower operands on a CPU, are stood in for. Scalar arguments (z_loss) reach a
kernel as float32, hence 2^-23 for gradients in float64.
"""

import pytest
import torch

from ado_kernels.ops.launch import using
from ado_kernels.ops.linear_cross_entropy import gpu
from ado_kernels.ops.linear_cross_entropy.problem import Problem
from tests.rounding import rounding

IGNORE = -100
GRADIENT = {torch.float64: 2**-23, torch.float32: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}
pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture
def _wide_products(monkeypatch):
    """torch.mm and addmm with out_dtype, as CUDA has them: operands as they are, sums and result in float32."""

    def widened(product):
        def call(*operands, out, out_dtype=None):
            if out_dtype is None:
                return product(*operands, out=out)
            assert out.dtype == out_dtype == torch.float32
            assert {operand.dtype for operand in operands[-2:]} <= {torch.bfloat16, torch.float16}
            return out.copy_(product(*(operand.float() for operand in operands)))

        return call

    monkeypatch.setattr(torch, "mm", widened(torch.mm))
    monkeypatch.setattr(torch, "addmm", widened(torch.addmm))


def problem_of(hidden, weight, targets, z_loss=0.0, grads=(True, True)):
    return Problem(hidden, weight, targets, IGNORE, z_loss, *grads, hidden.dtype)


def oracle(logits, targets, z_loss):
    """Losses, squares and the gradient of sum(loss + z_loss lse^2), in float64."""
    logits = logits.double().requires_grad_()
    kept = targets != IGNORE
    partition = torch.logsumexp(logits, dim=-1)
    losses = torch.where(kept, partition - logits.gather(1, torch.where(kept, targets, 0)[:, None])[:, 0], 0.0)
    squares = torch.where(kept, partition.square(), 0.0)
    (losses + z_loss * squares).sum().backward()
    return losses.detach(), squares.detach(), logits.grad


def softmax_gradient(logits, targets, z_loss=0.0, grads=True, place=lambda buffer: buffer):
    """Losses and squares of given logits; turns those into their gradients. Padding holds NaN; `place` moves it all."""
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    losses, squares = torch.empty(len(targets), dtype=wide), torch.empty(len(targets), dtype=wide)
    whole = gpu._aligned_rows(*logits.shape, logits)._base
    buffer = place(whole.fill_(float("nan")))[:, : logits.shape[1]]
    buffer.copy_(logits)
    gpu.softmax_gradient(buffer, targets, losses, squares, (IGNORE, z_loss, grads))
    with torch.no_grad():
        logits.copy_(buffer)
    return losses, squares


@pytest.mark.parametrize("dtype", list(GRADIENT))
@pytest.mark.parametrize("vocabulary", [5, 300, 5000])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_softmax_gradient(dtype, vocabulary, z_loss):
    logits = (torch.randn(6, vocabulary, dtype=torch.float64) * 4 + 30).to(dtype)
    targets = torch.randint(0, vocabulary, (6,))
    targets[2] = IGNORE
    targets[4] = vocabulary - 1
    expected_losses, expected_squares, expected_gradient = oracle(logits, targets, z_loss)
    logit_size, softmax = logits.double().abs().max().item(), torch.softmax(logits.double(), dim=-1)
    losses, squares = softmax_gradient(logits, targets, z_loss)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    of_sum, of_logits = rounding(vocabulary, wide), rounding(1, wide) * logit_size
    torch.testing.assert_close(losses.double(), expected_losses, rtol=0, atol=of_sum + of_logits)
    torch.testing.assert_close(squares.double(), expected_squares, rtol=4 * (of_sum + of_logits), atol=0)
    size = softmax * (1.0 + 2.0 * z_loss * expected_squares.sqrt()[:, None])  # the target's entry is this less one
    allowed = (of_sum + of_logits) * size + GRADIENT[dtype] * (expected_gradient.abs() + size)
    if dtype == torch.float16:
        allowed += 2**-24  # its steps near zero
    assert ((logits.double() - expected_gradient).abs() <= allowed).all()
    assert logits[2].eq(0).all()


def test_loss_only_leaves_the_logits():
    logits = torch.randn(4, 70)
    before, targets = logits.clone(), torch.randint(0, 70, (4,))
    losses, _ = softmax_gradient(logits, targets, grads=False)
    assert torch.equal(logits, before)
    torch.testing.assert_close(losses.double(), oracle(logits, targets, 0.0)[0], rtol=0, atol=2 * rounding(70))


def test_rows_of_logits_beyond_32_bit_offsets(far_apart):
    logits, targets = torch.randn(4, 70).half(), torch.randint(0, 70, (4,))
    far_logits = logits.clone()
    losses = softmax_gradient(logits, targets)[0]
    assert torch.equal(softmax_gradient(far_logits, targets, place=far_apart)[0], losses)
    assert torch.equal(far_logits, logits)


@pytest.mark.parametrize("grads", [(True, True), (True, False), (False, True), (False, False)])
def test_all_chunks(grads):
    hidden, weight = torch.randn(8, 16), torch.randn(50, 16)
    targets = torch.randint(0, 50, (8,))
    targets[5] = IGNORE
    with using("linear_cross_entropy", rows=3):
        result = gpu.in_chunks(problem_of(hidden, weight, targets, 1e-2, grads))
    losses, squares, gradient = oracle(hidden.double() @ weight.double().t(), targets, 1e-2)
    torch.testing.assert_close(result.losses_N.double(), losses, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(result.squares_N.double(), squares, rtol=2e-6, atol=2e-6)
    if grads[0]:
        torch.testing.assert_close(result.dhidden_NH.double(), gradient @ weight.double(), rtol=1e-5, atol=1e-5)
    if grads[1]:
        torch.testing.assert_close(result.dweight_VH.double(), gradient.t() @ hidden.double(), rtol=1e-5, atol=1e-5)
    assert result.dhidden_NH.numel() == grads[0] * hidden.numel()
    assert result.dweight_VH.numel() == grads[1] * weight.numel()


@pytest.mark.usefixtures("_wide_products")
def test_float32_sums_for_bfloat16_operands():
    """Gradients of bf16 input leave the chunks in float32, summed over chunks in it: three chunks equal one."""
    hidden, weight = torch.randn(9, 16).bfloat16(), torch.randn(50, 16).bfloat16()
    problem = problem_of(hidden, weight, torch.randint(0, 50, (9,)))
    results = []
    for rows in (3, 9):
        with using("linear_cross_entropy", rows=rows):
            results.append(gpu.in_chunks(problem))
    for one, other in ((results[0].dhidden_NH, results[1].dhidden_NH), (results[0].dweight_VH, results[1].dweight_VH)):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_is_not_swallowed():
    hidden, weight = torch.randn(3, 8), torch.randn(40, 8)
    hidden[1, 2] = float("nan")
    result = gpu.in_chunks(problem_of(hidden, weight, torch.tensor([1, 2, 3])))
    assert result.losses_N.isnan().tolist() == [False, True, False]
    assert result.dhidden_NH.isnan().any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("ids_per", ["token", "sequence"])
@pytest.mark.parametrize("id_dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_the_operation_is_the_cpus(ids_per, id_dtype, z_loss):
    """Mean, per-domain sums and counts, and what the gradients are scaled with; 256 domains of narrow ids too."""
    hidden, weight, targets = torch.randn(60, 16), torch.randn(50, 16), torch.randint(0, 50, (60,))
    targets[::7] = IGNORE
    ids = torch.randint(250, 256, (60 if ids_per == "token" else 5,)).to(id_dtype)
    arguments = (targets, ids, 256, IGNORE, z_loss, True, True, torch.float32)
    ours = gpu.linear_cross_entropy_gpu(hidden, weight, *arguments)
    expected = torch.ops.ado_kernels.linear_cross_entropy(hidden, weight, *arguments)
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours[2], expected[2])


@pytest.mark.parametrize("bad", [40, -7, 2**40])
def test_a_target_outside_the_vocabulary_is_nan_with_zero_gradient(bad):
    hidden, weight, targets = torch.randn(3, 8), torch.randn(40, 8), torch.tensor([1, bad, IGNORE])
    result = gpu.in_chunks(problem_of(hidden, weight, targets))
    assert result.losses_N.isnan().tolist() == [False, True, False]
    assert result.losses_N[2] == 0
    assert result.dhidden_NH[1:].eq(0).all()
    gradient = oracle(hidden.double() @ weight.double().t(), torch.tensor([1, IGNORE, IGNORE]), 0.0)[2]
    torch.testing.assert_close(result.dweight_VH.double(), gradient.t() @ hidden.double(), rtol=1e-5, atol=1e-6)


def test_a_vocabulary_without_alignment_has_padded_rows():
    buffer = gpu._aligned_rows(3, 1001, torch.empty(0, dtype=torch.float16))
    assert (buffer.shape, buffer.stride()) == ((3, 1001), (1008, 1))
    assert gpu._aligned_rows(3, 1009, buffer).stride() == (1024, 1)


def test_scale_gradient_casts_once():
    gradient = torch.randn(37, 111)
    dloss, inverse = torch.tensor(3.0), torch.tensor(0.125, dtype=torch.float64)
    scaled = gpu.scale_gradient_gpu(gradient, dloss, inverse, torch.float16)
    assert torch.equal(scaled, (gradient * 0.375).half())


def test_no_rows():
    result = gpu.in_chunks(problem_of(torch.empty(0, 16), torch.randn(50, 16), torch.empty(0, dtype=torch.int64)))
    assert result.dhidden_NH.shape == (0, 16)
    assert result.dweight_VH.eq(0).all()
