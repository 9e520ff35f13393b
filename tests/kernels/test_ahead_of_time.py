"""Every Triton kernel compiles for sm_80, sm_90, sm_100 and gfx942, within stated registers, spills and shared memory.

Compiled ahead of time, no GPU: `cuobjdump` and `nvdisasm` come with triton. Limits are what triton 3.8 gives and some
32 registers (3.6 to 3.9 differ by 0 to 30 in pipelined kernels): a change that spills or loses 128-bit accesses
fails here, not in a profile weeks later. Pointers and strides are declared divisible by 16, as torch's are; without
that no access is 128 bits wide. Matmuls of tensor descriptors must load by TMA and multiply on the tensor cores.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from ado_kernels.ops.domain_loss import gpu as domain_loss  # noqa: E402
from ado_kernels.ops.launch import Launch, entry  # noqa: E402
from ado_kernels.ops.linear_cross_entropy import exponentials, gpu, softmax_pass  # noqa: E402
from ado_kernels.ops.rms_norm import gpu as rms_norm  # noqa: E402
from ado_kernels.ops.rms_norm_rope import gpu as rms_norm_rope  # noqa: E402
from ado_kernels.ops.swiglu import gpu as swiglu  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, "gfx942": 64 << 10}


@dataclass(frozen=True)
class Case:
    """A kernel as it is launched, and its limits. wide: 128-bit loads that must be there; tiles: of descriptors."""

    kernel: object
    constants: dict
    plan: Launch
    registers: int
    types: dict = field(default_factory=dict)
    wide_loads: int = 0
    stack_bytes: int = 0

    @property
    def by_descriptor(self):
        return any(type_.startswith("tensordesc") for type_ in self.types.values())


def norm(width, registers, architecture="", residual=False):
    plan = entry("rms_norm", width, architecture)
    constants = {"HAS_WEIGHT": True, "HAS_RESIDUAL": residual, "ACC": tl.float32, "ROWS": plan.rows, "BLOCK_D": width}
    return Case(rms_norm.rms_norm_forward_kernel, constants, plan, registers, {"rstd_ptr": "*fp32"}, 2 + residual)


def norm_backward(width, registers, architecture="", residual=False, stack_bytes=0):
    plan = entry("rms_norm_backward", width, architecture)
    constants = {"HAS_WEIGHT": True, "HAS_DTOTAL": residual, "ACC": tl.float32}
    constants |= {"ROWS": plan.rows, "BLOCK_D": width, "STAGES": plan.stages}
    types = {"rstd_ptr": "*fp32", "partial_ptr": "*fp32"}
    return Case(rms_norm.rms_norm_backward_kernel, constants, plan, registers, types, 5, stack_bytes)


def matmul(kernel, registers, tiles, types, **constants):
    """A matmul of tensor descriptors; tiles: the sides of each descriptor's block, and its dtype if not bf16."""
    plan, sizes = entry("exponentials", 0), exponentials.TILE
    blocks = {
        name: f"tensordesc<{'fp32' if name in types else 'bf16'}[{sizes[rows]}, {sizes[columns]}]>"
        for name, (rows, columns) in tiles.items()
    }
    return Case(kernel, {"STAGES": plan.stages, **sizes, **constants}, plan, registers, types | blocks)


