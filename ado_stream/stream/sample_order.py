"""The infinite sample order of one domain, lane by lane: a pure function of (shard sizes, seed, name, C).

The domain's shards are put in a seeded order and cut into C shares of equal size (to one sample); lane c has share c
in every epoch, so a lane reads, caches and repeats only its own shards. Each epoch of a lane shuffles its share: the
pieces of shards in a new order, grouped into blocks, the samples within a block permuted. The first block of an epoch
is a single piece and each next one twice as large up to `block_samples`, so that the first batch waits for one shard a
domain and not for a block of them.

No array has the length of an epoch: memory is O(pieces of shards) a lane, time O(log shards) a sample.
With fewer samples than lanes, lane c holds the one sample floor(c N / C), so lanes share samples.

Invariant: within a lane, positions [e n, (e + 1) n) visit each of its n samples exactly once, for every epoch e.
"""

from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import xxhash

from ado_stream.errors import ConfigError
from ado_stream.stream import numba_order
from ado_stream.stream.numba_order import AT, BEGIN, END, EPOCH, FIRST_SHARD, KEY, NUM_PIECES, words
from ado_stream.value_types import Array, Ints

BLOCK_SAMPLES = 1 << 17
_MOST_LISTED = 1 << 32  # samples of one of Streaming's orders: 32 GiB an epoch
T = TypeVar("T")


class DomainOrder:
    """Sample ids of one domain in the order in which its lanes read them.

    samples_S: (S,) samples per shard. Raises ConfigError for a domain without samples.
    """

    def __init__(self, name: str, samples_S: Ints, seed: int, num_lanes: int, block_samples: int = BLOCK_SAMPLES):
        self.name, self.seed, self.num_lanes, self.block_samples = name, seed, num_lanes, block_samples
        samples_S = np.asarray(samples_S, np.int64)
        self.num_samples = int(samples_S.sum())
        if self.num_samples == 0:
            raise ConfigError(f"domain '{name}' has no samples; remove it, or prepare it again.")
        order_S = permutation(samples_S.size, hash_key("shards", seed, name))
        order_S = order_S[samples_S[order_S] > 0]
        self._first_id_S = (np.cumsum(samples_S) - samples_S)[order_S]
        self._start_S = np.concatenate([[0], np.cumsum(samples_S[order_S])])
        self._all_lanes: PlannedIds | None = None

    def ids(self, lane: int, position: int, count: int) -> Ints:
        """(count,) int64: the sample ids at positions [position, position + count) of the lane's endless order.

        For one thread at a time.
        """
        if self._all_lanes is None:
            self._all_lanes = PlannedIds([self], range(self.num_lanes))
        return self._all_lanes.at(np.full(count, lane), np.arange(position, position + count))

    def ranges(self, lanes: range) -> Ints:
        """(L, 4) int64 by lane: first and past the last of its places among all samples, first and past the last of
        its shards; places and shards in the seeded order of `shards`.
        """
        lane_L = np.arange(lanes.start, lanes.stop)
        begin_L = _begins(lane_L, self.num_samples, self.num_lanes)
        # With fewer samples than lanes a share may be empty: it gets the sample at its place, another lane's too.
        end_L = np.maximum(_begins(lane_L + 1, self.num_samples, self.num_lanes), begin_L + 1)
        first_L = np.searchsorted(self._start_S, begin_L, side="right") - 1
        last_L = np.searchsorted(self._start_S, end_L, side="left")
        return np.stack([begin_L, end_L, first_L, last_L], axis=1)

    @property
    def shards(self) -> tuple[Ints, Ints]:
        """(S + 1,) places where shards begin, in their seeded order, and (S + 1,) ids of their first samples."""
        return self._start_S, np.append(self._first_id_S, 0)  # 0: unused, so that both have the same length


