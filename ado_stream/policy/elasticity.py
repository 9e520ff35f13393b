"""How much a domain's loss falls per unit of log samples, with the uncertainty of the estimate.

A power law over the domain's own samples n, written around what was drawn so far, n0:

    L(n) = eps + beta (n / n0)^-alpha,      eps, beta >= 0
    e    = -dL / d ln n at n0 = alpha beta  the elasticity, nats per unit of ln n

One percent more samples of a domain lower its loss by e / 100, and the mixture that minimises sum_k w_k L_k is p
proportional to w e (docs/math.md, 4a).
Given alpha, eps and beta are a weighted least-squares problem of two unknowns, solved in closed form; over a grid of
alphas that gives a likelihood, with a log-normal prior on alpha a posterior, and from it the mean and the standard
deviation of e. Nothing iterates, so the cost is the same for every history.

Invariants: e and its deviation are finite and not negative, for one block, constant and rising losses too (beta = 0, so
e is near 0); they depend on each domain's own blocks alone.
"""

from dataclasses import dataclass

import numpy as np

from ado_stream.policy.loss_blocks import BlockPoints
from ado_stream.value_types import Bools, Floats

ALPHA_A = np.geomspace(0.08, 1.5, 25)  # the grid of exponents
_PRIOR_ALPHA, _PRIOR_LOG_SD = 0.4, 0.5  # of the log-normal prior on alpha
_PRIOR_BLOCKS = 4.0  # weight of the prior on the noise, in blocks
SAMPLE_SD, _BLOCK_SD = 0.5, 0.02  # nats: of a sample's loss about its domain's mean; of what a block's samples share
_SPREAD = 0.5  # prior standard deviation of elasticities, relative to the middle one
_ROUNDS = 4  # of improving the middle by the estimates shrunk towards it
LAW = ("alpha", "log_beta", "log_eps")
_TINY = 1e-12


@dataclass(frozen=True)
class Elasticities:
    """Of K domains, all (K,) float64: e and its standard deviation, nats per unit of ln n; the likeliest law at n0."""

    mean_K: Floats
    sd_K: Floats
    noise_K: Floats  # variance of the losses about their law, in units of what was assumed
    alpha_K: Floats
    beta_K: Floats  # nats at n0
    eps_K: Floats  # nats


def fit_blocks(points: BlockPoints, counts_KM: Bools, samples_K: Floats, value_K: Floats) -> dict[str, Floats]:
    """(K,) each: elasticity and elasticity_sd after `samples_K`, times `value_K`; loss_sd, the deviation of a sample's
    loss, nats; and the likeliest law (LAW).

    counts_KM: which blocks count for which domain.
    """
    own_KM, loss_KM = np.where(counts_KM, points.own_KM, 1.0), np.where(counts_KM, points.loss_KM, 0.0)
    now_K = np.maximum(samples_K, 1.0)
    variance_KM = SAMPLE_SD**2 / np.where(counts_KM, points.samples_KM, 1.0) + _BLOCK_SD**2
    weight_KM = np.where(counts_KM, 1.0 / variance_KM, 0.0)
    found = fit_elasticities(np.log(own_KM / now_K[:, None]), loss_KM, weight_KM)
    return {
        "elasticity": value_K * found.mean_K,
        "elasticity_sd": value_K * found.sd_K,
        "loss_sd": SAMPLE_SD * np.sqrt(found.noise_K),
        "alpha": found.alpha_K,
        "log_beta": np.log(np.maximum(found.beta_K, _TINY)) + found.alpha_K * np.log(now_K),
        "log_eps": np.log(np.maximum(found.eps_K, _TINY)),
    }


@dataclass(frozen=True)
class Speeds:
    """How much faster or slower than the middle domains learn, as far as is known; (K,) elasticities and deviations."""

    elasticity_K: Floats
    sd_K: Floats
    middle: float

    @property
    def known_K(self) -> Floats:
        """Weight of each estimate against the middle, from 0 to 1: prior variance over prior plus error variance."""
        return np.asarray(1.0 / (1.0 + (self.sd_K / (_SPREAD * self.middle)) ** 2))

    @property
    def mean_K(self) -> Floats:
        """Elasticities shrunk towards the middle."""
        return self.middle + self.known_K * (self.elasticity_K - self.middle)

    def at(self, deviations: float) -> Floats:
        """(K,) log of the speed so many deviations above its mean."""
        of_K = self.mean_K + deviations * np.sqrt(self.known_K) * self.sd_K
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(np.maximum(of_K, 0.0) / self.middle))


def middle_elasticity(elasticity_K: Floats, sd_K: Floats, target_K: Floats) -> float:
    """The elasticity of the domain at which half of sum w e is reached, domains sorted by e; NaN where all are 0.

    A median weighted by gain: domains without gain do not count, whatever their number or size. An estimate that is too
    high by chance ranks higher and weighs more as well, so the middle of bare estimates is too high, by a half for the
    first laws. Estimates are therefore weighted by `known_K` and shrunk towards the middle of the last round.
    """
    middle = _half_gained(elasticity_K, target_K * elasticity_K)
    for _ in range(_ROUNDS):
        speeds = Speeds(elasticity_K, sd_K, middle)
        middle = _half_gained(speeds.mean_K, target_K * speeds.known_K * speeds.mean_K)
    return middle


