"""The best that any mixture can do on synthetic domains, from their true laws: what regret is measured against.

A final loss depends on the samples drawn of each domain alone, not on their order, so the best policy of all is the
best division of the run's samples: min over n >= drawn, sum n = N of sum_k w_k L_k(n). Found by exponentiated gradients
from several starts; the objective is convex where laws do not break and no cap holds, and then the minimum is the only
one. Invariant: a function of the domains, the weights and the samples alone.
"""

import numpy as np

from ado_stream.simulate.synthetic_domains import SyntheticDomains
from ado_stream.value_types import Floats

_MOVES = 400
_CHANGE = 1e-4  # of a count, for a difference quotient
_FIRST_MOVE, _FASTER, _SLOWER = 0.5, 1.5, 0.2  # the largest change of a log share in the first move; of the step


def best_samples(domains: SyntheticDomains, weight_K: Floats, total: float, drawn_K: Floats | None = None) -> Floats:
    """(K,) samples of each domain at the end that minimise sum w L.

    weight_K: of the losses. total: samples of the run. drawn_K: already drawn of each domain; None: nothing.
    """
    drawn_K = np.zeros(len(domains.names)) if drawn_K is None else drawn_K
    left = total - float(drawn_K.sum())
    starts = [domains.prior_K, np.full(len(drawn_K), 1.0), weight_K + 1e-6]
    found = [_descend(domains, weight_K, drawn_K, left, start_K / start_K.sum()) for start_K in starts]
    return drawn_K + left * min(found, key=lambda share_K: _loss(domains, weight_K, drawn_K + left * share_K))


def _descend(domains: SyntheticDomains, weight_K: Floats, drawn_K: Floats, left: float, share_K: Floats) -> Floats:
    loss = _loss(domains, weight_K, drawn_K + left * share_K)
    slope_K = _slope(domains, weight_K, drawn_K + left * share_K) * left
    step = _FIRST_MOVE / max(float(np.abs(slope_K - share_K @ slope_K).max()), 1e-300)
    for _ in range(_MOVES):
        tried_K = share_K * np.exp(np.clip(-step * (slope_K - share_K @ slope_K), -2.0, 2.0))
        tried_K /= tried_K.sum()
        tried = _loss(domains, weight_K, drawn_K + left * tried_K)
        if tried < loss:
            share_K, loss, step = tried_K, tried, step * _FASTER
            slope_K = _slope(domains, weight_K, drawn_K + left * share_K) * left
        else:
            step *= _SLOWER
    return share_K


def _loss(domains: SyntheticDomains, weight_K: Floats, samples_K: Floats) -> float:
    return float(weight_K @ domains.loss(samples_K))


def _slope(domains: SyntheticDomains, weight_K: Floats, samples_K: Floats) -> Floats:
    """(K,) change of the loss by one more sample of each domain, by central differences."""
    slope_K = np.empty_like(samples_K)
    for index, samples in enumerate(samples_K.tolist()):
        change_K = np.zeros_like(samples_K)
        change_K[index] = _CHANGE * max(samples, 1.0)
        above, below = (_loss(domains, weight_K, samples_K + sign * change_K) for sign in (1.0, -1.0))
        slope_K[index] = (above - below) / (2.0 * change_K[index])
    return slope_K
