"""SIGTERM and SIGINT end a run in order: every rank finishes the same step, then all save and leave.

Invariant: all ranks get the same answer at the same step. A rank's own flag is summed over ranks in the background,
started at one step and read at the next, so that asking costs the step no wait. A second SIGINT interrupts at once.
"""

import signal
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from ado_stream.train.distributed import World

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Listens for the signals while in its `with` block (in the main thread)."""

    def __init__(self, world: World):
        self._world = world
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._under_way: dist.Work | None = None

    def __enter__(self) -> "StopRequest":
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether to stop now: the same on all ranks, which call it at the same places. Once true, always true."""
        if self._world.size == 1:
            return self._asked
        if self._under_way is not None:
            self._under_way.wait()
            if self._flag.item():
                return True
        self._flag.fill_(int(self._asked))
        self._under_way = dist.all_reduce(self._flag, async_op=True)
        return False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
