"""Aioli: measures how much each domain's text lowers each domain's loss, and sets shares by it (arXiv 2411.05735).

Training is divided into rounds. Each begins with a probe of every domain: `probe_steps` steps with share h on domain j
and (1 - h) / (K - 1) on each other. The law of a round, after section 4 of the paper, with q_j the sum over steps of
domain j's share, in probes:

    l_i = l_i0 - sum_j A_ij q_j                                             fitted at the end of the probes
    A   <- (A - min(A, 0)) / sum(A),    Abar <- (1 - d) A + d Abar          d = 0.1, the first Abar is A
    p_j proportional to exp(eta sum_i Abar_ij)                              eta = 0.2, until the next round's fit

With d None, p_j is instead multiplied by exp(eta sum_i A_ij) every round: Algorithm 1 to the letter. The form with Abar
and the constants are those of the released code.

What differs: the paper evaluates held-out losses before and after every probe and solves for A; a policy here sees the
losses of training batches, so A is the least-squares solution over all steps of the probes, weighted by samples, with
the shares that were really drawn (guards and the lag change them). Without noise the two are equal. Probes follow
the order of the domains' names, rotated by one a round, instead of a random one.

Cost: K least-squares problems of K + 1 unknowns a round, for some hundred domains at most.
"""

from collections.abc import Sequence

import numpy as np

from ado_stream.errors import ConfigError
from ado_stream.option_checks import lag, number, positive, whole
from ado_stream.policy import state_codec
from ado_stream.policy.base_policy import Policy, are_the_saved_ones, run_default
from ado_stream.policy.domain_weights import Weights
from ado_stream.value_types import Array, Bools, Floats, Ints, JsonMapping, JsonObject

_ROUNDS = 20  # of a run, as the paper's
_ROUND_STEPS = 250  # where the run's length is unknown: its 5,000 steps in 20 rounds
_PROBE_FRAC = 1 / 3  # of a round, at most, unless a step a domain takes more
_MOST_PROBE_STEPS = 1 << 12  # of a domain: the losses of each are kept


