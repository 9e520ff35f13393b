"""Compiles the Numba kernels of a group into the cache on disk: `python -m ado_kernels.compile_numba ops` or `fit`.

Each kernel is called once with every combination of types that the operations pass to it; numba_cache.py explains why a
process of its own does it. Numba compiles per combination of dtype, layout and contiguity: a combination missing here
is compiled where it is first used.
"""

import sys

import numpy as np


def compile_ops() -> None:
    """Every operation on a CPU, forward and backward, in float32 and float64."""
    import torch

    from ado_kernels import domain_loss, linear_cross_entropy, rms_norm, rms_norm_rope, swiglu

    ids_B = torch.zeros(2, dtype=torch.int64)
    for dtype in (torch.float32, torch.float64):
        x_BTHQ = torch.ones(2, 2, 2, 4, dtype=dtype, requires_grad=True)
        weight_Q = torch.ones(4, dtype=dtype, requires_grad=True)
        angles = torch.ones(2, 2)
        total = rms_norm(x_BTHQ, weight_Q).sum() + rms_norm_rope(x_BTHQ, weight_Q, angles, angles).sum()
        (total + swiglu(x_BTHQ, x_BTHQ.detach()).sum()).backward()
        hidden_NQ = torch.ones(4, 4, dtype=dtype, requires_grad=True)
        loss, *_ = linear_cross_entropy(hidden_NQ, hidden_NQ.detach(), torch.arange(4), ids_B, 1)
        loss.backward()
        for losses_N in (torch.ones(2, dtype=dtype), torch.ones(4, dtype=dtype)):  # an id a token, an id a sequence
            domain_loss(losses_N, ids_B, 1)


def compile_fit() -> None:
    """The fit of two short histories, laid out in memory as a policy's and as a user's may be."""
    from ado_kernels import scaling_law_fit

    count_T = np.arange(1.0, 400.0)
    loss_TK = np.stack([2 + 3 * count_T**-0.3, 1 + 2 * count_T**-0.2], axis=1)
    scaling_law_fit(count_T, loss_TK.T)
    scaling_law_fit(np.stack([count_T, count_T]), np.ascontiguousarray(loss_TK.T))


if __name__ == "__main__":
    {"ops": compile_ops, "fit": compile_fit}[sys.argv[1]]()
