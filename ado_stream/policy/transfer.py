"""Laws whose counts are other domains' samples too: gamma_mk is the worth of a sample of domain k to domain m.

    log L_m(t) = log(eps_m + beta_m x_m(t)^-alpha_m) + r,    x_m = sum_k gamma_mk n_k,   gamma_m >= 0, sum 1

A scale of gamma_m is a scale of beta_m, hence the sum of 1. Laws and gamma are fitted in turn, to the same objective:
the Huber loss of r. For given laws gamma moves by exponentiated gradients, gamma <- gamma exp(-step (g - gamma . g)),
with a step of each domain's own that grows while the objective falls and is taken back where it does not; so the
objective of a domain never rises. Rows of gamma do not depend on each other.
"""

from collections.abc import Callable

import numpy as np

from ado_stream.policy.scaling_laws import FitConfig, ScalingLawFit, prepare_history
from ado_stream.value_types import Bools, Floats, Ints

_OWN_WEIGHT = 0.9  # gamma_kk at the start
_TURNS = 2  # of laws and gamma
_MOVES = 60  # of gamma in a turn
_FIRST_MOVE, _FASTER, _SLOWER = 0.5, 1.5, 0.2  # the largest change of a log weight in the first move; of the step


def first_transfer(num_domains: int) -> Floats:
    """(K, K) gamma before any fit: 0.9 for a domain itself, the rest shared by the others."""
    others = (1.0 - _OWN_WEIGHT) / max(num_domains - 1, 1)
    gamma_KK = np.full((num_domains, num_domains), others)
    np.fill_diagonal(gamma_KK, _OWN_WEIGHT if num_domains > 1 else 1.0)
    return gamma_KK


def transfer_among(gamma_KK: Floats, source_K: Ints) -> Floats:
    """gamma for other domains, whose index in the old ones is source_K, -1 for new; rows sum to 1 again."""
    if np.array_equal(source_K, np.arange(len(gamma_KK))):
        return gamma_KK
    old_KK = (source_K[:, None] >= 0) & (source_K >= 0)
    found_KK = np.where(old_KK, gamma_KK[source_K][:, source_K], first_transfer(len(source_K)))
    shares_KK: Floats = found_KK / found_KK.sum(axis=1, keepdims=True)
    return shares_KK


def fit_with_transfer(
    count_KM: Floats,
    loss_KM: Floats,
    gamma_KK: Floats,
    fitter: Callable[[Floats, Floats, FitConfig], ScalingLawFit],
    config: FitConfig,
) -> tuple[ScalingLawFit, Floats]:
    """(laws over effective samples, gamma), from `gamma_KK` on.

    count_KM: each domain's own samples so far; loss_KM: nats per token; both as recorded. Raises what `fitter` raises.
    """
    loss_KM, count_KM, config = prepare_history(loss_KM, config), count_KM[:, config.kept], config.prepared()
    for _ in range(_TURNS):
        laws = fitter(gamma_KK @ count_KM, loss_KM, config)
        gamma_KK = improve_transfer(gamma_KK, laws, count_KM, loss_KM, config.delta)
    return fitter(gamma_KK @ count_KM, loss_KM, config), gamma_KK


def improve_transfer(gamma_KK: Floats, laws: ScalingLawFit, count_KM: Floats, loss_KM: Floats, delta: float) -> Floats:
    """gamma whose objective under `laws` is as low or lower for every domain; kept where a law is not valid."""
    usable_KM = np.isfinite(loss_KM) & (loss_KM > 0.0) & laws.valid[:, None]
    log_loss_KM = np.log(np.where(usable_KM, loss_KM, 1.0))
    best_K, slope_KK = _objective(gamma_KK, laws, count_KM, log_loss_KM, usable_KM, delta)
    step_K = _FIRST_MOVE / np.maximum(np.abs(slope_KK).max(axis=1), 1e-300)  # a slope of 0 moves nothing
    for _ in range(_MOVES):
        exponent_KK = np.clip(-step_K[:, None] * slope_KK, -1.0, 1.0)  # a weight changes e-fold at most in a move
        tried_KK = gamma_KK * np.exp(exponent_KK)
        tried_KK /= tried_KK.sum(axis=1, keepdims=True)
        found_K, tried_slope_KK = _objective(tried_KK, laws, count_KM, log_loss_KM, usable_KM, delta)
        lower_K = found_K < best_K
        gamma_KK = np.where(lower_K[:, None], tried_KK, gamma_KK)
        slope_KK = np.where(lower_K[:, None], tried_slope_KK, slope_KK)
        best_K = np.where(lower_K, found_K, best_K)
        step_K *= np.where(lower_K, _FASTER, _SLOWER)
    return gamma_KK


def _objective(
    gamma_KK: Floats, laws: ScalingLawFit, count_KM: Floats, log_loss_KM: Floats, usable_KM: Bools, delta: float
) -> tuple[Floats, Floats]:
    """(K,) Huber losses, and (K, K) their gradients in gamma, less the part that would change its sum."""
    effective_KM = gamma_KK @ count_KM
    with np.errstate(invalid="ignore", over="ignore"):  # laws that are not valid are NaN; their points are not usable
        gap_KM = np.exp(laws.log_beta[:, None] - laws.alpha[:, None] * np.log(effective_KM))
        loss_KM = gap_KM + np.exp(laws.log_eps)[:, None]
        residual_KM = np.where(usable_KM, log_loss_KM - np.log(loss_KM), 0.0)
        falls_KM = np.where(usable_KM, laws.alpha[:, None] * gap_KM / (loss_KM * effective_KM), 0.0)
    clipped_KM = np.clip(residual_KM, -delta, delta)
    huber_K = (clipped_KM * (residual_KM - 0.5 * clipped_KM)).sum(axis=1)
    slope_KK = (clipped_KM * falls_KM) @ count_KM.T  # d log L / d gamma = -falls n, and r = log L_obs - log L
    return huber_K, slope_KK - (gamma_KK * slope_KK).sum(axis=1, keepdims=True)