def _half_gained(elasticity_K: Floats, gain_K: Floats) -> float:
    order_K = np.argsort(elasticity_K, kind="stable")
    gained_K = np.cumsum(np.where(np.isfinite(gain_K), gain_K, 0.0)[order_K])
    if not gained_K[-1] > 0.0:
        return float("nan")
    return float(elasticity_K[order_K[np.searchsorted(gained_K, 0.5 * gained_K[-1])]])


def fit_elasticities(log_ratio_KM: Floats, loss_KM: Floats, weight_KM: Floats) -> Elasticities:
    """The elasticities of K domains from M blocks of losses.

    log_ratio_KM: ln(n / n0), 0 or less, n the domain's own samples at the middle of the block, n0 those so far.
    loss_KM: mean losses, nats per token. weight_KM: one over the variance of each, 0 where a block does not count.
    A domain without a block that counts has e = 0 with an infinite deviation: nothing is known of it.
    """
    weight_K1 = weight_KM.sum(axis=1, keepdims=True)
    loss_K1 = (weight_KM * loss_KM).sum(axis=1, keepdims=True) / np.maximum(weight_K1, _TINY)
    centred_KM = loss_KM - loss_K1  # differences of sums of squares would lose what sets laws apart
    # For a given alpha L = eps + beta x with x = (n / n0)^-alpha: a regression on x, whose slope is beta. Sums of
    # squares about the means: xx - weight x^2 below, xy of centred losses, yy.
    x_KAM = np.exp(-ALPHA_A[:, None] * log_ratio_KM[:, None, :])
    x_KA = np.einsum("kam,km->ka", x_KAM, weight_KM) / np.maximum(weight_K1, _TINY)
    xy_KA = np.einsum("kam,km->ka", x_KAM, weight_KM * centred_KM)
    xx_KA = np.einsum("kam,kam,km->ka", x_KAM, x_KAM, weight_KM, optimize=["einsum_path", (0, 1), (0, 1)])
    yy_K1 = (weight_KM * centred_KM**2).sum(axis=1, keepdims=True)
    about_mean_KA = np.maximum(xx_KA - weight_K1 * x_KA**2, _TINY * np.maximum(weight_K1, 1.0))
    # Free minimum; eps < 0 moves to the edge eps = 0, where L = beta x; then beta < 0 moves to L = eps.
    free_beta_KA = xy_KA / about_mean_KA
    at_zero_KA = loss_K1 - free_beta_KA * x_KA < 0.0
    through_zero_KA = (xy_KA + loss_K1 * weight_K1 * x_KA) / np.maximum(xx_KA, _TINY)
    beta_KA = np.maximum(np.where(at_zero_KA, through_zero_KA, free_beta_KA), 0.0)
    eps_KA = np.where(at_zero_KA & (beta_KA > 0.0), 0.0, loss_K1 - beta_KA * x_KA)
    shift_KA = eps_KA - loss_K1 + beta_KA * x_KA  # the residuals' weighted mean, 0 off the edge
    # sum w (L - eps - beta x)^2, by the sums about the means
    misfit_KA = yy_K1 - 2.0 * beta_KA * xy_KA + beta_KA**2 * about_mean_KA + weight_K1 * shift_KA**2
    misfit_KA = np.maximum(misfit_KA, 0.0)
    num_K1 = np.count_nonzero(weight_KM, axis=1)[:, None]
    # Noise from the best alpha's misfit, three parameters less; 1 is what the weights assume.
    noise_K1 = (_PRIOR_BLOCKS + misfit_KA.min(axis=1, keepdims=True)) / (_PRIOR_BLOCKS + np.maximum(num_K1 - 3, 0))
    posterior_KA = -0.5 * misfit_KA / noise_K1 - 0.5 * (np.log(ALPHA_A / _PRIOR_ALPHA) / _PRIOR_LOG_SD) ** 2
    posterior_KA = np.exp(posterior_KA - posterior_KA.max(axis=1, keepdims=True))
    posterior_KA /= posterior_KA.sum(axis=1, keepdims=True)
    # Law of total variance: the variance of the means over alpha, plus that of beta at each alpha.
    e_KA = ALPHA_A * beta_KA
    variance_KA = ALPHA_A**2 * noise_K1 / np.where(at_zero_KA, np.maximum(xx_KA, _TINY), about_mean_KA)
    mean_K = (posterior_KA * e_KA).sum(axis=1)
    sd_K = np.sqrt((posterior_KA * ((e_KA - mean_K[:, None]) ** 2 + variance_KA)).sum(axis=1))
    likeliest = np.arange(len(loss_KM)), posterior_KA.argmax(axis=1)
    return Elasticities(
        mean_K,
        np.where(num_K1[:, 0] > 0, sd_K, np.inf),
        noise_K1[:, 0],
        alpha_K=ALPHA_A[likeliest[1]],
        beta_K=beta_KA[likeliest],
        eps_K=eps_KA[likeliest],
    )
