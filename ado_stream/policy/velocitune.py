"""Velocitune: shares that follow each domain's remaining fraction of the gap to a target loss (arXiv 2411.14318).

    V = (l - l*) / (l0 - l*)                                  1 at the start, 0 at the target: slow domains are high
    p <- (1 - c) softmax(log p + eta V) + c / K               after every refit; eta = 1

As `gap`, but relative to the gap at the start, so that a domain with a high loss is not preferred for it. The
paper continues from a trained model: l0 is that model's held-out loss, l* what a law of a smaller run forecasts for the
end. Here l0 is the exponential average of a domain's training losses at its first observation, and l* is given or
forecast by the domain's own law; the paper has no c. A domain at its target from the start has V = 0.
"""

import numpy as np

from ado_stream.policy.gap import GapPolicy
from ado_stream.value_types import Array, Bools, Floats

_MIN_GAP_AT_START = 1e-3  # nats: of l0 - l*, so that a domain with nothing to learn is not a division by 0


class Velocitune(GapPolicy):
    """`velocitune`. Options as GapPolicy's."""

    kind = "velocitune"

    def _initial(self) -> dict[str, Array]:
        return {**super()._initial(), "first": np.full(self.num_domains, np.nan)}

    def _observe(self, loss_K: Floats, seen_K: Bools) -> None:
        super()._observe(loss_K, seen_K)
        first_K = self.memory["first"]
        np.copyto(first_K, loss_K, where=seen_K & np.isnan(first_K))

    def _gap(self) -> Floats:
        start_K = self.memory["first"] - self._targets()
        return np.where(start_K > _MIN_GAP_AT_START, super()._gap() / np.maximum(start_K, _MIN_GAP_AT_START), 0.0)
