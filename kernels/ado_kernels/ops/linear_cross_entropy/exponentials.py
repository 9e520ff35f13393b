"""One chunk without a softmax pass: three Triton matmuls whose epilogue and operands carry the softmax.

    z = x W^T, never stored. Per row and tile of 256 words: m = max z, E = exp(z - m), s = sum E; and z at the target
    glue, per row: lse from all (m, s); factor of each tile = exp(m - lse) (1 + 2 z_loss lse)
    g = factor E - onehot(target), formed in registers from E as a matmul reads it:   dx = g W,   dW += g^T x

Against softmax_pass.py one read and one write of the chunk's logits fall away. E lies in [0, 1] and is rounded to the
input's dtype; losses come from float32 logits, which are rounded nowhere. The one-hot is subtracted in registers, in
float32: so a factor may underflow, and p - 1 keeps its digits where p is close to 1.
Output tiles of 128 x 256 through tensor descriptors, 8 warps, no spill (tests/kernels/test_ahead_of_time.py); no
atomics, each sum in a fixed order. Source of the idea: Dao-AILab quack, linear_cross_entropy, "scaled_exp".

Off unless the launch table says method "exponentials" for an architecture: no GPU has yet shown that it wins.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from ado_kernels.ops.launch import Launch, launch
from ado_kernels.ops.linear_cross_entropy.problem import Chunk

# Output tiles are LONG x WIDE, and inner dimensions are taken DEEP at a time; a tile of exponentials is LONG x WIDE.
TILE = {"LONG": 128, "WIDE": 256, "DEEP": 64}
_GLUE_ELEMENTS = 4096


def can_take(hidden_NH: torch.Tensor, weight_VH: torch.Tensor) -> bool:
    """Whether tensor descriptors fit: 16-bit floats, rows at multiples of 16 bytes."""
    return all(
        tensor.element_size() == 2
        and tensor.is_contiguous()
        and tensor.shape[1] % 8 == 0
        and tensor.data_ptr() % 16 == 0
        for tensor in (hidden_NH, weight_VH)
    )


def run_chunk(chunk: Chunk) -> None:
    """Fills the chunk's losses, squares and gradients, through exponentials in the chunk's buffer."""
    plan = launch("exponentials", device=chunk.x_CH.device)
    options = {"STAGES": plan.stages, **TILE, **plan.options()}
    factors_and_sizes = (*_softmax(chunk, options), *chunk.x_CH.shape, chunk.weight_VH.shape[0])
    if chunk.problem.hidden_grad:
        hidden_gradient_kernel[_grid(chunk.dhidden_CH)](
            _descriptor(chunk.buffer_CV, "LONG", "DEEP"),
            _descriptor(chunk.weight_VH, "DEEP", "WIDE"),
            _descriptor(chunk.dhidden_CH, "LONG", "WIDE"),
            *factors_and_sizes,
            **options,
        )
    if chunk.problem.weight_grad:
        weight_gradient_kernel[_grid(chunk.dweight_VH)](
            _descriptor(chunk.buffer_CV, "DEEP", "LONG"),
            _descriptor(chunk.x_CH, "DEEP", "WIDE"),
            _descriptor(chunk.dweight_VH, "LONG", "WIDE"),
            *factors_and_sizes,
            FIRST=chunk.first,
            **options,
        )


def _softmax(chunk: Chunk, options: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses, squares and exponentials; factors of the T tiles of each row, and the word of its one-hot (-1: none)."""
    (num_rows, width), vocabulary = chunk.x_CH.shape, chunk.weight_VH.shape[0]
    num_tiles = triton.cdiv(vocabulary, TILE["WIDE"])
    ignore_index, z_loss, with_grad = chunk.problem.options()
    # The glue kernel turns each tile's highest logit into its factor in place.
    factors_TC, sums_TC = (chunk.losses_C.new_empty(num_tiles, num_rows) for _ in range(2))
    at_target_C, hot_C = chunk.losses_C.new_empty(num_rows), chunk.targets_C.new_empty(num_rows, dtype=torch.int32)
    exponentials_kernel[_grid(chunk.buffer_CV)](
        _descriptor(chunk.x_CH, "LONG", "DEEP"),
        _descriptor(chunk.weight_VH, "WIDE", "DEEP"),
        _descriptor(chunk.buffer_CV, "LONG", "WIDE"),
        chunk.targets_C,
        factors_TC,
        sums_TC,
        at_target_C,
        num_rows,
        width,
        vocabulary,
        WITH_GRAD=with_grad,
        **options,
    )
    tiles = triton.next_power_of_2(num_tiles)
    rows = max(_GLUE_ELEMENTS // tiles, 1)
    glue_kernel[(triton.cdiv(num_rows, rows),)](
        factors_TC,
        sums_TC,
        at_target_C,
        chunk.targets_C,
        hot_C,
        chunk.losses_C,
        chunk.squares_C,
        num_rows,
        num_tiles,
        vocabulary,
        ignore_index,
        z_loss,
        WITH_GRAD=with_grad,
        TILES=tiles,
        ROWS=rows,
        **Launch().options(),
    )
    return factors_TC, hot_C


def _grid(matrix: torch.Tensor) -> tuple[int]:
    return (triton.cdiv(matrix.shape[0], TILE["LONG"]) * triton.cdiv(matrix.shape[1], TILE["WIDE"]),)


def _descriptor(tensor: torch.Tensor, *sides: str) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(tensor, [TILE[side] for side in sides])


@triton.jit
def exponentials_kernel(
    hidden,
    weight,
    exponentials,
    targets_ptr,
    highest_ptr,
    sums_ptr,
    at_target_ptr,
    num_rows,
    width,
    vocabulary,
    WITH_GRAD: tl.constexpr,
    STAGES: tl.constexpr,
    LONG: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
):
    """Program (tile of rows, tile of words): E, its maxima and sums, z at the target; the logits stay in registers.

    Rows run fastest: the chunk's hidden states stay in the L2 cache while the weight is read once.
    """
    num_row_tiles = tl.cdiv(num_rows, LONG)
    first_row = tl.program_id(0) % num_row_tiles * LONG
    word_tile = tl.program_id(0) // num_row_tiles
    logits = tl.zeros((LONG, WIDE), tl.float32)
    for start in tl.range(0, width, DEEP, num_stages=STAGES):
        x = hidden.load([first_row, start])
        w = weight.load([word_tile * WIDE, start])
        logits = tl.dot(x, w.T, logits)
    rows, words = first_row + tl.arange(0, LONG), word_tile * WIDE + tl.arange(0, WIDE)
    in_row = rows < num_rows
    logits = tl.where((words < vocabulary)[None, :], logits, float("-inf"))
    highest = tl.max(logits, axis=1)  # before the target's logit: the other order takes 40 registers more, and spills
    targets = tl.load(targets_ptr + rows, in_row, other=-1)
    held_here = (targets >= word_tile * WIDE) & (targets < word_tile * WIDE + WIDE)
    is_target = words[None, :] == tl.where(held_here, targets, -1).to(tl.int32)[:, None]
    tl.store(at_target_ptr + rows, tl.sum(tl.where(is_target, logits, 0.0), axis=1), in_row & held_here)
    powers = tl.exp(logits - highest[:, None])
    place = tl.cast(word_tile, tl.int64) * num_rows + rows
    tl.store(highest_ptr + place, highest, in_row)
    tl.store(sums_ptr + place, tl.sum(powers, axis=1), in_row)
    if WITH_GRAD:
        exponentials.store([first_row, word_tile * WIDE], powers.to(exponentials.dtype))


@triton.jit
def glue_kernel(
    factors_ptr,
    sums_ptr,
    at_target_ptr,
    targets_ptr,
    hot_ptr,
    losses_ptr,
    squares_ptr,
    num_rows,
    num_tiles,
    vocabulary,
    ignore_index,
    z_loss,
    WITH_GRAD: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Program (ROWS rows, all tiles): loss, log-partition squared, each tile's factor in place of its maximum."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tiles = tl.arange(0, TILES).to(tl.int64)
    in_row = rows < num_rows
    mask = (tiles < num_tiles)[:, None] & in_row[None, :]
    place = tiles[:, None] * num_rows + rows[None, :]
    tile_highest = tl.load(factors_ptr + place, mask, other=float("-inf"))
    # Rows past the end hold nothing but -inf: finite values in their lanes keep -inf - -inf and log 0 out.
    highest = tl.where(in_row, tl.max(tile_highest, axis=0), 0.0)
    shares = tl.exp(tile_highest - highest[None, :])
    total = tl.sum(shares * tl.load(sums_ptr + place, mask, other=0.0), axis=0)
    total = tl.where(in_row, total, 1.0)
    log_total = tl.log(total)
    log_partition = highest + log_total
    targets = tl.load(targets_ptr + rows, in_row, other=-1)
    ignored = targets == ignore_index
    usable = (targets >= 0) & (targets < vocabulary) & (ignored == 0)
    at_target = tl.load(at_target_ptr + rows, in_row & usable, other=0.0)
    nothing = tl.where(ignored, 0.0, float("nan"))
    tl.store(losses_ptr + rows, tl.where(usable, log_total - (at_target - highest), nothing), in_row)
    tl.store(squares_ptr + rows, tl.where(usable, log_partition * log_partition, nothing), in_row)
    if WITH_GRAD:
        scale = (1.0 + 2.0 * tl.cast(z_loss, tl.float32) * log_partition) / total
        tl.store(factors_ptr + place, tl.where(usable[None, :], shares * scale[None, :], 0.0), mask)
        tl.store(hot_ptr + rows, tl.where(usable, targets, -1).to(tl.int32), in_row)


@triton.jit
def _gradient(powers, factors, is_target):
    """factor E - onehot, exactly 0 where a row does not count (its exponentials may be NaN)."""
    softmax = tl.where(factors == 0.0, 0.0, powers.to(tl.float32) * factors)
    return tl.where(is_target, softmax - 1.0, softmax)


@triton.jit
def hidden_gradient_kernel(
    exponentials,
    weight,
    gradient,
    factors_ptr,
    hot_ptr,
    num_rows,
    width,
    vocabulary,
    STAGES: tl.constexpr,
    LONG: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
):
    """Program (tile of rows, tile of columns): dx = g W."""
    num_column_tiles = tl.cdiv(width, WIDE)
    first_column = tl.program_id(0) % num_column_tiles * WIDE
    first_row = tl.program_id(0) // num_column_tiles * LONG
    rows = first_row + tl.arange(0, LONG)
    in_row = rows < num_rows
    hot = tl.load(hot_ptr + rows, in_row, other=-1)
    total = tl.zeros((LONG, WIDE), tl.float32)
    for start in tl.range(0, vocabulary, DEEP, num_stages=STAGES):
        powers = exponentials.load([first_row, start])
        w = weight.load([start, first_column])
        factors = tl.load(factors_ptr + tl.cast(start // WIDE, tl.int64) * num_rows + rows, in_row, other=0.0)
        words = start + tl.arange(0, DEEP)
        g = _gradient(powers, factors[:, None], hot[:, None] == words[None, :])
        total = tl.dot(g.to(w.dtype), w, total)
    gradient.store([first_row, first_column], total.to(gradient.dtype))


@triton.jit
def weight_gradient_kernel(
    exponentials,
    hidden,
    gradient,
    factors_ptr,
    hot_ptr,
    num_rows,
    width,
    vocabulary,
    FIRST: tl.constexpr,
    STAGES: tl.constexpr,
    LONG: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
):
    """Program (tile of words, tile of columns): dW = g^T x of the first chunk, dW += g^T x of the others."""
    num_column_tiles = tl.cdiv(width, WIDE)
    first_column = tl.program_id(0) % num_column_tiles * WIDE
    first_word = tl.program_id(0) // num_column_tiles * LONG
    words = first_word + tl.arange(0, LONG)
    factors_ptr += tl.cast(first_word // WIDE, tl.int64) * num_rows
    total = tl.zeros((LONG, WIDE), tl.float32)
    for start in tl.range(0, num_rows, DEEP, num_stages=STAGES):
        powers = exponentials.load([start, first_word]).T
        x = hidden.load([start, first_column])
        rows = start + tl.arange(0, DEEP)
        factors = tl.load(factors_ptr + rows, rows < num_rows, other=0.0)
        hot = tl.load(hot_ptr + rows, rows < num_rows, other=-1)
        g = _gradient(powers, factors[None, :], words[:, None] == hot[None, :])
        total = tl.dot(g.to(x.dtype), x, total)
    if not FIRST:
        total += gradient.load([first_word, first_column])
    gradient.store([first_word, first_column], total)
