"""One domain and split on its way to shards: tokens in input order, cut where a shard is full.

A spool is a folder of files, one a shard, each the bytes of that shard's samples and nothing else; so a shard can be
finished by any process, at any time, with the same result. The documents are joined (each ends with the end token) and
cut into samples of seq_len + 1 tokens that do not overlap: a model reads a sample's tokens[:-1] and predicts its
tokens[1:], and every token is stored once. What does not fill a last sample is dropped and counted.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ado_stream.corpus.mds import ShardFormat
from ado_stream.durable import sync
from ado_stream.errors import ResumeError


@dataclass
class SpoolState:
    """How far a spool is: enough to cut it back to this point."""

    documents: int = 0
    text_bytes: int = 0
    shard: int = 0  # the shard being filled
    shard_fill_bytes: int = 0


class Spool:
    """Token bytes of one domain and split."""

    def __init__(self, folder: Path, form: ShardFormat, state: SpoolState | None = None):
        """Goes on from `state`: whatever was written after it is cut off."""
        self.folder = folder
        self.form = form
        self.state = state or SpoolState()
        folder.mkdir(parents=True, exist_ok=True)
        self._cut_back()

    def append(self, documents: int, text_bytes: int, tokens: bytes) -> list[int]:
        """Takes the next documents; returns the shards that became full."""
        state = self.state
        state.documents += documents
        state.text_bytes += text_bytes
        full = []
        rest = memoryview(tokens)
        while rest:
            part = rest[: self.form.spool_bytes - state.shard_fill_bytes]
            with open(self.path(state.shard), "ab") as file:
                file.write(part)
            state.shard_fill_bytes += len(part)
            rest = rest[len(part) :]
            if state.shard_fill_bytes == self.form.spool_bytes:
                sync(self.path(state.shard))  # the journal will count it, and `sync` sees the shard being filled alone
                full.append(state.shard)
                state.shard += 1
                state.shard_fill_bytes = 0
        return full

    def whole_bytes(self, shard: int) -> int:
        """Bytes of the whole samples that `shard` has so far."""
        if shard < self.state.shard:
            return self.form.spool_bytes
        return self.state.shard_fill_bytes // self.form.sample_bytes * self.form.sample_bytes

    def path(self, shard: int) -> Path:
        """Where the samples of `shard` are collected."""
        return self.folder / f"{shard:05}"

    def sync(self) -> None:
        """Returns when what is being filled is on the disk."""
        if self.state.shard_fill_bytes:
            sync(self.path(self.state.shard))
        sync(self.folder)

    def snapshot(self) -> dict[str, int]:
        """The state for the journal."""
        return asdict(self.state)

    def _cut_back(self) -> None:
        for path in self.folder.iterdir():
            if int(path.name) > self.state.shard:
                path.unlink()
        current = self.path(self.state.shard)
        size_bytes = current.stat().st_size if current.exists() else 0
        if size_bytes < self.state.shard_fill_bytes:
            raise ResumeError(
                f"{current}: {size_bytes} bytes, but the journal of this unfinished run counts "
                f"{self.state.shard_fill_bytes}.\n  The disk lost them; remove the working folder to start afresh."
            )
        if size_bytes:
            os.truncate(current, self.state.shard_fill_bytes)
