"""SIGTERM and SIGINT stop a run gracefully: every rank finishes the same step, then all save and exit.

Invariant: all ranks stop at the same step. Each rank's flag is summed over ranks by an asynchronous all-reduce that is
started at one step and read at the next, so that a step does not wait for it. A second SIGINT interrupts at once.
"""

import signal
from collections.abc import Callable
from types import FrameType

import torch
import torch.distributed as dist

from ado_stream.train.distributed import DistributedContext

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_Handler = Callable[[int, FrameType | None], object] | int | None  # what signal.signal returns


class StopRequest:
    """Handles the signals inside its `with` block, which must run in the main thread."""

    def __init__(self, context: DistributedContext):
        self._context = context
        self._signalled = False
        self._previous_handlers: dict[signal.Signals, _Handler] = {}
        self._flag = torch.zeros(1, dtype=torch.int64, device="cpu")
        self._all_reduce: dist.Work | None = None

    def __enter__(self) -> "StopRequest":
        for number in _SIGNALS:
            self._previous_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether to stop now; the same on all ranks, which must call it equally often. Once True, it stays True."""
        if self._context.size == 1:
            return self._signalled
        # The flag sent in one call is read in the next. A true sum is left in `_flag`, and no further all-reduce is
        # started: every rank has read the same sum, so every rank stops taking part at the same call.
        if self._all_reduce is not None:
            self._all_reduce.wait()
            if self._flag.item():
                return True
        self._flag.fill_(int(self._signalled))
        self._all_reduce = dist.all_reduce(self._flag, async_op=True)
        return False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Only sets a flag: it may run between any two bytecodes, also inside a collective or a write of the record.
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signalled = True
