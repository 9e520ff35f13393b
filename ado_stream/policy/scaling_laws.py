"""Scaling laws of domains: fitted to loss histories, evaluated and differentiated (docs/math.md sections 1 to 3).

    L(n) = eps + beta n^(-alpha)                 nats per token after n samples
    -dL/dn = alpha (L(n) - eps) / n              learning speed, nats per token and sample

The fit minimises F of `ado_kernels.fit.objective` (Huber loss of log L plus four penalties) for each domain alone.
Source: "Adaptive Data Optimization" (arXiv 2410.11820), sections 3.1 and appendix. NumPy in and out; needs no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from ado_kernels import scaling_law_fit
from ado_kernels.fit.fit_dispatch import BACKENDS
from ado_kernels.fit.objective import Bools, FitOptions, Floats, Ints, at_kink
from ado_stream.errors import ConfigError, PolicyError
from ado_stream.option_checks import number, one_of, optional, positive, whole
from ado_stream.suggest import quoted_list
from ado_stream.value_types import Array

PARAMETERS = ("beta", "eps", "alpha")  # in the order of at_bound
_BOUND_MEANINGS = {
    "eps": "may fall below the floor eps, which is at its lower bound: what is left to learn is understated and "
    "forecasts far ahead are too high (start_loss brings the bound into the unit of the losses)",
    "alpha low": "do not fall (alpha is at its lower bound): nothing is learnt, or not visibly yet",
    "alpha high": "fall faster than a law may (alpha is at its upper bound): the domains count as almost learnt "
    "until a refit finds a slower fall",
    "beta": "begin higher than a law may (beta is at its upper bound): leave out more of the start (ignore_steps)",
}


@dataclass(frozen=True)
class FitConfig(FitOptions):
    """How histories are prepared and where the search starts; the fields are those of ado_kernels' FitOptions.

    Raises ConfigError for values that cannot work.
    """

    def __post_init__(self) -> None:
        for name, least in (("smooth_window", 0), ("ignore_steps", 0), ("every", 1)):
            whole(f"FitConfig: {name}", getattr(self, name), least)
        number("FitConfig: delta", self.delta)
        optional(positive, "FitConfig: start_loss", self.start_loss)
        for name in ("grid_log_beta", "grid_log_eps", "grid_alpha"):
            grid = getattr(self, name)
            if isinstance(grid, str) or not np.iterable(grid):
                raise ConfigError(f"FitConfig: {name} is {grid!r:.60}; expected a list of numbers.")
            for start in grid:
                number(f"FitConfig: {name}", start)
        try:
            super().__post_init__()
        except ValueError as error:
            raise ConfigError(f"FitConfig: {error}") from error

    @property
    def kept(self) -> slice:
        """The steps kept by `prepare_history`: `counts[..., config.kept]` belong to its columns."""
        return slice(self.ignore_steps, None, self.every)

    def prepared(self) -> "FitConfig":
        """The same fit for a history that `prepare_history` has already smoothed and thinned."""
        return replace(self, smooth_window=0, ignore_steps=0, every=1)


@dataclass(frozen=True, eq=False, repr=False)
class ScalingLawFit:
    """Laws of K domains, fitted or given by hand.

    Args:
        log_beta, log_eps, alpha: (K,) float64; the law's parameters, n in samples.
        objective: (K,) float64, F at the parameters; NaN when given by hand.
        valid: (K,) bool; False where the fit found nothing finite (its parameters are then NaN).
        at_bound: (K, 3) bool; log_beta >= 6.5, log_eps <= 0.5, alpha <= 0.001 or >= 0.8: a penalty of F acts there
            (with FitConfig.start_loss the first two are scaled). `bounds_in_words` says what that means.
        residual_scale: (K,) float64, median of abs(log L_obs - log L).
        num_points: (K,) int64, points that F summed over.

    Raises ConfigError where shapes differ.
    """

    log_beta: Floats
    log_eps: Floats
    alpha: Floats
    objective: Floats = None  # type: ignore[assignment]  # this and the next: None is filled in
    valid: Bools = None  # type: ignore[assignment]
    at_bound: Bools = None  # type: ignore[assignment]
    residual_scale: Floats = None  # type: ignore[assignment]
    num_points: Ints = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        theta = [np.array(value, dtype=np.float64, ndmin=1) for value in (self.log_beta, self.log_eps, self.alpha)]
        if len({value.shape for value in theta}) != 1 or theta[0].ndim != 1:
            shapes = ", ".join(str(value.shape) for value in theta)
            raise ConfigError(f"ScalingLawFit: log_beta, log_eps, alpha must all have shape (K,), got {shapes}")
        theta_KP = np.stack(theta, axis=1)
        unknown_K = np.full(theta_KP.shape[0], np.nan)
        for name, theta_K in zip(("log_beta", "log_eps", "alpha"), theta_KP.T, strict=True):
            self._set(name, theta_K, theta_K)
        self._set("objective", self.objective, unknown_K)
        self._set("valid", self.valid, np.isfinite(theta_KP).all(axis=1))
        self._set("at_bound", self.at_bound, at_kink(theta_KP))
        self._set("residual_scale", self.residual_scale, unknown_K)
        self._set("num_points", self.num_points, np.zeros(theta_KP.shape[0], dtype=np.int64))

    def __repr__(self) -> str:
        if not self.valid.any():
            return f"ScalingLawFit({len(self.alpha)} domains, none valid)"
        eps_K, alpha_K = np.exp(self.log_eps[self.valid]), self.alpha[self.valid]
        return (
            f"ScalingLawFit({len(self.alpha)} domains, {self.valid.sum()} valid, "
            f"eps {eps_K.min():.3g} to {eps_K.max():.3g}, alpha {alpha_K.min():.3g} to {alpha_K.max():.3g})"
        )

    def _set(self, name: str, given: ArrayLike | None, default: Array) -> None:
        value = default if given is None else np.asarray(given, dtype=default.dtype)
        if value.shape != default.shape:
            raise ConfigError(f"ScalingLawFit: {name} must have shape {default.shape}, got {value.shape}")
        object.__setattr__(self, name, value.copy())

    def predict(self, n: float | Floats) -> Floats:
        """Loss L(n) = exp(log_eps) + exp(log_beta) n^(-alpha) in nats per token, float64.

        n > 0 in samples: a number gives (K,); (N,) counts shared by all domains give (K, N); counts (K, N) of the
        domains' own (column vectors (K, 1) too) give (K, N). NaN where a domain's law is not valid.
        """
        log_n, column = self._log_count(n)
        loss: Floats = np.exp(column(self.log_eps)) + np.exp(column(self.log_beta) - column(self.alpha) * log_n)
        return loss

    def slope(self, n: float | Floats) -> Floats:
        """Learning speed -dL/dn = alpha (L(n) - eps) / n = alpha beta n^(-alpha - 1); shapes as in `predict`."""
        log_n, column = self._log_count(n)
        alpha = column(self.alpha)
        speed: Floats = alpha * np.exp(column(self.log_beta) - (alpha + 1.0) * log_n)
        return speed

    def _log_count(self, n: float | Floats) -> tuple[Floats, Callable[[Floats], Floats]]:
        """log n, and the function that makes (K,) parameters broadcast with it."""
        n = np.asarray(n, dtype=np.float64)
        if n.ndim > 2 or (n.ndim == 2 and n.shape[0] != self.alpha.shape[0]):
            raise PolicyError(f"counts must be a number, (N,) or ({self.alpha.shape[0]}, N), got shape {n.shape}")
        if not (n > 0).all():
            raise PolicyError("counts must be above 0 samples: a law has no value at n = 0")
        return np.log(n), (lambda value_K: value_K) if n.ndim == 0 else (lambda value_K: value_K[:, None])


def fit_scaling_laws(
    counts: Floats, losses: Floats, config: FitConfig | None = None, backend: str = "auto"
) -> ScalingLawFit:
    """Laws of K domains from their loss histories, by the minimum of F for each.

    Args:
        counts: (T,) shared or (K, T) own cumulative samples, above 0, not decreasing along time.
        losses: (K, T) nats per token, one per step; smoothed and thinned here by `config` (`config.prepared()` for a
            history that is so already). A point that is NaN, infinite or not positive is skipped.
        backend: "auto", "numba" (CPU), "triton" (CUDA GPU, or anywhere under TRITON_INTERPRET=1).

    A domain without a usable point or finite minimum has valid False and NaN parameters; the others are not affected.
    Raises PolicyError for impossible arrays, ConfigError for a backend that is unknown or that this machine lacks; a
    device that fails during a fit raises its own error.
    Source: arXiv 2410.11820; in each of 384 recorded fits as low as its 512-start grid search, or lower
    (tests/kernels/test_fit_minimum.py).
    """
    one_of("fit_scaling_laws: backend", backend, BACKENDS)
    config = config or FitConfig()
    try:
        result = scaling_law_fit(counts, losses, config, backend)
    except ValueError as error:
        raise PolicyError(f"fit_scaling_laws: {error}") from error
    except (ImportError, RuntimeError):
        check_backend(backend)
        raise
    theta_KP, *others = result  # in the order of ScalingLawFit's fields
    return ScalingLawFit(*theta_KP.T, *others)


def bounds_in_words(fit: ScalingLawFit, labels: Sequence[str]) -> dict[str, str]:
    """{bound: which laws are at it, what that means, what follows}, for the bounds that hold any."""
    beta_K, eps_K, alpha_K = fit.at_bound.T
    flat_K = alpha_K & (fit.alpha < 0.5)
    where = {"eps": eps_K, "alpha low": flat_K, "alpha high": alpha_K & ~flat_K, "beta": beta_K}
    return {
        bound: f"Losses of {quoted_list([labels[index] for index in np.flatnonzero(at_K)])} {_BOUND_MEANINGS[bound]}."
        for bound, at_K in where.items()
        if at_K.any()
    }


def check_backend(backend: str) -> None:
    """Raises ConfigError for a fit backend that is unknown or that this machine lacks.

    Compiles and launches nothing: it fits a history of which every step is ignored. "numba" and "auto" always run.
    """
    if one_of("fit backend", backend, BACKENDS) in ("numba", "auto"):
        return
    try:
        scaling_law_fit(np.ones(1), np.ones((1, 1)), FitOptions(ignore_steps=1), backend)
    except (ImportError, RuntimeError) as error:
        raise ConfigError(f"fit backend {backend!r} cannot run here: {error}") from error


def prepare_history(losses_KT: Floats, config: FitConfig | None = None) -> Floats:
    """(K, M) losses smoothed along time, then thinned: column j is step ignore_steps + every j.

    losses_KT: (K, T) nats per token, one column per step; missing points (NaN, infinite, not positive) are skipped by
    the filter and stay NaN. Fit the result with `fit_scaling_laws(counts[config.kept], prepared, config.prepared())`.
    Smoothing comes BEFORE thinning: a history that was thinned first must be fitted with smooth_window=0.
    Raises PolicyError where losses_KT is not two-dimensional.
    """
    from ado_kernels.fit.numba_smoothing import prepare_losses

    losses_KT = np.asarray(losses_KT, dtype=np.float64)
    if losses_KT.ndim != 2:
        raise PolicyError(f"prepare_history: losses must have shape (K, T), got {losses_KT.shape}")
    return prepare_losses(losses_KT, config or FitConfig())
