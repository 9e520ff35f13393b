"""Opens the index of every domain, and decides which folder caches its shards.

Invariant: a cached shard is found only by a reader of the same data. Its folder, within the domain's `local`, is named
by a hash of the remote, of the index's bytes and, where the index has no hashes, of the versions that the store gives
some shards: two corpora in one folder cannot be confused, and data that was replaced at a remote is never mixed with
the old.

One process of a node downloads and parses a remote's index and writes it, checked and compact, into `local`; the others
read that, and so do later runs if the store reports that the index has not changed.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from ado_stream.durable import private_folder, write_durably
from ado_stream.errors import NotFound
from ado_stream.storage.download import download_bytes, download_if_changed, local_path, object_version
from ado_stream.storage.object_locks import object_lock
from ado_stream.storage.retry import Deadline, RetryPolicy
from ado_stream.stream.domain import Domain
from ado_stream.stream.mds_index import INDEX_NAME, IndexContent, MdsIndex, make_index, parse_index

_THREADS = 32
_SHARED_FOLDER, _SHARED_FORMAT = ".ado-index", "1"
_MAX_VERSIONS = 8  # shards whose versions are compared


def open_indexes(
    domains: Sequence[Domain], token_column: str, token_dtype: str | None, retry: RetryPolicy | None = None
) -> list[MdsIndex]:
    """The index of every domain. Raises NotFound, IndexInvalid, ConfigError."""
    with ThreadPoolExecutor(min(_THREADS, len(domains))) as pool:
        return list(pool.map(lambda domain: _open_index(domain, token_column, token_dtype, retry), domains))


def _open_index(domain: Domain, token_column: str, token_dtype: str | None, retry: RetryPolicy | None) -> MdsIndex:
    assert domain.local is not None
    local, remote = Path(domain.local), _remote(domain)
    url = f"{remote or local}/{INDEX_NAME}"
    try:
        if remote is None:
            content = parse_index(download_bytes(url, retry), domain.name, url)
        else:
            content = _shared_content(domain.name, url, local / _SHARED_FOLDER, retry or RetryPolicy())
    except NotFound as error:
        raise NotFound(
            f"{error.args[0].partition(chr(10))[0]} Domain '{domain.name}'.\n"
            "  Expected a folder with an MDS index; `ado-stream prepare` writes one per domain."
        ) from None
    index = make_index(content, domain.name, remote, local, token_column, token_dtype)
    if not index.has_hashes:
        index = replace(index, versions=_versions(index, retry))
    if remote is None:
        return index
    return replace(index, local=local / _hash(remote, index.versions, content.digest))


def _shared_content(name: str, url: str, folder: Path, retry: RetryPolicy) -> IndexContent:
    """The index at `url`: from `folder` if the store reports no change, else parsed by the holder of the lock."""
    path = folder / _hash(url, _SHARED_FORMAT)
    try:
        private_folder(folder)
    except OSError:  # cannot be written, or is another user's: each process parses for itself
        return parse_index(download_bytes(url, retry), name, url)
    kept = _read_shared(path)
    found = download_if_changed(url, kept[0], retry) if kept else None
    if kept and not found:
        return kept[1]
    with object_lock(path, Deadline(retry.total_deadline_s + retry.read_timeout_s, url)):
        made = _read_shared(path)
        if made and (kept is None or made[0] != kept[0]):  # by another process since this one began
            return made[1]
        text, tag = found or download_if_changed(url, "", retry) or (b"", "")
        content = parse_index(text, name, url)
        with suppress(OSError):
            write_durably(path, tag.encode() + b"\n" + content.encode())
    return content


def _read_shared(path: Path) -> tuple[str, IndexContent] | None:
    """(tag, content) that a process of this node has written; None where there is none, or a damaged one."""
    with suppress(OSError):
        tag, _, encoded = path.read_bytes().partition(b"\n")
        content = IndexContent.decode(encoded)
        return (tag.decode(), content) if content else None
    return None


def _remote(domain: Domain) -> str | None:
    """The URL or path of a remote folder; None where the shards are read in place."""
    if domain.remote is None:
        return None
    source = local_path(domain.remote)
    if source is not None and os.path.realpath(source) == os.path.realpath(domain.local or ""):
        return None
    return domain.remote.rstrip("/") or "/"


def _versions(index: MdsIndex, retry: RetryPolicy | None) -> str:
    """A hash of the versions of some shards, evenly spaced, or of the place where the store gives none."""
    shards = np.unique(np.linspace(0, index.samples_S.size - 1, _MAX_VERSIONS).astype(int)).tolist()
    places = [index.spec(shard).where for shard in shards]
    return _hash(*(object_version(place, retry) or place for place in places))


def _hash(*parts: str) -> str:
    return xxhash.xxh3_128_hexdigest("\0".join(parts).encode(errors="surrogateescape"))
