"""Where the time of one step goes, found out without waiting for the device.

On a GPU the host only launches work: what the device does is measured between events on the current stream, which are
read when the device is long past them. The parts, in seconds:

    data               host, waiting for the batch
    forward_backward   device
    optimizer          device: sums over ranks, clipping, AdamW
    policy             host: the policy's update and telling it to all ranks; no wait for the device
    checkpoint         host: a save just before this step, as far as it held the loop up
    total              host: from this step's start to its end, which is the next one's start, and `checkpoint`
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch


class StepClock:
    """The clock of one step, which starts with it."""

    def __init__(self, device: torch.device, checkpoint_s: float = 0.0):
        self.started = time.perf_counter()
        self._on_gpu = device.type == "cuda"
        self._seconds = {"checkpoint": checkpoint_s}
        self._events: dict[str, tuple[Any, Any]] = {}

    @contextlib.contextmanager
    def host(self, part: str) -> Iterator[None]:
        """Times what the host does inside."""
        started = time.perf_counter()
        yield
        self._seconds[part] = time.perf_counter() - started

    @contextlib.contextmanager
    def device(self, part: str) -> Iterator[None]:
        """Times what is launched inside, on the device."""
        if not self._on_gpu:
            with self.host(part):
                yield
            return
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        yield
        after.record()
        self._events[part] = before, after

    def seconds(self, ended: float) -> dict[str, float]:
        """Seconds by part; `ended`: by time.perf_counter, when the device was past this step or later."""
        measured = {part: before.elapsed_time(after) / 1e3 for part, (before, after) in self._events.items()}
        return {**self._seconds, **measured, "total": ended - self.started + self._seconds["checkpoint"]}
