"""domain_loss's Triton kernels against plain torch in float64, under the interpreter (run by test_interpreter.py).

Tolerance: float64 sums of at most 3,000 terms in another order: 3,000 units of 2^-53.
"""

import pytest
import torch

from ado_kernels.ops.domain_loss import domain_loss_reference
from ado_kernels.ops.domain_loss.gpu import domain_loss_gpu

pytestmark = pytest.mark.usefixtures("poisoned")


def check(losses, ids, num_domains):
    sums, counts = domain_loss_gpu(losses, ids, num_domains)
    expected_sums, expected_counts = domain_loss_reference(losses, ids, num_domains)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-12, atol=0, equal_nan=True)
    assert torch.equal(counts, expected_counts)


@pytest.mark.parametrize(("num_tokens", "num_domains"), [(1, 1), (127, 3), (3000, 22), (300, 600)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ids_per_token_with_strays(num_tokens, num_domains, dtype):
    check(torch.rand(num_tokens, dtype=dtype) * 10, torch.randint(-2, num_domains + 3, (num_tokens,)), num_domains)


def test_ids_per_sequence():
    check(torch.rand(24 * 50), torch.randint(0, 5, (24,), dtype=torch.int32), 7)


def test_nan_stays_in_its_domain():
    losses = torch.rand(40)
    losses[3] = float("nan")
    check(losses, torch.arange(40) % 4, 4)


def test_no_tokens():
    sums, counts = domain_loss_gpu(torch.empty(0), torch.empty(0, dtype=torch.int64), 3)
    assert sums.tolist() == [0.0] * 3
    assert counts.tolist() == [0] * 3
