"""The tokens of one domain and split in input order, cut into shards.

A spool is a file per shard, each the bytes of that shard's samples and nothing else; so any process can finish a shard
at any time with the same result. Files, folders and opening them are most of what a thousand small domains cost: the
spools of all domains are in one folder, and what does not fill a shard is kept in memory until `flush`.

The documents are joined (each ends with the end token) and cut into samples of seq_len + 1 tokens that do not overlap:
a model reads a sample's tokens[:-1] and predicts its tokens[1:], and every token is stored once. Tokens that do not
fill a last sample are dropped and counted.

For best-fit packing a file holds whole documents instead, at least as many as fill a shard, which whoever finishes the
shard packs into samples (best_fit.py). Documents without tokens of their own are left out.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ado_stream.corpus.mds import ShardFormat
from ado_stream.errors import ResumeError
from ado_stream.prepare.best_fit import without_empty_documents


@dataclass
class SpoolState:
    """How far a spool is: enough to truncate it to this point."""

    documents: int = 0
    text_bytes: int = 0
    shard: int = 0  # the shard being filled
    shard_fill_bytes: int = 0
    full_bytes: list[int] = field(default_factory=list)  # of each full shard, where the documents are whole


class Spool:
    """Token bytes of one domain and split."""

    def __init__(
        self, stem: Path, shard_format: ShardFormat, state: SpoolState | None = None, end_id: int | None = None
    ):
        """In files named `stem`.NUMBER. Resumes from `state`; what was written after it to that shard is removed.

        end_id: where documents end, to keep them whole; None: shards end where they are full.
        """
        self.stem = stem
        self.shard_format = shard_format
        self.state = state or SpoolState()
        self._end_id = end_id
        self._waiting: list[memoryview | bytes] = []  # of the shard being filled, not in its file yet
        cut(self.path(self.state.shard), self.state.shard_fill_bytes)

    def append(self, documents: int, text_bytes: int, tokens: bytes) -> list[int]:
        """Adds the next documents; returns the shards that became full, whose files are whole."""
        state = self.state
        state.documents += documents
        state.text_bytes += text_bytes
        full = []
        if self._end_id is not None:
            tokens = without_empty_documents(tokens, self.shard_format.dtype, self._end_id)
        rest = memoryview(tokens)
        while rest:
            part = rest[: self._room_bytes(rest)]
            self._waiting.append(part)
            state.shard_fill_bytes += len(part)
            rest = rest[len(part) :]
            if state.shard_fill_bytes >= self.shard_format.spool_bytes:
                self.flush()
                full.append(state.shard)
                if self._end_id is not None:
                    state.full_bytes.append(state.shard_fill_bytes)
                state.shard += 1
                state.shard_fill_bytes = 0
        return full

    def flush(self) -> None:
        """Writes what waits to the file of the shard being filled."""
        if self._waiting:
            with open(self.path(self.state.shard), "ab") as file:
                file.writelines(self._waiting)
            self._waiting.clear()

    def whole_bytes(self, shard: int) -> int:
        """Bytes of the whole samples, or documents, that `shard` has so far."""
        state, sample_bytes = self.state, self.shard_format.sample_bytes
        if self._end_id is not None:
            return state.full_bytes[shard] if shard < state.shard else state.shard_fill_bytes
        if shard < state.shard:
            return self.shard_format.spool_bytes
        return state.shard_fill_bytes // sample_bytes * sample_bytes

    def begin_bytes(self, shard: int) -> int:
        """Bytes of all shards before `shard`."""
        return shard * self.shard_format.spool_bytes if self._end_id is None else sum(self.state.full_bytes[:shard])

    def path(self, shard: int) -> Path:
        """Where the samples of `shard` are collected."""
        return Path(f"{self.stem}.{shard:05}")

    def _room_bytes(self, rest: memoryview) -> int:
        """How much of `rest` goes into the shard being filled."""
        room = self.shard_format.spool_bytes - self.state.shard_fill_bytes
        if self._end_id is None or room > len(rest):
            return room
        ids = np.frombuffer(rest, self.shard_format.dtype)
        last = room // ids.itemsize - 1
        return (last + int(np.argmax(ids[last:] == self._end_id)) + 1) * ids.itemsize


def cut(path: Path, num_bytes: int) -> None:
    """Removes what a killed run wrote to `path` after its last journal, which counts `num_bytes`.

    Raises ResumeError when bytes are missing.
    """
    size_bytes = path.stat().st_size if path.exists() else 0
    if size_bytes < num_bytes:
        raise ResumeError(
            f"{path}: {size_bytes} bytes, but the journal of this unfinished run counts {num_bytes}.\n"
            "  The disk lost the rest; remove the working folder to start again."
        )
    if size_bytes:
        os.truncate(path, num_bytes)
