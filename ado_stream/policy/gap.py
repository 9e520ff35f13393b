"""Shares that follow the gap to a target loss: Sheared-LLaMA's dynamic batch loading (arXiv 2310.06694).

    p <- (1 - c) softmax(log p + eta (l - l*)) + c / K        after every refit; p starts at the prior

l is the exponential average of a domain's losses; l* is what it should reach: given, or the loss that its own law
forecasts for the end of the run at the present rate. A domain behind its target gains, one ahead of it loses. The
history, the refits and the state are AdoPolicy's.

What differs from Sheared-LLaMA: its l are held-out losses and its l* come from laws over the sizes of a family of
models. The paper's Algorithm 1 takes max(l - l*, 0); its released code, whose eta = 1 and c = 1e-4 these are, takes the
signed gap, as here. Velocitune, which divides by the gap at the start, is velocitune.py.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ado_stream.errors import ConfigError
from ado_stream.option_checks import number, positive
from ado_stream.policy.ado_config import AdoConfig
from ado_stream.policy.ado_policy import AdoPolicy
from ado_stream.policy.domain_weights import Weights, parse_values
from ado_stream.value_types import Array, Floats


@dataclass(frozen=True)
class GapConfig(AdoConfig):
    """AdoConfig with laws over own samples. eta: step size, per nat. smoothing: c.

    target_losses: (K,) or {name: nats}; None: forecasts for the run's end, whose length must then be known.
    """

    shared_count: bool = False
    credit: str = "residual"  # which keeps the average of observed losses that the gap is measured from
    eta: float = 1.0
    smoothing: float = 1e-4
    target_losses: Weights | None = None

    fixed_point = settles = None

    def _check(self) -> None:
        super()._check()
        positive("gap: eta", self.eta)
        number("gap: smoothing", self.smoothing, 0.0, 1.0)


class GapPolicy(AdoPolicy):
    """`gap`. config: see GapConfig; the rest as AdoPolicy."""

    kind = "gap"
    config_type: ClassVar[type[AdoConfig]] = GapConfig
    config: GapConfig
    share_arrays: tuple[str, ...] = (*AdoPolicy.share_arrays, "share")

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        given = self.config.target_losses
        if given is None and self.plan.total_steps is None:
            raise ConfigError("gap: give target_losses, or total_steps to forecast them for.")
        self._target_loss_K = (
            None if given is None else parse_values(given, self.names, self.num_domains, "gap: target_losses")
        )

    def _initial(self) -> dict[str, Array]:
        return {**super()._initial(), "share": self._prior_K.copy()}

    def _refit(self) -> bool:
        fitted = super()._refit()
        if fitted:
            memory, smoothing = self.memory, self.config.smoothing
            gap_K = np.nan_to_num(self._gap(), posinf=0.0, neginf=0.0)
            # 1e-300: without smoothing a share may underflow to 0
            exponent_K = np.log(np.maximum(memory["share"], 1e-300)) + self.config.eta * gap_K
            weight_K = np.exp(exponent_K - exponent_K.max())
            memory["share"] = (1.0 - smoothing) * weight_K / weight_K.sum() + smoothing / self.num_domains
        return fitted

    def _gap(self) -> Floats:
        """(K,) l - l*: how far each domain is behind its target, in nats; NaN where not known."""
        gap_K: Floats = self.memory["observed"] - self._targets()
        return gap_K

    def _targets(self) -> Floats:
        """(K,) l*: given, or L(n T / t) of the present laws."""
        if self._target_loss_K is not None:
            return self._target_loss_K
        assert self.plan.total_steps is not None
        ahead = max(self.plan.total_steps / (self.step + 1), 1.0)
        return self._forecast(np.maximum(self.memory["samples"], 1.0) * ahead)[1]

    def _preference(self, gap_K: Floats, predicted_K: Floats, samples: float | Floats) -> Floats:
        return self.memory["share"]

    def _mix(self, preference_K: Floats) -> Floats:
        return self._floored(preference_K)
