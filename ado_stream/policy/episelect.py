"""EpiSelect in its diagonal form: shares by what is left to learn, whatever the prior (arXiv 2608.11746).

    s_k = alpha_k (L_k - eps_k)                    from laws over each domain's own samples
    pi  = softmax(s / temperature)
    p   = clip(g2 pi + (1 - g2) pibar, 1e-8)       pibar the running mean of pi, from before this step; g2 = 0.1

The history, the refits, the running mean and the state are AdoPolicy's; there is no prior in pi and no credit. The full
form, whose laws count other domains' samples with fitted weights, is not here: mixtures change too little in a run to
tell those weights apart.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ado_stream.option_checks import positive
from ado_stream.policy.ado_config import AdoConfig
from ado_stream.policy.ado_policy import AdoPolicy, Fitter
from ado_stream.policy.base_policy import Floats
from ado_stream.policy.domain_weights import Weights

_FLOOR = 1e-8


class EpiSelect(AdoPolicy):
    """`episelect`. temperature: of the softmax, in nats. The others as AdoPolicy's; laws are over own samples."""

    kind = "episelect"
    run_options: ClassVar[Mapping[str, str]] = AdoPolicy.run_options

    def __init__(
        self,
        prior: Weights,
        config: AdoConfig | None = None,
        fitter: Fitter | None = None,
        total_steps: int | None = None,
        mixture_lag: int = 0,
        temperature: float = 1.0,
    ):
        self._temperature = positive("episelect: temperature", temperature)
        super().__init__(prior, config or AdoConfig(shared_count=False, floor=_FLOOR), fitter, total_steps, mixture_lag)

    @classmethod
    def parse_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """As AdoPolicy's, with own counts and the floor of 1e-8, and `temperature`."""
        settings = dict(options)
        own = {"temperature": settings.pop("temperature")} if "temperature" in settings else {}
        return super().parse_options({"shared_count": False, "floor": _FLOOR, **settings}) | own

    def _preference(self, gap_K: Floats, predicted_K: Floats, samples: float | Floats) -> Floats:
        score_K = self._max_alpha_K * gap_K
        if not self._all_laws:
            score_K = np.where(self._has_law_K, score_K, score_K[self._has_law_K].mean())
        weight_K = np.exp((score_K - score_K.max()) / self._temperature)
        return weight_K / weight_K.sum()
