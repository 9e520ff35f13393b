"""Opens the index of every domain, and decides which folder caches its shards.

Invariant: a cached shard is found only by a reader of the same data. Its folder, within the domain's `local`, is named
by a hash of the remote, of the index's bytes and, where the index has no hashes, of the versions that the store gives
some shards: two corpora in one folder cannot meet, and what replaced data at a remote is never mixed with the old.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from ado_stream.errors import NotFound
from ado_stream.storage.download import download_bytes, local_path, object_version
from ado_stream.storage.retry import RetryPolicy
from ado_stream.stream.domain import Domain
from ado_stream.stream.mds_index import INDEX_NAME, MdsIndex, parse_index

_THREADS = 32
_MOST_VERSIONS = 8  # shards whose versions stand for all


def open_indexes(
    domains: Sequence[Domain], token_column: str, token_dtype: str | None, retry: RetryPolicy | None = None
) -> list[MdsIndex]:
    """The index of every domain, downloaded when it is remote. Raises NotFound, IndexInvalid, ConfigError."""
    with ThreadPoolExecutor(min(_THREADS, len(domains))) as pool:
        return list(pool.map(lambda domain: _open_index(domain, token_column, token_dtype, retry), domains))


def _open_index(domain: Domain, token_column: str, token_dtype: str | None, retry: RetryPolicy | None) -> MdsIndex:
    assert domain.local is not None
    local, remote = Path(domain.local), _remote(domain)
    try:
        text = download_bytes(f"{remote or local}/{INDEX_NAME}", retry)
    except NotFound as error:
        raise NotFound(
            f"{error.args[0].partition(chr(10))[0]} Domain '{domain.name}'.\n"
            "  Expected a folder with an MDS index; `ado-stream prepare` writes one per domain."
        ) from None
    index = parse_index(text, domain.name, remote, local, token_column, token_dtype)
    if not index.has_hashes:
        index = replace(index, versions=_versions(index, retry))
    if remote is None:
        return index
    key = xxhash.xxh3_128(f"{remote}\0{index.versions}\0".encode(errors="surrogateescape"))
    key.update(text)
    return replace(index, local=local / key.hexdigest())


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
    shards = np.unique(np.linspace(0, index.samples_S.size - 1, _MOST_VERSIONS).astype(int)).tolist()
    places = [index.spec(shard).where for shard in shards]
    return xxhash.xxh3_128_hexdigest("\0".join(object_version(place, retry) or place for place in places).encode())
