"""The seconds of one step by part, measured without waiting for the device.

On a GPU the host only launches work; device time is measured between CUDA events on the current stream, which are read
after the device has passed them. The parts, in seconds:

    data               host, waiting for the batch
    forward_backward   device
    optimizer          device: all-reduce of the losses, clipping, AdamW
    policy             host: the policy's update and the broadcast of its mixture; no wait for the device
    checkpoint         host: how long a save just before this step blocked the loop
    total              host: from this step's start to the next one's, plus `checkpoint`
"""

import contextlib
import time
from collections.abc import Iterator

import torch


class StepTimer:
    """Times one step, which starts when the timer is created."""

    def __init__(self, device: torch.device, checkpoint_s: float = 0.0):
        self.started = time.perf_counter()
        self._on_gpu = device.type == "cuda"
        self._seconds = {"checkpoint": checkpoint_s}
        self._events: dict[str, tuple[torch.cuda.Event, torch.cuda.Event]] = {}

    @contextlib.contextmanager
    def host(self, part: str) -> Iterator[None]:
        """Times the body on the host."""
        started = time.perf_counter()
        yield
        self._seconds[part] = time.perf_counter() - started

    @contextlib.contextmanager
    def device(self, part: str) -> Iterator[None]:
        """Times on the device what the body launches."""
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
        """Seconds by part. ended: time.perf_counter() at the step's end, not before the device finished it."""
        measured = {part: before.elapsed_time(after) / 1e3 for part, (before, after) in self._events.items()}
        return {**self._seconds, **measured, "total": ended - self.started + self._seconds["checkpoint"]}
