"""What the scaling-law fit minimises: the options, the penalties' kinks, the result, and F written out in NumPy.

The law of a domain is L(n) = exp(log_eps) + exp(log_beta) n^(-alpha), n in samples. With m_t the law's log loss at n_t,
r_t = log L_obs(t) - m_t and the Huber loss rho of width delta,

    F = sum_t rho(r_t) + max(alpha - 0.8, 0) - min(alpha, 0.001) - min(log_eps - 0.5, 0) + max(log_beta - 6.5, 0).

The last four terms are penalties, not bounds; their kinks often hold the minimum. F is a sum over points: its scale
grows with the history. Losses are nats per token: above e^6.5 = 665 of whatever unit the kink of log_beta holds every
law, and what is found may lie 0.3 % above the least F. Kinks and starts suit losses that begin near log 50,000 nats, as
the reference's do; with `start_loss` losses are scaled to begin there, and the laws are scaled back. r_t is a
difference of logarithms, so that moves the kinks and the starts alone.
Source: "Adaptive Data Optimization" (arXiv 2410.11820), appendix on the scaling-law fit.
The order of the parameters is (log_beta, log_eps, alpha) everywhere: the dimension P.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

LOG_BETA_KINK = 6.5
LOG_EPS_KINK = 0.5
ALPHA_LOW_KINK = 0.001
ALPHA_HIGH_KINK = 0.8
REFERENCE_START_LOSS = float(np.log(50_000))  # nats: of a model that has learnt nothing, in the reference's runs


@dataclass(frozen=True)
class FitOptions:
    """How histories are prepared and where the search starts.

    delta: width of the Huber loss, in nats of log loss.
    grid_log_beta, grid_log_eps, grid_alpha: the starts are their product (512 by default, the paper's).
    smooth_window: steps under the cubic Savitzky-Golay filter (odd); 0 or 1 leaves the losses as they are.
        A shorter history takes the largest odd window that fits; under five steps nothing is smoothed.
    ignore_steps: steps dropped from the front, after smoothing.
    every: every how many steps a point is kept, after smoothing.
    start_loss: loss of a model that has learnt nothing, in the unit of the losses: log of the vocabulary in nats per
        token, 8 in bits per byte. None: as in the reference.
    Raises ValueError where a value cannot work.
    """

    delta: float = 1e-3
    grid_log_beta: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    grid_log_eps: tuple[float, ...] = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
    grid_alpha: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    smooth_window: int = 101
    ignore_steps: int = 0
    every: int = 10
    start_loss: float | None = None

    @property
    def log_unit(self) -> float:
        """Log of the number by which losses are multiplied before a fit."""
        return 0.0 if self.start_loss is None else float(np.log(REFERENCE_START_LOSS / self.start_loss))

    def __post_init__(self) -> None:
        if self.start_loss is not None and not (np.isfinite(self.start_loss) and self.start_loss > 0):
            raise ValueError(f"start_loss must be a positive loss, got {self.start_loss!r}")
        if not (np.isfinite(self.delta) and self.delta > 0):
            raise ValueError(f"delta must be a positive number of nats, got {self.delta!r}")
        for name in ("grid_log_beta", "grid_log_eps", "grid_alpha"):
            grid = np.asarray(getattr(self, name), dtype=np.float64)
            if grid.ndim != 1 or grid.size == 0 or not np.isfinite(grid).all():
                raise ValueError(f"{name} must be a non-empty list of finite starts, got {getattr(self, name)!r}")
            object.__setattr__(self, name, tuple(grid.tolist()))
        if self.smooth_window < 0 or (self.smooth_window > 1 and self.smooth_window % 2 == 0):
            raise ValueError(f"smooth_window must be 0 (none) or odd, got {self.smooth_window}")
        if self.ignore_steps < 0:
            raise ValueError(f"ignore_steps must be 0 or more, got {self.ignore_steps}")
        if self.every < 1:
            raise ValueError(f"every must be 1 or more, got {self.every}")


class FitResult(NamedTuple):
    """Fitted laws of K domains; NaN and valid False where a domain had no usable point or no finite minimum.

    theta: (K, P) float64. objective: (K,) float64, F. valid: (K,) bool. at_bound: (K, P) bool: at or past a kink.
    residual_scale: (K,) float64, median |r|. num_points: (K,) int64, points that F summed over.
    """

    theta: Floats
    objective: Floats
    valid: Bools
    at_bound: Bools
    residual_scale: Floats
    num_points: Ints


def log_law(theta_P: Floats, log_count: Floats) -> Floats:
    """log L(n) = logsumexp(log_beta - alpha log n, log_eps), of the shape of `log_count`."""
    log_beta, log_eps, alpha = theta_P
    law: Floats = np.logaddexp(log_beta - alpha * log_count, log_eps)
    return law


def penalty(theta_P: Floats) -> float:
    """The four penalty terms of F."""
    log_beta, log_eps, alpha = theta_P
    high = max(alpha - ALPHA_HIGH_KINK, 0.0) + max(log_beta - LOG_BETA_KINK, 0.0)
    return float(high - min(alpha, ALPHA_LOW_KINK) - min(log_eps - LOG_EPS_KINK, 0.0))


def objective(theta_P: Floats, log_count_M: Floats, log_loss_M: Floats, delta: float) -> float:
    """F of one domain in float64, plainly: the oracle of every backend."""
    size_M = np.abs(log_loss_M - log_law(theta_P, log_count_M))
    huber_M = np.where(size_M <= delta, 0.5 * size_M**2, delta * (size_M - 0.5 * delta))
    return float(huber_M.sum()) + penalty(theta_P)


def at_kink(theta_KP: Floats, log_unit: float = 0.0) -> Bools:
    """(K, P) bool: parameters at or past a penalty's kink; False where NaN. log_unit: of FitOptions."""
    rounding = 1e-12 if log_unit else 0.0  # of the way to the fit's unit and back
    log_beta_K, log_eps_K, alpha_K = theta_KP.T
    at_alpha_K = (alpha_K <= ALPHA_LOW_KINK) | (alpha_K >= ALPHA_HIGH_KINK)
    at_beta_K = log_beta_K + log_unit >= LOG_BETA_KINK - rounding
    return np.stack([at_beta_K, log_eps_K + log_unit <= LOG_EPS_KINK + rounding, at_alpha_K], axis=1)


def as_result(theta_KP: Floats, objective_K: Floats, residual_K: Floats, num_K: Ints) -> FitResult:
    """A FitResult, with the laws that are usable and the parameters at a kink, from the parameters."""
    valid_K = np.isfinite(theta_KP).all(axis=1) & np.isfinite(objective_K)
    theta_KP = np.where(valid_K[:, None], theta_KP, np.nan)
    return FitResult(theta_KP, objective_K, valid_K, at_kink(theta_KP), residual_K, num_K)
