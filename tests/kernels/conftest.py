"""What the kernel tests share: outputs that start as NaN, so that an element no kernel wrote shows; rows far apart."""

import mmap

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def poisoned(monkeypatch):
    """Makes torch.empty and its relatives return NaN (integers: their least value) until the test ends."""

    def poison(allocate):
        def allocate_poisoned(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)

        return allocate_poisoned

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))


@pytest.fixture
def far_apart():
    """Makes (4, width) float16 tensors whose rows lie 2^30 elements apart: the last two are beyond 32-bit offsets.

    Address space only: no page is backed by memory before it is touched.
    """
    no_reserve = 0x4000  # MAP_NORESERVE, which Python 3.11 does not name

    def place(values):
        num_bytes = (3 * 2**30 + values.shape[1]) * values.element_size()
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
        return torch.frombuffer(memory, dtype=values.dtype).as_strided(values.shape, (2**30, 1)).copy_(values)

    return place
