"""Reads a prepared corpus shard by shard, checking each against its index: for `lint` and `preview`.

Nothing is trusted: names must be plain, sizes and hashes must match the index, the zstd frame must not exceed its size
there, every token must be inside the vocabulary. One shard at a time is in memory.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zstandard

from ado_stream.corpus.corpus import load_manifest
from ado_stream.corpus.listed_corpus import is_listed
from ado_stream.corpus.manifest import MANIFEST_NAME, SPLITS, Manifest, domain_fingerprint, num_samples
from ado_stream.corpus.mds import HASH, FileEntry, ShardEntry, ShardFormat, decode_shard, digest
from ado_stream.corpus.places import local_folder
from ado_stream.errors import ConfigError, DataError, IndexInvalid, ShardCorrupt
from ado_stream.json_files import decode_json
from ado_stream.storage.decompress import is_bomb
from ado_stream.storage.download import download_bytes
from ado_stream.storage.verify import CHUNK_BYTES
from ado_stream.stream.index_content import INDEX_NAME, parse_index
from ado_stream.stream.mds_index import make_index
from ado_stream.value_types import Array, JsonObject


class Checker(Protocol):
    """What `lint` and `preview` need of a corpus, prepared or listed. An entry of an index has at least "samples"."""

    manifest: Manifest

    def splits(self) -> Iterator[tuple[str, str]]:
        """Every (domain, split) that has samples."""

    def index(self, domain: str, split: str) -> Sequence[Any]:
        """An entry for every shard of a split."""

    def shard(self, domain: str, split: str, entry: Any) -> Array:
        """(samples, seq_len + 1) ids of one shard of `index`, checked."""

    def check_fingerprint(self, domain: str, entries: Mapping[str, Sequence[Any]]) -> None:
        """Raises IndexInvalid where {split: entries} are not the shards that the corpus has a fingerprint of."""


class CorpusChecker:
    """The shards of a corpus at a folder or URL."""

    def __init__(self, url: str | os.PathLike[str]):
        """Raises NotFound or IndexInvalid when there is no corpus.json, or an invalid one."""
        self.url = str(local_folder(url) or os.fspath(url).rstrip("/"))
        self.manifest = load_manifest(url)

    def splits(self) -> Iterator[tuple[str, str]]:
        """Every (domain, split) that has samples."""
        for name, domain in self.manifest["domains"].items():
            yield from ((name, split) for split in SPLITS if num_samples(domain, split))

    def index(self, domain: str, split: str) -> list[ShardEntry]:
        """The entries of a split's index.json. Raises NotFound, IndexInvalid."""
        folder = self._folder(domain, split)
        where = f"{folder}/{INDEX_NAME}"
        text = download_bytes(where)
        try:
            found = make_index(parse_index(text, domain, where), domain, folder, Path()).num_samples
        except ConfigError as error:  # no shards or no token column: `prepare` never writes that
            raise IndexInvalid(f"{where}: {error}") from error
        expected = num_samples(self.manifest["domains"][domain], split)
        if found != expected:
            raise IndexInvalid(f"{where}: {found} samples, but {MANIFEST_NAME} says {expected}.")
        shards: list[ShardEntry] = decode_json(text, JsonObject, where)["shards"]
        return shards

    def shard(self, domain: str, split: str, entry: ShardEntry) -> Array:
        """(samples, seq_len + 1) ids of one shard of `index`. Raises NotFound, ShardCorrupt, DataError (an id too
        large)."""
        raw_file, stored_file = entry["raw_data"], stored_entry(entry)
        where = self.location(domain, split, entry)
        # decode_shard compares the whole header, and `size_limit` is a part of it
        shard_format = ShardFormat(
            self.manifest["seq_len"] + 1, self.manifest["token_dtype"], entry.get("size_limit", 0)
        )
        if raw_file["bytes"] != shard_format.raw_bytes(entry["samples"]):
            raise IndexInvalid(
                f"{where}: {raw_file['bytes']:,} raw bytes, but {entry['samples']:,} samples of this corpus have "
                f"{shard_format.raw_bytes(entry['samples']):,}."
            )
        raw = data = _read(where, stored_file["bytes"])
        _check_bytes(where, data, stored_file)
        if stored_file is not raw_file:
            raw = _decompress(where, data, raw_file["bytes"])
            _check_bytes(where, raw, raw_file)
        try:
            tokens = decode_shard(raw, shard_format)
        except ValueError as error:
            raise ShardCorrupt(f"{where}: {error}. Prepare the corpus again.") from error
        if len(tokens) != entry["samples"]:
            raise ShardCorrupt(f"{where}: {len(tokens)} samples, but its index says {entry['samples']}.")
        self._check_vocabulary(where, tokens)
        return tokens

    def location(self, domain: str, split: str, entry: ShardEntry) -> str:
        """The path or URL of a shard's stored file."""
        return f"{self._folder(domain, split)}/{stored_entry(entry)['basename']}"

    def check_fingerprint(self, domain: str, entries: Mapping[str, Sequence[ShardEntry]]) -> None:
        """Raises IndexInvalid unless the shards {split: entries of its index} are those of the manifest."""
        hashes = {
            split: [(entry["raw_data"].get("hashes") or {}).get(HASH) for entry in some]
            for split, some in entries.items()
        }
        if domain_fingerprint(hashes) != self.manifest["domains"][domain]["fingerprint"]:
            raise IndexInvalid(f"domain {domain!r}: its shards are not those that {MANIFEST_NAME} was written for.")

    def _folder(self, domain: str, split: str) -> str:
        """The path or URL of a split's data set."""
        return f"{self.url}/{self.manifest['domains'][domain]['path']}/{split}"

    def _check_vocabulary(self, where: str, tokens: Array) -> None:
        vocab_size = self.manifest["vocab_size"]
        if tokens.max() >= vocab_size:
            row, column = np.argwhere(tokens >= vocab_size)[0]
            raise DataError(
                f"{where}: row {row}, position {column}: token {tokens[row, column]}, but the vocabulary ends at "
                f"{vocab_size - 1}.\n  Shards and {MANIFEST_NAME} do not belong together; prepare them again."
            )


