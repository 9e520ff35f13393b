"""linear_cross_entropy on a real GPU: losses, gradients row by row, bad targets, dtypes, ids.

Oracle: the reference on full logits in float64, on the same rounded inputs. The operation rounds logits to bf16, by at
most 2^-6 where they lie in [4, 8) and 2^-5 in [8, 16), the highest here; by a quarter of that rms. So:
loss: 2^-5 nats in a single row, 2^-5 / sqrt(n) in a mean of n. Gradients: 5 % of a row's norm (its exponentials' error,
3 %, and the roundings of gradients), 2 % of many rows'; rounding so in plain torch gives up to 3.2 and 1.4 %.
Rows of the weight's gradient whose word is no target are compared apart: the target's -1 would hide the softmax.
"""

import pytest
import torch

from ado_kernels import linear_cross_entropy
from ado_kernels.ops.launch import using
from ado_kernels.ops.linear_cross_entropy import linear_cross_entropy_reference
from tests.kernels.devices import (
    DEVICE,
    ON_GPU,
    assert_close,
    assert_rows_close,
    draw,
    each,
    gpu_only,
    run,
    wide,
)

pytestmark = [pytest.mark.gpu] if ON_GPU else []
poisoned = pytest.mark.usefixtures("poisoned")
WHOLE, ROW, NATS = 0.02, 0.05, 2**-5
SIZES = [(1000, 64), (1000, 2048), (50257, 768), (50304, 768), (50304, 2048)]  # vocabulary, width


@pytest.mark.gpu(memory_gb=18)
def test_a_chunk_beyond_int32():
    """131,072 words and 16,640 rows at once: the last rows' gradients equal those of these rows alone."""
    num_rows, vocabulary = 16_640, 131_072
    hidden, weight = draw(num_rows, 64), draw(vocabulary, 64)
    targets = torch.randint(0, vocabulary, (num_rows,), device=DEVICE)
    gradients = []
    for rows in (slice(None), slice(-256, None)):
        leaf = hidden[rows].clone().requires_grad_()
        with using("linear_cross_entropy", rows=num_rows):
            loss, *_ = linear_cross_entropy(leaf, weight, targets[rows], torch.zeros_like(targets[rows]), 1)
        (loss * len(leaf)).backward()
        gradients.append(leaf.grad[-256:])
    assert_rows_close(*gradients, WHOLE, ROW)


@pytest.mark.gpu(memory_gb=15)
def test_scale_gradient_beyond_int32():
    from ado_kernels.ops.linear_cross_entropy.gpu import scale_gradient_gpu

    size = 2**31 + 4096
    gradient = torch.ones(size, device="cuda")
    three, quarter = torch.tensor(3.0, device="cuda"), torch.tensor(0.25, device="cuda", dtype=torch.float64)
    assert scale_gradient_gpu(gradient, three, quarter, torch.bfloat16)[-4096:].eq(0.75).all()