class Aioli(Policy):
    """`aioli`.

    eta: strength. focus: h, above 1/K. decay: d, or None. round_steps: None: a twentieth of the run, or what the probes
    need. probe_steps: of one domain; None: as many as keep the probes within a third of a round, at least 1.
    start_step: first step of the first round, uniform before; None: 1000, at most a tenth of the run. total_steps,
    mixture_lag: of the run. Raises ConfigError for values that cannot work, such as rounds shorter than their probes.
    """

    kind = "aioli"
    run_options = {"total_steps": "steps", "mixture_lag": "mixture_lag"}
    saved_numbers = {"_num_rounds": state_codec.whole_number}

    def __init__(
        self,
        prior: Weights,
        eta: float = 0.2,
        focus: float = 0.625,
        decay: float | None = 0.1,
        round_steps: int | None = None,
        probe_steps: int | None = None,
        start_step: int | None = None,
        total_steps: int | None = None,
        mixture_lag: int = 0,
    ):
        super().__init__(prior)
        num = self.num_domains
        self._eta = positive("aioli: eta", eta)
        self._focus = number("aioli: focus", focus, 1.0 / num if num > 1 else 0.0, 1.0)
        self._decay = None if decay is None else number("aioli: decay", decay, 0.0, 1.0)
        self._lag = lag("aioli: mixture_lag", mixture_lag)
        steps = None if total_steps is None else whole("aioli: total_steps", total_steps, 1)
        self._start_step = whole("aioli: start_step", run_default(start_step, 1000, steps, 10))
        usual = _ROUND_STEPS if steps is None else steps // _ROUNDS
        probe_default = min(max(1, int(_PROBE_FRAC * (round_steps or usual)) // num), _MOST_PROBE_STEPS)
        probe_steps = probe_default if probe_steps is None else probe_steps
        self._probe_steps = whole("aioli: probe_steps", probe_steps, 1, _MOST_PROBE_STEPS)
        self._phase = num * self._probe_steps  # steps of a round's probes
        least = self._phase + self._lag + 2  # the fit sees the step after the last probe; one step is drawn by it
        self._round_steps = whole("aioli: round_steps", max(usual, least) if round_steps is None else round_steps, 1)
        if self._round_steps < least:
            raise ConfigError(
                f"aioli: round_steps is {self._round_steps}, but probes of {num} domains for {self._probe_steps} steps "
                f"each, with mixture_lag {self._lag}, need rounds of {least} or more."
            )
        # by name, so that the order in which domains are given does not matter
        self._order_K = np.arange(num) if self.names is None else np.argsort(self.names)
        self._num_rounds = 0
        self._rows_NK = np.full((2, self._phase + 1, num), np.nan)  # losses, and samples, of the steps of the probes
        self._mixture_K = self._share()

    def health(self) -> JsonObject:
        """Adds the rounds whose law was fitted."""
        return {**super().health(), "rounds": self._num_rounds}

    def _initial(self) -> dict[str, Array]:
        return {**super()._initial(), "score": np.zeros(self.num_domains)}  # log p, up to a constant, over eta

    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        place = (self.step - self._start_step) % self._round_steps
        if self.step >= self._start_step and place <= self._phase:
            self._rows_NK[:, place] = np.where(seen_K, loss_K, np.nan), count_K
            if place == self._phase:
                self._finish_probes()
        drawn_at = self.step + 1 + self._lag - self._start_step  # the mixture returned now is for that step
        number, place = divmod(drawn_at, self._round_steps)
        if drawn_at < 0 or place >= self._phase:
            return self._share()
        share_K = np.full(self.num_domains, (1.0 - self._focus) / max(self.num_domains - 1, 1))
        share_K[self._order_K[(number + place // self._probe_steps) % self.num_domains]] = self._focus
        return share_K / float(share_K.sum())

    def _share(self) -> Floats:
        score_K = self._eta * self.memory["score"]
        weight_K: Floats = np.exp(score_K - score_K.max())
        return weight_K / float(weight_K.sum())

    def _finish_probes(self) -> None:
        """Fits the round's law and updates the scores; skips a round with missing rows, after a change of domains."""
        loss_NK, count_NK = self._rows_NK
        if np.isnan(count_NK).any():
            return
        effect_KK = probe_effects(loss_NK, count_NK, self._probe_steps)
        effect_KK -= min(float(effect_KK.min()), 0.0)  # the paper's: no effect below 0
        total = float(effect_KK.sum())
        gain_K = effect_KK.sum(axis=0) / total if total > 0.0 else np.full(self.num_domains, 1.0 / self.num_domains)
        old_K = self.memory["score"]
        if self._decay is None:
            self.memory["score"] = old_K + gain_K
        else:  # a mean of matrices has the mean of their column sums, so only those are kept
            decay = self._decay if self._num_rounds else 0.0
            self.memory["score"] = (1.0 - decay) * gain_K + decay * old_K
        self._num_rounds += 1
        self._rows_NK = np.full_like(self._rows_NK, np.nan)

    def _extra_state(self) -> JsonObject:
        return {"rows": state_codec.pack(self._rows_NK)}

    def _load_extra(self, saved: JsonMapping, source_K: Ints, names: Sequence[str] | None) -> None:
        num, rows = saved["num_domains"], len(self._rows_NK[0])
        same = are_the_saved_ones(source_K, num)  # probes of other domains are not those of this round
        what = "rows (saved with other probe_steps?)"
        rows_NK = state_codec.unpack(saved.get("rows"), what, np.nan, (2, rows if same else None, num))
        self._rows_NK = rows_NK[:, :, source_K] if same else np.full_like(self._rows_NK, np.nan)


def probe_effects(loss_NK: Floats, count_NK: Floats, probe_steps: int) -> Floats:
    """(K, K) A: nats that domain i's loss falls by `probe_steps` steps of domain j alone.

    loss_NK: losses of N steps in a row, nats per token, NaN where absent; count_NK: samples. Weighted least squares of
    l_i(t) = l_i0 - sum_j A_ij q_j(t), q(t) the shares summed over the steps before t; the least solution where several
    fit. Rows without two losses are 0.
    """
    share_NK = count_NK / count_NK.sum(axis=1, keepdims=True)
    dose_NK = (share_NK.cumsum(axis=0) - share_NK) / probe_steps  # a step's loss shows the steps before it only
    design = np.column_stack([np.ones(len(loss_NK)), -dose_NK])
    effect_KK = np.zeros((loss_NK.shape[1],) * 2)
    for domain, (loss_N, count_N) in enumerate(zip(loss_NK.T, count_NK.T, strict=True)):
        seen_N = np.isfinite(loss_N)
        if np.count_nonzero(seen_N) < 2:
            continue
        root_N = np.sqrt(count_N[seen_N])
        found = np.linalg.lstsq(root_N[:, None] * design[seen_N], root_N * loss_N[seen_N], rcond=None)[0]
        effect_KK[domain] = found[1:]
    return effect_KK
