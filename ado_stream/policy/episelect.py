"""EpiSelect in its diagonal form: shares by what is left to learn, whatever the prior (arXiv 2608.11746).

    s_k = alpha_k (L_k - eps_k)                    from laws over each domain's own samples
    pi  = softmax(s / temperature)
    p   = clip(g2 pi + (1 - g2) pibar, 1e-8)       pibar the running mean of pi, from before this step; g2 = 0.1

The history, the refits, the running mean and the state are AdoPolicy's; there is no prior in pi and no credit. The full
form, whose laws count other domains' samples with fitted weights, is not here: mixtures change too little in a run to
tell those weights apart.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ado_stream.policy.ado_config import AdoConfig
from ado_stream.policy.ado_policy import AdoPolicy
from ado_stream.policy.base_policy import Floats
from ado_stream.policy.option_checks import positive


@dataclass(frozen=True)
class EpiSelectConfig(AdoConfig):
    """AdoConfig with laws over own samples and the paper's floor. temperature: of the softmax, in nats."""

    shared_count: bool = False
    floor: float | None = 1e-8
    temperature: float = 1.0
    fixed_point = settles = None

    def _check(self) -> None:
        super()._check()
        positive("episelect: temperature", self.temperature)


class EpiSelect(AdoPolicy):
    """`episelect`. config: see EpiSelectConfig; the rest as AdoPolicy."""

    kind = "episelect"
    config_type: ClassVar[type[AdoConfig]] = EpiSelectConfig
    config: EpiSelectConfig

    def _preference(self, gap_K: Floats, predicted_K: Floats, samples: float | Floats) -> Floats:
        score_K = self._max_alpha_K * gap_K
        if not self._all_laws:
            score_K = np.where(self._has_law_K, score_K, score_K[self._has_law_K].mean())
        weight_K = np.exp((score_K - score_K.max()) / self.config.temperature)
        return weight_K / weight_K.sum()
