"""Kernels of ado-stream: Triton on GPUs, Numba on CPUs, one folder per operation (ops/); the scaling-law fit (fit/).

They work on tensors and arrays alone: no domain names, files or policies. Names are imported on first use, so that the
fit on a CPU needs no import of torch.

Dimensions as suffixes: N rows, D or H width, Q width of a head, V vocabulary, T tokens, K domains, B ids (a batch's
sequences); C rows of a chunk, G programs or slabs of a partial sum. Capitals in a kernel are compile-time constants;
ACC is the dtype of its accumulators.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from ado_kernels.numba_cache import clear_stale_cache, use_writable_cache

if TYPE_CHECKING:
    from ado_kernels.fit.fit_dispatch import scaling_law_fit
    from ado_kernels.ops.domain_loss import domain_loss
    from ado_kernels.ops.linear_cross_entropy import linear_cross_entropy
    from ado_kernels.ops.rms_norm import rms_norm
    from ado_kernels.ops.rms_norm_rope import rms_norm_rope
    from ado_kernels.ops.swiglu import swiglu

# Before any import of numba below: its cache is looked up when a kernel's file is imported.
clear_stale_cache(Path(__file__).parent)
use_writable_cache(Path(__file__).parent)

__all__ = ["domain_loss", "linear_cross_entropy", "rms_norm", "rms_norm_rope", "scaling_law_fit", "swiglu"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'ado_kernels' has no attribute {name!r}")
    module = "fit.fit_dispatch" if name == "scaling_law_fit" else f"ops.{name}"
    value = getattr(importlib.import_module(f"ado_kernels.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
