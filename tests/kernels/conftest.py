"""What the kernel tests share: outputs that start as NaN between guards, so that an element that no kernel wrote shows,
and one that none should have written; rows far apart.
"""

import mmap

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Guards:
    """Allocations filled with NaN (integers: their least value), with as much again before and behind them."""

    SIZE = 4096  # elements: what runs past an end runs into them first

    def __init__(self):
        self._held = []

    def around(self, allocate):
        """`allocate`, but filled and guarded."""

        def allocate_guarded(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            poison = float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min
            span = tensor.untyped_storage().nbytes() // tensor.element_size()
            memory = torch.full((span + 2 * self.SIZE,), poison, dtype=tensor.dtype, device=tensor.device)
            self._held.append((memory, poison))
            return tensor.set_(memory.untyped_storage(), self.SIZE, tensor.shape, tensor.stride())

        return allocate_guarded

    def check(self):
        """Raises AssertionError where a guard was written to."""
        for memory, poison in self._held:
            for guard in (memory[: self.SIZE], memory[-self.SIZE :]):
                assert bool((guard.isnan() if poison != poison else guard == poison).all()), "written out of bounds"


@pytest.fixture
def poisoned(monkeypatch):
    """Makes torch.empty and its relatives guarded allocations until the test ends, and checks the guards then."""
    guards = Guards()
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, guards.around(getattr(owner, name)))
    yield
    guards.check()


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