class PlannedIds:
    """Sample ids of several domains' lanes: group g is domain and lane, each with the plan of one epoch.

    A plan: the epoch's pieces of shards in reading order (the id of each one's first row, the position of its first
    sample) and the first piece of each block. All plans are in one array (axis P), so that a step's ids, and the plans
    of all epochs that begin in it, are two compiled calls and no call of Python for each of K C groups.
    """

    def __init__(self, orders: Sequence[DomainOrder], lanes: range):
        self._lanes, self._block_samples = lanes, orders[0].block_samples
        self._prefixes = [_key_text(order.seed, order.name) for order in orders]
        shards = [order.shards for order in orders]
        self._start_S = np.concatenate([start for start, _ in shards])
        self._first_id_S = np.concatenate([first_id for _, first_id in shards])
        shards_before_K = np.cumsum([0] + [start.size for start, _ in shards[:-1]])
        begin_G, end_G, first_G, last_G = np.concatenate([order.ranges(lanes) for order in orders]).T
        num_pieces_G = last_G - first_G
        past_G = np.cumsum(num_pieces_G + 1)
        self._table_GX = table_GX = np.full((begin_G.size, 8), -1)
        table_GX[:, BEGIN], table_GX[:, END], table_GX[:, NUM_PIECES] = begin_G, end_G, num_pieces_G
        table_GX[:, FIRST_SHARD] = first_G + np.repeat(shards_before_K, len(lanes))
        table_GX[:, AT] = past_G - num_pieces_G - 1
        # Pages of groups that are never read are not written and cost no memory.
        self._plan_PX = np.empty((int(past_G[-1]), 3), np.int64)

    def at(self, group_N: Ints, position_N: Ints) -> Ints:
        """(N,) int64: the sample id within its domain at each group's position; ascending within a group."""
        id_N = np.empty(group_N.size, np.int64)
        left_M = np.arange(group_N.size)
        while True:
            left_M = numba_order.planned_ids(left_M, group_N, position_N, self._table_GX, self._plan_PX, id_N)
            if not left_M.size:
                return id_N
            group_M, first_M = np.unique(group_N[left_M], return_index=True)  # several epochs of a group: one by one
            self._plan(group_M, position_N[left_M[first_M]])

    def _plan(self, group_M: Ints, position_M: Ints) -> None:
        epoch_M = position_M // (self._table_GX[group_M, END] - self._table_GX[group_M, BEGIN])
        domain_M, column_M = np.divmod(group_M, len(self._lanes))
        numbers = zip(domain_M.tolist(), (column_M + self._lanes.start).tolist(), epoch_M.tolist(), strict=True)
        texts = [f"{self._prefixes[domain]}\x1fint:{lane}\x1fint:{epoch}" for domain, lane, epoch in numbers]
        pieces_key_M, key_M = (
            np.array([xxhash.xxh64_intdigest(f"str:{kind}\x1f{text}".encode()) for text in texts], np.uint64)
            for kind in ("pieces", "samples")
        )
        self._table_GX[group_M, EPOCH], self._table_GX[group_M, KEY] = epoch_M, key_M.view(np.int64)
        numba_order.plan_epochs(
            group_M, pieces_key_M, self._start_S, self._first_id_S, self._block_samples, self._table_GX, self._plan_PX
        )


