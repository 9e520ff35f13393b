"""Sample ids by domain, lane and position, computed some positions ahead, so that a batch costs one look-up.

A step takes B / C samples of each lane in use, so with runs of that length one run a lane and step is computed on
average, whatever the number of domains. Memory: 8 bytes x domains x lanes in use x run.

Invariant: an answer depends on the orders alone, never on what was asked before.
"""

from collections.abc import Sequence

import numpy as np

from ado_stream.stream import compiled
from ado_stream.stream.order import DomainOrder, StreamingOrder

_MIN_RUN, _MAX_RUN = 16, 256


class UpcomingIds:
    """The ids that `orders` give, for slots of the lanes in `lanes`; lane_slots: slots of a lane in a step."""

    def __init__(self, orders: Sequence[DomainOrder | StreamingOrder], lanes: range, lane_slots: int):
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
            done = compiled.look_up(group_N, position_N, self._begin_G, self._end_G, self._id_GR, done, id_N)
            if done == id_N.size:
                return id_N
            self._compute(int(group_N[done]), int(position_N[done]))

    def _compute(self, group: int, position: int) -> None:
        domain, column = divmod(group, len(self._lanes))
        order, lane = self._orders[domain], self._lanes[column]
        run = min(self._id_GR.shape[1], max(_MIN_RUN, order.share(lane)))  # few epochs of a small domain at once
        self._id_GR[group, :run] = order.ids(lane, position, run)
        self._begin_G[group], self._end_G[group] = position, position + run
