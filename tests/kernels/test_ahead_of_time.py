"""Every Triton kernel compiles for sm_80, sm_90, sm_100 and gfx942, within stated registers, spills and shared memory.

Compiled ahead of time, no GPU. Limits, in benchmarks/kernels/compiled.py, are what triton 3.8 gives and some 32
registers (3.6 to 3.9 differ by 0 to 30 in pipelined kernels): a change that spills, loses 128-bit accesses, TMA or
tensor cores fails here, not in a profile weeks later.
"""

import pytest

pytest.importorskip("triton")

from ado_kernels.ops.linear_cross_entropy.exponentials import TILE  # noqa: E402
from benchmarks.kernels.compiled import CASES, MODULES, every_case, usage  # noqa: E402

SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}


def test_no_kernel_is_missing():
    compiled_here = {case.kernel for case in CASES.values()}
    for module in MODULES:
        kernels = {value for name, value in vars(module).items() if name.endswith("_kernel")}
        assert kernels
        assert kernels <= compiled_here


@pytest.mark.slow
@pytest.mark.parametrize(("name", "architecture"), list(every_case()))
def test_usage(name, architecture):
    case, used = CASES[name], usage(name, architecture)
    assert used.shared_bytes <= SHARED_BYTES[architecture]
    if architecture == "gfx942":
        assert used.registers <= case.registers + 64
        assert used.stack_bytes == 0
        # Tiles of 1,024 elements give each of 256 threads four of them: 64 bits of bf16.
        assert used.wide_loads + used.half_wide_loads >= bool(case.wide_loads)
        return
    assert used.registers <= case.registers
    assert used.stack_bytes <= case.stack_bytes
    assert used.spill_stores == 0 or case.stack_bytes
    assert used.wide_loads >= case.wide_loads
    if case.by_descriptor:
        assert used.tma_loads >= 2 * (case.plan.stages - 1)  # two operands, in the prologue alone
        assert used.tma_stores
        assert used.tensor_core >= TILE["DEEP"] // 16