def inputs_of(num_rows, vocabulary, width, ignored_frac=0.3, dtype=torch.bfloat16):
    """hidden, weight, targets; the words of the upper half are never a target."""
    hidden, weight = draw(num_rows, width, dtype=dtype), (draw(vocabulary, width) * 0.05).to(dtype)
    targets = torch.randint(0, vocabulary // 2, (num_rows,), device=DEVICE)
    targets[torch.rand(num_rows, device=DEVICE) < ignored_frac] = -100
    return hidden, weight, targets


def assert_loss_close(ours, expected, whole=WHOLE, row=ROW, nats=NATS):
    """loss, sums, counts, gradient of hidden, gradient of weight."""
    loss, sums, counts, dhidden, dweight = (tensor.detach() for tensor in ours)
    known_loss, known_sums, known_counts, known_dhidden, known_dweight = (tensor.detach() for tensor in expected)
    assert torch.equal(counts, known_counts)
    num_kept = known_counts.double()
    assert (sums - known_sums).abs().le(nats * num_kept.sqrt() + 1e-300).all()
    assert (loss.double() - known_loss).abs() <= nats / num_kept.sum().clamp(min=1).sqrt()
    assert_rows_close(dhidden, known_dhidden, whole, row)
    half = len(dweight) // 2
    assert_rows_close(dweight[:half], known_dweight[:half], whole, row)
    assert_rows_close(dweight[half:], known_dweight[half:], whole, row)


FRACTIONS = (0.0, 0.3, 1.0)  # of ignored targets


def cases(row_counts, sizes):
    """(rows, vocabulary, width, ignored fraction); one fraction where the float64 oracle's full logits are large."""
    shapes = [(num_rows, *size) for num_rows in row_counts for size in sizes]
    return [(*shape, frac) for shape in shapes for frac in (FRACTIONS if shape[0] * shape[1] <= 2**28 else (0.3,))]


@poisoned
@each(
    ("num_rows", "vocabulary", "width", "ignored_frac"),
    cases([1, 127, 4096, 16384], SIZES),
    cases([1, 127], [(1000, 64)]),
)
@pytest.mark.parametrize("z_loss", [0.0, 1e-4])
def test_linear_cross_entropy(num_rows, vocabulary, width, ignored_frac, z_loss):
    hidden, weight, targets = inputs_of(num_rows, vocabulary, width, ignored_frac)
    # Every row counts for the sums, so that the kept rows are those of the counts.
    ids = torch.randint(0, 22, (num_rows,), device=DEVICE)

    def call(function):
        return lambda h, w: function(h, w, targets, ids, 22, z_loss=z_loss)

    ours = run(call(linear_cross_entropy), [hidden, weight], 2)
    expected = run(call(linear_cross_entropy_reference), wide([hidden, weight]), 2)
    assert_loss_close(ours, expected, whole=WHOLE if num_rows > 1 else ROW)


@poisoned
@pytest.mark.parametrize("num_domains", [1, 22, 512])
@pytest.mark.parametrize("rows_per_id", [1, 9])
def test_domains(num_domains, rows_per_id):
    """An id a row or an id a sequence, -1 for no domain, most domains unused."""
    hidden, weight, targets = inputs_of(27 * rows_per_id, 1000, 64)
    ids = torch.randint(-1, max(num_domains // 2, 1), (27,), device=DEVICE)

    def call(function):
        return lambda h, w: function(h, w, targets, ids, num_domains)

    _, sums, counts = call(linear_cross_entropy)(hidden, weight)
    _, known_sums, known_counts = call(linear_cross_entropy_reference)(*wide([hidden, weight]))
    assert torch.equal(counts, known_counts)
    assert (sums - known_sums).abs().le(NATS * known_counts.double().sqrt() + 1e-300).all()
    assert sums[counts == 0].eq(0).all()


# Logits in float16 have 3 bits more than in bf16; in float32 sums over the width or vocabulary are what errs.
PRECISE = {torch.float16: (WHOLE / 8, ROW / 8, NATS / 8), torch.float32: (1e-5, 1e-4, 1e-4)}


@poisoned
@pytest.mark.parametrize("dtype", list(PRECISE))
def test_float16_and_float32(dtype):
    hidden, weight, targets = inputs_of(127, 1000, 64, dtype=dtype)
    ids = torch.zeros(1, dtype=torch.int64, device=DEVICE)

    def call(function):
        return lambda h, w: function(h, w, targets[:127], ids, 1, z_loss=1e-4)

    ours = run(call(linear_cross_entropy), [hidden, weight], 2)
    assert [tensor.dtype for tensor in ours[3:]] == [dtype, dtype]
    assert_loss_close(ours, run(call(linear_cross_entropy_reference), wide([hidden, weight]), 2), *PRECISE[dtype])


@poisoned
def test_autocast():
    """float32 parameters under bf16 autocast: the product in bf16, gradients in the parameters' dtype."""
    hidden, weight, targets = inputs_of(126, 1000, 64, dtype=torch.float32)
    ids = torch.randint(0, 22, (3,), device=DEVICE)

    def call(function):
        return lambda h, w: function(h, w, targets, ids, 22)

    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        ours = run(call(linear_cross_entropy), [hidden, weight], 2)
    rounded = [hidden.bfloat16(), weight.bfloat16()]
    assert [tensor.dtype for tensor in ours[3:]] == [torch.float32, torch.float32]
    assert_loss_close(ours, run(call(linear_cross_entropy_reference), wide(rounded), 2))


def test_the_loss_alone_is_that_of_training():
    hidden, weight, targets = inputs_of(127, 1000, 64)
    ids = torch.zeros(127, dtype=torch.int64, device=DEVICE)
    training = linear_cross_entropy(hidden.requires_grad_(), weight, targets, ids, 1)
    alone = linear_cross_entropy(hidden.detach(), weight, targets, ids, 1)
    assert not alone[0].requires_grad
    assert_close(alone, training, 1e-6)


@gpu_only
def test_a_bad_target_makes_the_loss_nan_and_leaves_the_others_alone():
    hidden, weight = (draw(n, 64, dtype=torch.bfloat16).requires_grad_() for n in (8, 300))
    targets = torch.tensor([0, 1, 300, 3, -100, 5, 6, 7], device="cuda")
    loss, sums, _ = linear_cross_entropy(hidden, weight, targets, torch.arange(8, device="cuda"), 8)
    loss.backward()
    assert loss.isnan()
    assert sums.isnan().tolist() == [i == 2 for i in range(8)]
    assert hidden.grad.isfinite().all()


@gpu_only
def test_a_mistaken_domain_id_is_named_at_the_next_call():
    hidden, weight, targets = inputs_of(8, 1000, 64)
    linear_cross_entropy(hidden, weight, targets, torch.full((8,), 5, device="cuda"), 4)
    torch.cuda.synchronize()
    ids = torch.zeros(8, dtype=torch.int64, device="cuda")
    with pytest.warns(RuntimeWarning, match="among them 5"):
        linear_cross_entropy(hidden, weight, targets, ids, 4)


def rounded_loss(hidden, weight, targets, ids, num_domains):
    """What the operation rounds, in plain torch: logits before the softmax, their gradient after it."""
    hidden, weight = hidden.detach().float(), weight.detach().float()
    logits = (hidden @ weight.t()).bfloat16().requires_grad_()
    kept = targets != -100
    losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    (g,) = torch.autograd.grad(losses.sum(), logits)
    _, sums, counts = linear_cross_entropy_reference(
        logits.double(), torch.eye(logits.shape[1]).double(), targets, ids, num_domains
    )
    gradients = (g.float() @ weight, g.float().t() @ hidden)
    return losses.sum() / kept.sum(), sums, counts, *((each / kept.sum()).bfloat16() for each in gradients)


def of_words_without_target(dweight, factor):
    changed = dweight.clone()
    changed[len(changed) // 2 :] *= factor
    return changed


def with_two_rows_swapped(rows):
    return rows[[1, 0, *range(2, len(rows))]]


def test_the_comparison_lets_rounding_pass_and_sees_what_is_wrong():
    """A softmax part that is missing, halved or half too large in the weight's gradient; rows in each other's place."""
    torch.manual_seed(0)
    hidden, weight, targets = (tensor.cpu() for tensor in inputs_of(300, 1000, 256, ignored_frac=0.1))
    targets[:2] = torch.tensor([3, 4])
    ids = torch.randint(0, 22, (300,))
    leaves = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    expected = linear_cross_entropy_reference(*leaves, targets, ids, 22)
    expected = [*expected, *torch.autograd.grad(expected[0], leaves)]
    loss, sums, counts, dhidden, dweight = rounded_loss(hidden, weight, targets, ids, 22)
    assert_loss_close((loss, sums, counts, dhidden, dweight), expected)
    for wrong in (
        (loss, sums, counts, dhidden, of_words_without_target(dweight, 0.0)),
        (loss, sums, counts, dhidden, of_words_without_target(dweight, 0.5)),
        (loss, sums, counts, dhidden, of_words_without_target(dweight, 1.5)),
        (loss, sums, counts, with_two_rows_swapped(dhidden), dweight),
        (loss, sums, counts, dhidden, with_two_rows_swapped(dweight)),
        (loss, sums * 1.01, counts, dhidden, dweight),
        (loss + 0.01, sums, counts, dhidden, dweight),
    ):
        with pytest.raises(AssertionError):
            assert_loss_close(wrong, expected)
