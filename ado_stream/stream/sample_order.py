"""The infinite order of one domain, lane by lane: a pure function of (shard sizes, seed, name, C).

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
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import xxhash

from ado_stream.errors import ConfigError
from ado_stream.stream import numba_order
from ado_stream.stream.numba_order import epoch_sample_ids, group_pieces, words

BLOCK_SAMPLES = 1 << 17
T = TypeVar("T")


@dataclass(frozen=True)
class _Epoch:
    """One lane's epoch: its pieces in reading order, and where blocks of pieces begin."""

    key: np.uint64
    first_id: np.ndarray  # (pieces,) int64: sample id of a piece's first row
    start: np.ndarray  # (pieces + 1,) int64: position of a piece's first sample
    block: np.ndarray  # (blocks + 1,) int64: first piece of a block
    block_start: np.ndarray  # (blocks + 1,) int64: position of a block's first sample


class DomainOrder:
    """Sample ids of one domain in the order in which its lanes read them.

    samples_S: (S,) samples per shard. Raises ConfigError for a domain without samples.
    """

    def __init__(self, name: str, samples_S: np.ndarray, seed: int, num_lanes: int, block_samples: int = BLOCK_SAMPLES):
        self.name, self.seed, self.num_lanes, self.block_samples = name, seed, num_lanes, block_samples
        samples_S = np.asarray(samples_S, np.int64)
        self.num_samples = int(samples_S.sum())
        if self.num_samples == 0:
            raise ConfigError(f"domain '{name}' has no samples; remove it, or prepare it again.")
        order_S = permutation(samples_S.size, hash_key("shards", seed, name))
        order_S = order_S[samples_S[order_S] > 0]
        self._first_id_S = (np.cumsum(samples_S) - samples_S)[order_S]
        self._start_S = np.concatenate([[0], np.cumsum(samples_S[order_S])])
        self._plans: dict[int, dict[int, _Epoch]] = {}  # lane -> two epochs

    def share(self, lane: int) -> int:
        """How many samples lane `lane` holds: the length of its epochs."""
        begin, end = self._range(lane)
        return end - begin

    def ids(self, lane: int, position: int, count: int) -> np.ndarray:
        """(count,) int64: the sample ids at positions [position, position + count) of the lane's endless order."""
        out = np.empty(count, np.int64)
        share = self.share(lane)
        done = 0
        while done < count:
            epoch, begin = divmod(position + done, share)
            part = out[done : done + min(count - done, share - begin)]
            plan = self._plan(lane, epoch)
            epoch_sample_ids(plan.first_id, plan.start, plan.block, plan.block_start, plan.key, begin, part)
            done += part.size
        return out

    def _range(self, lane: int) -> tuple[int, int]:
        begin = lane * self.num_samples // self.num_lanes
        end = (lane + 1) * self.num_samples // self.num_lanes
        return begin, max(end, begin + 1)

    def _plan(self, lane: int, epoch: int) -> _Epoch:
        plans = self._plans.get(lane, {})
        plan = plans.get(epoch)
        if plan is None:
            plan = self._make_plan(lane, epoch)
            self._plans[lane] = _latest(plans, epoch, plan)
        return plan

    def _make_plan(self, lane: int, epoch: int) -> _Epoch:
        begin, end = self._range(lane)
        first = int(np.searchsorted(self._start_S, begin, side="right")) - 1
        last = int(np.searchsorted(self._start_S, end, side="left"))
        starts = np.maximum(self._start_S[first:last], begin)
        sizes = np.minimum(self._start_S[first + 1 : last + 1], end) - starts
        first_id = self._first_id_S[first:last] + (starts - self._start_S[first:last])
        order = permutation(sizes.size, hash_key("pieces", self.seed, self.name, lane, epoch))
        start = np.concatenate([[0], np.cumsum(sizes[order])])
        block = group_pieces(start, self.block_samples)
        key = hash_key("samples", self.seed, self.name, lane, epoch)
        return _Epoch(key, first_id[order], start, block, start[block])


