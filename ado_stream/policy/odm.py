"""Online data mixing: domains as arms of a bandit that is rewarded with high loss (ODM, arXiv 2312.02406).

    e_t = min(1/K, sqrt(ln K / (K t)))                        exploration, t = 1 for the first batch
    paper: R_i <- 0.9 R_i + 0.1 l_i / p_i for sampled i,      p_i = (1 - K e_t) softmax(e_{t-1} R)_i + e_t
    code:  R_i <- 0.9 R_i + 0.1 exp(l_i),                     p_i = (1 - K e_t) R_i / sum R + e_t

p_i is the mixture that the batch was drawn with: this policy's output `mixture_lag` steps before the last one. (A guard
around it may have changed what was drawn; the rewards do not take that into account.) Invariant: every share is at
least e_t. exp(l) overflows for losses above 709 nats, so the code form keeps log R; the paper form's exponents are
shifted by their maximum. docs/math.md section 6.
"""

import math

import numpy as np

from ado_stream.option_checks import lag
from ado_stream.policy.base_policy import Policy
from ado_stream.policy.domain_weights import Weights
from ado_stream.value_types import Array, Bools, Floats

_DECAY = 0.9  # of the rewards


class _Bandit(Policy):
    def __init__(self, prior: Weights):
        super().__init__(prior)
        self._mixture_K = np.full(self.num_domains, 1.0 / self.num_domains)

    def _explore(self, num_batches: int) -> float:
        """e_t for t = num_batches, counted from 1."""
        num = self.num_domains
        return min(1.0 / num, math.sqrt(math.log(num) / (num * num_batches)))

    def _mixed(self, exploited_K: Floats, explored: float) -> Floats:
        mixture_K: Floats = (1.0 - self.num_domains * explored) * exploited_K + explored
        return mixture_K / float(mixture_K.sum())


class Odm(_Bandit):
    """ODM as the paper states it: EXP3 with importance-weighted, averaged rewards.

    mixture_lag: the mixture after step s is drawn at step s + 1 + mixture_lag.
    """

    kind = "odm"
    least_share = 1e-12  # far below e_t for any number of domains and steps: rewards are divided by shares
    run_options = {"mixture_lag": "mixture_lag"}

    def __init__(self, prior: Weights, mixture_lag: int = 0):
        self.share_arrays = tuple(f"given{age}" for age in range(lag("odm: mixture_lag", mixture_lag), -1, -1))
        super().__init__(prior)

    def _initial(self) -> dict[str, Array]:
        uniform_K = np.full(self.num_domains, 1.0 / self.num_domains)
        return {
            **super()._initial(),
            "reward": np.zeros(self.num_domains),
            **{name: uniform_K.copy() for name in self.share_arrays},  # mixtures not yet drawn, oldest first
        }

    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        memory = self.memory
        newest_K = _DECAY * memory["reward"] + (1.0 - _DECAY) * loss_K / memory[self.share_arrays[0]]
        np.copyto(memory["reward"], newest_K, where=seen_K)
        exponent_K = self._explore(self.step + 1) * memory["reward"]
        exploited_K = np.exp(exponent_K - exponent_K.max())  # the shift cancels in the softmax
        mixture_K = self._mixed(exploited_K / exploited_K.sum(), self._explore(self.step + 2))
        pending = [memory[name] for name in self.share_arrays[1:]] + [mixture_K]
        memory.update(zip(self.share_arrays, pending, strict=True))
        return mixture_K


class OdmCode(_Bandit):
    """ODM as its released code computes it: shares proportional to an average of exp(loss)."""

    kind = "odm-code"

    def _initial(self) -> dict[str, Array]:
        return {**super()._initial(), "log_reward": np.full(self.num_domains, -np.inf)}

    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        log_reward_K = self.memory["log_reward"]
        old_K, new_K = math.log(_DECAY) + log_reward_K, math.log(1.0 - _DECAY) + loss_K
        np.logaddexp(old_K, new_K, out=log_reward_K, where=seen_K)
        if not np.isfinite(log_reward_K).any():  # nothing seen yet
            return self._mixture_K
        exploited_K = np.exp(log_reward_K - log_reward_K.max())
        return self._mixed(exploited_K / exploited_K.sum(), self._explore(self.step + 2))
