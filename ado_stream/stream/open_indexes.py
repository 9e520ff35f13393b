"""Opens the index of every domain, and decides which folder caches its shards.

Invariant: a cached shard is found only by a reader of the same data. Its folder, within the domain's `local`, is named
by a hash of the remote, of the index's bytes and, where the index has no hashes, of the versions that the store gives
some shards: two corpora in one folder cannot be confused, and data that was replaced at a remote is never mixed with
the old.

One process of a node downloads and parses a remote's index, or the headers and indexes of token files, and writes it,
checked and compact, into `local`; the others read that, and so do later runs if the store reports no change.
"""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import xxhash

from ado_stream.durable import disk_errors, private_folder, write_durably
from ado_stream.errors import AccessDenied, ConfigError, NotFound
from ado_stream.storage.download import (
    download_bytes,
    download_if_changed,
    is_s3,
    list_objects,
    local_path,
    object_version,
)
from ado_stream.storage.object_locks import object_lock
from ado_stream.storage.parallel_reads import read_in_parallel
from ado_stream.storage.retry import Deadline, RetryPolicy
from ado_stream.storage.slow_notice import slow_notice
from ado_stream.stream.domain import Domain
from ado_stream.stream.flat_files import FlatPlace, Found
from ado_stream.stream.flat_index import FlatContent, FlatIndex
from ado_stream.stream.index_content import INDEX_NAME, IndexContent, merge_indexes, parse_index
from ado_stream.stream.mds_index import MdsIndex, make_index
from ado_stream.stream.sample_index import SampleIndex

_THREADS = 32
_SHARED_FOLDER, _SHARED_FORMAT = ".ado-index", "2"
_HASH_BYTES = 16
_MAX_VERSIONS = 8  # shards whose versions are compared
_LAST_BYTES = 1 << 12


class _Encodable(Protocol):
    def encode(self) -> bytes: ...


Data = TypeVar("Data")
Content_co = TypeVar("Content_co", bound=_Encodable, covariant=True)


class _Source(Protocol[Data, Content_co]):
    """What the content of an index is made from."""

    def changed(self, tag: str) -> tuple[Data, str] | None:
        """(what `parse` takes, its tag); None when that is `tag` still."""

    def parse(self, data: Data) -> Content_co:
        """The content, checked."""

    def decode(self, data: bytes) -> Content_co:
        """The content that was encoded."""


def open_indexes(
    domains: Sequence[Domain],
    token_column: str,
    token_dtype: str | None,
    retry: RetryPolicy | None = None,
    seq_len: int | None = None,
) -> list[SampleIndex]:
    """The index of every domain. Raises NotFound, IndexInvalid, ConfigError.

    token_column, token_dtype: of domains that have none of their own. seq_len: None where samples are cut already.
    """

    bounds = replace(retry or RetryPolicy(), stop=threading.Event())

    def open_index(domain: Domain) -> SampleIndex:
        column, dtype = domain.token_column or token_column, domain.token_dtype or token_dtype
        opened = _open_mds if domain.format == "mds" else _open_flat
        return opened(replace(domain, token_column=column, token_dtype=dtype), seq_len, bounds)

    places = [_remote(domain) or domain.local or "" for domain in domains]
    what = places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more"
    with slow_notice(what):
        return read_in_parallel([partial(open_index, domain) for domain in domains], _THREADS, bounds.stop)


def _open_mds(domain: Domain, seq_len: int | None, retry: RetryPolicy) -> SampleIndex:
    assert domain.token_column is not None
    assert domain.local is not None
    local, remote = Path(domain.local), _remote(domain)
    url = f"{remote or local}/{INDEX_NAME}"
    try:
        content = _content(_MdsSource(domain.name, url, retry), url, local if remote else None, retry)
    except NotFound as error:
        raise NotFound(
            f"{error.args[0].partition(chr(10))[0]} Domain '{domain.name}'.\n"
            "  Expected a folder with an MDS index, or of such folders; `ado-stream prepare` writes one per domain."
        ) from None
    index = make_index(content, domain.name, remote, local, domain.token_column, domain.token_dtype, seq_len)
    if not content.has_hashes:
        index = replace(index, versions=_versions(index, retry))
    if remote is None:
        return index
    return replace(index, local=local / _hash(remote, index.versions, content.digest))


def _open_flat(domain: Domain, seq_len: int | None, retry: RetryPolicy) -> SampleIndex:
    assert domain.local is not None
    if seq_len is None:
        raise ConfigError(
            f"domain '{domain.name}': format '{domain.format}' holds tokens, not samples. Give seq_len=, the tokens a "
            "model reads at once."
        )
    local, remote = Path(domain.local), _remote(domain)
    url = remote or str(local)
    place = FlatPlace(domain.name, url, domain.format, domain.token_dtype, local / _SHARED_FOLDER, retry)
    source = f"{url} {domain.format} {domain.token_dtype}"
    content = _content(_FlatSource(place), source, local if remote else None, retry)
    if remote is not None:
        local = local / _hash(remote, content.versions, str(seq_len))
    index = FlatIndex(domain.name, remote, local, content, seq_len, content.versions, place.folder)
    if index.num_samples == 0:
        longest = max(file.num_tokens for file in content.files)
        raise ConfigError(
            f"domain '{domain.name}': {url}: no file has the {seq_len + 1} tokens of a sample; the longest has "
            f"{longest}."
        )
    return index