def stored_entry(entry: ShardEntry) -> FileEntry:
    """The file of a shard that a corpus holds: the compressed one where there is one."""
    return entry.get("zip_data") or entry["raw_data"]


def open_checker(url: str) -> Checker:
    """The checker of the corpus at `url`. Raises as its constructor."""
    if is_listed(url):
        from ado_stream.corpus.listed_checker import ListedChecker  # imports numba

        return ListedChecker(url)
    return CorpusChecker(url)


def _read(where: str, expected_bytes: int) -> bytes:
    """The bytes of a shard's file. Raises ShardCorrupt when it is larger than expected."""
    try:
        return download_bytes(where, max_bytes=expected_bytes)
    except IndexInvalid:
        raise ShardCorrupt(f"{where}: more bytes than its index says, {expected_bytes:,}.") from None


def _check_bytes(where: str, data: bytes, expected: FileEntry) -> None:
    if len(data) != expected["bytes"]:
        raise ShardCorrupt(f"{where}: {len(data):,} bytes, but its index says {expected['bytes']:,}.")
    expected_hash = (expected.get("hashes") or {}).get(HASH)
    if expected_hash is None:
        raise IndexInvalid(f"{where}: its index has no {HASH} to check it against.")
    found = digest(data)
    if found != expected_hash:
        raise ShardCorrupt(
            f"{where}: {HASH} {found} but its index says {expected_hash}.\n"
            "  The file is damaged or index.json is stale. Prepare the corpus again."
        )


def _decompress(where: str, data: bytes, raw_bytes: int) -> bytes:
    """`data`, zstd frames, decompressed in parts up to the size in the index; a decompression bomb is refused."""
    if is_bomb(raw_bytes, len(data)):
        raise ShardCorrupt(
            f"{where}: {len(data):,} bytes that decompress to {raw_bytes:,}: a decompression bomb.\n"
            "  Prepare the corpus again."
        )
    parts, size = [], 0
    try:
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as stream:
            while size <= raw_bytes and (part := stream.read(CHUNK_BYTES)):
                parts.append(part)
                size += len(part)
    except zstandard.ZstdError as error:
        raise ShardCorrupt(f"{where}: not a zstd frame: {error}. Prepare the corpus again.") from error
    if size != raw_bytes:
        found = f"{size:,}" if size < raw_bytes else "more"
        raise ShardCorrupt(f"{where}: decompresses to {found} bytes, but its index says {raw_bytes:,}.")
    return b"".join(parts)
