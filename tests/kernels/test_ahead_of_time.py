"""Every Triton kernel compiles for sm_80, sm_90, sm_100 and gfx942, within stated registers, spills and shared memory.

Compiled ahead of time, no GPU; every size class of the launch table. A change that spills, loses 128-bit accesses or
asynchronous matrix products, or that leaves a fixed grid no room to be resident at once, fails here and not in a
profile weeks later.
"""

import pytest

from ado_kernels.ops.linear_cross_entropy.exponentials import TILE
from benchmarks.kernels.compiled import every_case, usage
from benchmarks.kernels.launches import MODULES, SHARED_BYTES, cases


def test_no_kernel_is_missing():
    compiled_here = {case.kernel for case in cases("sm_90").values()}
    for module in MODULES:
        kernels = {value for name, value in vars(module).items() if name.endswith("_kernel")}
        assert kernels
        assert kernels <= compiled_here


@pytest.mark.slow
@pytest.mark.parametrize(("name", "architecture"), list(every_case()))
def test_usage(name, architecture):
    case = cases(architecture)[name]
    used = usage(case, architecture)
    assert used.shared_bytes <= SHARED_BYTES[architecture]
    assert used.narrow_loads + used.narrow_stores <= case.narrow
    if architecture == "gfx942":
        assert used.registers <= case.most_registers + 64
        assert used.stack_bytes <= case.stack_bytes
        # Tiles of 1,024 elements give each of 256 threads four of them: 64 bits of bf16.
        assert used.wide_loads + used.half_wide_loads >= bool(case.wide_loads)
        return
    assert used.registers <= case.registers
    assert used.stack_bytes <= case.stack_bytes
    assert used.spill_stores == 0 or case.stack_bytes
    assert used.wide_loads >= case.wide_loads
    assert used.wide_stores >= case.wide_stores
    if case.by_descriptor:
        assert used.tma_loads >= 2 * (case.plan.stages - 1)  # two operands, in the prologue alone
        assert used.tma_stores == case.constants["WITH_GRAD"]
        assert used.tensor_core >= TILE["DEEP"] // 16
