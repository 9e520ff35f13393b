"""linear_cross_entropy on a CPU: chunks of rows through MKL, one Numba pass per chunk between the matmuls.

For a chunk of rows: logits = x W^T into one reused buffer; softmax, loss and gradient in place, row by row (a row of
50,304 floats stays in the second-level cache); dx = g W; dW += g^T x. bf16 and fp16 are computed in float32: without
AMX, torch's bf16 matmul on a CPU is 12 times slower than converting.
"""

import math

import numpy as np
import torch
from numba import njit, prange

from ado_kernels.ops.domain_loss.cpu import domain_loss_cpu
from ado_kernels.ops.linear_cross_entropy.problem import Outputs, Problem, Result
from ado_kernels.ops.numba_math import FAST_SUMS, Array, array, exp, set_loop_threads
from ado_kernels.ops.operands import accumulation_dtype

_CHUNK_BYTES = 256 << 20


def linear_cross_entropy_cpu(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    domain_ids: torch.Tensor,
    num_domains: int,
    ignore_index: int,
    z_loss: float,
    hidden_grad: bool,
    weight_grad: bool,
    compute_dtype: torch.dtype,
) -> Outputs:
    """The operation on a CPU."""
    problem = Problem(hidden, weight, targets, ignore_index, z_loss, hidden_grad, weight_grad, compute_dtype)
    result = in_chunks(problem)
    kept_N = targets != ignore_index
    ids_N = domain_ids.long().flatten().repeat_interleave(kept_N.numel() // max(domain_ids.numel(), 1))
    sums_K, counts_K = domain_loss_cpu(result.losses_N, torch.where(kept_N, ids_N, -1), num_domains)
    return result.outputs(problem, sums_K, counts_K, result.losses_N.sum(dtype=torch.float64), kept_N.sum())


def scale_gradient_cpu(
    gradient: torch.Tensor, dloss: torch.Tensor, inverse: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """gradient x dloss x inverse in `dtype`."""
    return (gradient * (dloss * inverse).to(gradient.dtype)).to(dtype)


def in_chunks(problem: Problem) -> Result:
    """Per-token losses and the gradients asked for; raises ValueError for a target outside the vocabulary."""
    dtype = accumulation_dtype(problem.compute_dtype)
    hidden_NH, weight_VH = problem.hidden_NH.to(dtype), problem.weight_VH.to(dtype)
    targets_N = problem.targets_N.contiguous()
    _check_targets(problem)
    num_rows, vocabulary = hidden_NH.shape[0], weight_VH.shape[0]
    rows = _chunk_rows(num_rows, vocabulary * dtype.itemsize)
    buffer = torch.empty(rows * vocabulary, dtype=dtype)
    losses_N = torch.empty(num_rows, dtype=torch.float64)
    squares_N = torch.empty(num_rows, dtype=torch.float64)
    dhidden_NH = torch.empty(hidden_NH.shape if problem.hidden_grad else 0, dtype=dtype)
    dweight_VH = torch.zeros(weight_VH.shape if problem.weight_grad else 0, dtype=dtype)
    for start in range(0, num_rows, max(rows, 1)):
        part = slice(start, min(start + rows, num_rows))
        x_CH = hidden_NH[part]
        logits_CV = buffer[: x_CH.shape[0] * vocabulary].view(-1, vocabulary)
        torch.mm(x_CH, weight_VH.t(), out=logits_CV)  # the buffer holds logits, then exponentials, then gradients
        set_loop_threads(logits_CV.numel())
        _softmax_rows(
            array(logits_CV), array(targets_N[part]), problem.options(), array(losses_N[part]), array(squares_N[part])
        )
        if problem.hidden_grad:
            torch.mm(logits_CV, weight_VH, out=dhidden_NH[part])
        if problem.weight_grad:
            dweight_VH.addmm_(logits_CV.t(), x_CH)
    return Result(losses_N, squares_N, dhidden_NH, dweight_VH)


def _chunk_rows(num_rows: int, row_bytes: int) -> int:
    """Rows per chunk: chunks of equal size, none above the budget."""
    # Equal, since a short last one would read the whole weight for a few rows.
    most = max(_CHUNK_BYTES // row_bytes, 1)
    num_chunks = max(-(-num_rows // most), 1)
    return -(-num_rows // num_chunks)


def _check_targets(problem: Problem) -> None:
    targets_N, vocabulary = problem.targets_N, problem.weight_VH.shape[0]
    bad_N = (targets_N != problem.ignore_index) & ((targets_N < 0) | (targets_N >= vocabulary))
    if bool(bad_N.any()):
        row = int(bad_N.nonzero()[0, 0])
        raise ValueError(
            f"target {int(targets_N[row])} of row {row} is outside the vocabulary of {vocabulary}"
            f" and is not ignore_index {problem.ignore_index}"
        )


@njit(parallel=True, nogil=True, cache=True, fastmath=FAST_SUMS)
def _softmax_rows(
    logits_CV: Array, targets_C: Array, options: tuple[int, float, bool], losses_C: Array, squares_C: Array
) -> None:
    """Losses, squared log-partition functions, and in place of the logits their gradients (0 for ignored rows)."""
    ignore_index, z_loss, with_grad = options
    num_rows, vocabulary = logits_CV.shape
    scalar = logits_CV.dtype.type
    for n in prange(num_rows):
        row_V = logits_CV[n]
        target = targets_C[n]
        if target == ignore_index:
            losses_C[n], squares_C[n] = 0.0, 0.0
            if with_grad:
                row_V[:] = scalar(0)
            continue
        highest = row_V[0]
        for v in range(vocabulary):
            highest = max(highest, row_V[v])
        at_target = row_V[target]
        total = scalar(0)  # in the logits' dtype: float64 would halve the width of the vectors
        for v in range(vocabulary):
            power = exp(row_V[v] - highest)
            row_V[v] = power
            total += power
        # As differences from the highest logit: log-partition minus target would cancel for large logits.
        log_total = math.log(np.float64(total))
        log_partition = np.float64(highest) + log_total
        losses_C[n] = log_total - (np.float64(at_target) - np.float64(highest))
        squares_C[n] = log_partition * log_partition
        if with_grad:
            # d(loss + z_loss log_partition^2) / d logit = softmax (1 + 2 z_loss log_partition) - one-hot
            scale = scalar((1.0 + 2.0 * z_loss * log_partition) / np.float64(total))
            for v in range(vocabulary):
                row_V[v] *= scale
            row_V[target] -= scalar(1)
