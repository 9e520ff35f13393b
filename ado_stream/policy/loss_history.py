"""The losses that laws are fitted to: one row a step, gaps filled, memory bounded, cost per step constant.

A domain missing from the batch repeats its previous value; in the very first row it takes the batch's mean loss
(docs/math.md section 2). A loss that is not finite counts as missing, so neither NaN nor infinity is stored; NaN is
only in the rows of a domain from before it was added at a resume. Once the rows are full every second one is dropped,
and from then on every second step is stored: rows stay equally spaced, `stride` steps apart. Settings in rows, such as
the smoothing window, then span twice the steps; the laws change little over them that late.

Full means 65,536 rows for up to 64 domains, and 32 MiB of losses for more (4,194 rows of 1,000 domains), but never
under 1,024 rows: memory, the state saved and the time of a fit are bounded by that for a run of any length. The array
is allocated whole at the start; the operating system maps its pages as rows are written.
"""

import numpy as np

from ado_stream.policy import state_codec
from ado_stream.value_types import Bools, Floats, Ints, JsonMapping, JsonObject

MAX_ROWS = 65_536
MAX_LOSSES = 64 * MAX_ROWS  # 32 MiB; as many sample counts again where each domain has its own
MIN_ROWS = 1024  # fewer would leave the fit under a hundred points after its own thinning by ten


def max_history_rows(num_domains: int) -> int:
    """Most rows kept for `num_domains`; an even number, so that thinning leaves no gap."""
    return min(MAX_ROWS, max(MIN_ROWS, MAX_LOSSES // num_domains // 2 * 2))


class LossHistory:
    """Rows of (samples so far, losses of all domains), oldest first.

    own_counts: the samples so far are each domain's own, (K,) a row, instead of one number for all.
    capacity: rows kept, an even number; None: `max_history_rows` the domains.
    """

    def __init__(self, num_domains: int, own_counts: bool = False, capacity: int | None = None):
        capacity = max_history_rows(num_domains) if capacity is None else capacity
        assert capacity % 2 == 0, capacity
        self.stride = 1
        self.rows = 0
        self._num_seen = 0  # steps since the first that had a loss
        self._loss_MK = np.empty((capacity, num_domains))
        self._count_M = np.empty((capacity, num_domains) if own_counts else capacity)
        self._last_K = np.full(num_domains, np.nan)

    def record(self, samples: float | Floats, loss_K: Floats, count_K: Floats, seen_K: Bools) -> None:
        """Adds a step: `samples` so far including it, and its losses, valid where `seen_K`.

        Before the first valid loss there is nothing to fill gaps with, and nothing is stored.
        """
        if self._num_seen == 0:
            if not seen_K.any():
                return
            self._last_K[:] = np.average(loss_K[seen_K], weights=count_K[seen_K])
        np.copyto(self._last_K, loss_K, where=seen_K)
        if self._num_seen % self.stride == 0:
            if self.rows == len(self._loss_MK):
                self._thin()
            self._loss_MK[self.rows] = self._last_K
            self._count_M[self.rows] = samples
            self.rows += 1
        self._num_seen += 1

    def points(self) -> tuple[Floats, Floats]:
        """(counts, losses) for the fit: (M,) or (K, M) samples so far, and (K, M) nats. Views, not copies."""
        return self._count_M[: self.rows].T, self._loss_MK[: self.rows].T

    def state_dict(self) -> JsonObject:
        """The rows as JSON values."""
        return {
            "stride": self.stride,
            "num_seen": self._num_seen,
            "last": state_codec.pack(self._last_K),
            "counts": state_codec.pack(self._count_M[: self.rows]),
            "losses": state_codec.pack(self._loss_MK[: self.rows]),
        }

    def load_state_dict(self, state: JsonMapping, source_K: Ints, num_saved: int) -> None:
        """Restores the saved rows of `num_saved` domains; source_K: index of each domain in them, -1: a new one (NaN).

        With more domains than before, the capacity may be below the rows saved; they are thinned to it.
        """
        stride, num_seen = state_codec.whole_number(state, "stride", 1), state_codec.whole_number(state, "num_seen")
        loss_MK = state_codec.unpack(state.get("losses"), "history losses", np.nan, (None, num_saved))
        shape = loss_MK.shape if self._count_M.ndim == 2 else loss_MK.shape[:1]
        count_M = state_codec.unpack(state.get("counts"), "history counts (of other shared_count?)", 0.0, shape)
        last = state_codec.unpack(state.get("last"), "history last", np.nan, (num_saved,))
        while len(loss_MK) > len(self._loss_MK):
            count_M, loss_MK, stride = count_M[::2], loss_MK[::2], 2 * stride
        self.stride, self._num_seen, self.rows = stride, num_seen, len(loss_MK)
        self._last_K = np.where(source_K >= 0, last[source_K], np.nan)
        self._loss_MK[: self.rows] = np.where(source_K >= 0, loss_MK[:, source_K], np.nan)
        if count_M.ndim == 2:
            count_M = np.where(source_K >= 0, count_M[:, source_K], 1.0)  # a fit needs n > 0; these losses are NaN
        self._count_M[: self.rows] = count_M

    def _thin(self) -> None:
        half = len(self._loss_MK) // 2
        self._loss_MK[:half] = self._loss_MK[::2]
        self._count_M[:half] = self._count_M[::2]
        self.rows = half
        self.stride *= 2
