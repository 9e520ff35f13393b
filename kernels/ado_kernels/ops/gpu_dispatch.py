"""How an operation gets its GPU side: imported when first called, run on the device of its tensors."""

import importlib
from typing import Any

import torch


def register_gpu(operation: Any, module: str, function: str) -> None:
    """On CUDA tensors `operation` is `function` of the kernels' `module`, with the operation's own arguments.

    triton is imported then and not before. A launch goes to the current device, which is not always the tensors'.
    """

    @operation.register_kernel("cuda")
    def run(*arguments: Any) -> Any:
        call = getattr(importlib.import_module(module), function)
        with torch.cuda.device_of(arguments[0]):
            return call(*arguments)
