"""Compiles every Triton kernel for GPUs that are not here, as the operations launch it, and reads its machine code.

The operations are called on tensors without memory while launches are replaced by compilation: types, divisibility by
16, constants and launch options are those of a real call. `cuobjdump` and `nvdisasm` come with triton.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from ado_kernels.fit import triton_fit
from ado_kernels.fit.objective import FitOptions
from ado_kernels.ops import launch
from ado_kernels.ops.launch_table import TABLE
from ado_kernels.ops.linear_cross_entropy import gpu
from ado_kernels.ops.rms_norm import gpu as rms_norm
from ado_kernels.ops.rms_norm_rope import gpu as rms_norm_rope
from ado_kernels.ops.swiglu import gpu as swiglu

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
ROWS, VOCABULARY, WIDTH = 16384, 50304, 2048


@dataclass(frozen=True)
class Compiled:
    """One launch: the kernel, its grid's first size, and what the compiler made of it.

    constants: those of compile time, the number of warps, and the dtype of the first argument.
    """

    kernel: JITFunction
    constants: SimpleNamespace
    programs: int
    made: Any

    @property
    def name(self) -> str:
        return self.kernel.__name__

    def usage(self) -> dict[str, int]:
        """Registers (VGPRs on gfx942), memory, and counts of instructions in the machine code.

        wide: accesses of global memory of 128 bits, half wide 64, narrow 16.
        """
        if self.made.metadata.target.backend == "hip":
            return _amd_usage(self.made.asm["amdgcn"], self.made.metadata.shared)
        resources, code = self._disassembled("cuobjdump", "-res-usage"), self._disassembled("nvdisasm", "-c")
        registers, stack, local = (int(_found(rf"{key}:(\d+)", resources)) for key in ("REG", "STACK", "LOCAL"))
        loads, stores = r"LDG(?:STS)?\.E\S*\.", r"STG\.E\S*\."
        patterns = {
            "spill_stores": "STL",
            "wide_loads": rf"{loads}128\b",
            "half_wide_loads": rf"{loads}64\b",
            "narrow_loads": rf"{loads}[US]16\b",
            "wide_stores": rf"{stores}128\b",
            "narrow_stores": rf"{stores}[US]16\b",
            "barriers": r"\bBAR\.",
            "instructions": r"^\s*/\*[0-9a-f]{4,}\*/",
        }
        # Spills show as a stack with STL and LDL instructions; LOCAL stays 0.
        used = {"registers": registers, "stack_bytes": stack + local, "shared_bytes": self.made.metadata.shared}
        return used | _counts(patterns, code)

    def _disassembled(self, tool: str, flag: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.made.asm["cubin"])
            file.flush()
            return subprocess.run([TOOLS / tool, flag, file.name], capture_output=True, text=True, check=True).stdout


def _amd_usage(code: str, shared_bytes: int) -> dict[str, int]:
    registers, stack_bytes = (int(_found(rf"{key}: (\d+)", code)) for key in ("NumVgprs", "ScratchSize"))
    patterns = {
        "wide_loads": r"(?:global|buffer)_load_dwordx4\b",
        "half_wide_loads": r"(?:global|buffer)_load_dwordx2\b",
        "narrow_loads": r"(?:global|buffer)_load_(?:ushort|short_d16|short_d16_hi|sshort)\b",
        "wide_stores": r"(?:global|buffer)_store_dwordx4\b",
        "narrow_stores": r"(?:global|buffer)_store_(?:short|short_d16_hi)\b",
        "barriers": "s_barrier",
        "instructions": r"^\t[sv]_|^\t(?:global|buffer|ds)_",
    }
    used = {"registers": registers, "stack_bytes": stack_bytes, "shared_bytes": shared_bytes}
    return used | _counts(patterns, code)


def _counts(patterns: dict[str, str], code: str) -> dict[str, int]:
    return {name: len(re.findall(pattern, code, re.MULTILINE)) for name, pattern in patterns.items()}


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, pattern
    return match[1]


def compiled(name: str, architecture: str) -> list[Compiled]:
    """The launches of one of `CALLS`, compiled for an architecture."""
    with compiling(architecture) as launches:
        CALLS[name]()
    return launches


@contextmanager
def compiling(architecture: str) -> Iterator[list[Compiled]]:
    """In the body a kernel's launch compiles it for `architecture` and adds it to the list; nothing runs."""
    hip = architecture.startswith("gfx")
    target = GPUTarget("hip", architecture, 64) if hip else GPUTarget("cuda", int(architecture[3:]), 32)
    launches: list[Compiled] = []
    run = JITFunction.run

    def compile_only(kernel: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        made = run(kernel, *args, grid=grid, warmup=True, **options)
        constants = {name: value for name, value in options.items() if name in kernel.arg_names}
        facts = {"warps": options["num_warps"], "dtype": getattr(args[0], "dtype", None)}
        launches.append(Compiled(kernel, SimpleNamespace(**constants, **facts), grid[0], made))

    # Triton keeps what it compiled by device: the target stands in for it.
    fake = SimpleNamespace(
        get_current_device=lambda: target, get_current_stream=lambda _: 0, get_current_target=lambda: target
    )
    with ExitStack() as patches:
        for owner, attribute, value in (
            (JITFunction, "run", compile_only),
            (launch, "device_architecture", lambda _: architecture),
            (rms_norm, "shared_memory_bytes", lambda _: SHARED_BYTES[architecture]),
            (gpu, "matmul_into", lambda *_, **__: None),  # torch has no such product without a GPU
            (driver, "_active", fake),
        ):
            patches.enter_context(patch.object(owner, attribute, value))
        yield launches


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _norm(
    width: int, residual: bool = False, has_weight: bool = True, dtype: torch.dtype = torch.bfloat16
) -> Callable[[], None]:
    def call() -> None:
        x, weight = _empty(ROWS, width, dtype=dtype), _empty(width, dtype=dtype) if has_weight else None
        _, rstd, _ = rms_norm.forward_gpu(x, x if residual else None, weight, 1e-6)
        rms_norm.backward_gpu(x, x if residual else None, x, weight, rstd)

    return call


def _rope(width: int) -> Callable[[], None]:
    def call() -> None:
        x = _empty(16, 1024, 12, width)
        weight, angles = _empty(width, dtype=torch.float32), _empty(1024, width // 2, dtype=torch.float32)
        _, rstd = rms_norm_rope.forward_gpu(x, weight, angles, angles, 1e-6)
        rms_norm_rope.backward_gpu(x, x, weight, angles, angles, rstd)

    return call


def _swiglu() -> None:
    x = _empty(ROWS, WIDTH)
    swiglu.forward_gpu(x, x)
    swiglu.backward_gpu(x, x, x)


def _loss(with_grad: bool, vocabulary: int = VOCABULARY) -> Callable[[], None]:
    """One chunk, then the per-domain sums and, with gradients, their scaling."""

    def call() -> None:
        hidden, weight = _empty(ROWS, WIDTH), _empty(vocabulary, WIDTH)
        integers = _empty(ROWS, dtype=torch.int64)
        with launch.using("linear_cross_entropy", rows=ROWS):
            gpu.linear_cross_entropy_gpu(
                hidden, weight, integers, integers, 22, -100, 0.0, with_grad, with_grad, torch.bfloat16
            )
        if with_grad:
            scalars = _empty(dtype=torch.float32), _empty(dtype=torch.float64)
            gpu.scale_gradient_gpu(_empty(ROWS, WIDTH, dtype=torch.float32), *scalars, torch.bfloat16)

    return call


def _fit() -> None:
    triton_fit.fit_on_device(
        _empty(60_000, dtype=torch.float64), _empty(22, 60_000, dtype=torch.float64), FitOptions(ignore_steps=1000)
    )


def _widths(op: str) -> list[int]:
    return [width for name, width, architecture in TABLE if name == op and not architecture]


# Every size class of the launch table.
CALLS: dict[str, Callable[[], None]] = {
    **{f"rms_norm {width}": _norm(width) for width in _widths("rms_norm")},
    **{f"add_rms_norm {width}": _norm(width, residual=True) for width in (1024, 2048, 4096)},
    "rms_norm 2048 without weight": _norm(2048, has_weight=False),
    "add_rms_norm 16384 float32": _norm(16384, residual=True, dtype=torch.float32),
    **{f"rms_norm_rope {width}": _rope(width) for width in _widths("rms_norm_rope")},
    "swiglu": _swiglu,
    "loss": _loss(with_grad=False),
    "loss and gradient": _loss(with_grad=True),
    "loss and gradient, odd vocabulary": _loss(with_grad=True, vocabulary=50257),
    "fit": _fit,
}
