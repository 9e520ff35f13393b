"""The one way in which this operation calls torch's matrix product: into a given tensor, summed in its dtype."""

from typing import Any

import torch


def matmul_into(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, add: bool = False) -> None:
    """out = a b, or out += a b; float32 sums for narrower operands (on a GPU: the CPU has no such product)."""
    wide: dict[str, Any] = {} if out.dtype == a.dtype else {"out_dtype": out.dtype}
    if add:
        torch.addmm(out, a, b, out=out, **wide)
    else:
        torch.mm(a, b, out=out, **wide)
