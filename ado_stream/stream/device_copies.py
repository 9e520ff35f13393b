"""The batch that the training loop receives, and its copy to a device during the previous step."""

import contextlib
from typing import NotRequired, TypedDict

import torch

from ado_stream.errors import ConfigError


class TokenBatch(TypedDict):
    """One step's rows of this rank."""

    tokens: torch.Tensor  # (b, T + 1) int64
    domain: torch.Tensor  # (b,) int64
    step: int
    targets: NotRequired[torch.Tensor]  # (b, T) int64, where they are not tokens[:, 1:]: -100 for padding
    positions: NotRequired[torch.Tensor]  # (b, T) int64: of each input token in its document


class DeviceCopies:
    """On a GPU copies run on a separate stream; they overlap with compute when the batches are in pinned memory.

    `begin` starts a batch's copy ahead of its step; after `end` the current stream waits for that copy.
    """

    def __init__(self, device: torch.device, pinned: bool):
        self._device, self._pinned = device, pinned
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, batch: TokenBatch) -> TokenBatch:
        """`batch` with its tensors on the device, their copies started."""
        on_own_stream = contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with on_own_stream:
            tokens, domain = (
                tensor.to(self._device, non_blocking=self._pinned) for tensor in (batch["tokens"], batch["domain"])
            )
        return {"tokens": tokens, "domain": domain, "step": batch["step"]}

    def end(self, batch: TokenBatch) -> TokenBatch:
        """`batch`, safe to use on the current stream."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            # The memory was allocated on the copying stream: it must not be reused before `current` has read it.
            for tensor in (batch["tokens"], batch["domain"]):
                tensor.record_stream(current)
        return batch


def checked_device(device: torch.device | str | None) -> torch.device | None:
    """`device`, which must exist here. Raises ConfigError."""
    if device is None:
        return None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ConfigError(f"device is {device!r:.80}; expected a device of torch, such as 'cuda' or 'cpu'.") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device is {device!r:.80}; this machine has {torch.cuda.device_count()} usable GPUs.")
    return found
