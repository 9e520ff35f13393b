"""What the compiler makes of every Triton kernel for sm_80, sm_90, sm_100 and gfx942; no GPU needed.

    python -m benchmarks.kernels.compiled

Registers, spills, shared memory, 128-bit loads, TMA and tensor-core instructions, read from the machine code
(`cuobjdump` and `nvdisasm` come with triton) and written to benchmarks/results/kernels_compiled.json.
tests/kernels/test_ahead_of_time.py holds them to the limits in launches.py. Pointers, strides and widths are declared
divisible by 16, as torch's are; without that no access is 128 bits wide. What a launch does not specialise is not.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.common import write_result
from benchmarks.kernels.launches import SHARED_BYTES, Case, cases

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
TENSOR_CORES = {"sm_80": r"HMMA\.", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture; registers are VGPRs on gfx942.

    wide: accesses of global memory of 128 bits, half wide 64, narrow 16; instructions: of the machine code.
    """

    registers: int
    stack_bytes: int
    spill_stores: int
    shared_bytes: int
    wide_loads: int
    half_wide_loads: int
    narrow_loads: int
    wide_stores: int
    narrow_stores: int
    tma_loads: int
    tma_stores: int
    tensor_core: int
    barriers: int
    instructions: int


def main() -> None:
    """Prints and writes the usage of every case."""
    used = {
        f"{name}, {architecture}": asdict(usage(cases(architecture)[name], architecture))
        for name, architecture in every_case()
    }
    write_result("kernels_compiled", {"note": "Compiled ahead of time; no GPU was at hand.", "usage": used})


def every_case() -> Iterator[tuple[str, str]]:
    """(name, architecture) of all that may be launched."""
    for architecture in SHARED_BYTES:
        yield from ((name, architecture) for name in cases(architecture))


def usage(case: Case, architecture: str) -> Usage:
    """Compiles one case and reads its machine code."""
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
        *(len(re.findall(rf"LDG(?:STS)?\.E\S*\.{bits}\b", code)) for bits in ("128", "64", "[US]16")),
        *(len(re.findall(rf"STG\.E\S*\.{bits}\b", code)) for bits in ("128", "[US]16")),
        code.count("UTMALDG"),
        code.count("UTMASTG"),
        len(re.findall(TENSOR_CORES[architecture], code)),
        len(re.findall(r"\bBAR\.", code)),
        len(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/", code, re.MULTILINE)),
    )


def _read_amd(code: str, shared_bytes: int) -> Usage:
    def number(key: str) -> int:
        return int(re.search(rf"{key}: (\d+)", code)[1])

    def accesses(kind: str) -> int:
        return len(re.findall(rf"(?:global|buffer)_{kind}\b", code))

    return Usage(
        number("NumVgprs"),
        number("ScratchSize"),
        0,
        shared_bytes,
        accesses("load_dwordx4"),
        accesses("load_dwordx2"),
        accesses("load_(?:ushort|short_d16|short_d16_hi|sshort)"),
        accesses("store_dwordx4"),
        accesses("store_(?:short|short_d16_hi)"),
        0,
        0,
        code.count(TENSOR_CORES["gfx942"]),
        code.count("s_barrier"),
        len(re.findall(r"^\t[sv]_|^\t(?:global|buffer|ds)_", code, re.MULTILINE)),
    )


def _compile(case: Case, target: GPUTarget) -> Any:
    names = case.kernel.arg_names
    types = {name: case.types.get(name, _default_type(name, case.dtype)) for name in names}
    fixed = {name for name in names if name in case.constants}
    source = ASTSource(
        case.kernel,
        {name: "constexpr" if name in fixed else types[name] for name in names},
        {(names.index(name),): case.constants[name] for name in fixed},
        {
            place: [["tt.divisibility", 16]]
            for name in names
            if name not in fixed
            for place in _aligned(case, name, types)
        },
    )
    return triton.compile(source, target=target, options=case.plan.options())


def _aligned(case: Case, name: str, types: dict[str, Any]) -> list[tuple[int, ...]]:
    """The places, in the signature, of what this argument holds that is divisible by 16."""
    place, type_ = case.kernel.arg_names.index(name), types[name]
    if isinstance(type_, tuple):
        return [(place, i) for i, part in enumerate(type_) if part.startswith("*")]
    whole = type_.startswith("*") or name.endswith("stride") or name in ("width", "vocabulary", "size")
    return [(place,)] if whole and name not in (*case.odd, *(case.kernel.do_not_specialize or ())) else []


def _default_type(name: str, dtype: str) -> str:
    if name.endswith("_ptr"):
        return f"*{dtype}"
    return "fp32" if name in ("eps", "z_loss") else "i32"


def _disassembled(kernel: Any, tool: str, *flags: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([TOOLS / tool, *flags, file.name], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
