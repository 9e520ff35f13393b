"""One chunk without a softmax pass: the first matmul writes exponentials, which the other two take as they are.

With z_t a row's logit at its target, known from one dot product, the exponentials are the odds of every other token
against the target. No maximum has to be found first, and nothing has to be scaled inside the later products:

    E = exp(x W^T - z_t)                     in the epilogue of the first matmul, with r = sum of E but for the target
    loss = log(1 + r)      s = 1 / (1 + r)   so that g = s E, but s - 1 at the target: there E is set to -r
    dx = s (E W)           dW += E^T (s x)   two plain products of torch's; s is one number a row

(with z_loss: s = (1 + 2 z lse) / (1 + r), and E at the target is (2 z lse - r) / (1 + 2 z lse)). Against softmax_pass
one read and one write of the chunk's logits fall away, and evaluation writes no logits at all. E has bfloat16's range
of exponents, so its precision does not depend on z_t; it is held below e^80: where a token is likelier than the target
by more than 80 nats, and nowhere else, loss and gradient are those of e^80. Losses of confident rows keep their digits,
since r is summed and not subtracted from 1.

What it can win at N = 16,384, V = 50,304 on an H200 is 0.77 ms of memory traffic; what it pays is the epilogue of its
own matmul, some 3,500 clocks a tile beside 12,288 (H = 768) or 32,768 (H = 2048) of matrix work, by the compiler's
output 0.5 ms, and what that matmul is slower than torch's. The launch table leaves it off until it is measured to be
faster. Idea of keeping exponentials: Dao-AILab quack, linear_cross_entropy, "scaled_exp", which scales by tiles.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from ado_kernels.ops.launch import Launch, launch
from ado_kernels.ops.linear_cross_entropy.problem import Chunk, Problem, matmul_into

# Tiles of E are LONG x WIDE; the inner dimension is taken DEEP at a time. No spill: tests/kernels/test_ahead_of_time.py
TILE = {"LONG": 128, "WIDE": 256, "DEEP": 64}
CEILING = 80.0  # nats: 256 entries at e^80 still sum in float32
_MOST_Z_LOSS = 1e-3  # 1 + 2 z lse must stay clear of 0: here down to a log-partition function of -500
TARGET_LOGIT_BLOCK, _COMBINE_ELEMENTS = 512, 4096


def can_take(problem: Problem) -> bool:
    """bfloat16, rows at multiples of 16 bytes for tensor descriptors, and a z_loss that divides nothing by zero."""
    return 0 <= problem.z_loss <= _MOST_Z_LOSS and all(
        tensor.dtype == torch.bfloat16
        and tensor.is_contiguous()
        and tensor.shape[1] % 8 == 0
        and tensor.data_ptr() % 16 == 0
        for tensor in (problem.hidden_NH, problem.weight_VH)
    )


def run_chunk(chunk: Chunk) -> None:
    """Fills the chunk's losses, squares and gradients, through exponentials in the chunk's buffer."""
    problem, odds_CV = chunk.problem, chunk.buffer_CV
    scale_C = _odds(chunk)
    if problem.hidden_grad:
        matmul_into(chunk.dhidden_CH, odds_CV, chunk.weight_VH)
        chunk.dhidden_CH.mul_(scale_C[:, None])
    if problem.weight_grad:
        scaled_CH = torch.mul(chunk.x_CH, scale_C[:, None], out=torch.empty_like(chunk.x_CH))
        matmul_into(chunk.dweight_VH, odds_CV.t(), scaled_CH, add=not chunk.first)


def _odds(chunk: Chunk) -> torch.Tensor:
    """Fills losses, squares, and the buffer where a gradient is asked for; returns s (C,), 0 where a row has none."""
    (num_rows, width), vocabulary = chunk.x_CH.shape, chunk.weight_VH.shape[0]
    ignore_index, z_loss, with_grad = chunk.problem.options()
    plan = launch("exponentials", device=chunk.x_CH.device)
    grid = triton.cdiv(num_rows, TILE["LONG"]), triton.cdiv(vocabulary, TILE["WIDE"])
    level_C, scale_C = chunk.losses_C.new_empty(2, num_rows).unbind()
    sums_TC = chunk.losses_C.new_empty(grid[1], num_rows)
    target_logit_kernel[(num_rows,)](
        chunk.x_CH, chunk.weight_VH, chunk.targets_C, level_C, width, vocabulary, ignore_index,
        BLOCK=TARGET_LOGIT_BLOCK, **Launch(warps=2).options(),
    )  # fmt: skip
    exponentials_kernel[(grid[0] * grid[1],)](
        _descriptor(chunk.x_CH, "LONG", "DEEP"),
        _descriptor(chunk.weight_VH, "WIDE", "DEEP"),
        _descriptor(chunk.buffer_CV, "LONG", "WIDE"),
        chunk.targets_C,
        level_C,
        sums_TC,
        num_rows,
        width,
        vocabulary,
        MOST=CEILING,
        WITH_GRAD=with_grad,
        STAGES=plan.stages,
        **TILE,
        **plan.options(),
    )
    tiles = triton.next_power_of_2(grid[1])
    rows = max(_COMBINE_ELEMENTS // tiles, 1)
    combine_tiles_kernel[(triton.cdiv(num_rows, rows),)](
        sums_TC,
        level_C,
        chunk.targets_C,
        chunk.buffer_CV,
        scale_C,
        chunk.losses_C,
        chunk.squares_C,
        chunk.buffer_CV.stride(0),
        num_rows,
        grid[1],
        ignore_index,
        z_loss,
        WITH_GRAD=with_grad,
        TILES=tiles,
        ROWS=rows,
        **Launch().options(),
    )
    return scale_C


def _descriptor(tensor: torch.Tensor, *sides: str) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(tensor, [TILE[side] for side in sides])


@triton.jit(do_not_specialize=["ignore_index"])
def target_logit_kernel(
    hidden_ptr, weight_ptr, targets_ptr, level_ptr, width, vocabulary, ignore_index, BLOCK: tl.constexpr
):
    """Program (row): its target's logit; infinity for a row that is not counted, against which all odds are 0."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    usable = (target >= 0) & (target < vocabulary) & (target != ignore_index)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = (columns < width) & usable
        x = tl.load(hidden_ptr + row * width + columns, mask, other=0.0).to(tl.float32)
        total += x * tl.load(weight_ptr + target * width + columns, mask, other=0.0).to(tl.float32)
    tl.store(level_ptr + row, tl.where(usable, tl.sum(total, axis=0), float("inf")))


