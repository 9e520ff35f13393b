"""Copies batches to a device, each while the step before is computed."""

import contextlib
from typing import Any

import torch

_TENSORS = ("tokens", "domain")


class DeviceCopies:
    """On a GPU copies run on a stream of their own; they overlap with compute when the batches lie in pinned memory.

    A batch goes through `begin` early and through `end` when it is used: from then on the current stream waits for it.
    """

    def __init__(self, device: torch.device, pinned: bool):
        self._device, self._pinned = device, pinned
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`batch` with its tensors on the device, or on their way."""
        on_own_stream = contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with on_own_stream:
            copies = {key: batch[key].to(self._device, non_blocking=self._pinned) for key in _TENSORS}
        return {**batch, **copies}

    def end(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`batch`, safe to use on the current stream."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for key in _TENSORS:
                batch[key].record_stream(current)  # its memory is not given away before this stream is through with it
        return batch
