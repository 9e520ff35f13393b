"""domain_loss's Triton kernels against plain torch in float64, under the interpreter (run by test_interpreter.py).

Tolerance: float64 sums of at most 3,000 terms in another order: 3,000 units of 2^-53.
"""

import pytest
import torch

from ado_kernels.ops.domain_loss import domain_loss_reference, gpu
from ado_kernels.ops.domain_loss.gpu import domain_loss_gpu, reduce_by_domain, warn_of_invalid_id

pytestmark = pytest.mark.usefixtures("poisoned")


def check(losses, ids, num_domains):
    sums, counts = domain_loss_gpu(losses, ids, num_domains)
    expected_sums, expected_counts = domain_loss_reference(losses, ids, num_domains)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-12, atol=0, equal_nan=True)
    assert torch.equal(counts, expected_counts)


@pytest.mark.parametrize(("num_tokens", "num_domains"), [(1, 1), (127, 3), (3000, 22), (300, 600)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ids_per_token(num_tokens, num_domains, dtype):
    check(torch.rand(num_tokens, dtype=dtype) * 10, torch.randint(-1, num_domains, (num_tokens,)), num_domains)


def test_ids_per_sequence():
    check(torch.rand(24 * 50), torch.randint(0, 5, (24,), dtype=torch.int32), 7)


def test_narrow_ids_reach_their_last_domain():
    check(torch.rand(300), torch.randint(0, 256, (300,), dtype=torch.uint8), 256)


def test_nan_stays_in_its_domain():
    losses = torch.rand(40)
    losses[3] = float("nan")
    check(losses, torch.arange(40) % 4, 4)


def test_no_tokens():
    sums, counts = domain_loss_gpu(torch.empty(0), torch.empty(0, dtype=torch.int64), 3)
    assert sums.tolist() == [0.0] * 3
    assert counts.tolist() == [0] * 3


@pytest.mark.parametrize("num_domains", [15, 16])  # the place of all tokens: the last of a block, the first of another
def test_the_last_place_counts_every_kept_token(num_domains):
    losses, ids = torch.rand(2000), torch.randint(-1, num_domains, (2000,))
    targets = torch.randint(0, 3, (2000,))
    sums, counts = reduce_by_domain(losses, ids, num_domains, targets, 1)
    kept = targets != 1
    expected_sums, expected_counts = domain_loss_reference(losses[kept], ids[kept], num_domains)
    torch.testing.assert_close(sums[:-1], expected_sums, rtol=1e-12, atol=0)
    torch.testing.assert_close(sums[-1], losses[kept].double().sum(), rtol=1e-12, atol=0)
    assert counts.tolist() == [*expected_counts.tolist(), int(kept.sum())]


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.device("meta")])
def test_what_the_first_caller_was_in_does_not_outlive_it(mode):
    """Of an evaluation, or of a model that is being built; the word that mistakes are left in is made but once."""
    gpu._invalid_id_word.cache_clear()
    with mode():
        warn_of_invalid_id(torch.device("cpu"), 5)
    test_a_mistaken_id_is_named_at_the_next_call(5, "5")


@pytest.mark.parametrize(("mistake", "named"), [(5, "5"), (-3, "-3"), (1 << 40, str(1 << 40))])
def test_a_mistaken_id_is_named_at_the_next_call(mistake, named):
    losses, ids = torch.rand(300), torch.randint(-1, 5, (300,))
    ids[217] = mistake
    check(losses, ids, 5)
    with pytest.warns(RuntimeWarning, match=rf"outside \[0, K\), among them {named} "):
        warn_of_invalid_id(torch.device("cpu"), 5)  # what the next call does first
    domain_loss_gpu(losses, ids.clamp(-1, 4), 5)  # warnings are errors: it is said once


def test_the_first_call_may_be_recorded_into_a_graph(monkeypatch):
    """No page-locked memory can be allocated there: the word lies on the device; the next call makes the real one."""
    gpu._invalid_id_word.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    device = torch.device("cuda")
    allocated = []

    def full(*arguments, **options):
        allocated.append(options)
        return real(*arguments, **{**options, "device": "cpu", "pin_memory": False})

    real = torch.full
    monkeypatch.setattr(torch, "full", full)
    warn_of_invalid_id(device, 5)
    assert allocated == [{"dtype": torch.int64, "device": device}]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for _ in range(2):
        warn_of_invalid_id(device, 5)
    assert len(allocated) == 2
    assert allocated[1]["pin_memory"] is True
    gpu._invalid_id_word.cache_clear()
