"""linear_cross_entropy on a CPU against F.cross_entropy on full logits in float64.

Tolerances (tests/rounding.py): a logit is a sum of H products; its error moves a loss by as much and a probability by
that fraction of itself; gradients are sums of V or N such. The oracle sees the same rounded inputs, so bf16 inputs need
no more than the rounding of their gradients.
"""

import pytest
import torch
import torch.nn.functional as F

from ado_kernels import linear_cross_entropy
from ado_kernels.ops.linear_cross_entropy import cpu, linear_cross_entropy_reference
from tests.rounding import UNIT, rounding

IGNORE = -100


def draw(num_rows=60, vocabulary=1000, width=64, dtype=torch.float32, ignored_frac=0.3):
    hidden = torch.randn(num_rows, width, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, width, dtype=torch.float64).mul(0.2).to(dtype)
    targets = torch.randint(0, vocabulary, (num_rows,))
    targets[torch.rand(num_rows) < ignored_frac] = IGNORE
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def wide(*tensors):
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def largest_logit(hidden, weight):
    """max over rows and words of sum |h w|: what a logit's roundings are relative to."""
    return (hidden.detach().abs() @ weight.detach().abs().t()).max().item()


def gradients_and_terms(hidden, weight, targets):
    """For hidden states and weight: the gradient that autograd left, and for each entry the sum of its terms' sizes."""
    kept = (targets != IGNORE)[:, None]
    size = torch.softmax(hidden.detach() @ weight.detach().t(), dim=-1)
    size = size + F.one_hot(targets.clamp(min=0), len(weight))
    size = size * kept / kept.sum()
    yield hidden.grad, size @ weight.detach().abs()
    yield weight.grad, size.t() @ hidden.detach().abs()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("vocabulary", [3, 257, 1000])
@pytest.mark.parametrize("ignored_frac", [0.0, 0.3])
def test_loss_and_gradients(dtype, vocabulary, ignored_frac):
    hidden, weight, targets = draw(vocabulary=vocabulary, dtype=dtype, ignored_frac=ignored_frac)
    wide_hidden, wide_weight = wide(hidden, weight)
    expected = F.cross_entropy(wide_hidden @ wide_weight.t(), targets, ignore_index=IGNORE)
    (3.0 * expected).backward()
    loss, _, _ = linear_cross_entropy(hidden, weight, targets, torch.zeros(60, dtype=torch.int64), 1)
    (3.0 * loss).backward()
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    of_logits = rounding(64, computed) * largest_logit(wide_hidden, wide_weight)
    of_sums = rounding(vocabulary, computed)
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=of_sums, atol=of_logits)
    for ours, (theirs, terms) in zip(
        (hidden.grad, weight.grad), gradients_and_terms(wide_hidden, wide_weight, targets), strict=True
    ):
        assert ours.dtype == dtype
        allowed = 3.0 * (of_logits + of_sums) * terms + (2**-25 if dtype == torch.float16 else 0.0)
        if dtype != computed:
            allowed = allowed + UNIT[dtype] * theirs.abs()
        assert ((ours.double() - theirs).abs() <= allowed).all()


def test_domain_ids_outside_the_domains_are_named_and_ignored_tokens_are_not():
    hidden, weight, targets = draw()
    ids = torch.zeros(60, dtype=torch.int64)
    linear_cross_entropy(hidden, weight, targets, ids, 1)  # a third is ignored; warnings are errors in these tests
    kept = (targets != IGNORE).nonzero()[:, 0]
    ids[kept[0]] = 7
    with pytest.warns(RuntimeWarning, match="1 of 60 domain ids"):
        _, _, counts = linear_cross_entropy(hidden, weight, targets, ids, 1)
    assert counts.tolist() == [len(kept) - 1]