def rope(width, registers):
    plan = entry("rms_norm_rope", width)
    constants = {"ACC": tl.float32, "ROWS": plan.rows, "HALF": width // 2}
    types = dict.fromkeys(("weight_ptr", "cos_ptr", "sin_ptr", "rstd_ptr"), "*fp32")
    return Case(rms_norm_rope.rms_norm_rope_forward_kernel, constants, plan, registers, types, 4)


def rope_backward(width, registers):
    plan = entry("rms_norm_rope_backward", width)
    constants = {"ACC": tl.float32, "ROWS": plan.rows, "HALF": width // 2, "STAGES": plan.stages}
    types = dict.fromkeys(("weight_ptr", "cos_ptr", "sin_ptr", "rstd_ptr", "partial_ptr"), "*fp32")
    return Case(rms_norm_rope.rms_norm_rope_backward_kernel, constants, plan, registers, types, 6)


WIDE = {"ACC": tl.float32}
FACTORS = {"factors_ptr": "*fp32", "hot_ptr": "*i32"}
CASES = {
    **{f"rms_norm {width}": norm(width, 72) for width in (64, 512, 2048, 8192)},
    "rms_norm 16384": norm(16384, 64),
    "add_rms_norm 2048": norm(2048, 72, residual=True),
    **{f"rms_norm_backward {width}": norm_backward(width, 160) for width in (64, 512, 2048)},
    "rms_norm_backward 8192": norm_backward(8192, 128),
    # 32 warps leave 64 registers a thread: the one kernel that spills, 16 to 35 stores a row, in the L1 cache.
    "rms_norm_backward 16384": norm_backward(16384, 64, stack_bytes=144),
    "add_rms_norm_backward 2048": norm_backward(2048, 160, residual=True),
    "rms_norm_rope 64": rope(64, 72),
    "rms_norm_rope_backward 64": rope_backward(64, 160),
    "rms_norm_rope_backward 256": rope_backward(256, 160),
    "sum_partials": Case(
        rms_norm.sum_partials_kernel, {"BLOCK_G": 32, "BLOCK_D": 64}, Launch(), 72, {"partial_ptr": "*fp32"}, 4
    ),
    "swiglu": Case(swiglu.swiglu_forward_kernel, WIDE | {"BLOCK": 2048}, entry("swiglu", 0), 64, {}, 4),
    "swiglu_backward": Case(swiglu.swiglu_backward_kernel, WIDE | {"BLOCK": 2048}, entry("swiglu", 0), 80, {}, 6),
    **{
        f"softmax_gradient {grad}": Case(
            softmax_pass.softmax_gradient_kernel,
            WIDE | {"WITH_GRAD": grad, "BLOCK_V": 4096},
            entry("softmax_gradient", 0),
            96,
            {"targets_ptr": "*i64", "losses_ptr": "*fp32", "squares_ptr": "*fp32"},
            2,
        )
        for grad in (False, True)
    },
    "exponentials": matmul(
        exponentials.exponentials_kernel,
        255,
        {"hidden": ("LONG", "DEEP"), "weight": ("WIDE", "DEEP"), "exponentials": ("LONG", "WIDE")},
        {"targets_ptr": "*i64", "highest_ptr": "*fp32", "sums_ptr": "*fp32", "at_target_ptr": "*fp32"},
        WITH_GRAD=True,
    ),
    "exponentials hidden_gradient": matmul(
        exponentials.hidden_gradient_kernel,
        224,
        {"exponentials": ("LONG", "DEEP"), "weight": ("DEEP", "WIDE"), "gradient": ("LONG", "WIDE")},
        FACTORS,
    ),
    "exponentials weight_gradient": matmul(
        exponentials.weight_gradient_kernel,
        240,
        {"exponentials": ("DEEP", "LONG"), "hidden": ("DEEP", "WIDE"), "gradient": ("LONG", "WIDE")},
        FACTORS | {"gradient": "*fp32"},
        FIRST=False,
    ),
    "glue": Case(
        exponentials.glue_kernel,
        {"WITH_GRAD": True, "TILES": 256, "ROWS": 16},
        Launch(),
        192,
        {f"{name}_ptr": "*fp32" for name in ("factors", "sums", "at_target", "losses", "squares")}
        | {"targets_ptr": "*i64", "hot_ptr": "*i32"},
        4,
    ),
    "scale_gradient": Case(
        gpu.scale_gradient_kernel,
        {"BLOCK": 2048},
        Launch(),
        64,
        {"gradient_ptr": "*fp32", "dloss_ptr": "*fp32", "inverse_ptr": "*fp64"},
        4,
    ),
    # Bound by its comparisons, N x K of them, not by loads: one token a thread, so none is 128 bits wide.
    "domain_loss": Case(
        domain_loss.domain_loss_kernel,
        {"BLOCK_N": 128, "BLOCK_K": 16},
        Launch(),
        96,
        {"losses_ptr": "*fp32", "ids_ptr": "*i64", "sums_ptr": "*fp64", "counts_ptr": "*i64"},
    ),
    "sum_slabs": Case(
        domain_loss.sum_slabs_kernel,
        {"BLOCK_K": 64},
        Launch(warps=2),
        64,
        {"slab_sums_ptr": "*fp64", "slab_counts_ptr": "*i64", "sums_ptr": "*fp64", "counts_ptr": "*i64"},
    ),
}
# A workgroup on gfx942 has at most 16 wavefronts of 64.
AMD_CASES = {name: case for name, case in CASES.items() if not case.by_descriptor} | {
    "rms_norm 16384": norm(16384, 64, "gfx942"),
    "rms_norm_backward 16384": norm_backward(16384, 64, "gfx942"),
}
NVIDIA_CASES = [
    (name, architecture)
    for name, case in CASES.items()
    for architecture in (80, 90, 100)
    if architecture >= 90 or not case.by_descriptor  # the launch table refuses descriptors before sm_90
]


def test_no_kernel_is_missing():
    compiled_here = {case.kernel for case in CASES.values()}
    for module in (domain_loss, exponentials, gpu, rms_norm, rms_norm_rope, softmax_pass, swiglu):
        kernels = {value for name, value in vars(module).items() if name.endswith("_kernel")}
        assert kernels
        assert kernels <= compiled_here


def compiled(case, target):
    names = case.kernel.arg_names
    types = {name: case.types.get(name, _default_type(name)) for name in names if name not in case.constants}
    aligned = [
        n
        for n in types
        if types[n].startswith("*") or n.endswith("stride") or n in ("width", "vocabulary", "size", "num_rows")
    ]
    source = ASTSource(
        case.kernel,
        {name: types.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in case.constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(source, target=target, options=case.plan.options())


def _default_type(name):
    if name.endswith("_ptr"):
        return "*bf16"
    return "fp32" if name in ("eps", "z_loss") else "i32"


def disassembled(kernel, tool, *flags):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([TOOLS / tool, *flags, file.name], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize(("name", "architecture"), NVIDIA_CASES)
def test_nvidia(name, architecture):
    case = CASES[name]
    kernel = compiled(case, GPUTarget("cuda", architecture, 32))
    usage = disassembled(kernel, "cuobjdump", "-res-usage")
    code = disassembled(kernel, "nvdisasm", "-c")
    found = {key: int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL")}
    assert found["REG"] <= case.registers
    # Spills show as a stack with STL and LDL instructions, not as LOCAL.
    assert found["STACK"] <= case.stack_bytes
    assert found["LOCAL"] == 0
    if case.stack_bytes == 0:
        assert "STL" not in code
    assert kernel.metadata.shared <= SHARED_BYTES[architecture]
    assert len(re.findall(r"LDG(?:STS)?\.E\S*\.128", code)) >= case.wide_loads
    if case.by_descriptor:
        assert code.count("UTMALDG") >= 2 * (case.plan.stages - 1)  # two operands, in the prologue alone
        assert code.count({90: "HGMMA", 100: "UTCHMMA"}[architecture]) >= exponentials.TILE["DEEP"] // 16
        assert "UTMASTG" in code


@pytest.mark.slow
@pytest.mark.parametrize("name", AMD_CASES)
def test_amd(name):
    case = AMD_CASES[name]
    kernel = compiled(case, GPUTarget("hip", "gfx942", 64))
    code = kernel.asm["amdgcn"]
    assert int(re.search(r"NumVgprs: (\d+)", code)[1]) <= case.registers + 64
    assert int(re.search(r"ScratchSize: (\d+)", code)[1]) == 0
    assert kernel.metadata.shared <= SHARED_BYTES["gfx942"]
    # Tiles of 1,024 elements give each of 256 threads four of them: 64 bits of bf16.
    assert len(re.findall(r"(?:global|buffer)_load_dwordx[24]", code)) >= bool(case.wide_loads)
