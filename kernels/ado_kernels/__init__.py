"""Kernels of ado-stream: Triton on GPUs, Numba or plain PyTorch on CPUs, one file per operation.

They know tensors; they know nothing of domains' names, files or policies. Names are loaded on first use: the
scaling-law fit on a CPU needs no import of torch.
"""

import importlib
from pathlib import Path

from ado_kernels.machine_code import drop_if_stale

drop_if_stale(Path(__file__).parent)

_HOME = {
    "rms_norm": "ado_kernels.ops.rms_norm",
    "rms_norm_rope": "ado_kernels.ops.rms_norm_rope",
    "swiglu": "ado_kernels.ops.swiglu",
    "linear_cross_entropy": "ado_kernels.ops.linear_cross_entropy",
    "domain_loss": "ado_kernels.ops.domain_loss",
    "scaling_law_fit": "ado_kernels.fit.fit_dispatch",
}

__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'ado_kernels' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
