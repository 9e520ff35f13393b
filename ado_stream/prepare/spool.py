"""The tokens of one domain and split in input order, cut into shards.

A spool is a folder of files, one per shard, each the bytes of that shard's samples and nothing else; so any process
can finish a shard at any time with the same result. The documents are joined (each ends with the end token) and cut
into samples of seq_len + 1 tokens that do not overlap: a model reads a sample's tokens[:-1] and predicts its
tokens[1:], and every token is stored once. Tokens that do not fill a last sample are dropped and counted.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from ado_stream.corpus.mds import ShardFormat
from ado_stream.durable import sync
from ado_stream.errors import ResumeError


@dataclass
class SpoolState:
    """How far a spool is: enough to truncate it to this point."""

    documents: int = 0
    text_bytes: int = 0
    shard: int = 0  # the shard being filled
    shard_fill_bytes: int = 0


class Spool:
    """Token bytes of one domain and split."""

    def __init__(self, folder: Path, shard_format: ShardFormat, state: SpoolState | None = None):
        """Resumes from `state`; what was written after it is removed."""
        self.folder = folder
        self.shard_format = shard_format
        self.state = state or SpoolState()
        folder.mkdir(parents=True, exist_ok=True)
        self._unsynced = True
        self._truncate()

    def append(self, documents: int, text_bytes: int, tokens: bytes) -> list[int]:
        """Adds the next documents; returns the shards that became full."""
        state = self.state
        self._unsynced = True
        state.documents += documents
        state.text_bytes += text_bytes
        full = []
        rest = memoryview(tokens)
        while rest:
            part = rest[: self.shard_format.spool_bytes - state.shard_fill_bytes]
            with open(self.path(state.shard), "ab") as file:
                file.write(part)
            state.shard_fill_bytes += len(part)
            rest = rest[len(part) :]
            if state.shard_fill_bytes == self.shard_format.spool_bytes:
                sync(self.path(state.shard))  # the journal will count it, and `sync` sees the shard being filled alone
                full.append(state.shard)
                state.shard += 1
                state.shard_fill_bytes = 0
        return full

    def whole_bytes(self, shard: int) -> int:
        """Bytes of the whole samples that `shard` has so far."""
        if shard < self.state.shard:
            return self.shard_format.spool_bytes
        return self.state.shard_fill_bytes // self.shard_format.sample_bytes * self.shard_format.sample_bytes

    def path(self, shard: int) -> Path:
        """Where the samples of `shard` are collected."""
        return self.folder / f"{shard:05}"

    def sync(self) -> None:
        """Flushes the shard being filled, and the folder's names, to the disk, unless nothing was added since."""
        if not self._unsynced:
            return
        if self.state.shard_fill_bytes:
            sync(self.path(self.state.shard))
        sync(self.folder)
        self._unsynced = False

    def _truncate(self) -> None:
        """Removes what a killed run wrote after its last journal. Raises ResumeError when bytes are missing."""
        for path in self.folder.iterdir():
            if int(path.name) > self.state.shard:
                path.unlink()
        current = self.path(self.state.shard)
        size_bytes = current.stat().st_size if current.exists() else 0
        if size_bytes < self.state.shard_fill_bytes:
            raise ResumeError(
                f"{current}: {size_bytes} bytes, but the journal of this unfinished run counts "
                f"{self.state.shard_fill_bytes}.\n  The disk lost the rest; remove the working folder to start again."
            )
        if size_bytes:
            os.truncate(current, self.state.shard_fill_bytes)
