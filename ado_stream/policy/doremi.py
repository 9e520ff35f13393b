"""DoReMi's exponentiated gradient, online, given the losses of a reference model (arXiv 2305.10429, algorithm 1).

    w <- w exp(eta max(l - l_ref, 0)), normalised;   p = (1 - c) w + c / K

w starts uniform, as in the paper. A domain absent from the batch has no excess loss in that step. The paper smooths w
itself in every step; here only p is smoothed. Invariant: every share is at least c / K. log w is kept, so that a weight
that would underflow can grow again. docs/math.md section 6.
"""

import numpy as np

from ado_stream.option_checks import number, positive
from ado_stream.policy.base_policy import Policy
from ado_stream.policy.domain_weights import Weights, parse_values
from ado_stream.value_types import Array, Bools, Floats


class DoReMi(Policy):
    """reference_losses: (K,) or {name: nats per token}, the reference model's loss on each domain.

    eta: step size. smoothing: c, from 0 to 1.
    """

    kind = "doremi"

    def __init__(self, prior: Weights, reference_losses: Weights, eta: float = 1.0, smoothing: float = 1e-3):
        super().__init__(prior)
        self._eta, self._smoothing = positive("doremi: eta", eta), number("doremi: smoothing", smoothing, 0.0, 1.0)
        self._reference_K = parse_values(reference_losses, self.names, self.num_domains, "doremi reference_losses")
        self._mixture_K = np.full(self.num_domains, 1.0 / self.num_domains)

    def _initial(self) -> dict[str, Array]:
        return {**super()._initial(), "log_weight": np.full(self.num_domains, -np.log(self.num_domains))}

    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        log_weight_K = self.memory["log_weight"]
        log_weight_K += self._eta * np.where(seen_K, np.maximum(loss_K - self._reference_K, 0.0), 0.0)
        weight_K: Floats = np.exp(log_weight_K - log_weight_K.max())
        total = float(weight_K.sum())
        log_weight_K -= log_weight_K.max() + np.log(total)
        return (1.0 - self._smoothing) * weight_K / total + self._smoothing / self.num_domains
