"""What the compiler makes of every Triton kernel for sm_80, sm_90, sm_100 and gfx942; no GPU needed.

    python -m benchmarks.kernels.compiled

Registers, spills, shared memory, 128-bit loads, TMA and tensor-core instructions, read from the machine code
(`cuobjdump` and `nvdisasm` come with triton) and written to benchmarks/results/kernels_compiled.json.
tests/kernels/test_ahead_of_time.py holds them to the limits that stand here. Pointers, strides and sizes are declared
divisible by 16, as torch's are; without that no access is 128 bits wide.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ado_kernels.ops.domain_loss import gpu as domain_loss
from ado_kernels.ops.launch import Launch, entry
from ado_kernels.ops.linear_cross_entropy import exponentials, gpu, softmax_pass
from ado_kernels.ops.rms_norm import gpu as rms_norm
from ado_kernels.ops.rms_norm_rope import gpu as rms_norm_rope
from ado_kernels.ops.swiglu import gpu as swiglu
from benchmarks.common import write_result

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
MODULES = (domain_loss, exponentials, gpu, rms_norm, rms_norm_rope, softmax_pass, swiglu)
TENSOR_CORES = {"sm_80": r"HMMA\.", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}


@dataclass(frozen=True)
class Case:
    """A kernel as it is launched, and its limits. wide_loads: 128-bit loads that must be there."""

    kernel: Any
    constants: dict[str, Any]
    plan: Launch
    registers: int
    types: dict[str, str] = field(default_factory=dict)
    wide_loads: int = 0
    stack_bytes: int = 0

    @property
    def by_descriptor(self) -> bool:
        """Whether operands come as tensor descriptors (TMA)."""
        return any(type_.startswith("tensordesc") for type_ in self.types.values())


def norm(width: int, registers: int, architecture: str = "", residual: bool = False, stack_bytes: int = 0) -> Case:
    """RMSNorm forward, with or without a residual."""
    plan = entry("rms_norm", width, architecture)
    constants = {"HAS_WEIGHT": True, "HAS_RESIDUAL": residual, "ACC": tl.float32, "ROWS": plan.rows, "BLOCK_D": width}
    types, loads = {"rstd_ptr": "*fp32"}, 2 + residual
    return Case(rms_norm.rms_norm_forward_kernel, constants, plan, registers, types, loads, stack_bytes)


def norm_backward(
    width: int, registers: int, architecture: str = "", residual: bool = False, stack_bytes: int = 0
) -> Case:
    """RMSNorm backward, with or without a gradient of the sum."""
    plan = entry("rms_norm_backward", width, architecture)
    constants = {"HAS_WEIGHT": True, "HAS_DTOTAL": residual, "ACC": tl.float32}
    constants |= {"ROWS": plan.rows, "BLOCK_D": width, "STAGES": plan.stages}
    types = {"rstd_ptr": "*fp32", "partial_ptr": "*fp32"}
    return Case(rms_norm.rms_norm_backward_kernel, constants, plan, registers, types, 5, stack_bytes)


def matmul(
    kernel: Any, registers: int, tiles: dict[str, tuple[str, str]], types: dict[str, str], **constants: Any
) -> Case:
    """A matmul of tensor descriptors; tiles: the sides of each block, bf16 unless `types` names the descriptor."""
    plan, sizes = entry("exponentials", 0), exponentials.TILE
    blocks = {
        name: f"tensordesc<{'fp32' if name in types else 'bf16'}[{sizes[rows]}, {sizes[columns]}]>"
        for name, (rows, columns) in tiles.items()
    }
    return Case(kernel, {"STAGES": plan.stages, **sizes, **constants}, plan, registers, types | blocks)


def rope(width: int, registers: int) -> Case:
    """RMSNorm and rotary embedding, forward."""
    plan = entry("rms_norm_rope", width)
    constants = {"ACC": tl.float32, "ROWS": plan.rows, "HALF": width // 2}
    types = dict.fromkeys(("weight_ptr", "cos_ptr", "sin_ptr", "rstd_ptr"), "*fp32")
    return Case(rms_norm_rope.rms_norm_rope_forward_kernel, constants, plan, registers, types, 4)


def rope_backward(width: int, registers: int) -> Case:
    """RMSNorm and rotary embedding, backward."""
    plan = entry("rms_norm_rope_backward", width)
    constants = {"ACC": tl.float32, "ROWS": plan.rows, "HALF": width // 2, "STAGES": plan.stages}
    types = dict.fromkeys(("weight_ptr", "cos_ptr", "sin_ptr", "rstd_ptr", "partial_ptr"), "*fp32")
    return Case(rms_norm_rope.rms_norm_rope_backward_kernel, constants, plan, registers, types, 6)


WIDE = {"ACC": tl.float32}
FACTORS = {"factors_ptr": "*fp32", "hot_ptr": "*i32"}
CASES = {
    **{f"rms_norm {width}": norm(width, 72) for width in (64, 512, 2048, 8192)},
    "rms_norm 16384": norm(16384, 64, stack_bytes=8),  # triton 3.6 keeps one word there, later ones none
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
        240,
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
AMD_CASES = {
    "rms_norm 16384": norm(16384, 64, "gfx942"),
    "rms_norm_backward 16384": norm_backward(16384, 64, "gfx942"),
}


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture; registers are VGPRs on gfx942, wide loads 128 bits, half wide 64."""

    registers: int
    stack_bytes: int
    spill_stores: int
    shared_bytes: int
    wide_loads: int
    half_wide_loads: int
    tma_loads: int
    tma_stores: int
    tensor_core: int


