"""Mixtures in memory that a fork shares, from the process that publishes to the one that draws.

A DataLoader with one worker forks the data set; what the training loop publishes afterwards must reach that copy. Both
processes have the same anonymous memory map: it has no name and no file descriptor that could outlive them. Slot s mod
S holds step s; its version is odd while it is written, so that the reader never takes half a mixture (a seqlock).
"""

import mmap
import os
from collections.abc import Iterator

import numpy as np

from ado_stream.errors import ConfigError, PolicyError
from ado_stream.value_types import Floats

_NUM_SLOTS = 1024


class SharedMixtures:
    """One process posts mixtures by step, one other collects them. `num_domains`: K."""

    def __init__(self, num_domains: int):
        head = 4 + 2 * _NUM_SLOTS
        memory = mmap.mmap(-1, 8 * (head + _NUM_SLOTS * num_domains))
        words = np.frombuffer(memory, np.int64, head)
        # The reader's process id (0: none), its first step not drawn, number of posts, whether a fork has read.
        self._head = words[:4]
        self._step_S, self._version_S = words[4:].reshape(2, _NUM_SLOTS)
        self._mixture_SK = np.frombuffer(memory, np.float64, offset=8 * head).reshape(_NUM_SLOTS, num_domains)
        self._num_collected = 0
        self._maker = os.getpid()
        self.clear()

    def clear(self) -> None:
        """Discards every mixture and the reader, for a restart at another step."""
        self._head[[0, 1, 3]] = 0
        self._step_S[:] = -1

    def open(self) -> None:
        """Makes this process the reader.

        Raises ConfigError when a fork has read before: how much of what it read ahead it has yielded is not known here.
        """
        if self._head[3]:
            raise ConfigError(
                "a DataLoader's worker has read this data set before; another pass would repeat steps or leave some "
                "out.\n  Use num_workers=0 (reading runs in threads), or torchdata's StatefulDataLoader, and load the "
                "saved state before the second pass."
            )
        self._head[0] = os.getpid()
        self._head[3] = self.is_fork

    def close(self) -> None:
        """Ends being the reader."""
        if self.is_read_here:
            self._head[0] = 0

    @property
    def is_fork(self) -> bool:
        """Whether this process is a fork of the one that made this object."""
        return os.getpid() != self._maker

    @property
    def is_read_here(self) -> bool:
        """Whether this process is the reader."""
        return bool(self._head[0] == os.getpid())

    @property
    def is_read_elsewhere(self) -> bool:
        """Whether another process is the reader."""
        return bool(self._head[0]) and not self.is_read_here

    def post(self, step: int, mixture_K: Floats) -> None:
        """Stores the mixture of `step` for the reader. The same one again is harmless.

        Raises PolicyError when the reader has drawn the step already, or is too far behind.
        """
        slot = step % _NUM_SLOTS
        held, first = int(self._step_S[slot]), int(self._head[1])
        if held == step and np.array_equal(self._mixture_SK[slot], mixture_K):
            return
        if self.is_read_elsewhere and step < first:
            raise PolicyError(
                f"publish({step}, ...): the DataLoader's worker has drawn steps up to {first - 1}.\n"
                f"  Publish earlier, or give the data set a larger mixture_lag."
            )
        if self.is_read_elsewhere and held >= first and held != step:
            raise PolicyError(
                f"publish({step}, ...): the DataLoader's worker is at step {first}; publish at most {_NUM_SLOTS} ahead."
            )
        # In this order: a reader that sees the new count sees the whole slot; one that reads earlier sees an odd
        # version, skips the slot, and reads again because the count changes.
        self._version_S[slot] += 1
        self._step_S[slot] = step
        self._mixture_SK[slot] = mixture_K
        self._version_S[slot] += 1
        self._head[2] += 1

    def collect(self, first: int) -> Iterator[tuple[int, Floats]]:
        """(step, mixture) for every step from `first` on that was posted; steps before it count as drawn."""
        self._head[1] = first
        if self._head[2] == self._num_collected:
            return
        self._num_collected = int(self._head[2])  # before the slots are read: a concurrent post is collected next time
        for slot in np.flatnonzero(self._step_S >= first).tolist():
            version = int(self._version_S[slot])
            step, mixture_K = int(self._step_S[slot]), self._mixture_SK[slot].copy()
            if version % 2 == 0 and self._version_S[slot] == version:
                yield step, mixture_K
