"""How much of each domain a run would draw: its policy is updated without losses."""

from collections import deque

import numpy as np

from ado_stream.policy.base_policy import Policy
from ado_stream.policy.static_policies import StaticPolicy
from ado_stream.value_types import Floats, Ints


def planned_samples(policy: Policy, steps: int, global_batch_size: int | Ints, mixture_lag: int = 0) -> Floats:
    """(K,) float64: expected samples of each domain in `steps` steps; exact for policies that do not depend on losses.

    For others it is what they draw if no loss moves them. global_batch_size: of every step, or (steps,) of each.
    `policy` is updated: do not use it afterwards.
    """
    prior_K, size_S = policy.prior, np.broadcast_to(global_batch_size, steps)
    before = min(steps, mixture_lag + 1)  # steps before the first mixture is drawn
    if isinstance(policy, StaticPolicy):
        static_K: Floats = size_S[:before].sum() * prior_K + size_S[before:].sum() * policy.mixture
        return static_K
    unseen_K, drawn_K = np.full(len(prior_K), np.nan), np.zeros(len(prior_K))
    coming = deque([prior_K] * before)
    for size in size_S.tolist():
        count_K = size * coming.popleft()
        drawn_K += count_K
        coming.append(policy.update(unseen_K, count_K))
    return drawn_K