def main() -> None:
    """Prints and writes the usage of every case."""
    used = {f"{name}, {architecture}": asdict(usage(name, architecture)) for name, architecture in every_case()}
    write_result("kernels_compiled", {"note": "Compiled ahead of time; no GPU was at hand.", "usage": used})


def every_case() -> Iterator[tuple[str, str]]:
    """(name, architecture) of all that may be launched: the launch table refuses descriptors before sm_90."""
    for name, case in CASES.items():
        architectures = ("sm_90", "sm_100") if case.by_descriptor else ("sm_80", "sm_90", "sm_100", "gfx942")
        yield from ((name, architecture) for architecture in architectures)


def usage(name: str, architecture: str) -> Usage:
    """Compiles one case and reads its machine code."""
    case = AMD_CASES.get(name, CASES[name]) if architecture == "gfx942" else CASES[name]
    if architecture == "gfx942":
        kernel = _compile(case, GPUTarget("hip", architecture, 64))
        return _read_amd(kernel.asm["amdgcn"], kernel.metadata.shared)
    kernel = _compile(case, GPUTarget("cuda", int(architecture[3:]), 32))
    resources, code = _disassembled(kernel, "cuobjdump", "-res-usage"), _disassembled(kernel, "nvdisasm", "-c")
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", resources)[1]) for key in ("REG", "STACK", "LOCAL"))
    return Usage(
        registers,
        stack + local,  # spills show as a stack with STL and LDL instructions; LOCAL stays 0
        code.count("STL"),
        kernel.metadata.shared,
        *(len(re.findall(rf"LDG(?:STS)?\.E\S*\.{bits}", code)) for bits in (128, 64)),
        code.count("UTMALDG"),
        code.count("UTMASTG"),
        len(re.findall(TENSOR_CORES[architecture], code)),
    )


def _read_amd(code: str, shared_bytes: int) -> Usage:
    def number(key: str) -> int:
        return int(re.search(rf"{key}: (\d+)", code)[1])

    loads = (len(re.findall(rf"(?:global|buffer)_load_dwordx{words}", code)) for words in (4, 2))
    tensor_core = code.count(TENSOR_CORES["gfx942"])
    return Usage(number("NumVgprs"), number("ScratchSize"), 0, shared_bytes, *loads, 0, 0, tensor_core)


def _compile(case: Case, target: GPUTarget) -> Any:
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


def _default_type(name: str) -> str:
    if name.endswith("_ptr"):
        return "*bf16"
    return "fp32" if name in ("eps", "z_loss") else "i32"


def _disassembled(kernel: Any, tool: str, *flags: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([TOOLS / tool, *flags, file.name], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
