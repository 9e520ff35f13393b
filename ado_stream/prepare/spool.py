"""The tokens of one domain and split in input order, cut into shards.

A spool is a file per shard, each the bytes of that shard's samples and nothing else; so any process can finish a shard
at any time with the same result. The spools of all domains are in one folder: two folders more for each would be most
of what a thousand small domains cost. The documents are joined (each ends with the end token) and cut
into samples of seq_len + 1 tokens that do not overlap: a model reads a sample's tokens[:-1] and predicts its
tokens[1:], and every token is stored once. Tokens that do not fill a last sample are dropped and counted.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from ado_stream.corpus.mds import ShardFormat
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

    def __init__(self, stem: Path, shard_format: ShardFormat, state: SpoolState | None = None):
        """In files named `stem`.NUMBER. Resumes from `state`; what was written after it to that shard is removed."""
        self.stem = stem
        self.shard_format = shard_format
        self.state = state or SpoolState()
        cut(self.path(self.state.shard), self.state.shard_fill_bytes)

    def append(self, documents: int, text_bytes: int, tokens: bytes) -> list[int]:
        """Adds the next documents; returns the shards that became full."""
        state = self.state
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
        return self.stem.with_name(f"{self.stem.name}.{shard:05}")


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
