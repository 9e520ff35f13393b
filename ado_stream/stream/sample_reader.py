"""SampleReader: the samples of one domain by number, for validation, previews and checks."""

import numpy as np

from ado_stream.storage.node_cache import NodeCache
from ado_stream.stream.domain import Domain
from ado_stream.stream.open_indexes import open_indexes
from ado_stream.stream.shard_table import ShardTable
from ado_stream.value_types import Ints


class SampleReader:
    """Random access to a domain's samples, through the same verified cache as the stream.

    index: of the domain. Raises NotFound, IndexInvalid, ConfigError when the domain cannot be opened.
    """

    def __init__(
        self,
        domain: Domain,
        *,
        token_column: str = "tokens",
        token_dtype: str | None = None,
        vocab_size: int | None = None,
        seq_len: int | None = None,
    ):
        (self.index,) = indexes = open_indexes([domain], token_column, token_dtype, seq_len=seq_len)
        self._shards = ShardTable(indexes, NodeCache(), vocab_size=vocab_size)

    @property
    def num_samples(self) -> int:
        """Samples of the domain."""
        return self.index.num_samples

    @property
    def row_tokens(self) -> int:
        """T + 1: tokens a sample."""
        return self._shards.row_tokens()

    def read(self, ids: Ints) -> Ints:
        """(n, T + 1) int64: the samples numbered `ids` (n,), each in [0, num_samples). Raises IndexError outside."""
        id_N = np.asarray(ids, np.int64)
        if id_N.size and (id_N.min() < 0 or id_N.max() >= self.num_samples):
            raise IndexError(f"sample ids {id_N.min()} to {id_N.max()}; this domain has {self.num_samples}.")
        tokens_NT = np.empty((id_N.size, self.row_tokens), np.int64)
        if id_N.size:
            self._shards.read(np.zeros(id_N.size, np.int64), id_N, tokens_NT)
        return tokens_NT
