"""How an operation is registered with torch.library: on a CPU at once, on a GPU when it is first called there."""

import importlib
from collections.abc import Callable
from typing import Any

import torch


def register(name: str, cpu: Callable[..., object], fake: Callable[..., object], gpu: str) -> torch.library.CustomOpDef:
    """ado_kernels::NAME, whose schema is `cpu`'s signature. fake: its outputs without values, of the same arguments.

    gpu: "FOLDER.FUNCTION", a function of FOLDER's gpu.py with the same arguments. triton is imported with it and not
    before. A launch uses the current device, which is not always the tensors'.
    """
    folder, function = gpu.split(".")
    operation = torch.library.custom_op(f"ado_kernels::{name}", cpu, mutates_args=(), device_types="cpu")
    operation.register_fake(fake)

    def run(*arguments: Any) -> Any:
        call = getattr(importlib.import_module(f"ado_kernels.ops.{folder}.gpu"), function)
        with torch.cuda.device_of(arguments[0]):
            return call(*arguments)

    operation.register_kernel("cuda", run)
    return operation


def register_backward(op: str, cpu: Callable[..., object], fake: Callable[..., object], gpu: str) -> None:
    """ado_kernels::OP_backward, which cannot be differentiated again."""

    def refuse(*_: Any) -> None:
        raise RuntimeError(f"{op} has no second derivative; use {op}_reference where one is needed")

    register(f"{op}_backward", cpu, fake, gpu).register_autograd(refuse)
