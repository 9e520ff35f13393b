"""Counts what the stream read and how long the reader waited for shards, per domain."""

import numpy as np

from ado_stream.storage.object_spec import Fetched
from ado_stream.value_types import Array, JsonObject

_COLUMNS = ("samples", "shards", "cache_hits", "downloaded_bytes", "stalls", "stall_s")
_STALL_S = 0.001  # shorter waits are the cost of opening a file


class StreamStatistics:
    """One row per domain; written by the reading thread alone, and so without a lock."""

    def __init__(self, names: list[str]):
        self._names = names
        self._value_KX = np.zeros((len(names), len(_COLUMNS)), order="F")
        self.mixture_wait_s = 0.0
        self.consumer_wait_s = 0.0
        self.num_batches = 0

    def count_fetch(self, domain: int, fetched: Fetched, waited_s: float) -> None:
        """Adds a shard that the reader opened after waiting `waited_s`."""
        stall_s = waited_s if waited_s > _STALL_S else 0.0
        self._value_KX[domain] += (0, 1, fetched.hit, fetched.downloaded_bytes, stall_s > 0, stall_s)

    def count_batch(self, domain_N: Array) -> None:
        """Adds a batch that the reader copied."""
        self._value_KX[:, 0] += np.bincount(domain_N, minlength=len(self._names))
        self.num_batches += 1

    def summary(self) -> JsonObject:
        """JSON-able: totals, and "domains": {name: {samples, shards, cache_hits, downloaded_bytes, stalls, stall_s}}.

        mixture_wait_s: of the reader for a mixture; consumer_wait_s: of the training loop for a batch.
        """
        total = dict(zip(_COLUMNS, self._value_KX.sum(0).tolist(), strict=True))
        shards = max(1.0, total["shards"])
        return {
            **total,
            "batches": self.num_batches,
            "hit_rate_frac": total["cache_hits"] / shards,
            "mixture_wait_s": self.mixture_wait_s,
            "consumer_wait_s": self.consumer_wait_s,
            "domains": {
                name: dict(zip(_COLUMNS, row, strict=True))
                for name, row in zip(self._names, self._value_KX.tolist(), strict=True)
            },
        }