@triton.jit(do_not_specialize=["num_rows"])
def exponentials_kernel(
    hidden,
    weight,
    exponentials,
    targets_ptr,
    level_ptr,
    sums_ptr,
    num_rows,
    width,
    vocabulary,
    MOST: tl.constexpr,
    WITH_GRAD: tl.constexpr,
    STAGES: tl.constexpr,
    LONG: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
):
    """Program (tile of rows, tile of the vocabulary): E, and its sums without the targets; logits stay in registers.

    Rows run fastest: the chunk's hidden states stay in the L2 cache while the weight is read once.
    """
    num_row_tiles = tl.cdiv(num_rows, LONG)
    first_row = tl.program_id(0) % num_row_tiles * LONG
    tile = tl.program_id(0) // num_row_tiles
    logits = tl.zeros((LONG, WIDE), tl.float32)
    for start in tl.range(0, width, DEEP, num_stages=STAGES):
        logits = tl.dot(hidden.load([first_row, start]), weight.load([tile * WIDE, start]).T, logits)
    rows, columns = first_row + tl.arange(0, LONG), tile * WIDE + tl.arange(0, WIDE)
    in_row = rows < num_rows
    above = logits - tl.load(level_ptr + rows, in_row, other=0.0)[:, None]
    powers = tl.exp(tl.where(above > MOST, MOST, above))  # not tl.minimum, which drops NaN
    # The target's own exponential is left out of the sum: r is summed and not got by 1 - s, which would cancel.
    targets = tl.load(targets_ptr + rows, in_row, other=-1).to(tl.int32)
    counts = (columns < vocabulary)[None, :] & (columns[None, :] != targets[:, None])
    sums = tl.sum(tl.where(counts, powers, 0.0), axis=1)
    tl.store(sums_ptr + tl.cast(tile, tl.int64) * num_rows + rows, sums, in_row)
    if WITH_GRAD:
        exponentials.store([first_row, tile * WIDE], powers.to(exponentials.dtype))


@triton.jit(do_not_specialize=["num_rows", "num_tiles", "ignore_index"])
def combine_tiles_kernel(
    sums_ptr,
    level_ptr,
    targets_ptr,
    exponentials_ptr,
    scale_ptr,
    losses_ptr,
    squares_ptr,
    stride,
    num_rows,
    num_tiles,
    ignore_index,
    z_loss,
    WITH_GRAD: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Program (ROWS rows, all tiles): loss, log-partition squared, s, and E at the target; sums in float64."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    tiles = tl.arange(0, TILES).to(tl.int64)
    in_row = rows < num_rows
    mask = (tiles < num_tiles)[:, None] & in_row[None, :]
    others = tl.sum(
        tl.load(sums_ptr + tiles[:, None] * num_rows + rows[None, :], mask, other=0.0).to(tl.float64), axis=0
    )
    level = tl.load(level_ptr + rows, in_row, other=0.0)
    targets = tl.load(targets_ptr + rows, in_row, other=0)
    usable = level != float("inf")
    loss = tl.log(1.0 + others)
    log_partition = tl.where(usable, level, 0.0) + loss
    missing = tl.where(targets == ignore_index, 0.0, float("nan"))  # a target outside the vocabulary: NaN
    tl.store(losses_ptr + rows, tl.where(usable, loss, missing), in_row)
    tl.store(squares_ptr + rows, tl.where(usable, log_partition * log_partition, missing), in_row)
    if WITH_GRAD:
        pull = 2.0 * z_loss * log_partition  # derivative of z_loss lse^2 by lse
        tl.store(scale_ptr + rows, tl.where(usable, (1.0 + pull) / (1.0 + others), 0.0), in_row)
        at_target = ((pull - others) / (1.0 + pull)).to(exponentials_ptr.dtype.element_ty)
        tl.store(exponentials_ptr + rows * stride + targets, at_target, in_row & usable)
