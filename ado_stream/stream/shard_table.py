"""All shards of a data set's domains: mapped through the node's cache, read by (domain, sample id).

Open shards are bounded by the process's limit of file descriptors and by a limit of bytes, the least recently read
closed first; while a shard is open, this process does not evict it. A table belongs to one thread. The table calls its
fetcher and the cache; neither refers to the table.
"""

import resource
import shutil
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ado_stream.errors import ConfigError, DataError
from ado_stream.storage.node_cache import NodeCache
from ado_stream.stream.row_gather import gather, locate
from ado_stream.stream.sample_index import SampleIndex, ShardRows
from ado_stream.value_types import Array, Ints


class ShardFetcher(Protocol):
    """Brings shards to the local disk for the thread that reads them."""

    def fetch(self, domain: int, shard: int) -> None:
        """Returns when the shard is verified on the local disk; the table opens it next."""

    def release(self, domain: int, shard: int) -> None:
        """The table has closed the shard: to be read again, it must be fetched again."""


class ShardTable:
    """Rows of several domains by sample id.

    fetcher: called before a shard is opened and after it is closed; None: the cache fetches a shard when it is mapped.
    open_limit_bytes: of open shards together.

    All shards of all domains are in one table (axis G), so that a batch is located by a few array operations: where
    the first row lies, how far apart rows are, and when the shard was last read.
    """

    def __init__(
        self,
        indexes: Sequence[SampleIndex],
        cache: NodeCache,
        fetcher: ShardFetcher | None = None,
        *,
        vocab_size: int | None = None,
        open_limit_bytes: int | None = None,
    ):
        self._indexes, self._cache, self._fetcher, self._vocab_size = list(indexes), cache, fetcher, vocab_size
        self._first_shard_K = np.cumsum([0] + [index.samples_S.size for index in indexes])
        self._first_sample_K = np.cumsum([0] + [index.num_samples for index in indexes])
        self._first_sample_G = np.concatenate(
            [index.first_id_S[:-1] + first for index, first in zip(indexes, self._first_sample_K[:-1], strict=True)]
        )
        num_shards = self._first_sample_G.size
        self._address_G = np.zeros(num_shards, np.uint64)  # of the first row; 0: not open, or rows at unequal strides
        self._stride_G = np.zeros(num_shards, np.uint64)
        self._last_read_G = np.zeros(num_shards, np.int64)
        self._num_reads = 0
        self._views: dict[int, ShardRows] = {}
        self._max_views = max(64, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 14) // 4)
        self._max_bytes = open_limit_bytes or 1 << 62
        self._open_bytes = 0
        self._row_tokens = 0
        self._dtypes = list(dict.fromkeys(index.dtype for index in indexes))
        self._dtype_K = np.array([self._dtypes.index(index.dtype) for index in indexes])

    def row_tokens(self) -> int:
        """Tokens a row, the same in all domains: from the indexes, or from one shard a domain without it there."""
        if not self._row_tokens:
            lengths = {index.name: self._domain_row_tokens(domain) for domain, index in enumerate(self._indexes)}
            first, length = next(iter(lengths.items()))
            if length < 2:
                raise ConfigError(
                    f"domain '{first}' has {length} tokens a sample; expected 2 or more: a target follows each input."
                )
            for name, other in lengths.items():
                if other != length:
                    raise ConfigError(
                        f"domain '{name}' has {other} tokens a sample, domain '{first}' has {length}. Prepare both "
                        f"with the same --seq-len."
                    )
            self._row_tokens = length
        return self._row_tokens

    def read(self, domain_N: Array, id_N: Ints, out_NT: Ints) -> None:
        """Fills row n of `out_NT` (int64) with sample `id_N[n]` of domain `domain_N[n]`.

        Raises DataError for a token outside the vocabulary, with domain, shard, row and id.
        """
        sample_N = self._first_sample_K[domain_N] + id_N
        shard_N, row_N = np.empty_like(id_N), np.empty_like(id_N)
        address_N = np.empty(id_N.size, np.uint64)
        self._num_reads += 1
        table_G = (self._first_sample_G, self._address_G, self._stride_G, self._last_read_G)
        all_open = locate(sample_N, *table_G, self._num_reads, shard_N, row_N, address_N)
        shards = np.empty(0, np.int64) if all_open else np.unique(shard_N)
        # A batch may touch more shards than may stay open, and than there are file descriptors: so many at a time.
        # Closing one drops the table's reference alone; `views` keeps the maps valid until their rows are copied.
        for first in range(0, max(1, shards.size), self._max_views):
            views = {shard: self._view(shard) for shard in shards[first : first + self._max_views].tolist()}
            for shard, view in views.items():
                here = shard_N == shard
                address_N[here] = view.address(row_N[here])
            for number, dtype in enumerate(self._dtypes):
                chosen_N = np.full(id_N.size, True)
                if views:
                    chosen_N &= (shard_N >= min(views)) & (shard_N <= max(views))
                if len(self._dtypes) > 1:
                    chosen_N &= self._dtype_K[domain_N] == number
                slot_N = np.flatnonzero(chosen_N)
                bad = gather(address_N[slot_N], slot_N, dtype, self._vocab_size, out_NT)
                if bad >= 0:
                    raise self._outside_vocabulary(shard_N[slot_N[bad]], row_N[slot_N[bad]], out_NT[slot_N[bad]])

    def close(self) -> None:
        """Closes every open shard."""
        while self._views:
            self._close_oldest()

    def _domain_row_tokens(self, domain: int) -> int:
        index = self._indexes[domain]
        if index.row_tokens is not None:
            return index.row_tokens
        some_shard = int(np.argmax(index.samples_S > 0))
        return self._view(int(self._first_shard_K[domain]) + some_shard).row_tokens

    def _view(self, number: int) -> ShardRows:
        view = self._views.get(number)
        return view if view is not None else self._open(number)

    def _open(self, number: int) -> ShardRows:
        domain, shard = self._place(number)
        index = self._indexes[domain]
        size = int(index.raw_bytes_S[shard])
        while self._views and (len(self._views) >= self._max_views or self._open_bytes + size > self._max_bytes):
            self._close_oldest()
        if self._fetcher is not None:
            self._fetcher.fetch(domain, shard)
        spec = index.spec(shard)
        mapped, _ = self._cache.map(spec)
        view = index.rows(mapped, shard)
        if self._row_tokens and view.row_tokens != self._row_tokens:
            raise DataError(
                f"{spec.label}: {view.row_tokens} tokens a sample; other shards, or seq_len, have {self._row_tokens}. "
                "Prepare the domain again with one --seq-len, or give the token_dtype that it has."
            )
        self._views[number] = view
        self._address_G[number], self._stride_G[number] = view.regular
        self._open_bytes += size
        self._cache.pin(spec)
        return view

    def _close_oldest(self) -> None:
        open_G = np.fromiter(self._views, np.int64)
        number = int(open_G[self._last_read_G[open_G].argmin()])
        domain, shard = self._place(number)
        self._address_G[number] = 0
        del self._views[number]
        self._open_bytes -= int(self._indexes[domain].raw_bytes_S[shard])
        self._cache.unpin(self._indexes[domain].spec(shard))
        if self._fetcher is not None:
            self._fetcher.release(domain, shard)

    def _place(self, number: int) -> tuple[int, int]:
        """Domain, and shard within it, of a row of the table."""
        domain = int(np.searchsorted(self._first_shard_K, number, side="right")) - 1
        return domain, number - int(self._first_shard_K[domain])

    def _outside_vocabulary(self, number: int, row: int, token_T: Ints) -> DataError:
        domain, shard = self._place(int(number))
        index = self._indexes[domain]
        token = int(token_T.min() if token_T.min() < 0 else token_T.max())
        size = "" if self._vocab_size is None else f" of {self._vocab_size}"
        return DataError(
            f"{index.spec(shard).label}, row {row} (id {index.first_id_S[shard] + row}): token {token} outside the "
            f"vocabulary{size}.\n"
            f"  Was it prepared with another tokenizer? Set the model's vocab_size to cover it."
        )


def row_tokens(indexes: Sequence[SampleIndex], cache: NodeCache) -> int:
    """Tokens a row, the same in all domains. Raises ConfigError where they differ."""
    table = ShardTable(indexes, cache)
    try:
        return table.row_tokens()
    finally:
        table.close()


def open_limit_bytes(indexes: Sequence[SampleIndex], cache_limit: int | None) -> int | None:
    """What open shards may take of the cache: they are not evicted, and the next ones need room."""
    if cache_limit is not None:
        return cache_limit // 2
    folders = [index.local for index in indexes if index.remote is not None]
    return min((shutil.disk_usage(folder).total for folder in folders), default=0) // 4 or None
