"""Adaptive Data Optimization: each domain's share follows the speed at which its scaling law still falls.

docs/math.md section 4, with t the step, mu the prior, c the step's samples, n the samples so far:
    h   <- g1 h + (1 - g1) c / sum c                      credit memory
    v    = max(alpha, 0.05) (L(n) - eps) / n              learning speed from the law L(n) = eps + beta n^-alpha
    rho  = v mu credit / sum(v mu credit)                 preference; credit = h^s, or with residuals
    pi   = g2 rho + (1 - g2) pibar                        the mixture, floored; pibar from before this step
    pibar <- rho / (t + 1) + (1 - 1 / (t + 1)) pibar
Before start_step, and as long as no fit exists, pi = mu, floored.

Invariants: the cost of a step does not depend on t, apart from the refits; a loss that is not finite is never used; a
domain whose fit fails keeps its last law, and one that never had a law gets the mean speed of the others. A loss that
is flat or rises is not a failed fit: the penalties bound its law, whose gap to eps and speed are then near 0.
Source: arXiv 2410.11820 and its public implementation at bc3d8d0; the residual credit is this project's.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from ado_kernels.fit.objective import at_kink
from ado_stream.errors import ConfigError, PolicyError
from ado_stream.option_checks import refuse_unknown
from ado_stream.policy import state_codec
from ado_stream.policy.ado_config import AdoConfig
from ado_stream.policy.base_policy import Policy
from ado_stream.policy.domain_weights import Weights
from ado_stream.policy.loss_history import LossHistory
from ado_stream.policy.mixture_bounds import raise_to_floor, reference_clip
from ado_stream.policy.scaling_laws import (
    PARAMETERS,
    FitConfig,
    ScalingLawFit,
    bounds_in_words,
    check_backend,
    fit_scaling_laws,
)
from ado_stream.value_types import Array, Bools, Floats, Ints, JsonMapping, JsonObject

Fitter = Callable[[Floats, Floats, FitConfig], ScalingLawFit]

_LAW_PARAMETERS = ("log_beta", "log_eps", "alpha")
_FIT_FIELDS = (*_LAW_PARAMETERS, "objective", "residual_scale", "num_points")  # replaced together, or all kept
_MIN_GAP = 1e-3  # nats; least denominator of a residual, so that a law at its eps is not a division by 0
_log = logging.getLogger(__name__)


class AdoPolicy(Policy):
    """ADO as a policy.

    prior: (K,) weights or {name: weight}. config: see AdoConfig. fitter(counts, losses, config) -> ScalingLawFit:
    counts (M,) or (K, M) samples so far, losses (K, M) nats; default `fit_scaling_laws`. total_steps: the run's length,
    which caps the default schedule. mixture_lag: steps between an update and the batch drawn by its mixture, less one.
    vocab_size: tokens of the vocabulary, for `units: vocabulary`.
    Raises ConfigError for settings that cannot work, such as a first refit too late to change any batch, and for a fit
    backend that this machine lacks. An exception of a later fit is logged and counted, and the laws are kept: `fit`
    then has `valid` False where a law is of an earlier refit.
    """

    kind = "ado"
    config_type: ClassVar[type[AdoConfig]] = AdoConfig  # a subclass of AdoConfig for a policy with options of its own
    run_options = {
        "total_steps": "steps",
        "mixture_lag": "mixture_lag",
        "vocab_size": "vocab_size",
    }
    share_arrays: tuple[str, ...] = ("credit", "average")
    saved_numbers = {
        "_samples": state_codec.sample_count,
        "_num_refits": state_codec.whole_number,
        "_num_failed": state_codec.whole_number,
        "fit_step": state_codec.step_or_none,
        "attempt_step": state_codec.step_or_none,
    }

    def __init__(
        self,
        prior: Weights,
        config: AdoConfig | None = None,
        fitter: Fitter | None = None,
        total_steps: int | None = None,
        mixture_lag: int = 0,
        vocab_size: int | None = None,
    ):
        super().__init__(prior)
        self.config = config or self.config_type()
        self.plan = self.config.plan(self.num_domains, total_steps, mixture_lag, vocab_size)
        if not (fitter is None or callable(fitter)):
            raise ConfigError(f"ado: fitter is {fitter!r:.60}; expected a function of counts, losses and FitConfig.")
        if fitter is None:
            check_backend(self.config.fit_backend)
            fitter = partial(fit_scaling_laws, backend=self.config.fit_backend)
        self._fitter = fitter
        self._history = LossHistory(self.num_domains, own_counts=not self.config.shared_count)
        self._samples = 0.0
        self._num_refits = 0
        self._num_failed = 0
        self._initial_mixture_K = self._floored(self._prior_K)
        self._mixture_K = self._initial_mixture_K
        self._apply_laws()

    @classmethod
    def parse_options(cls, options: JsonMapping) -> JsonObject:
        """The constructor's arguments from the fields of `config_type`, `preset`, and the arguments themselves."""
        own = ("fitter", "mixture_lag", "total_steps", "vocab_size")
        settings = dict(options)
        arguments = {name: settings.pop(name) for name in own if name in settings}
        preset = settings.pop("preset", "default")
        refuse_unknown(cls.kind, settings, [*(field.name for field in fields(cls.config_type)), "preset", *own])
        if isinstance(settings.get("fit"), dict):
            refuse_unknown(f"{cls.kind}: fit", settings["fit"], [field.name for field in fields(FitConfig)])
            settings["fit"] = FitConfig(**settings["fit"])
        if preset not in ("default", "reference"):
            raise ConfigError(f"{cls.kind}: preset {preset!r}; expected default or reference.")
        config = cls.config_type.reference() if preset == "reference" else cls.config_type()
        return {"config": replace(config, **settings), **arguments}

    def _repr_parts(self) -> list[str]:
        return [*super()._repr_parts(), f"{self._num_refits} refits"]

    @property
    def floor(self) -> float:
        """The least share of any domain; 0 under the reference's rule, which can go below its floor."""
        return self.plan.floor if self.config.floor_rule == "exact" else 0.0

    def law_counts(self, drawn: ArrayLike) -> int | Floats:
        """(K,) samples of each domain unless `shared_count`."""
        return super().law_counts(drawn) if self.config.shared_count else np.asarray(drawn)

    def health(self) -> JsonObject:
        """Adds refits, failed refits, held_laws (refits that left a domain its law), at_bound (the parameters among
        beta, eps, alpha at a bound), bounds (what that means, a sentence each), settles (the fixed point in words), and
        forecast_error of the last whole interval between refits: mean and
        mean magnitude of observed / predicted loss - 1, None without a step to compare."""
        memory = self.memory
        at_bound_KP = self.fit.at_bound if self.fit is not None else np.zeros((self.num_domains, 3), dtype=bool)
        return {
            **super().health(),
            "refits": self._num_refits,
            "failed_refits": self._num_failed,
            "held_laws": self._by_domain(memory["held"]),
            "at_bound": {
                label: [name for name, hit in zip(PARAMETERS, hit_P, strict=True) if hit]
                for label, hit_P in zip(self.labels, at_bound_KP, strict=True)
                if hit_P.any()
            },
            "bounds": list(self._bounds().values()),
            "settles": self.config.settles,
            "forecast_error": {
                label: {"mean": state_codec.finite_or_none(mean), "mean_abs": state_codec.finite_or_none(mean_abs)}
                for label, mean, mean_abs in zip(
                    self.labels, memory["last_error"], memory["last_abs_error"], strict=True
                )
            },
        }

    def _initial(self) -> dict[str, Array]:
        zero_K, absent_K = np.zeros(self.num_domains), np.full(self.num_domains, np.nan)
        return {
            **super()._initial(),
            "credit": self._prior_K.copy(),  # h
            "average": self._prior_K.copy(),  # pibar
            "samples": zero_K.copy(),  # n of each domain
            "observed": absent_K.copy(),  # lbar
            **{name: absent_K.copy() for name in _FIT_FIELDS},
            "num_points": np.zeros(self.num_domains, dtype=np.int64),
            "valid": np.zeros(self.num_domains, dtype=bool),
            "held": np.zeros(self.num_domains, dtype=np.int64),
            "error_sum": zero_K.copy(),
            "abs_error_sum": zero_K.copy(),
            "error_num": zero_K.copy(),
            "last_error": absent_K.copy(),
            "last_abs_error": absent_K.copy(),
        }

    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        memory, config = self.memory, self.config
        total = float(np.add.reduce(count_K))
        self._samples += total
        memory["samples"] += count_K
        memory["credit"] *= config.credit_memory
        memory["credit"] += count_K * ((1.0 - config.credit_memory) / total)
        if config.credit == "residual":
            self._observe(loss_K, seen_K)
        samples = self._samples if config.shared_count else np.maximum(memory["samples"], 1.0)  # a law needs n > 0
        self._history.record(samples, loss_K, count_K, seen_K)
        if self.step < self.plan.start_step:
            return self._initial_mixture_K
        gap_K, predicted_K = self._forecast(samples)
        self._add_forecast_error(loss_K, seen_K, predicted_K)  # before a refit, whose data hold this step's losses
        if self.step % self.plan.interval == 0 and self._refit():
            gap_K, predicted_K = self._forecast(samples)
        if self._no_law:
            return self._initial_mixture_K
        mixture_K = self._mix(self._preference(gap_K, predicted_K, samples))
        return mixture_K if self.step % config.hold_steps == 0 else self._mixture_K  # pibar was updated in any case

    def _forecast(self, samples: float | Floats) -> tuple[Floats, Floats]:
        """L(n) - eps and L(n) of the laws in force; NaN where there is none."""
        gap_K = np.exp(self.memory["log_beta"] - self.memory["alpha"] * np.log(samples))
        return gap_K, gap_K + self._eps_K

    def _preference(self, gap_K: Floats, predicted_K: Floats, samples: float | Floats) -> Floats:
        """rho = v mu credit / sum(v mu credit), (K,); v = max(alpha, 0.05) gap / n, where a shared n cancels."""
        speed_K = self._max_alpha_K * gap_K if self.config.shared_count else self._max_alpha_K * gap_K / samples
        if not self._all_laws:
            known_K = self._has_law_K  # tiny: priors that are all 0 would leave nothing to average by
            mean = np.average(speed_K[known_K], weights=self._prior_K[known_K] + np.finfo(float).tiny)
            speed_K = np.where(known_K, speed_K, mean)
        weight_K = speed_K * self._prior_K * self._credit(gap_K, predicted_K)
        total = float(np.add.reduce(weight_K))
        return weight_K / total if 0.0 < total < np.inf else self._prior_K

    def _credit(self, gap_K: Floats, predicted_K: Floats) -> Floats:
        """h^s, or h^s clamp(1 + kappa (lbar - L(n)) / (L(n) - eps), 1/2, 2), (K,)."""
        power = self.config.credit_power
        credit_K: Floats = np.sqrt(self.memory["credit"]) if power == 0.5 else self.memory["credit"] ** power
        if self.config.credit == "history":
            return credit_K
        residual_K = (self.memory["observed"] - predicted_K) / np.maximum(gap_K, _MIN_GAP)
        factor_K: Floats = np.clip(1.0 + self.config.kappa * residual_K, 0.5, 2.0)
        factor_K[np.isnan(factor_K)] = 1.0  # never observed, or no law: no residual
        return credit_K * factor_K

    def _mix(self, preference_K: Floats) -> Floats:
        """pi = g2 rho + (1 - g2) pibar, floored; then pibar takes in rho with weight 1 / (t + 1)."""
        if self.config.floor_rule == "reference":
            preference_K = reference_clip(preference_K, self.plan.floor)
        newest = self.config.mixture_memory
        average_K = self.memory["average"]
        mixture_K = newest * preference_K + (1.0 - newest) * average_K
        weight = 1.0 / (self.step + 1)
        average_K *= 1.0 - weight
        average_K += weight * preference_K
        return self._floored(mixture_K)

    def _floored(self, mixture_K: Floats) -> Floats:
        exact = self.config.floor_rule == "exact"
        return raise_to_floor(mixture_K, self.plan.floor) if exact else mixture_K

    def _observe(self, loss_K: Floats, seen_K: Bools) -> None:
        """Updates lbar, the exponential average of observed losses that starts at the first one."""
        old_K, g1 = self.memory["observed"], self.config.credit_memory
        new_K = np.where(np.isnan(old_K), loss_K, g1 * old_K + (1.0 - g1) * loss_K)
        np.copyto(old_K, new_K, where=seen_K)

    # Laws ------------------------------------------------------------------------------------------------------

    def _refit(self) -> bool:
        """Fits the history; True if laws changed. A domain without a finite fit keeps its law and counts one held."""
        memory, history, plan = self.memory, self._history, self.plan
        ignored_rows = -(-plan.ignore_steps // history.stride)  # of a thinned history a row is `stride` steps
        if len(range(ignored_rows, history.rows, plan.fit.every)) < plan.min_points:
            return False
        self._finish_interval()
        self.attempt_step = self.step
        try:
            fit = self._fitter(*history.points(), replace(plan.fit, ignore_steps=ignored_rows))
            if fit.alpha.shape != self._prior_K.shape:
                raise PolicyError(f"the fitter returned laws of {fit.alpha.size} domains, not {self.num_domains}")
        except Exception as error:  # compilers and drivers raise their own types; none may end a run
            _log.warning("step %d: the fit failed (%s: %s); all laws are kept", self.step, type(error).__name__, error)
            self._num_failed += 1
            memory["held"] += 1
            return False
        good_K = fit.valid & np.isfinite([fit.log_beta, fit.log_eps, fit.alpha]).all(axis=0)
        for name in _FIT_FIELDS:
            memory[name] = np.where(good_K, getattr(fit, name), memory[name])
        memory["valid"] = good_K
        memory["held"] += ~good_K
        if not good_K.all():
            bad = [label for label, good in zip(self.labels, good_K, strict=True) if not good]
            _log.warning("step %d: no good fit for %s; the last law is kept", self.step, ", ".join(bad))
        self.fit_step = self.step
        self._num_refits += 1
        known = self._bounds()
        self._apply_laws()
        self._notices += [f"{self.kind}: {text}" for bound, text in self._bounds().items() if bound not in known]
        return True

    def _bounds(self) -> dict[str, str]:
        """As bounds_in_words; empty before the first fit."""
        return {} if self.fit is None else bounds_in_words(self.fit, self.labels)

    def _apply_laws(self) -> None:
        """Caches what is derived from the laws in `memory`, once per refit or load."""
        memory = self.memory
        self._has_law_K = np.isfinite(memory["alpha"])
        self._no_law = not self._has_law_K.any()
        self._all_laws = bool(self._has_law_K.all())
        self._eps_K = np.exp(memory["log_eps"])
        self._max_alpha_K = np.maximum(memory["alpha"], self.config.min_alpha)
        if self.fit_step is not None:
            theta_KP = np.stack([memory[name] for name in _LAW_PARAMETERS], axis=1)
            values = {name: memory[name] for name in (*_FIT_FIELDS, "valid")}
            self.fit = ScalingLawFit(**values, at_bound=at_kink(theta_KP, self.plan.fit.log_unit))

    def _add_forecast_error(self, loss_K: Floats, seen_K: Bools, predicted_K: Floats) -> None:
        """Adds observed / predicted - 1 of this step to the sums since the last refit."""
        if self._no_law:
            return
        compared_K = seen_K if self._all_laws else seen_K & self._has_law_K
        error_K = np.where(compared_K, loss_K / predicted_K - 1.0, 0.0)
        self.memory["error_sum"] += error_K
        self.memory["abs_error_sum"] += np.abs(error_K)
        self.memory["error_num"] += compared_K

    def _finish_interval(self) -> None:
        """Turns the sums into the means that `health` reports, and starts them anew."""
        memory = self.memory
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no forecast to compare
            memory["last_error"] = memory["error_sum"] / memory["error_num"]
            memory["last_abs_error"] = memory["abs_error_sum"] / memory["error_num"]
        for name in ("error_sum", "abs_error_sum", "error_num"):
            memory[name] = np.zeros(self.num_domains)

    # State -----------------------------------------------------------------------------------------------------

    def _extra_state(self) -> JsonObject:
        return {"history": self._history.state_dict()}

    def _load_extra(self, saved: JsonMapping, source_K: Ints, names: Sequence[str] | None) -> None:
        self._history.load_state_dict(state_codec.section(saved, "history"), source_K, saved["num_domains"])

    def _after_load(self, same_domains: bool) -> None:
        self._apply_laws()
        if not same_domains:
            self._mixture_K = self._floored(self._mixture_K)
