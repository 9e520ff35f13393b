"""Tensors as rows: views where they will do, and aligned bases where they pay."""

from pathlib import Path

import pytest
import torch

import ado_kernels
from ado_kernels.ops.triton_operands import as_rows


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (5,), (2, 3, 8)])
def test_rows_of_any_shape(shape):
    x, shape = torch.rand(shape), torch.Size(shape)
    assert torch.equal(as_rows(x), x.reshape(shape[:-1].numel(), shape[-1]))


def test_a_base_between_multiples_of_16_bytes_is_copied_where_it_would_cost_wide_accesses():
    wide = torch.rand(5, 64)
    at_once, odd_rows = wide[:, 4:36], torch.rand(5, 65)[:, 1:33]
    misplaced = wide[:, 5:37]
    assert as_rows(at_once).data_ptr() == at_once.data_ptr()
    assert as_rows(odd_rows).data_ptr() == odd_rows.data_ptr()
    assert as_rows(misplaced).data_ptr() % 16 == 0
    assert torch.equal(as_rows(misplaced), misplaced)


def test_no_kernel_rounds_up_by_a_sum_that_may_wrap():
    """num_blocks counts them (interpreted_rms_norm.py); tl.cdiv adds first, in the 32 bits of its argument."""
    files = Path(ado_kernels.__file__).parent.rglob("*.py")
    assert [file.name for file in files if "tl.cdiv(" in file.read_text()] == []