class StreamingOrder:
    """The same interface over one of Streaming's shuffles (py1e, py1br, py1s, py2s, naive).

    Holds whole epochs of the domain as arrays, 8 bytes a sample; lane c reads Streaming's canonical node c.
    """

    def __init__(self, name: str, samples_S: np.ndarray, seed: int, num_lanes: int, algorithm: str):
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
        self._shuffle = lambda epoch: get_shuffle(algorithm, self._samples_S, num_lanes, seed, epoch)
        self._epochs: dict[int, np.ndarray] = {}

    def share(self, lane: int) -> int:
        """How many samples lane `lane` holds: the length of its epochs."""
        return (lane + 1) * self.num_samples // self.num_lanes - lane * self.num_samples // self.num_lanes

    def ids(self, lane: int, position: int, count: int) -> np.ndarray:
        """(count,) int64: the sample ids at positions [position, position + count) of the lane's endless order."""
        share = self.share(lane)
        begin = lane * self.num_samples // self.num_lanes
        epoch_N, offset_N = np.divmod(np.arange(position, position + count), share)
        out = np.empty(count, np.int64)
        for epoch in range(int(epoch_N[0]), int(epoch_N[-1]) + 1) if count else ():
            chosen = epoch_N == epoch
            out[chosen] = self._epoch(epoch)[begin + offset_N[chosen]]
        return out

    def _epoch(self, epoch: int) -> np.ndarray:
        ids = self._epochs.get(epoch)
        if ids is None:
            ids = np.asarray(self._shuffle(epoch), np.int64)
            self._epochs = _latest(self._epochs, epoch, ids)
        return ids


def _latest(held: dict[int, T], epoch: int, value: T) -> dict[int, T]:
    """`value` and the latest other epoch of `held`: reading and looking ahead span two epochs at most.

    A new dict each time, never changed in place: reader and audit may call from different threads without a lock.
    """
    return {other: held[other] for other in sorted(held)[-1:]} | {epoch: value}


SampleOrder = DomainOrder | StreamingOrder


def make_order(name: str, samples_S: np.ndarray, seed: int, num_lanes: int, shuffle: str) -> SampleOrder:
    """The order of one domain: DomainOrder for shuffle 'blocks', else the algorithm of Streaming with that name."""
    if shuffle == "blocks":
        return DomainOrder(name, samples_S, seed, num_lanes)
    return StreamingOrder(name, samples_S, seed, num_lanes, shuffle)


_MIN_RUN, _MAX_RUN = 16, 256  # ids computed at once for a domain and lane


class UpcomingIds:
    """Sample ids at (domain, lane, position), for the lanes in `lanes`; lane_slots: slots of a lane in a step.

    Positions are asked for in ascending order, so each (domain, lane) keeps one run of ids, computed together.
    """

    def __init__(self, orders: Sequence[SampleOrder], lanes: range, lane_slots: int):
        self._orders, self._lanes = orders, lanes
        groups = len(orders) * len(lanes)
        self._begin_G = np.zeros(groups, np.int64)  # the position that a group's run begins with
        self._end_G = np.zeros(groups, np.int64)
        self._id_GR = np.empty((groups, min(max(lane_slots, _MIN_RUN), _MAX_RUN)), np.int64)

    def at(self, domain_N: np.ndarray, lane_N: np.ndarray, position_N: np.ndarray) -> np.ndarray:
        """(N,) int64: the sample id within its domain at each position of (domain, lane)."""
        group_N = domain_N * np.int64(len(self._lanes)) + (lane_N - self._lanes.start)
        id_N = np.empty(group_N.size, np.int64)
        done = 0
        while True:
            done = numba_order.look_up(group_N, position_N, self._begin_G, self._end_G, self._id_GR, done, id_N)
            if done == id_N.size:
                return id_N
            self._compute(int(group_N[done]), int(position_N[done]))

    def _compute(self, group: int, position: int) -> None:
        domain, column = divmod(group, len(self._lanes))
        order, lane = self._orders[domain], self._lanes[column]
        run = min(self._id_GR.shape[1], max(_MIN_RUN, order.share(lane)))  # a small domain: no more than one epoch
        self._id_GR[group, :run] = order.ids(lane, position, run)
        self._begin_G[group], self._end_G[group] = position, position + run


def hash_key(*parts: int | str) -> np.uint64:
    """One 64-bit key of a sequence of integers and strings: xxh64 of their types and values."""
    text = "\x1f".join([f"{type(part).__name__}:{part}" for part in parts])
    return np.uint64(xxhash.xxh64_intdigest(text.encode()))


def permutation(size: int, key: np.uint64) -> np.ndarray:
    """A permutation of [0, size), int64: the order of keyed hashes."""
    return np.argsort(words(key, size), kind="stable")
