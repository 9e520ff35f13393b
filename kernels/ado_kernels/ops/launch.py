"""How Triton kernels are launched: one table by operation, size class and architecture, and nothing tuned at run time.

Autotuning while training stalls for seconds at every new shape and may choose differently on each rank, hence other
bits and collective timeouts. The entries follow from what the compiler reports (registers, spills, see
tests/kernels/test_ahead_of_time.py) and from how many bytes must be in flight per multiprocessor; a row for one
architecture, keyed (op, size class, "sm_90"), takes precedence over the row for all.

Bits: `programs`, the grid of a reduction over rows, must not depend on the architecture, so that sums are grouped
alike on every GPU; `launch` reads it from the row for all.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Launch:
    """rows: rows of a tile; warps: per program; stages: of the software pipeline; programs: grid of a row reduction."""

    rows: int = 1
    warps: int = 4
    stages: int = 1
    programs: int = 0


_TABLE: dict[tuple[str, int, str], Launch] = {
    # Size class: the width rounded up to a power of two, at least 64.
    ("rms_norm", 64, ""): Launch(rows=16),
    ("rms_norm", 128, ""): Launch(rows=16),
    ("rms_norm", 256, ""): Launch(rows=8),
    ("rms_norm", 512, ""): Launch(rows=4),
    ("rms_norm", 1024, ""): Launch(rows=2),
    ("rms_norm", 2048, ""): Launch(),
    ("rms_norm", 4096, ""): Launch(warps=8),
    ("rms_norm", 8192, ""): Launch(warps=16),
    ("rms_norm", 16384, ""): Launch(warps=32),
    ("rms_norm_backward", 64, ""): Launch(rows=16, stages=3, programs=528),
    ("rms_norm_backward", 128, ""): Launch(rows=16, stages=3, programs=528),
    ("rms_norm_backward", 256, ""): Launch(rows=8, stages=3, programs=528),
    ("rms_norm_backward", 512, ""): Launch(rows=4, stages=3, programs=528),
    ("rms_norm_backward", 1024, ""): Launch(rows=2, stages=3, programs=528),
    ("rms_norm_backward", 2048, ""): Launch(stages=3, programs=528),
    ("rms_norm_backward", 4096, ""): Launch(warps=8, stages=3, programs=264),
    ("rms_norm_backward", 8192, ""): Launch(warps=16, stages=2, programs=132),
    ("rms_norm_backward", 16384, ""): Launch(warps=32, stages=2, programs=132),
    # Size class 0: one entry whatever the size.
    ("swiglu", 0, ""): Launch(warps=4),
    ("softmax_gradient", 0, ""): Launch(warps=8),
    # rows: hidden states per chunk of logits.
    ("linear_cross_entropy", 0, ""): Launch(rows=4096),
    ("linear_cross_entropy", 1024, ""): Launch(rows=5632),
}


def size_class(width: int) -> int:
    """The power of two that covers `width`, at least 64."""
    return max(1 << (width - 1).bit_length(), 64)


def launch(op: str, width: int = 0, device: torch.device | None = None) -> Launch:
    """The entry of `op` for this width and device; ValueError for a width no entry covers."""
    key = size_class(width) if width else 0
    common = _TABLE.get((op, key, ""))
    if common is None:
        raise ValueError(f"{op}: no launch entry for width {width}; the widest is 16384")
    special = _TABLE.get((op, key, _architecture(device)), common)
    return Launch(special.rows, special.warps, special.stages, common.programs)


def _architecture(device: torch.device | None) -> str:
    if device is None or device.type != "cuda":
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