class StreamingOrder:
    """The same interface over one of Streaming's shuffles (py1e, py1br, py1s, py2s, naive).

    Holds whole epochs of the domain as arrays, 8 bytes a sample; lane c reads Streaming's canonical node c.
    """

    def __init__(self, name: str, samples_S: Ints, seed: int, num_lanes: int, algorithm: str):
        from streaming.base.shuffle import algos, get_shuffle

        if algorithm not in algos:
            raise ConfigError(f"shuffle '{algorithm}'; expected 'blocks' or one of {', '.join(sorted(algos))}.")
        self.name, self.num_lanes = name, num_lanes
        self._samples_S = np.asarray(samples_S, np.int64)
        self.num_samples = int(self._samples_S.sum())
        if self.num_samples < num_lanes:
            raise ConfigError(
                f"domain '{name}': {self.num_samples} samples for {num_lanes} lanes; use shuffle='blocks'."
            )
        if self.num_samples > _MOST_LISTED:
            raise ConfigError(
                f"domain '{name}': shuffle '{algorithm}' keeps the numbers of all {self.num_samples} samples in "
                f"memory, at most {_MOST_LISTED}; use shuffle='blocks'."
            )
        self._shuffle = partial(get_shuffle, algorithm, self._samples_S, num_lanes, seed)
        self._epochs: dict[int, Ints] = {}

    def ids(self, lane: int, position: int, count: int) -> Ints:
        """(count,) int64: the sample ids at positions [position, position + count) of the lane's endless order."""
        return self.at(np.full(count, lane), np.arange(position, position + count))

    def at(self, lane_N: Ints, position_N: Ints) -> Ints:
        """(N,) int64: the sample id at each lane's position."""
        begin_N = _begins(lane_N, self.num_samples, self.num_lanes)
        epoch_N, offset_N = np.divmod(position_N, _begins(lane_N + 1, self.num_samples, self.num_lanes) - begin_N)
        id_N = np.empty(lane_N.size, np.int64)
        for epoch in np.unique(epoch_N).tolist():
            chosen_N = epoch_N == epoch
            id_N[chosen_N] = self._epoch(epoch)[begin_N[chosen_N] + offset_N[chosen_N]]
        return id_N

    def _epoch(self, epoch: int) -> Ints:
        ids = self._epochs.get(epoch)
        if ids is None:
            ids = np.asarray(self._shuffle(epoch), np.int64)
            self._epochs = _latest(self._epochs, epoch, ids)
        return ids


def _begins(lane_L: Ints, num_samples: int, num_lanes: int) -> Ints:
    """(L,) int64: floor(lane N / C), without the product, which may be beyond 2^63 for what an index claims."""
    each, rest = divmod(num_samples, num_lanes)
    return lane_L * each + lane_L * rest // num_lanes


def _latest(held: dict[int, T], epoch: int, value: T) -> dict[int, T]:
    """`value` and the latest other epoch of `held`: reading and looking ahead span two epochs at most.

    A new dict each time, never changed in place: reader and audit may call from different threads without a lock.
    """
    return {other: held[other] for other in sorted(held)[-1:]} | {epoch: value}


SampleOrder = DomainOrder | StreamingOrder


def make_order(name: str, samples_S: Ints, seed: int, num_lanes: int, shuffle: str) -> SampleOrder:
    """The order of one domain: DomainOrder for shuffle 'blocks', else the algorithm of Streaming with that name."""
    if shuffle == "blocks":
        return DomainOrder(name, samples_S, seed, num_lanes)
    return StreamingOrder(name, samples_S, seed, num_lanes, shuffle)


class UpcomingIds:
    """Sample ids at (domain, lane, position), for the lanes in `lanes`; positions ascend. For one thread."""

    def __init__(self, orders: Sequence[SampleOrder], lanes: range):
        self._orders, self._lanes = orders, lanes
        planned = [order for order in orders if isinstance(order, DomainOrder)]
        self._planned = PlannedIds(planned, lanes) if len(planned) == len(orders) else None

    def at(self, domain_N: Array, lane_N: Ints, position_N: Ints) -> Ints:
        """(N,) int64: the sample id within its domain at each position of (domain, lane)."""
        if self._planned is not None:
            group_N = domain_N * np.int64(len(self._lanes)) + (lane_N - self._lanes.start)
            return self._planned.at(group_N, position_N)
        id_N = np.empty(domain_N.size, np.int64)
        for domain in np.unique(domain_N).tolist():
            order, chosen_N = self._orders[domain], domain_N == domain
            assert isinstance(order, StreamingOrder)
            id_N[chosen_N] = order.at(lane_N[chosen_N], position_N[chosen_N])
        return id_N


def hash_key(*parts: int | str) -> np.uint64:
    """One 64-bit key of a sequence of integers and strings: xxh64 of their types and values."""
    return np.uint64(xxhash.xxh64_intdigest(_key_text(*parts).encode()))


def _key_text(*parts: int | str) -> str:
    return "\x1f".join([f"{type(part).__name__}:{part}" for part in parts])


def permutation(size: int, key: np.uint64) -> Ints:
    """A permutation of [0, size), int64: the order of keyed hashes."""
    return np.argsort(words(key, size), kind="stable")
