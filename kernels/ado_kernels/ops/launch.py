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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ado_kernels.ops.launch_table import TABLE

Key = tuple[str, int, str]
METHODS = ("softmax_pass", "exponentials")
# Operations whose sums over rows must be grouped alike on every NVIDIA GPU.
SAME_BITS = ("rms_norm_backward", "rms_norm_rope_backward")


@dataclass(frozen=True)
class Launch:
    """rows: of a tile or chunk; block: elements taken at a time; warps: per program; stages: of the software pipeline;
    programs: of a sum over rows.

    method: for linear_cross_entropy, "softmax_pass" or "exponentials" (tensor descriptors: sm_90 and later).
    """

    rows: int = 1
    block: int = 0
    warps: int = 4
    stages: int = 1
    programs: int = 0
    method: str = ""

    def options(self) -> dict[str, Any]:
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
def using(op: str, **fields: Any) -> Iterator[None]:
    """Runs the body with these fields changed in every entry of `op`: for tests and for the tuner."""
    global _table
    before = _table
    _table = {key: replace(plan, **fields) if key[0] == op else plan for key, plan in before.items()}
    try:
        yield
    finally:
        _table = before


def read_table(table: Mapping[Key, Mapping[str, Any]]) -> dict[Key, Launch]:
    """The checked entries. Raises ValueError that names the row and what is wrong with it."""
    plans = {}
    for key, fields in table.items():
        try:
            plans[key] = plan = Launch(**fields)
            _check(key, plan, plans)
        except (TypeError, ValueError) as error:
            raise ValueError(f"launch table, row {key}: {error}") from None
    return plans


def _check(key: Key, plan: Launch, before: Mapping[Key, Launch]) -> None:
    op, width, architecture = key
    if width and width != size_class(width):
        raise ValueError(f"size class {width} is not a power of two from 64")
    if (
        plan.warps not in (1, 2, 4, 8, 16, 32)
        or not 1 <= plan.stages <= 8
        or min(plan.rows - 1, plan.block, plan.programs) < 0
    ):
        raise ValueError(f"{plan} is out of range")
    if (plan.method in METHODS) != (op == "linear_cross_entropy"):
        raise ValueError(f"method {plan.method!r}; linear_cross_entropy has {METHODS}, other operations none")
    if plan.method == "exponentials" and not (architecture.startswith("sm_") and int(architecture[3:]) >= 90):
        raise ValueError("method 'exponentials' needs tensor descriptors: sm_90 or later")
    common = before.get((op, width, ""))
    if architecture and common is None:
        raise ValueError("the row for all architectures must come first")
    if op in SAME_BITS and architecture.startswith("sm_"):
        changed = [name for name, value in asdict(plan).items() if name != "stages" and value != getattr(common, name)]
        if changed:
            raise ValueError(f"{changed} decide the bits of {op} and must be those of the row for all")


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


_table = read_table(TABLE)