@pytest.mark.parametrize("ids_per", ["token", "sequence"])
@pytest.mark.filterwarnings("ignore:.* domain ids lie outside:RuntimeWarning")
def test_domain_sums_and_counts(ids_per):
    hidden, weight, targets = draw()
    ids = torch.randint(-1, 6, (60,) if ids_per == "token" else (5,))
    _, sums, counts = linear_cross_entropy(hidden, weight, targets, ids, 4)
    wide_hidden, wide_weight = wide(hidden, weight)
    losses = F.cross_entropy(wide_hidden @ wide_weight.t(), targets, ignore_index=IGNORE, reduction="none").detach()
    per_token = ids.repeat_interleave(60 // ids.numel())
    for k in range(4):
        own = (per_token == k) & (targets != IGNORE)
        assert counts[k] == own.sum()
        allowed = rounding(1000) + rounding(64) * largest_logit(hidden, weight)
        torch.testing.assert_close(sums[k], losses[own].sum(), rtol=0, atol=allowed * own.sum().item())
    assert (sums.dtype, counts.dtype) == (torch.float64, torch.int64)
    assert not sums.requires_grad


def test_z_loss_enters_the_loss_and_not_the_sums():
    hidden, weight, targets = draw(dtype=torch.float64)
    ids = torch.zeros(60, dtype=torch.int64)
    ours = linear_cross_entropy(hidden, weight, targets, ids, 1, z_loss=1e-2)
    plain = linear_cross_entropy(hidden, weight, targets, ids, 1)
    kept = targets != IGNORE
    penalty = 1e-2 * torch.logsumexp(hidden @ weight.t(), dim=-1).square()[kept].mean()
    torch.testing.assert_close(ours[0] - plain[0], penalty)
    assert torch.equal(ours[1], plain[1])
    expected = torch.autograd.grad(plain[0] + penalty, (hidden, weight))
    for mine, theirs in zip(torch.autograd.grad(ours[0], (hidden, weight)), expected, strict=True):
        of_logits = rounding(64, torch.float64) * largest_logit(hidden, weight)
        allowed = 4 * (of_logits + rounding(1000, torch.float64)) * theirs.abs().max().item()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=allowed)


def test_gradcheck():
    hidden, weight, targets = draw(6, 20, 5, torch.float64)
    ids = torch.zeros(6, dtype=torch.int64)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, ids, 1, z_loss=1e-2)[0], (hidden, weight)
    )


def test_chunks_change_nothing(monkeypatch):
    hidden, weight, targets = draw()
    ids = torch.randint(0, 3, (60,))

    def run():
        loss, sums, counts = linear_cross_entropy(hidden, weight, targets, ids, 3)
        return loss, sums, counts, *torch.autograd.grad(loss, (hidden, weight))

    whole = run()
    monkeypatch.setattr(cpu, "_CHUNK_BYTES", 7 * 1000 * 4)  # seven rows: nine chunks of 6 or 7
    for one, many in zip(whole, run(), strict=True):
        allowed = 2 * rounding(1000) + 2 * rounding(64) * largest_logit(hidden, weight)
        torch.testing.assert_close(one, many, rtol=allowed, atol=allowed * one.abs().max().item())


def test_the_buffer_holds_a_chunk_and_not_all_logits(monkeypatch):
    monkeypatch.setattr(cpu, "_CHUNK_BYTES", 7 * 1000 * 4)
    largest, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: largest.append((out := empty(*a, **k)).numel()) or out)
    hidden, weight, targets = draw()
    linear_cross_entropy(hidden, weight, targets, torch.zeros(60, dtype=torch.int64), 1)
    assert max(largest) <= 7 * 1000


def test_reference_is_cross_entropy():
    hidden, weight, targets = draw(dtype=torch.float64)
    loss, sums, counts = linear_cross_entropy_reference(hidden, weight, targets, torch.zeros(1, dtype=torch.int64), 1)
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.t(), targets))
    torch.testing.assert_close(sums[0] / counts[0], loss.detach())


def test_everything_ignored_is_zero():
    hidden, weight, targets = draw(ignored_frac=1.1)
    loss, sums, counts = linear_cross_entropy(hidden, weight, targets, torch.zeros(60, dtype=torch.int64), 2)
    loss.backward()
    assert loss == 0
    assert sums.tolist() == [0.0, 0.0]
    assert counts.tolist() == [0, 0]
    assert hidden.grad.eq(0).all()
    assert weight.grad.eq(0).all()


