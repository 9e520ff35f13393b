"""Implementations of the mean loss of (hidden, weight, targets, domain ids): ours and others'.

Each is imported or compiled when it is made; what the installed version lacks is absent. The calls are those of
Liger-Kernel ead96b61, quack c8ec317 and ml-cross-entropy d42911f.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ado_kernels import linear_cross_entropy
from ado_kernels.ops.launch import METHODS, device_architecture, read_table, using
from ado_kernels.ops.linear_cross_entropy.problem import Problem
from benchmarks.kernels.harness import Absent, Bench

NUM_DOMAINS = 22
Function = Callable[..., torch.Tensor]
BEST = ("ours", "Liger", "torch.compile", "F.linear_cross_entropy", "CCE", "quack")  # those that bars name


def implementations(bench: Bench) -> dict[str, Callable[[], Function]]:
    """Name -> what makes it, those of `BEST` first."""
    makes = {
        "ours": lambda: ours,
        "Liger": lambda: _liger(None),
        "torch.compile": lambda: bench.compiled(_eager),
        "F.linear_cross_entropy": lambda: _torch_fused(None),
        "CCE": lambda: _cce("cce"),
        "quack": _quack,
        "torch eager": lambda: _eager,
        "F.linear_cross_entropy by 4096": lambda: _torch_fused(4096),
        "Liger, float32 accumulation": lambda: _liger(torch.float32),
        "CCE, cce_kahan_full_c": lambda: _cce("cce_kahan_full_c"),
    }
    if "exponentials" in methods(bench.device):
        makes["ours by exponentials"] = lambda: by_exponentials
    return makes


def methods(device: torch.device) -> tuple[str, ...]:
    """The methods of ours that the launcher takes on this device, by its own rule."""
    return tuple(method for method in METHODS if takes(device_architecture(device), method))


def takes(architecture: str, method: str) -> bool:
    """Whether the launch table may say `method` for an architecture."""
    op = "linear_cross_entropy"
    try:
        read_table({(op, 0, ""): {"method": METHODS[0]}, (op, 0, architecture): {"method": method}})
    except ValueError:
        return False
    return True


def ours(hidden, weight, targets, ids):
    """Ours as the launch table has it."""
    return linear_cross_entropy(hidden, weight, targets, ids, NUM_DOMAINS)[0]


def by_exponentials(hidden, weight, targets, ids):
    """Ours by this method; AssertionError where the operation would silently fall back to the other."""
    from ado_kernels.ops.linear_cross_entropy.exponentials import can_take

    assert can_take(Problem(hidden, weight, targets, -100, 0.0, True, True, hidden.dtype))
    with using("linear_cross_entropy", method="exponentials"):
        return ours(hidden, weight, targets, ids)


def _eager(hidden, weight, targets, _):
    return F.cross_entropy((hidden @ weight.t()).float(), targets)


def _torch_fused(rows: int | None) -> Function:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise Absent(f"torch {torch.__version__} has no F.linear_cross_entropy with options (2.13 does)")
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
    return lambda hidden, weight, targets, _: F.linear_cross_entropy(hidden, weight, targets, options=options)


def _liger(accumulate: torch.dtype | None) -> Function:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(accum_dtype=accumulate)
    return lambda hidden, weight, targets, _: loss(weight, hidden, targets)


def _cce(preset: str) -> Function:
    from cut_cross_entropy import LinearCrossEntropyImpl
    from cut_cross_entropy import linear_cross_entropy as cut_cross_entropy

    if preset.upper() not in LinearCrossEntropyImpl.__members__:
        raise Absent(f"this cut_cross_entropy has no {preset} (25.1.1, PyPI's, does not)")
    return lambda hidden, weight, targets, _: cut_cross_entropy(hidden, weight, targets, impl=preset)


def _quack() -> Function:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return lambda hidden, weight, targets, _: chunked_linear_cross_entropy(hidden, weight, targets, chunk_size=4096)
