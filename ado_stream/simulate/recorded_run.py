"""The mixtures of another policy on the losses that a run recorded.

An open loop: the losses are of batches drawn by the recorded mixture, not by the other policy's, so trust early
differences more than late ones. Invariant: a run's own policy, replayed with its options, guards, lag and RunContext,
gives the mixtures that the run recorded.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ado_stream.errors import DataError
from ado_stream.policy.base_policy import Policy
from ado_stream.value_types import Floats

Validations = Mapping[int, tuple[Floats, Floats]]


def replay(
    policy: Policy,
    loss_SK: Floats,
    samples_SK: Floats,
    mixture_lag: int,
    initial_K: Floats,
    validations: Validations | None = None,
) -> Floats:
    """(S, K) mixtures that would have been in force at each recorded step.

    loss_SK: mean losses in nats, NaN where absent; samples_SK: samples drawn; one row a step from step 0 on. Step s
    is drawn by the policy's mixture after step s - 1 - mixture_lag, steps 0 to mixture_lag by `initial_K` (K,).
    validations: {finished steps: (mean losses (K,), samples measured (K,))}.
    """
    output_SK = np.empty_like(loss_SK)
    for step, (loss_K, count_K) in enumerate(zip(loss_SK, samples_SK, strict=True)):
        if validations and step in validations:
            policy.observe_validation(*validations[step])
        output_SK[step] = policy.update(loss_K, count_K)
    early = min(mixture_lag + 1, len(output_SK))
    return np.vstack([np.tile(initial_K, (early, 1)), output_SK[: len(output_SK) - early]])


def check_complete(step_S: NDArray[np.int64], where: str) -> None:
    """Raises DataError naming the first gap unless the record has every step from 0 on."""
    if not len(step_S):
        raise DataError(f"{where}: no step was recorded yet, so there is nothing to replay.")
    wrong = np.flatnonzero(step_S != np.arange(len(step_S)))
    if len(wrong):
        raise DataError(f"{where}: step {wrong[0]} is missing from the record; replay needs every step from 0 on.")
