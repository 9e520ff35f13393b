"""How much of each domain a run would draw, before it has begun: its policy is updated without a single loss."""

from collections import deque

import numpy as np

from ado_stream.policy.base_policy import Floats, Policy
from ado_stream.policy.static_policies import StaticPolicy


def planned_samples(policy: Policy, steps: int, global_batch_size: int, mixture_lag: int = 0) -> Floats:
    """(K,) float64: expected samples of each domain in `steps` steps; exact for policies that do not look at losses.

    For those that do it is what they draw as long as no loss moves them. `policy` is updated and of no use afterwards.
    """
    prior_K = policy.prior
    before = min(steps, mixture_lag + 1)  # no mixture reaches the draw earlier
    if isinstance(policy, StaticPolicy):
        static_K: Floats = float(global_batch_size) * (before * prior_K + (steps - before) * policy.mixture)
        return static_K
    unseen_K, drawn_K = np.full(len(prior_K), np.nan), np.zeros(len(prior_K))
    coming = deque([prior_K] * before)
    for _ in range(steps):
        count_K = global_batch_size * coming.popleft()
        drawn_K += count_K
        coming.append(policy.update(unseen_K, count_K))
    return drawn_K
