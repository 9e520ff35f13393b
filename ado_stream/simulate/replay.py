"""What another policy would have said to the losses that a run recorded.

An open loop: the recorded losses come from what the recorded mixture drew, whatever the other policy would have drawn.
So early differences are to be trusted more than late ones. Invariant: a run's own policy, replayed with its options,
guards, lag and the facts of the run (registry.RunFacts), gives the mixtures that the run recorded.
"""

import numpy as np
from numpy.typing import NDArray

from ado_stream.errors import DataError
from ado_stream.policy.base_policy import Floats, Policy


def replay(policy: Policy, loss_SK: Floats, samples_SK: Floats, mixture_lag: int, first_K: Floats) -> Floats:
    """(S, K) mixtures that would have been in force at each recorded step.

    loss_SK: mean losses in nats, NaN where absent; samples_SK: samples drawn; one row a step from step 0 on. The
    mixture of step s is what the policy said after step s - 1 - mixture_lag; steps 0 to mixture_lag have `first_K`
    (K,), what a run draws before its policy has spoken.
    """
    said_SK = np.empty_like(loss_SK)
    for step, (loss_K, count_K) in enumerate(zip(loss_SK, samples_SK, strict=True)):
        said_SK[step] = policy.update(loss_K, count_K)
    early = min(mixture_lag + 1, len(said_SK))
    return np.vstack([np.tile(first_K, (early, 1)), said_SK[: len(said_SK) - early]])


def check_complete(step_S: NDArray[np.int64], where: str) -> None:
    """Raises DataError naming the first gap unless the record has every step from 0 on."""
    if not len(step_S):
        raise DataError(f"{where}: no step was recorded yet; there is nothing to replay.")
    wrong = np.flatnonzero(step_S != np.arange(len(step_S)))
    if len(wrong):
        raise DataError(f"{where}: step {wrong[0]} is missing from the record; replay needs every step from 0 on.")
