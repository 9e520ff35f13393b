"""Every Triton kernel compiles for sm_80, sm_90, sm_100 and gfx942, within stated registers, spills and shared memory.

No GPU is needed; every size class of the launch table. A change that spills, loses 128-bit accesses, or leaves a grid
of fixed size no room to be resident at once, fails here and not in a profile weeks later.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from ado_kernels.fit import triton_points, triton_search
from ado_kernels.ops.domain_loss import gpu as domain_loss
from tests.kernels import compiled

MULTIPROCESSORS, REGISTERS = 132, 65536  # of an H200; registers of one multiprocessor


@dataclass(frozen=True)
class Limits:
    """Registers: what Triton 3.8 needs and some 32 more, for 3.6 to 3.9 differ by up to 30.

    resident: all programs must be so at once on an H200, since a second wave would nearly double the time.
    wide_loads, wide_stores: accesses of 128 bits that there must be at least; narrow: of 16 bits, at most.
    """

    registers: int
    wide_loads: int = 0
    wide_stores: int = 0
    stack_bytes: int = 0
    narrow: int = 0
    resident: bool = False


def norm_stack(c: SimpleNamespace) -> int:
    """32 warps leave 64 registers a thread: the one kernel that spills, 16 to 40 stores a row, in the L1 cache.

    Where float32 leaves no room for a pipeline (sm_80), Triton 3.6 makes it 122.
    """
    return (384 if c.dtype == torch.float32 else 160) if c.BLOCK_D == 16384 else 0


# By kernel, of its compile-time constants `c`. The norms' weight: one or two warps read a row of it.
LIMITS = {
    "rms_norm_forward_kernel": lambda c: Limits(
        80,
        wide_loads=1 + c.HAS_RESIDUAL,
        wide_stores=1 + c.HAS_RESIDUAL,
        stack_bytes=8 if c.BLOCK_D == 16384 else 0,  # Triton 3.6 keeps one word there, later ones none
        narrow=c.HAS_WEIGHT and c.BLOCK_D <= 256,
    ),
    "rms_norm_backward_kernel": lambda c: Limits(
        160,
        wide_loads=2 + c.HAS_DTOTAL,
        wide_stores=1,
        stack_bytes=norm_stack(c),
        narrow=c.HAS_WEIGHT and c.BLOCK_D <= 256,
        resident=True,
    ),
    "sum_partials_kernel": lambda c: Limits(80, wide_loads=4, narrow=1),
    "rms_norm_rope_forward_kernel": lambda c: Limits(80, wide_loads=4, wide_stores=2),
    "rms_norm_rope_backward_kernel": lambda c: Limits(160, wide_loads=6, wide_stores=2, resident=True),
    "swiglu_forward_kernel": lambda c: Limits(64, wide_loads=4, wide_stores=2),
    "swiglu_backward_kernel": lambda c: Limits(80, wide_loads=6, wide_stores=4),
    # Two programs of 16 warps on a multiprocessor: with more rows in flight the L2 cache would overflow.
    "softmax_gradient_kernel": lambda c: Limits(64, wide_loads=1 + c.WITH_GRAD, wide_stores=2 * c.WITH_GRAD, narrow=1),
    "scale_gradient_kernel": lambda c: Limits(64, wide_loads=4, wide_stores=2),
    # Bound by its comparisons, N x K of them, not by loads: one token a thread, so none is 128 bits wide.
    "domain_loss_kernel": lambda c: Limits(128),
    "sum_slabs_kernel": lambda c: Limits(128),
    # The stack of two: a call's frame; Triton 3.6 spills three words.
    "smooth_kernel": lambda c: Limits(64, stack_bytes=24),
    "bin_kernel": lambda c: Limits(80),
    "coarse_kernel": lambda c: Limits(255),
    "refine_kernel": lambda c: Limits(255),
    "choose_kernel": lambda c: Limits(255, stack_bytes=24),
}


def test_no_kernel_is_missing():
    modules = (domain_loss, compiled.gpu, compiled.rms_norm, compiled.rms_norm_rope, compiled.swiglu)
    modules += (triton_points, triton_search)
    for module in modules:
        kernels = {name for name in vars(module) if name.endswith("_kernel")}
        assert kernels
        assert kernels <= LIMITS.keys()


def test_the_calls_launch_every_kernel(monkeypatch):
    launched = set()
    monkeypatch.setattr(compiled.JITFunction, "run", lambda kernel, *_, **__: launched.add(kernel.__name__))
    for name in compiled.CALLS:
        compiled.compiled(name, "sm_90")
    assert launched == LIMITS.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "call"),
    [(architecture, call) for architecture in compiled.SHARED_BYTES for call in compiled.CALLS],
)
def test_usage(architecture, call):
    for launch in compiled.compiled(call, architecture):
        used, limits = launch.usage(), LIMITS[launch.name](launch.constants)
        what = f"{launch.name}: {used}"
        assert used["shared_bytes"] <= compiled.SHARED_BYTES[architecture], what
        assert used["narrow_loads"] + used["narrow_stores"] <= limits.narrow, what
        assert used["stack_bytes"] <= limits.stack_bytes, what
        if architecture == "gfx942":
            assert used["registers"] <= limits.registers + 64, what
            # Tiles of 1,024 elements give each of 256 threads four of them: 64 bits of bf16.
            assert used["wide_loads"] + used["half_wide_loads"] >= bool(limits.wide_loads), what
            continue
        at_once = -(-launch.programs // MULTIPROCESSORS) if limits.resident else 1
        assert used["registers"] <= min(
            limits.registers, REGISTERS // (at_once * 32 * launch.constants.warps) // 8 * 8
        ), what
        assert used["spill_stores"] == 0 or limits.stack_bytes, what
        assert used["wide_loads"] >= limits.wide_loads, what
        assert used["wide_stores"] >= limits.wide_stores, what
