"""Reads a prepared corpus shard by shard, each one checked against its index: for `lint` and `preview`.

Nothing is taken on trust: names must be plain, sizes and hashes those of the index, the zstd frame no larger than it
says, every token inside the vocabulary. Of a remote corpus one shard at a time is on the disk.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from ado_stream.corpus import manifest as manifests
from ado_stream.corpus.mds import HASH, INDEX_NAME, ShardFormat, decode_shard, digest
from ado_stream.corpus.open import load_manifest
from ado_stream.errors import DataError, IndexInvalid, NotFound, ShardCorrupt
from ado_stream.storage.download import download


class CorpusReader:
    """The shards of a corpus at a folder or URL."""

    def __init__(self, url: str | os.PathLike[str]):
        """Raises NotFound or IndexInvalid when there is no corpus.json, or none that can be understood."""
        self.url = os.fspath(url).rstrip("/")
        self.manifest = load_manifest(url)

    def splits(self) -> Iterator[tuple[str, str]]:
        """Every (domain, split) that has samples."""
        for domain, fields in self.manifest["domains"].items():
            for split, counts in fields["splits"].items():
                if counts["samples"]:
                    yield domain, split

    def where(self, domain: str, split: str, name: str = "") -> str:
        """The place of a file, for messages."""
        return f"{self.url}/{self.manifest['domains'][domain]['path']}/{split}/{name}".rstrip("/")

    def index(self, domain: str, split: str) -> list[dict[str, Any]]:
        """The entries of a split's index.json. Raises NotFound, IndexInvalid."""
        where = self.where(domain, split, INDEX_NAME)
        try:
            index = json.loads(self._read(where))
            entries = index["shards"]
            for entry in entries:
                _check_entry(where, entry)
            num_samples = sum(entry["samples"] for entry in entries)
        except (ValueError, KeyError, TypeError) as error:
            raise IndexInvalid(f"{where}: cannot be understood: {type(error).__name__}: {error}.") from error
        expected = self.manifest["domains"][domain]["splits"][split]["samples"]
        if num_samples != expected:
            raise IndexInvalid(f"{where}: {num_samples} samples, but {manifests.FILE_NAME} says {expected}.")
        return entries

    def shard(self, domain: str, split: str, entry: Mapping[str, Any]) -> np.ndarray:
        """(samples, seq_len + 1) ids of one shard. Raises NotFound, ShardCorrupt, DataError (an id too large)."""
        stored = entry["zip_data"] or entry["raw_data"]
        where = self.where(domain, split, stored["basename"])
        raw = data = self._read(where)
        _check_bytes(where, data, stored)
        if entry["zip_data"]:
            raw = _unpacked(where, data, entry["raw_data"]["bytes"])
            _check_bytes(where, raw, entry["raw_data"])
        try:
            tokens = decode_shard(raw, self._form(entry))
        except ValueError as error:
            raise ShardCorrupt(f"{where}: {error}. Prepare the corpus again.") from error
        if len(tokens) != entry["samples"]:
            raise ShardCorrupt(f"{where}: {len(tokens)} samples, but its index says {entry['samples']}.")
        self._check_vocabulary(where, tokens)
        return tokens

    def _form(self, entry: Mapping[str, Any]) -> ShardFormat:
        return ShardFormat(self.manifest["seq_len"] + 1, self.manifest["token_dtype"], entry["size_limit"])

    def _check_vocabulary(self, where: str, tokens: np.ndarray) -> None:
        vocab_size = self.manifest["vocab_size"]
        if tokens.max() >= vocab_size:
            row, column = np.argwhere(tokens >= vocab_size)[0]
            raise DataError(
                f"{where}: row {row}, position {column}: token {tokens[row, column]}, but the vocabulary ends at "
                f"{vocab_size - 1}.\n  Shards and {manifests.FILE_NAME} do not belong together; prepare them again."
            )

    def _read(self, where: str) -> bytes:
        if "://" not in where or where.startswith("file://"):
            path = Path(where.removeprefix("file://")).expanduser()
            if not path.is_file():
                raise NotFound(f"{where}: no such file. Prepare the corpus again.")
            return path.read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "object"
            download(where, path)
            return path.read_bytes()


def _check_entry(where: str, entry: Mapping[str, Any]) -> None:
    for stored in (entry["raw_data"], entry["zip_data"]):
        name = stored["basename"] if stored else "shard"
        if name != os.path.basename(name) or name in ("", ".", "..") or "\0" in name:
            raise IndexInvalid(f"{where}: shard name {name!r} must be a plain file name.")


def _check_bytes(where: str, data: bytes, expected: Mapping[str, Any]) -> None:
    if len(data) != expected["bytes"]:
        raise ShardCorrupt(f"{where}: {len(data):,} bytes, but its index says {expected['bytes']:,}.")
    wanted = expected["hashes"].get(HASH)
    if wanted is None:
        raise IndexInvalid(f"{where}: its index has no {HASH} to check it against.")
    found = digest(data)
    if found != wanted:
        raise ShardCorrupt(
            f"{where}: {HASH} {found} but its index says {wanted}.\n"
            "  The file is damaged or index.json is stale. Prepare the corpus again."
        )


def _unpacked(where: str, data: bytes, raw_bytes: int) -> bytes:
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if size != raw_bytes:
            raise ShardCorrupt(f"{where}: unpacks to {size:,} bytes, but its index says {raw_bytes:,}.")
        return zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError as error:
        raise ShardCorrupt(f"{where}: not a zstd frame: {error}. Prepare the corpus again.") from error
