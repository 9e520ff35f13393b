"""domain_loss on a CPU against NumPy's bincount: sums, counts, strays, determinism.

Tolerance: float64 sums in another order, 10^5 terms of one sign: 1e-12 relative is 10^5 units of 2^-53 twice over.
"""

import numpy as np
import pytest
import torch

from ado_kernels import domain_loss
from tests.kernels.devices import on_one_and_two_threads

strays_on_purpose = pytest.mark.filterwarnings("ignore:.* domain ids lie outside:RuntimeWarning")


def expected_by_numpy(losses, ids, num_domains):
    kept = (ids >= 0) & (ids < num_domains)
    ids, losses = ids[kept].numpy(), losses[kept].double().numpy()
    return np.bincount(ids, losses, num_domains), np.bincount(ids, minlength=num_domains)


@pytest.mark.parametrize(("num_tokens", "num_domains"), [(1, 1), (1000, 22), (100_003, 4096), (70_000, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("id_dtype", [torch.int64, torch.int32])
@strays_on_purpose
def test_against_numpy(num_tokens, num_domains, dtype, id_dtype):
    losses = (torch.rand(num_tokens, dtype=torch.float64) * 10).to(dtype)
    ids = torch.randint(-3, num_domains + 3, (num_tokens,)).to(id_dtype)
    sums, counts = domain_loss(losses, ids, num_domains)
    expected_sums, expected_counts = expected_by_numpy(losses, ids, num_domains)
    assert (sums.dtype, counts.dtype) == (torch.float64, torch.int64)
    np.testing.assert_allclose(sums.numpy(), expected_sums, rtol=1e-12)
    assert counts.tolist() == expected_counts.tolist()


def test_strays_are_named_and_minus_one_is_meant():
    with pytest.warns(RuntimeWarning, match=r"2 of 6 domain ids lie outside \[0, 4\), the first is 9: .* give -1"):
        _, counts = domain_loss(torch.ones(6), torch.tensor([0, -1, 9, 3, -2, 0]), 4)
    assert counts.tolist() == [2, 0, 0, 1]
    _, counts = domain_loss(torch.ones(4), torch.tensor([0, -1, -1, 3]), 4)  # warnings are errors in these tests
    assert counts.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("num_domains", [5, 300])
@pytest.mark.parametrize("num_tokens", [31, 32, 33, 100_003])
@strays_on_purpose
def test_runs_of_one_domain(num_domains, num_tokens):
    """Runs of every length around the 32 that are summed at once, strays among them."""
    lengths = torch.randint(1, 80, (num_tokens,))
    ids = torch.randint(-1, num_domains + 1, (num_tokens,)).repeat_interleave(lengths)[:num_tokens]
    losses = torch.rand(num_tokens) * 10
    sums, counts = domain_loss(losses, ids, num_domains)
    expected_sums, expected_counts = expected_by_numpy(losses, ids, num_domains)
    np.testing.assert_allclose(sums.numpy(), expected_sums, rtol=1e-12)
    assert counts.tolist() == expected_counts.tolist()


@strays_on_purpose
def test_one_id_per_sequence():
    losses, ids = torch.rand(6, 512), torch.tensor([0, 2, 2, 5, -1, 9])
    sums, counts = domain_loss(losses, ids, 6)
    expected_sums, expected_counts = expected_by_numpy(losses.flatten(), ids.repeat_interleave(512), 6)
    np.testing.assert_allclose(sums.numpy(), expected_sums, rtol=1e-12)
    assert counts.tolist() == expected_counts.tolist()


def test_float32_losses_are_added_in_float64():
    # In float32, 1 + 2^-24 ... would stay 1; in float64 all 4,096 small terms count.
    losses = torch.full((4097,), 2.0**-24)
    losses[0] = 1.0
    sums, _ = domain_loss(losses, torch.zeros(4097, dtype=torch.int64), 1)
    assert sums.item() == 1.0 + 4096 * 2.0**-24


def test_bits_do_not_depend_on_threads():
    losses, ids = torch.rand(200_000), torch.randint(0, 22, (200_000,))
    assert torch.equal(*on_one_and_two_threads(lambda: domain_loss(losses, ids, 22)[0]))


def test_nan_stays_in_its_domain_and_no_gradient_flows():
    losses = torch.tensor([1.0, float("nan"), 2.0], requires_grad=True)
    sums, counts = domain_loss(losses, torch.tensor([0, 1, 0]), 2)
    assert sums[0] == 3.0
    assert sums[1].isnan()
    assert counts.tolist() == [2, 1]
    assert not sums.requires_grad


def test_nothing():
    sums, counts = domain_loss(torch.empty(0), torch.empty(0, dtype=torch.int64), 3)
    assert sums.tolist() == [0.0] * 3
    assert counts.tolist() == [0] * 3


@pytest.mark.parametrize(
    ("ids", "num_domains", "message"),
    [
        (torch.zeros(4, dtype=torch.int64), 2, "4 domain ids do not fit 6 tokens"),
        (torch.zeros(0, dtype=torch.int64), 2, "0 domain ids"),
        (torch.zeros(6), 2, "must be integers"),
        (torch.zeros(6, dtype=torch.int64), 0, "at least 1"),
    ],
)
def test_wrong_input_is_named(ids, num_domains, message):
    with pytest.raises(ValueError, match=message):
        domain_loss(torch.ones(6), ids, num_domains)


@pytest.mark.parametrize("ids", [(8,), (2,), (6, 4), (2, 12)])
def test_ids_of_other_dimensions_than_the_losses_are_refused(ids):
    """Their numbers fit: a whole batch's with a part of its tokens, a transposed tensor's."""
    with pytest.raises(ValueError, match=r"are not of the leading dimensions of token_losses, \(4, 1, 6\)"):
        domain_loss(torch.ones(4, 1, 6), torch.zeros(ids, dtype=torch.int64), 2)


@pytest.mark.parametrize("ids", [(), (1,), (4,), (4, 1), (24,), (4, 6), (4, 1, 6)])
def test_ids_of_the_leading_dimensions_are_taken(ids):
    assert domain_loss(torch.ones(4, 1, 6), torch.zeros(ids, dtype=torch.int64), 1)[1].item() == 24
