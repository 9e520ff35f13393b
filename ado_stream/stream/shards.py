"""All shards of a data set's domains: opened through the node's cache, read by (domain, sample id).

Open shards are kept by last use, bounded by the process's limit of file descriptors and by a limit of bytes; while a
shard is open, this process does not evict it. One reader owns one `Shards`; it is not for several threads at once.
Downloads ahead go through the cache, which is safe to share.
"""

import resource
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ado_stream.errors import ConfigError, DataError, NotFound
from ado_stream.storage.cache import NodeCache
from ado_stream.storage.download import download
from ado_stream.storage.retry import RetryPolicy
from ado_stream.stream.domain import Domain
from ado_stream.stream.gather import gather
from ado_stream.stream.index import MdsIndex, parse_index
from ado_stream.stream.shard import ShardView

INDEX = "index.json"


def open_indexes(
    domains: Sequence[Domain], token_column: str, token_dtype: str | None, retry: RetryPolicy | None = None
) -> list[MdsIndex]:
    """The index of every domain, fetched when it is remote. Raises NotFound, IndexInvalid, ConfigError."""
    with ThreadPoolExecutor(min(16, len(domains))) as pool:
        texts = pool.map(lambda domain: _index_text(domain, retry), domains)
        return [
            parse_index(text, domain.name, domain.remote, Path(domain.local or ""), token_column, token_dtype)
            for domain, text in zip(domains, texts, strict=True)
        ]


def _index_text(domain: Domain, retry: RetryPolicy | None) -> bytes:
    assert domain.local is not None
    local = Path(domain.local)
    path = local / INDEX
    if domain.remote is not None and domain.remote.rstrip("/") != domain.local.rstrip("/"):
        local.mkdir(parents=True, exist_ok=True)
        download(f"{domain.remote.rstrip('/')}/{INDEX}", path, retry=retry)
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFound(
            f"{path}: {error.strerror} (domain '{domain.name}'). Expected a folder with an MDS index; "
            f"`ado-stream prepare` writes one per domain."
        ) from None


class Shards:
    """Rows of several domains by sample id.

    open_limit_bytes: of open shards together. `before_open(domain, shard)` is called before a shard is opened; whoever
    looks ahead sets it.
    """

    def __init__(
        self,
        indexes: Sequence[MdsIndex],
        cache: NodeCache,
        vocab_size: int | None = None,
        open_limit_bytes: int | None = None,
    ):
        self.indexes, self.cache, self.vocab_size = list(indexes), cache, vocab_size
        self._views: OrderedDict[tuple[int, int], ShardView] = OrderedDict()
        self._max_views = max(64, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 14) // 4)
        self._max_bytes = open_limit_bytes or 1 << 62
        self._open_bytes = 0
        self._opening: tuple[int, int] | None = None
        self.before_open: Callable[[int, int], None] = lambda domain, shard: None

    def shard_of(self, domain: int, id_N: np.ndarray) -> np.ndarray:
        """(N,) int64: the shard that holds each sample id of `domain`."""
        return np.searchsorted(self.indexes[domain].first_id_S, id_N, side="right") - 1

    def row_tokens(self) -> int:
        """Tokens a row, the same in all domains; from the indexes, or one shard a domain where they do not say."""
        lengths = {}
        for domain, index in enumerate(self.indexes):
            size, shaped = index.column.size_bytes, index.column.shaped
            known = None if size is None or shaped else size // index.column.dtype.itemsize
            lengths[index.name] = known or self._view(domain, int(np.argmax(index.samples_S > 0))).row_tokens
        first, length = next(iter(lengths.items()))
        for name, other in lengths.items():
            if other != length:
                raise ConfigError(
                    f"domain '{name}' has {other} tokens a sample, domain '{first}' has {length}. Prepare both with "
                    f"the same --seq-len."
                )
        return length

    def read(self, domain_N: np.ndarray, id_N: np.ndarray, out_NT: np.ndarray) -> None:
        """Fills row n of `out_NT` (int64) with sample `id_N[n]` of domain `domain_N[n]`.

        Raises DataError for a token outside the vocabulary, with domain, shard, row and id.
        """
        order_N = np.lexsort((id_N, domain_N))
        bounds = np.flatnonzero(np.diff(domain_N[order_N])) + 1
        for slot_N in np.split(order_N, bounds):
            self._read_domain(int(domain_N[slot_N[0]]), id_N[slot_N], slot_N, out_NT)

    def is_open(self, domain: int, shard: int) -> bool:
        """Whether the shard is mapped, or about to be, so that nothing has to be fetched to read it."""
        return (domain, shard) in self._views or (domain, shard) == self._opening

    def close(self) -> None:
        """Lets go of every open shard."""
        while self._views:
            self._drop_oldest()

    def _read_domain(self, domain: int, id_N: np.ndarray, slot_N: np.ndarray, out_NT: np.ndarray) -> None:
        shard_N = self.shard_of(domain, id_N)
        row_N = id_N - self.indexes[domain].first_id_S[shard_N]
        address_N = np.empty(id_N.size, np.uint64)
        held = []  # the views stay alive until their addresses were read
        begin = 0
        for end in [*(np.flatnonzero(np.diff(shard_N)) + 1).tolist(), id_N.size]:
            view = self._view(domain, int(shard_N[begin]))
            address_N[begin:end] = view.address(row_N[begin:end])
            held.append(view)
            begin = end
        if any(view.row_tokens != out_NT.shape[1] for view in held):
            wrong = next(view for view in held if view.row_tokens != out_NT.shape[1])
            raise DataError(
                f"domain '{self.indexes[domain].name}': a shard has {wrong.row_tokens} tokens a sample, the first one "
                f"{out_NT.shape[1]}. Prepare the domain again with one --seq-len."
            )
        bad = gather(address_N, slot_N, held[0].dtype, self.vocab_size, out_NT)
        if bad >= 0:
            raise DataError(
                f"domain '{self.indexes[domain].name}', {self.indexes[domain].files[shard_N[bad]][0]['basename']}, row "
                f"{row_N[bad]} (id {id_N[bad]}): token {self._worst(out_NT[slot_N[bad]])} outside the vocabulary of "
                f"{self.vocab_size}.\n  Was it prepared with another tokenizer? Set the model's vocab_size to cover it."
            )

    def _worst(self, row_T: np.ndarray) -> int:
        return int(row_T.min() if row_T.min() < 0 else row_T.max())

    def _view(self, domain: int, shard: int) -> ShardView:
        key = (domain, shard)
        if key not in self._views:
            index = self.indexes[domain]
            size = int(index.raw_bytes_S[shard])
            while self._views and (len(self._views) >= self._max_views or self._open_bytes + size > self._max_bytes):
                self._drop_oldest()
            self._opening = key
            self.before_open(domain, shard)
            spec = index.spec(shard)
            mapped, _ = self.cache.map(spec)
            self._views[key] = ShardView(mapped, index.column, int(index.samples_S[shard]), spec.label)
            self._opening = None
            self._open_bytes += size
            self.cache.pin(spec)
        self._views.move_to_end(key)
        return self._views[key]

    def _drop_oldest(self) -> None:
        (domain, shard), _ = self._views.popitem(last=False)
        self._open_bytes -= int(self.indexes[domain].raw_bytes_S[shard])
        self.cache.unpin(self.indexes[domain].spec(shard))
