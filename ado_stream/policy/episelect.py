"""EpiSelect: shares by how much a sample of each domain still lowers the losses (arXiv 2608.11746).

Laws over effective samples, of which other domains' samples are a part, gamma_m >= 0 with sum 1 (its equation 3):

    L_m = eps_m + beta_m (sum_k gamma_mk n_k)^-alpha_m
    s_k = sum_m n_m alpha_m gamma_mk (L_m - eps_m) / sum_i gamma_mi n_i          equation 4
    pi  = softmax(s / temperature),   temperature 1                              equation 5
    p   = clip(g2 pi + (1 - g2) pibar, 1e-8)     pibar the running mean of pi, from before this step; g2 = 0.1

transfer "none", the default, is the diagonal form: gamma the unit matrix, s_k = alpha_k (L_k - eps_k). transfer "full"
fits gamma with the laws, transfer.py: laws for given gamma, gamma for given laws, in turn.

The history, the refits, the running mean and the state are AdoPolicy's; there is no prior in pi and no credit. What
differs from the paper: it fits gamma as a softmax by a gradient method from an unstated start, here it starts at
0.9 for the domain itself and continues from the last refit. Where the mixture hardly changes, the effects of domains
cannot be separated, and gamma stays unchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from ado_stream.option_checks import one_of, positive
from ado_stream.policy import state_codec
from ado_stream.policy.ado_config import AdoConfig
from ado_stream.policy.ado_policy import AdoPolicy
from ado_stream.policy.scaling_laws import FitConfig, ScalingLawFit
from ado_stream.policy.transfer import first_transfer, fit_with_transfer, transfer_among
from ado_stream.value_types import Floats, Ints, JsonMapping, JsonObject

TRANSFERS = ("none", "full")


@dataclass(frozen=True)
class EpiSelectConfig(AdoConfig):
    """AdoConfig with laws over own samples, or effective ones with transfer, and the paper's floor.

    temperature: of the softmax, in nats. transfer: "none" or "full".
    """

    shared_count: bool = False
    floor: float | None = 1e-8
    temperature: float = 1.0
    transfer: str = "none"
    fixed_point = settles = None

    def _check(self) -> None:
        super()._check()
        positive("episelect: temperature", self.temperature)
        one_of("episelect: transfer", self.transfer, TRANSFERS)


class EpiSelect(AdoPolicy):
    """`episelect`. config: see EpiSelectConfig; the rest as AdoPolicy."""

    kind = "episelect"
    config_type: ClassVar[type[AdoConfig]] = EpiSelectConfig
    config: EpiSelectConfig

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        full = self.config.transfer == "full"
        self._gamma_KK: Floats | None = first_transfer(self.num_domains) if full else None  # None: the unit matrix
        if full:
            self._law_fitter, self._fitter = self._fitter, self._fit_with_transfer

    def law_counts(self, drawn: ArrayLike) -> int | Floats:
        """(K,) effective samples with transfer; else as AdoPolicy's."""
        return super().law_counts(drawn) if self._gamma_KK is None else self._gamma_KK @ np.asarray(drawn, float)

    def health(self) -> JsonObject:
        """Adds, with transfer, the weight of each domain's own samples in its law."""
        own = {} if self._gamma_KK is None else {"own_weight": self._by_domain(self._gamma_KK.diagonal())}
        return {**super().health(), **own}

    def _forecast(self, samples: float | Floats) -> tuple[Floats, Floats]:
        return super()._forecast(samples if self._gamma_KK is None else self._gamma_KK @ samples)

    def _preference(self, gap_K: Floats, predicted_K: Floats, samples: float | Floats) -> Floats:
        worth_K = self._max_alpha_K * gap_K
        if not self._all_laws:
            worth_K = np.where(self._has_law_K, worth_K, worth_K[self._has_law_K].mean())
        score_K = worth_K
        if self._gamma_KK is not None:
            # equation 4: the sum over learning domains m, hence from the left
            score_K = (samples * worth_K / (self._gamma_KK @ samples)) @ self._gamma_KK
        weight_K: Floats = np.exp((score_K - score_K.max()) / self.config.temperature)
        return weight_K / float(weight_K.sum())

    def _fit_with_transfer(self, count_KM: Floats, loss_KM: Floats, config: FitConfig) -> ScalingLawFit:
        assert self._gamma_KK is not None
        fit, gamma_KK = fit_with_transfer(count_KM, loss_KM, self._gamma_KK, self._law_fitter, config)
        self._gamma_KK = np.where(fit.valid[:, None], gamma_KK, self._gamma_KK)
        return fit

    def _extra_state(self) -> JsonObject:
        own = {} if self._gamma_KK is None else {"gamma": state_codec.pack(self._gamma_KK)}
        return {**super()._extra_state(), **own}

    def _load_extra(self, saved: JsonMapping, source_K: Ints, names: Sequence[str] | None) -> None:
        gamma_KK, num = None, saved["num_domains"]
        if self._gamma_KK is not None:
            gamma_KK = state_codec.unpack(saved.get("gamma"), "gamma (saved without transfer?)", 0.0, (num, num))
            gamma_KK = transfer_among(state_codec.check_shares(gamma_KK, "gamma"), source_K)
        super()._load_extra(saved, source_K, names)
        self._gamma_KK = gamma_KK
