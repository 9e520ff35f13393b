"""How far rounding may move a result on any processor: with additions in any order, vectors of any width, FMA or none.

Single roundings are at most a unit u and independent, so in a sum of n products they add up as a random walk: beyond
6 sqrt(n) u of the sum of the products' sizes once in 3e7 (Higham and Mary, "A New Approach to Probabilistic Rounding
Error Analysis", 2019). The worst case, n u, would hide errors that are a thousand roundings large.
"""

import math

import torch

UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
FEW = 16  # roundings of what is done beside the sum: square root, division, exp (2 units in the last place)


def rounding(num_terms: int, dtype: torch.dtype = torch.float32) -> float:
    """Bound on the error of a sum of products and a few operations more, relative to the sum of the products' sizes."""
    return (6.0 * math.sqrt(num_terms) + FEW) * UNIT[dtype]


def stored(dtype: torch.dtype, num_terms: int) -> float:
    """As `rounding`, for what is computed in float32 (float64 stays) and rounded once to `dtype`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return rounding(num_terms, wide) + (0.0 if dtype == wide else UNIT[dtype])


@torch.no_grad()
def perturb(model: torch.nn.Module, size: float, seed: int = 0) -> None:
    """Moves every parameter by `size` of itself, up or down at random.

    What a computation in products of rounded sums returns is what the exact one returns for parameters that lie within
    the bound of one such sum (backward errors). So results of parameters perturbed by that bound span what rounding may
    do at the end of a long computation, whatever that amplifies.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        sign = torch.randint(2, parameter.shape, generator=generator).mul(2).sub(1)
        parameter.mul_(1.0 + size * sign.to(parameter))
