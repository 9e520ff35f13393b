"""Training and loading as if the process had torch's own defaults, whatever its code has set."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def torch_defaults() -> Iterator[None]:
    """New tensors on the CPU and in float32, gradients recorded; as it was before at the end. Also a decorator.

    A default of meta would give parameters without data, one of bfloat16 a model in less than the config's dtype.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            if torch.get_default_device().type != "cpu":  # only then, since it costs some time in every call of torch
                stack.enter_context(torch.device("cpu"))
            yield
    finally:
        torch.set_default_dtype(dtype)