def test_ignore_index_may_be_a_class():
    hidden, weight, targets = draw(vocabulary=10, ignored_frac=0.0)
    loss, _, counts = linear_cross_entropy(
        hidden, weight, targets, torch.zeros(60, dtype=torch.int64), 1, ignore_index=3
    )
    allowed = 2 * (rounding(64) * largest_logit(hidden, weight) + rounding(10) * loss.item())  # both in float32
    torch.testing.assert_close(
        loss, F.cross_entropy(hidden @ weight.t(), targets, ignore_index=3), rtol=0, atol=allowed
    )
    assert counts.item() == (targets != 3).sum()


def test_large_logits_stay_finite():
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.5], [-1.0]])
    loss, _, _ = linear_cross_entropy(hidden, weight, torch.tensor([0, 0]), torch.zeros(2, dtype=torch.int64), 1)
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_only_the_gradients_asked_for(needs):
    hidden, weight, targets = draw()
    hidden.requires_grad_(needs[0]), weight.requires_grad_(needs[1])
    loss, _, _ = linear_cross_entropy(hidden, weight, targets, torch.zeros(60, dtype=torch.int64), 1)
    assert loss.requires_grad == any(needs)
    if any(needs):
        loss.backward()
    assert [hidden.grad is not None, weight.grad is not None] == list(needs)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, of every operation without a rule of vmap
def test_a_gradient_that_vmap_hid_is_refused():
    """A batched tensor does not say that it needs a gradient; without the check there would be none, silently."""
    hidden, weight, targets = draw()
    ids = torch.zeros(60, dtype=torch.int64)
    losses = torch.vmap(lambda each: linear_cross_entropy(each, weight, targets, ids, 1)[0])(hidden.expand(2, -1, -1))
    assert losses.tolist() == [linear_cross_entropy(hidden, weight, targets, ids, 1)[0].item()] * 2
    with pytest.raises(RuntimeError, match="no gradient of an operand under vmap"):
        losses.sum().backward()


def test_no_gradient_work_without_grad(monkeypatch):
    hidden, weight, targets = draw()
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda *_: pytest.fail("weight gradient formed under no_grad"))
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, targets, torch.zeros(60, dtype=torch.int64), 1)


def test_no_rows():
    hidden, weight, targets = draw(num_rows=0)
    loss, sums, _ = linear_cross_entropy(hidden, weight, targets, torch.zeros(0, dtype=torch.int64), 2)
    loss.backward()
    assert loss == 0
    assert sums.tolist() == [0.0, 0.0]
    assert weight.grad.eq(0).all()


def test_strided_inputs():
    hidden, weight, targets = draw()
    loss = linear_cross_entropy(hidden, weight, targets, torch.zeros(60, dtype=torch.int64), 1)[0]
    strided = linear_cross_entropy(
        hidden.detach().t().contiguous().t(),
        torch.cat([weight.detach()] * 2, dim=1)[:, 64:],
        torch.stack([targets] * 2, dim=1)[:, 1],
        torch.zeros(1, dtype=torch.int64).expand(60),
        1,
    )[0]
    allowed = 2 * (rounding(64) * largest_logit(hidden, weight) + rounding(1000) * loss.item())
    torch.testing.assert_close(strided, loss.detach(), rtol=0, atol=allowed)


@pytest.mark.parametrize("bad", [10, -1, 2**40])
def test_a_target_outside_the_vocabulary_is_named(bad):
    hidden, weight, targets = draw(vocabulary=10, ignored_frac=0.0)
    targets[17] = bad
    with pytest.raises(ValueError, match=f"target {bad} of row 17 is outside the vocabulary of 10"):
        linear_cross_entropy(hidden, weight, targets, torch.zeros(60, dtype=torch.int64), 1)


def test_wrong_shapes_are_named():
    hidden, weight, targets = draw()
    ids = torch.zeros(60, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(60, 64\) and \(1000, 63\)"):
        linear_cross_entropy(hidden, weight[:, :63], targets, ids, 1)
    with pytest.raises(ValueError, match="with V > 0"):
        linear_cross_entropy(hidden, weight[:0], targets, ids, 1)
    with pytest.raises(ValueError, match=r"targets must be int64 of shape \(60,\)"):
        linear_cross_entropy(hidden, weight, targets[:59], ids, 1)
    with pytest.raises(ValueError, match="7 domain ids"):
        linear_cross_entropy(hidden, weight, targets, ids[:7], 1)
