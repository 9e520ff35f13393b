"""Shares that follow the gap to a target loss: Sheared-LLaMA's dynamic batch loading (arXiv 2310.06694).

    p <- (1 - c) softmax(log p + eta (l - l*)) + c / K        after every refit; p starts at the prior

l is the exponential average of a domain's losses; l* is what it should reach: given, or the loss that its own law
forecasts for the end of the run if it goes on as it does. A domain behind its target gains, one ahead of it loses. The
history, the refits and the state are AdoPolicy's.

What differs from Sheared-LLaMA: its l are held-out losses and its l* come from laws over the sizes of a family of
models. The paper's Algorithm 1 takes max(l - l*, 0); its released code, whose eta = 1 and c = 1e-4 these are, takes the
signed gap, as here. Velocitune, which divides by the gap at the start, is velocitune.py.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ado_stream.errors import ConfigError
from ado_stream.option_checks import number, positive
from ado_stream.policy.ado_config import AdoConfig
from ado_stream.policy.ado_policy import AdoPolicy, Fitter
from ado_stream.policy.base_policy import Floats
from ado_stream.policy.domain_weights import Weights, parse_values

_OPTIONS = ("eta", "smoothing", "target_losses")


class GapPolicy(AdoPolicy):
    """`gap`. eta: step size, per nat. smoothing: c. target_losses: (K,) or {name: nats}; None: forecasts.

    Raises ConfigError as AdoPolicy, and when neither target losses nor the run's length are known.
    """

    kind = "gap"
    run_options: ClassVar[Mapping[str, str]] = AdoPolicy.run_options
    share_arrays: tuple[str, ...] = (*AdoPolicy.share_arrays, "share")

    def __init__(
        self,
        prior: Weights,
        config: AdoConfig | None = None,
        fitter: Fitter | None = None,
        total_steps: int | None = None,
        mixture_lag: int = 0,
        eta: float = 1.0,
        smoothing: float = 1e-4,
        target_losses: Weights | None = None,
    ):
        if total_steps is None and target_losses is None:
            raise ConfigError("gap: give target_losses, or total_steps to forecast them for.")
        self._eta, self._smoothing = positive("gap: eta", eta), number("gap: smoothing", smoothing, 0.0, 1.0)
        self._total_steps = total_steps
        # credit "residual" keeps the average of observed losses that the gap is measured from
        config = config or AdoConfig(shared_count=False, credit="residual")
        super().__init__(prior, config, fitter, total_steps, mixture_lag)
        self._target_loss_K = (
            None
            if target_losses is None
            else parse_values(target_losses, self.names, self.num_domains, "gap: target_losses")
        )

    @classmethod
    def parse_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """As AdoPolicy's, with own counts, and eta, smoothing, target_losses."""
        settings = dict(options)
        own: dict[str, Any] = {
            name: settings.pop(name) for name in ("eta", "smoothing", "target_losses") if name in settings
        }
        return super().parse_options({"shared_count": False, "credit": "residual", **settings}) | own

    def _initial(self) -> dict[str, NDArray[Any]]:
        return {**super()._initial(), "share": self._prior_K.copy()}

    def _refit(self) -> bool:
        fitted = super()._refit()
        if fitted:
            memory = self.memory
            gap_K = self._behind()
            exponent_K = np.log(np.maximum(memory["share"], 1e-300)) + self._eta * np.where(
                np.isfinite(gap_K), gap_K, 0.0
            )
            weight_K = np.exp(exponent_K - exponent_K.max())
            memory["share"] = (1.0 - self._smoothing) * weight_K / weight_K.sum() + self._smoothing / self.num_domains
        return fitted

    def _behind(self) -> Floats:
        """(K,) l - l*: how far each domain is behind its target, in nats; NaN where not known."""
        gap_K: Floats = self.memory["observed"] - self._targets()
        return gap_K

    def _targets(self) -> Floats:
        """(K,) l*: given, or L(n T / t) of the present laws."""
        if self._target_loss_K is not None:
            return self._target_loss_K
        assert self._total_steps is not None
        ahead = max(self._total_steps / (self.step + 1), 1.0)
        return self._forecast(np.maximum(self.memory["samples"], 1.0) * ahead)[1]

    def _preference(self, gap_K: Floats, predicted_K: Floats, samples: float | Floats) -> Floats:
        return self.memory["share"]

    def _mix(self, preference_K: Floats) -> Floats:
        return self._floored(preference_K)
