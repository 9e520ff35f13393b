"""Every Triton kernel as it is launched, with the limits that its machine code must keep.

Registers: what triton 3.8 gives and some 32 (3.6 to 3.9 differ by 0 to 30), but never more than lets a whole grid of
fixed size be resident at once on 132 multiprocessors: a second wave would nearly double its time.
"""

from dataclasses import dataclass, field
from typing import Any

import triton.language as tl

from ado_kernels.fit import triton_fit, triton_points, triton_search
from ado_kernels.ops.domain_loss import gpu as domain_loss
from ado_kernels.ops.launch import Launch, entry
from ado_kernels.ops.launch_table import TABLE
from ado_kernels.ops.linear_cross_entropy import exponentials, gpu, softmax_pass
from ado_kernels.ops.rms_norm import gpu as rms_norm
from ado_kernels.ops.rms_norm_rope import gpu as rms_norm_rope
from ado_kernels.ops.swiglu import gpu as swiglu

MODULES = (domain_loss, exponentials, gpu, rms_norm, rms_norm_rope, softmax_pass, swiglu, triton_points, triton_search)
MULTIPROCESSORS, REGISTERS = 132, 65536  # of an H200; registers of one multiprocessor
SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Case:
    """A kernel as it is launched, and its limits.

    types: of arguments other than pointers to `dtype` and 32-bit integers; a named tuple where the argument is one.
    wide_loads, wide_stores: accesses of 128 bits that must be there; narrow: how many of 16 bits may be.
    odd: arguments that 16 need not divide.
    """

    kernel: Any
    constants: dict[str, Any]
    plan: Launch
    most_registers: int
    types: dict[str, Any] = field(default_factory=dict)
    wide_loads: int = 0
    wide_stores: int = 0
    stack_bytes: int = 0
    dtype: str = "bf16"
    narrow: int = 0
    odd: tuple[str, ...] = ()

    @property
    def by_descriptor(self) -> bool:
        """Whether operands come as tensor descriptors (TMA)."""
        return any("tensordesc" in type_ for type_ in self.types.values())

    @property
    def registers(self) -> int:
        """The limit: as stated, and such that all programs of a fixed grid are resident."""
        at_once = max(-(-self.plan.programs // MULTIPROCESSORS), 1)
        return min(self.most_registers, REGISTERS // (at_once * 32 * self.plan.warps) // 8 * 8)


def norm(width: int, architecture: str, residual: bool = False, weight: bool = True, dtype: str = "bf16") -> Case:
    """RMSNorm forward, with or without residual and weight."""
    plan = entry("rms_norm", width, architecture)
    constants = {"HAS_WEIGHT": weight, "HAS_RESIDUAL": residual, "ACC": tl.float32, "ROWS": plan.rows, "BLOCK_D": width}
    return Case(
        rms_norm.rms_norm_forward_kernel,
        constants,
        plan,
        80,
        {"rstd_ptr": "*fp32"},
        wide_loads=1 + residual,
        wide_stores=1 + residual,
        stack_bytes=8 if width == 16384 else 0,  # triton 3.6 keeps one word there, later ones none
        dtype=dtype,
        narrow=weight and width <= 256,  # the weight: a row of it for one or two warps
    )


def norm_backward(
    width: int, architecture: str, residual: bool = False, weight: bool = True, dtype: str = "bf16"
) -> Case:
    """RMSNorm backward, with or without a gradient of the sum and a weight."""
    plan = entry("rms_norm_backward", width, architecture)
    constants = {"HAS_WEIGHT": weight, "HAS_DTOTAL": residual, "ACC": tl.float32, "ROWS": plan.rows, "BLOCK_D": width}
    tile_bytes = (2 + residual) * plan.rows * width * BYTES[dtype]
    return Case(
        rms_norm.rms_norm_backward_kernel,
        {**constants, "STAGES": rms_norm.pipeline_stages(plan, tile_bytes, SHARED_BYTES[architecture])},
        plan,
        160,
        {"rstd_ptr": "*fp32", "partial_ptr": "*fp32"},
        wide_loads=2 + residual,
        wide_stores=1,
        # 32 warps leave 64 registers a thread: the one kernel that spills, 16 to 40 stores a row, in the L1 cache;
        # where float32 leaves no room for a pipeline (sm_80), triton 3.6 makes it 122.
        stack_bytes=(384 if dtype == "fp32" else 160) if width == 16384 else 0,
        dtype=dtype,
        narrow=weight and width <= 256,
    )


def rope(width: int, architecture: str) -> Case:
    """RMSNorm and rotary embedding, forward."""
    plan = entry("rms_norm_rope", width, architecture)
    constants = {"ACC": tl.float32, "ROWS": plan.rows, "HALF": width // 2}
    types = dict.fromkeys(("weight_ptr", "cos_ptr", "sin_ptr", "rstd_ptr"), "*fp32")
    return Case(rms_norm_rope.rms_norm_rope_forward_kernel, constants, plan, 80, types, wide_loads=4, wide_stores=2)


def rope_backward(width: int, architecture: str) -> Case:
    """RMSNorm and rotary embedding, backward."""
    plan = entry("rms_norm_rope_backward", width, architecture)
    constants = {"ACC": tl.float32, "ROWS": plan.rows, "HALF": width // 2, "STAGES": plan.stages}
    types = dict.fromkeys(("weight_ptr", "cos_ptr", "sin_ptr", "rstd_ptr", "partial_ptr"), "*fp32")
    kernel = rms_norm_rope.rms_norm_rope_backward_kernel
    return Case(kernel, constants, plan, 160, types, wide_loads=6, wide_stores=2)


def softmax_gradient(with_grad: bool, architecture: str, odd: tuple[str, ...] = ()) -> Case:
    """The pass over a chunk's logits."""
    plan = entry("softmax_gradient", 0, architecture)
    return Case(
        softmax_pass.softmax_gradient_kernel,
        {"ACC": tl.float32, "WITH_GRAD": with_grad, "BLOCK_V": plan.block},
        plan,
        64,  # two programs of 16 warps on a multiprocessor; more rows in flight than that would overflow the L2 cache
        {"targets_ptr": "*i64", "losses_ptr": "*fp32", "squares_ptr": "*fp32"},
        wide_loads=1 + with_grad,
        wide_stores=2 * with_grad,
        narrow=1,  # the target's logit
        odd=odd,
    )


def exponentials_matmul(with_grad: bool, architecture: str) -> Case:
    """The matmul that leaves exponentials behind."""
    plan, sizes = entry("exponentials", 0, architecture), exponentials.TILE
    tiles = {"hidden": ("LONG", "DEEP"), "weight": ("WIDE", "DEEP"), "exponentials": ("LONG", "WIDE")}
    blocks = {name: f"tensordesc<bf16[{sizes[a]}, {sizes[b]}]>" for name, (a, b) in tiles.items()}
    constants = {"MOST": exponentials.CEILING, "WITH_GRAD": with_grad, "STAGES": plan.stages, **sizes}
    types = {"targets_ptr": "*i64", "level_ptr": "*fp32", "sums_ptr": "*fp32"}
    return Case(exponentials.exponentials_kernel, constants, plan, 224, {**types, **blocks})


def glue(with_grad: bool) -> Case:
    """What follows that matmul, per row."""
    types = {f"{name}_ptr": "*fp32" for name in ("sums", "level", "scale", "losses", "squares")}
    types |= {"targets_ptr": "*i64"}
    constants = {"WITH_GRAD": with_grad, "TILES": 256, "ROWS": 16}
    return Case(exponentials.combine_tiles_kernel, constants, Launch(), 192, types, narrow=1)  # E at the target


def fit_cases() -> dict[str, Case]:
    """The scaling-law fit, with the paper's grid."""
    points = triton_points.Points("*fp64", "*fp64", "*fp64", "i32")
    history = triton_points.History("*fp64", "*i64", "*i64", "*fp64", "i32", "i32")
    search = {"DELTA": 1e-3, "SEARCHES": 16, "BLOCK": triton_fit.REFINE["BLOCK"]}
    ends = dict.fromkeys(("coarse_ptr", "end_ptr", "start_ptr", "alpha_ptr", "best_ptr"), "*fp64")
    of = triton_points, triton_search
    shapes = {
        "smooth": (of[0].smooth_kernel, {}, triton_fit.SMOOTH, {"history": history, "points": points}, 64),
        "bin": (of[0].bin_kernel, {}, triton_fit.BIN, {"points": points, "bins": points}, 80),
        "coarse": (
            of[1].coarse_kernel,
            {"DELTA": 1e-3, "STARTS": 64},
            triton_fit.COARSE,
            {"bins": points, **ends},
            255,
        ),
        "refine": (of[1].refine_kernel, search, triton_fit.REFINE, {"points": points, **ends}, 255),
        "choose": (of[1].choose_kernel, search, triton_fit.REFINE, {"points": points, **ends}, 255),
    }
    return {
        f"fit {name}": Case(
            kernel,
            {**constants, "BLOCK": how["BLOCK"]},
            Launch(warps=how["num_warps"]),
            registers,
            {argument: type_ for argument, type_ in types.items() if argument in kernel.arg_names},
            stack_bytes=24 if name in ("smooth", "choose") else 0,  # a call's frame; triton 3.6 spills three words
        )
        for name, (kernel, constants, how, types, registers) in shapes.items()
    }


def cases(architecture: str) -> dict[str, Case]:
    """Every case by name, as launched on that architecture; tensor descriptors from sm_90 on."""
    swiglu_constants = {"ACC": tl.float32, "BLOCK": swiglu.BLOCK}
    swiglu_plan = entry("swiglu", 0, architecture)
    found = {
        **{f"rms_norm {width}": norm(width, architecture) for width in _widths("rms_norm")},
        **{f"rms_norm_backward {width}": norm_backward(width, architecture) for width in _widths("rms_norm_backward")},
        **{f"add_rms_norm {width}": norm(width, architecture, residual=True) for width in (1024, 2048, 4096)},
        **{
            f"add_rms_norm_backward {width}": norm_backward(width, architecture, residual=True)
            for width in (1024, 2048, 4096)
        },
        "rms_norm 2048 without weight": norm(2048, architecture, weight=False),
        "rms_norm_backward 2048 without weight": norm_backward(2048, architecture, weight=False),
        "add_rms_norm 16384 float32": norm(16384, architecture, residual=True, dtype="fp32"),
        "add_rms_norm_backward 16384 float32": norm_backward(16384, architecture, residual=True, dtype="fp32"),
        **{f"rms_norm_rope {width}": rope(width, architecture) for width in _widths("rms_norm_rope")},
        **{
            f"rms_norm_rope_backward {width}": rope_backward(width, architecture)
            for width in _widths("rms_norm_rope_backward")
        },
        "sum_partials": Case(
            rms_norm.sum_partials_kernel, rms_norm.SUM, Launch(), 80, {"partial_ptr": "*fp32"}, wide_loads=4, narrow=1
        ),
        "swiglu": Case(swiglu.swiglu_forward_kernel, swiglu_constants, swiglu_plan, 64, {}, 4, 2),
        "swiglu_backward": Case(swiglu.swiglu_backward_kernel, swiglu_constants, swiglu_plan, 80, {}, 6, 4),
        **{f"softmax_gradient {grad}": softmax_gradient(grad, architecture) for grad in (False, True)},
        "softmax_gradient True, any vocabulary": softmax_gradient(True, architecture, odd=("vocabulary",)),
        **{f"exponentials {grad}": exponentials_matmul(grad, architecture) for grad in (False, True)},
        **{f"glue {grad}": glue(grad) for grad in (False, True)},
        "target_logit": Case(
            exponentials.target_logit_kernel,
            {"BLOCK": exponentials.TARGET_LOGIT_BLOCK},
            Launch(warps=2),
            64,
            {"targets_ptr": "*i64", "level_ptr": "*fp32"},
            wide_loads=2,
        ),
        "scale_gradient": Case(
            gpu.scale_gradient_kernel,
            {"BLOCK": 2048},
            Launch(),
            64,
            {"gradient_ptr": "*fp32", "dloss_ptr": "*fp32", "inverse_ptr": "*fp64"},
            wide_loads=4,
            wide_stores=2,
        ),
        # Bound by its comparisons, N x K of them, not by loads: one token a thread, so none is 128 bits wide.
        "domain_loss": Case(
            domain_loss.domain_loss_kernel,
            {"HAS_TARGETS": True, "BLOCK_N": 128, "BLOCK_K": 16},
            Launch(),
            128,
            {"losses_ptr": "*fp32", "sums_ptr": "*fp64"}
            | dict.fromkeys(("ids_ptr", "targets_ptr", "counts_ptr", "invalid_id_ptr"), "*i64"),
        ),
        "sum_slabs": Case(
            domain_loss.sum_slabs_kernel,
            {"BLOCK_S": 128, "BLOCK_K": 16},
            Launch(),
            128,
            {"slab_sums_ptr": "*fp64", "slab_counts_ptr": "*i64", "sums_ptr": "*fp64", "counts_ptr": "*i64"},
        ),
        **fit_cases(),
    }
    has_descriptors = architecture in ("sm_90", "sm_100")
    return {name: case for name, case in found.items() if has_descriptors or not case.by_descriptor}


def _widths(op: str) -> list[int]:
    return [width for name, width, architecture in TABLE if name == op and not architecture]
