"""How Triton kernels are launched: one table by operation, size class and architecture, and nothing tuned at run time.

Autotuning while training stalls for seconds at every new shape and may choose differently on each rank, hence other
bits and collective timeouts. The table is data, launch_table.py: the rows for all architectures follow from what the
compiler reports (registers, spills, see tests/kernels/test_ahead_of_time.py) and from how many bytes must be in flight
per multiprocessor; `python -m benchmarks.kernels --tune` measures on the GPU at hand and writes rows for it.

Bits: what groups a sum over rows (rows of a tile, warps, programs) is the same on every NVIDIA GPU, so a row for one
of them may change the `stages` of such an operation and nothing else. Floating-point contraction is asked for
explicitly, because its default differs between versions of Triton.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ado_kernels.ops.launch_table import TABLE

Key = tuple[str, int, str]
# Operations whose sums over rows must be grouped alike on every NVIDIA GPU (tests/kernels/test_launch.py).
SAME_BITS = ("rms_norm_backward", "rms_norm_rope_backward")


@dataclass(frozen=True)
class Launch:
    """rows: of a tile or chunk; block: elements taken at a time; warps: per program; stages: of the software pipeline;
    programs: of a sum over rows.
    """

    rows: int = 1
    block: int = 0
    warps: int = 4
    stages: int = 1
    programs: int = 0

    def options(self) -> dict[str, int]:
        """The compiler's options of a kernel launch."""
        return {"num_warps": self.warps, "enable_fp_fusion": True}


def size_class(width: int) -> int:
    """The power of two that covers `width`, at least 64."""
    return max(1 << (width - 1).bit_length(), 64)


def launch(op: str, width: int = 0, device: torch.device | None = None) -> Launch:
    """The entry of `op` for this width and device; ValueError for a width no entry covers."""
    return entry(op, size_class(width) if width else 0, device_architecture(device))


def entry(op: str, key: int, architecture: str = "") -> Launch:
    """The entry of `op` for a size class and an architecture ("sm_90", "gfx942"; "" for the row for all)."""
    found = _table.get((op, key, architecture)) or _table.get((op, key, ""))
    if found is None:
        widest = max((width for name, width, _ in _table if name == op), default=0)
        raise ValueError(f"{op}: no launch entry for width {key}; the widest is {widest}")
    return found


@contextmanager
def using(op: str, **fields: int) -> Iterator[None]:
    """Runs the body with these fields changed in every entry of `op`: for tests and for the tuner."""
    global _table
    before = _table
    _table = {key: replace(plan, **fields) if key[0] == op else plan for key, plan in before.items()}
    try:
        yield
    finally:
        _table = before


@functools.cache
def shared_memory_bytes(device: torch.device) -> int:
    """Shared memory that one program may use."""
    if device.type != "cuda":
        return 1 << 30  # the interpreter's: no limit
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block if torch.version.hip else properties.shared_memory_per_block_optin)


@functools.cache
def device_architecture(device: torch.device | None) -> str:
    """Key of the device's architecture, as "sm_90" or "gfx942"; empty where there is no GPU."""
    if device is None or device.type != "cuda":
        return ""
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


_table = {key: Launch(**fields) for key, fields in TABLE.items()}