@dataclass(frozen=True)
class _MdsSource:
    """index.json in a folder, or in folders below one that has none, which are then one data set."""

    name: str
    url: str
    retry: RetryPolicy

    def changed(self, tag: str) -> tuple[bytes, str] | None:
        try:
            return download_if_changed(self.url, tag, self.retry)
        except NotFound:
            folder = self.url.removesuffix(f"/{INDEX_NAME}")
            names: list[str] = []
            if is_s3(folder) or local_path(folder) is not None:
                with suppress(AccessDenied):  # who may read objects may not always list them
                    names = list(list_objects(folder, f"/{INDEX_NAME}", self.retry))
            if not names:
                raise
        texts = {name.rpartition("/")[0]: download_bytes(f"{folder}/{name}", self.retry) for name in names}
        merged = merge_indexes(texts, self.name, folder)
        now = xxhash.xxh3_128_hexdigest(merged)
        return None if now == tag else (merged, now)

    def parse(self, data: bytes) -> IndexContent:
        return parse_index(data, self.name, self.url)

    decode = staticmethod(IndexContent.decode)


@dataclass(frozen=True)
class _FlatSource:
    place: FlatPlace

    def changed(self, tag: str) -> tuple[Found, str] | None:
        found = self.place.find()
        now = _hash(*(f"{name} {status.version}" for name, status in found.items()))
        return None if now == tag else (found, now)

    def parse(self, data: Found) -> FlatContent:
        return self.place.read(data)

    decode = staticmethod(FlatContent.decode)


def _content(source: _Source[Data, Content_co], url: str, local: Path | None, retry: RetryPolicy) -> Content_co:
    """The content of `source` at `url`: from the shared folder in `local` if the store reports no change, else parsed
    by the holder of the lock; parsed every time where `local` is None."""
    try:
        if local is None:
            raise NotADirectoryError
        private_folder(local / _SHARED_FOLDER)
    except OSError:  # not cached, cannot be written, or is another user's: each process parses for itself
        return source.parse(_found(source)[0])
    path = local / _SHARED_FOLDER / _hash(url, _SHARED_FORMAT)
    before = _status(path)
    kept = _read_shared(path, source)
    found = source.changed(kept[0]) if kept else None
    if kept and not found:
        return kept[1]
    deadline = Deadline(retry.total_deadline_s + retry.read_timeout_s, url, retry.stop)
    # Waiting processes read what the holder wrote without the lock: to take it in turn, eight ranks would wait in line.
    with object_lock(path, deadline, made=lambda: _status(path) != before):
        made = _read_shared(path, source)
        if made and (kept is None or made[0] != kept[0]):  # by another process since this one began
            return made[1]
        data, tag = found or _found(source)
        content = source.parse(data)
        with suppress(OSError):
            body = tag.encode() + b"\n" + content.encode()
            write_durably(path, xxhash.xxh3_128_digest(body) + body)
    return content


def _found(source: _Source[Data, Content_co]) -> tuple[Data, str]:
    found = source.changed("")
    assert found is not None
    return found


def _status(path: Path) -> tuple[int, int] | None:
    """Differs when the file was replaced; None where there is none."""
    with suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def _read_shared(path: Path, source: _Source[Data, Content_co]) -> tuple[str, Content_co] | None:
    """(tag, content) that a process of this node has written; None where there is none, or a damaged one."""
    with suppress(OSError):
        data = path.read_bytes()
        digest, body = data[:_HASH_BYTES], data[_HASH_BYTES:]
        if xxhash.xxh3_128_digest(body) == digest:
            tag, _, encoded = body.partition(b"\n")
            return tag.decode(), source.decode(encoded)
    return None


def _remote(domain: Domain) -> str | None:
    """The URL or path of a remote folder; None where the shards are read in place."""
    if domain.remote is None:
        return None
    source = local_path(domain.remote)
    if source is not None and os.path.realpath(source) == os.path.realpath(domain.local or ""):
        return None
    return domain.remote.rstrip("/") or "/"


def _versions(index: MdsIndex, retry: RetryPolicy) -> str:
    """A hash of the versions of some shards, evenly spaced, or of the place where the store gives none."""
    shards = np.unique(np.linspace(0, index.samples_S.size - 1, _MAX_VERSIONS).astype(int)).tolist()
    specs = [index.spec(shard) for shard in shards]
    # Streaming keeps of a compressed shard the raw file alone.
    places = [spec.where if spec.remote or spec.stored.exists() else str(spec.raw) for spec in specs]
    versions = ((place, object_version(place, retry)) for place in places)
    return _hash(*(f"{version}{_last_bytes(place)}" if version else place for place, version in versions))


def _last_bytes(place: str) -> str:
    """A hash of them for a local file, as programs that copy files or unpack archives set their times."""
    path = local_path(place)
    if path is None:
        return ""
    with disk_errors(path), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_BYTES))
        return xxhash.xxh3_128_hexdigest(file.read())


def _hash(*parts: str) -> str:
    return xxhash.xxh3_128_hexdigest("\0".join(parts).encode(errors="surrogateescape"))
