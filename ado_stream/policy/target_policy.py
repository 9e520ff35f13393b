"""Target: a mixture that starts at given weights and takes share from domains of which little can be learnt.

The weights w say what the model is for: by size, uniform, or any other. The mixture equals w, to the bit, as long as
the domains learn about as fast as each other. With e the elasticity of each domain and sd its standard deviation
(elasticity.py: nats that its loss falls per unit of log of its own samples) and m the middle elasticity,

    k = 1 / (1 + (2 sd / m)^2)                          weight of the estimate against the middle (Speeds.known_K)
    r(x) = log((m + k (e - m) + x sqrt(k) sd) / m)      log speed, x deviations from its mean (Speeds.at)
    f = s (r(0) + log d)                                significantly slow, r(z) < -log d
        s (r(-z) - log d)                               significantly fast, r(-z) > log d
        as before                                       cut before and still slow in the mean, r(0) < -log d
        0                                               else
    g <- a f + (1 - a) g;   p = w exp(g) / sum(w exp(g))        f is `pull`, g `log_factor` in `memory`

d = 2, z = 1, s = 4, a = 1/2. So text that cannot be learnt (hashes, base64, noise) or is learnt already loses share;
what learns more than d times as fast as the middle gains. All other domains keep exactly their shares: estimates of e
are off by some ten percent in any finite run, and following them all would cost loss on clean text (docs/policies.md).

A first cut goes to two fifths of a share, where the domain's losses still show how fast it learns, and further when
newer blocks of losses confirm it: at the floor, a two-hundredth of the target share, a mistake could not be noticed.

Why s = 4 and not the stationary point p ~ w e (s = 1, no zone): w counts useless text as wanted only because nobody
knew of it. At 2^-4/3 of m both rules agree; below, this one takes more away, down to the floor.

Why the rest is as it is (the middle, the samples from which laws count, repeated text): docs/math.md, 4b.

Invariants: a function of the updates alone; the cost of a step does not depend on t apart from the refits, which come
after every twentieth of the steps so far, and at most every 1000.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ado_stream.errors import ConfigError
from ado_stream.option_checks import number, one_of, optional, positive, whole
from ado_stream.policy import state_codec
from ado_stream.policy.base_policy import Policy, run_default
from ado_stream.policy.domain_weights import Weights, parse_values, target_shares
from ado_stream.policy.elasticity import LAW, Speeds, fit_blocks, middle_elasticity
from ado_stream.policy.loss_blocks import BlockHistory, BlockPoints
from ado_stream.policy.mixture_bounds import check_floor, lower_to_ceiling, raise_to_floors
from ado_stream.policy.scaling_laws import ScalingLawFit
from ado_stream.value_types import Array, Bools, Floats, Ints, JsonMapping, JsonObject

_REPEAT_DECAY_EPOCHS = 15.0  # arXiv 2305.16264, section 5: the half-life constant R* of repeated tokens
_LEAST_BLOCKS = 4  # fewer cannot determine the three parameters of a law
_LEAST_VALIDATIONS = 8  # all are of the same text, so their errors do not average out: a law needs more of them
_FORGET = 4  # laws are fitted to the last three quarters of the steps so far
_LEAST_DRAWN = 0.2  # of its target share, for a block to count for a domain
_FIRST_CUT = 2.0 * _LEAST_DRAWN  # of its target share: the least that it is cut to before new blocks say the same
_LEAST = 0.005  # of its target share: where a cut ends
_LEAST_LOG = -100.0
_SETTLED = 1e-3  # |g| below it is 0, so that a domain that is cut no longer has exactly its share again
_REFIT_FRAC, _REFIT_STEPS = 20, 1000
LAWS = ("train", "validation")
_FOUND = ("loss_before", "others_before", "elasticity", "elasticity_sd", "loss_sd", "middle")


class TargetPolicy(Policy):
    """`target`.

    weights: "size" (the prior), "uniform", "val" (that of the validation split), or (K,) or {name: weight}.
    dead_zone: d, how many times slower or faster than the middle a domain must learn to be touched. confidence: z,
    standard deviations. strength: s. damping: a. floor: least share of a domain whose target share is above it; None:
    a two-hundredth of that. ignore_steps: first steps that laws leave out; None: 1000, at most a tenth of the run.
    start_step: first step that may move the mixture; None: 2000, at most an eighth of the run. Both count from where
    the target's mixture was first drawn. laws: of "train" losses, or "validation", `observe_validation`'s, from eight
    of them on. max_epochs: bound on the passes over a domain in the run; if the run needs more, what suffices.
    Facts of the run, None where unknown: sizes, samples of one epoch, (K,) or {name: samples}; total_samples and
    total_steps of the run; val_sizes, samples of the validation split; evaluate_every_steps between
    validations, 0: never.
    Raises ConfigError for values that cannot work.
    """

    kind = "target"
    run_options = {
        "sizes": "sizes",
        "total_samples": "total_samples",
        "total_steps": "steps",
        "val_sizes": "val_sizes",
        "evaluate_every_steps": "evaluate_every_steps",
    }
    saved_numbers = {
        "fit_step": state_codec.step_or_none,
        "_target_from": state_codec.step_or_none,
        "_num_refits": state_codec.whole_number,
        "_next_refit": state_codec.whole_number,
        "_middle": state_codec.number_or_none,
    }

    def __init__(
        self,
        prior: Weights,
        weights: Weights | str = "size",
        dead_zone: float = 2.0,
        confidence: float = 1.0,
        strength: float = 4.0,
        damping: float = 0.5,
        floor: float | None = None,
        ignore_steps: int | None = None,
        start_step: int | None = None,
        sizes: Weights | None = None,
        total_samples: float | None = None,
        max_epochs: float = 4.0,
        total_steps: int | None = None,
        laws: str = "train",
        val_sizes: Weights | None = None,
        evaluate_every_steps: int | None = None,
    ):
        self._validates = one_of("target: laws", laws, LAWS) == "validation"
        super().__init__(prior)
        self.target_K = target_shares(weights, self.prior_K, self.names, val_sizes)
        self._log_zone = float(np.log(number("target: dead_zone", dead_zone, 1.0)))
        self._confidence = number("target: confidence", confidence, 0.0)
        self._strength = number("target: strength", strength, 0.0)
        self._damping = number("target: damping", damping, 0.0, 1.0)
        num = self.num_domains
        least_K = _LEAST * self.target_K if floor is None else check_floor(floor, num, "target: floor")
        self._floor_K = np.minimum(least_K, self.target_K)
        with np.errstate(divide="ignore", invalid="ignore"):
            # a factor of e below the floor: low enough to reach it, close enough to leave it in a few refits
            self._least_log_factor_K = np.nan_to_num(np.log(self._floor_K / self.target_K) - 1.0)
        optional(whole, "target: total_steps", total_steps, 1)
        if self._validates and evaluate_every_steps == 0:
            raise ConfigError(
                "target: laws of validation losses, but this run has none before its end.\n"
                "  Set evaluate.every_steps for a corpus with a val split, or take laws: train."
            )
        self._ignore_steps = whole("target: ignore_steps", run_default(ignore_steps, 1000, total_steps, 10))
        self._start_step = whole("target: start_step", run_default(start_step, 2000, total_steps, 8))
        self._size_K = None if sizes is None else parse_values(sizes, self.names, num, "target: sizes")
        self._total_samples = optional(positive, "target: total_samples", total_samples)
        self._max_epochs = positive("target: max_epochs", max_epochs)
        kinds = ("blocks", "validations") if self._validates else ("blocks",)  # of training losses; of validation's
        self._histories = {name: BlockHistory(num) for name in kinds}
        self._target_from: int | None = None  # step from which the target's mixture was drawn
        self._next_refit = self._start_step
        self._num_refits = 0
        self._middle: float | None = None  # m of the last refit
        self._mixture_K = self._mix()

    @property
    def floor(self) -> float:
        """The least share that every domain has, unless `max_epochs` bounds it lower."""
        return float(self._floor_K.min()) if self._size_K is None else 0.0

    def law_counts(self, drawn: ArrayLike) -> Floats:
        """(K,) samples of each domain: laws are over a domain's own."""
        return np.asarray(drawn, np.float64) + self.memory["offset"]

    def _take_validation(self, loss_K: Floats, count_K: Floats) -> None:
        """Evidence for laws of validation losses, at the samples drawn so far."""
        if self._validates:
            valid_K = (loss_K > 0.0) & (loss_K < np.inf)
            self.memory["val_loss"] = np.where(valid_K, loss_K, np.nan)
            self.memory["val_samples"] = np.where(valid_K, count_K, 0.0)

    def health(self) -> JsonObject:
        """Adds to the base's: refits; and of each domain that is cut or raised, its share over its target share, since
        which step, its elasticity with the deviation, its samples, and the same as a sentence ("why")."""
        memory, middle = self.memory, self._middle
        return {
            **super().health(),
            "refits": self._num_refits,
            "middle_elasticity": middle,
            "moved": {
                self.labels[index]: {
                    "share_over_target": float(self._mixture_K[index] / self.target_K[index]),
                    "since_step": int(memory["moved_since"][index]),
                    "elasticity": state_codec.finite_or_none(memory["elasticity"][index]),
                    "elasticity_sd": state_codec.finite_or_none(memory["elasticity_sd"][index]),
                    "samples": float(memory["samples"][index]),
                    "why": self._why(index),
                }
                for index in np.flatnonzero(memory["log_factor"]).tolist()
            },
        }

    def _why(self, index: int) -> str:
        """For users: how much a moved domain's loss falls per doubling of its samples, with the interval."""
        memory, doubled = self.memory, np.log(2.0)
        e, margin = memory["elasticity"][index], self._confidence * memory["elasticity_sd"][index]
        if not np.isfinite(e):
            return "it returns to its share: its loss fell with training on the others"
        epochs = self._epochs()[index]
        repeats = f" It was read {epochs:.1f} times." if epochs > 1.0 and not self._validates else ""
        return (
            f"with twice its samples its {'validation' if self._validates else 'training'} loss falls by "
            f"{doubled * max(e - margin, 0.0):.3f} to {doubled * (e + margin):.3f} nats, "
            f"that of the middle domain by {doubled * memory['middle'][index]:.3f}.{repeats}"
        )

    def _initial(self) -> dict[str, Array]:
        unknown_K = np.full(self.num_domains, np.nan)
        return {
            **super()._initial(),
            "samples": np.zeros(self.num_domains),
            "offset": np.zeros(self.num_domains),  # of own samples, for laws
            "log_factor": np.zeros(self.num_domains),
            "moved_since": np.full(self.num_domains, -1, dtype=np.int64),
            "laws_from": np.zeros(self.num_domains, dtype=np.int64),
            "pull": np.zeros(self.num_domains),
            **{name: unknown_K.copy() for name in (*_FOUND, *LAW)},
            **({"val_loss": unknown_K.copy(), "val_samples": np.zeros(self.num_domains)} if self._validates else {}),
        }

    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        memory = self.memory
        evidence_K = seen_K
        if self._size_K is not None and not self._validates:  # training losses of the first epoch only
            evidence_K = seen_K & (memory["samples"] < self._size_K)
        self._histories["blocks"].record(memory["samples"] + 0.5 * count_K, loss_K, count_K, evidence_K)
        if self._validates:
            val_K = memory["val_samples"]
            self._histories["validations"].record(memory["samples"], memory["val_loss"], val_K, val_K > 0.0)
            memory["val_samples"] = np.zeros(self.num_domains)
        memory["samples"] += count_K
        if self.step >= self._next_refit:
            self._refit()
            self._next_refit = self.step + max(1, min(self.step // _REFIT_FRAC, _REFIT_STEPS))
        is_bounded = self._size_K is not None and self._total_samples is not None  # by epochs
        return self._mix() if is_bounded or self.fit_step == self.step else self._mixture_K

    def _refit(self) -> None:
        memory = self.memory
        if (begin := self._find_target()) is None:
            return
        first = max(begin + self._ignore_steps, self.step // _FORGET)
        drawn = points = self._histories["blocks"].points(first).moved(memory["offset"])
        if self._validates:
            points = self._histories["validations"].points(first).moved(memory["offset"])
            measured_M = points.samples_KM.any(axis=0)
            drawn, points = drawn.where(measured_M), points.where(measured_M)
        found, lawful_K = self._fit(points, drawn)
        if not lawful_K.any():
            return
        self._num_refits += 1
        self.fit_step = self.attempt_step = self.step
        for name, value_K in found.items():
            memory[name] = np.where(lawful_K, value_K, memory[name])
        found_K = memory["elasticity"], memory["elasticity_sd"], self.target_K
        middle = middle_elasticity(*(each_K[lawful_K] for each_K in found_K))
        self._middle = state_codec.finite_or_none(middle)
        memory["middle"] = np.where(lawful_K, middle, memory["middle"])  # of each domain's last fit
        pull_K, slow_K = self._pull()
        memory["pull"] = np.where(lawful_K, pull_K, memory["pull"])
        self._restore(points, self._use_laws())
        old_K = memory["log_factor"]
        # Below this share there are no new blocks for a law: the last estimate keeps lowering the share.
        unmeasured_K = ~lawful_K & (old_K < np.log(_LEAST_DRAWN)) & (memory["pull"] < 0.0)
        kept_K = np.where(unmeasured_K, 1.0, 1.0 - self._damping) * old_K
        twice_K = lawful_K & slow_K & (old_K < 0.0) & self._is_settled(points) | (old_K < np.log(_FIRST_CUT))
        least_K = np.maximum(self._least_log_factor_K, np.where(twice_K, -np.inf, np.log(_FIRST_CUT)))
        new_K = np.maximum(self._damping * memory["pull"] + kept_K, least_K)
        memory["log_factor"] = np.where(np.abs(new_K) < _SETTLED, 0.0, new_K)
        moved_K = memory["log_factor"] != 0.0
        memory["moved_since"] = np.where((old_K == 0.0) & moved_K, self.step, memory["moved_since"])
        for index in np.flatnonzero(moved_K != (old_K != 0.0)).tolist():
            verb = "is read less" if memory["log_factor"][index] < 0.0 else "is read more"
            what = f"{verb} from here on: {self._why(index)}" if moved_K[index] else "has its full share again"
            self._notices.append(f"target: {self.labels[index]} {what}")

    def _find_target(self) -> int | None:
        """The step from which the target's mixture was drawn; None until that is long enough ago for a refit."""
        if self._target_from is None:
            begin = self._histories["blocks"].first_step_under(self.target_K)
            if begin and self.step < begin + self._start_step:
                return None
            self._target_from = begin
            if begin:
                self.memory["offset"] = self._histories["blocks"].offsets_under(self.target_K, begin)
        return self._target_from

    def _fit(self, points: BlockPoints, drawn: BlockPoints) -> tuple[dict[str, Floats], Bools]:
        """What `memory` holds of each domain's law, and where there are blocks enough for one, and new ones.

        A block counts for a domain that was drawn at a fifth of its target share or more: losses of a domain that is
        hardly drawn show forgetting and quick relearning. drawn: the same blocks of training.
        """
        drawn_KM = drawn.samples_KM >= _LEAST_DRAWN * self.target_K[:, None] * drawn.total_M
        counts_KM = drawn_KM & (points.samples_KM > 0.0) & (points.step_M >= self.memory["laws_from"][:, None])
        repeats_K = np.zeros(self.num_domains) if self._validates else np.maximum(self._epochs() - 1.0, 0.0)
        laws = fit_blocks(
            points, counts_KM, self.law_counts(self.memory["samples"]), np.exp(-repeats_K / _REPEAT_DECAY_EPOCHS)
        )
        is_new_K = counts_KM[:, -2:].any(axis=1)  # the middle changes: old estimates are not compared with it
        least = _LEAST_VALIDATIONS if self._validates else _LEAST_BLOCKS
        return laws, is_new_K & (np.count_nonzero(counts_KM, axis=1) >= least)

    def _is_settled(self, points: BlockPoints) -> Bools:
        """(K,) where a domain was moved long enough ago for new points to be of its new share."""
        return self.step - self.memory["moved_since"] > _LEAST_BLOCKS * points.spacing

    def _pull(self) -> tuple[Floats, Bools]:
        """f: where the log of each share moves to, relative to its target; and which domains are significantly slow."""
        memory, zone = self.memory, self._log_zone
        if self._middle is None:
            return np.zeros(self.num_domains), np.zeros(self.num_domains, bool)
        speeds = Speeds(memory["elasticity"], memory["elasticity_sd"], self._middle)
        slower_K = np.maximum(speeds.at(0.0) + zone, _LEAST_LOG)
        held_K = np.where(slower_K < 0.0, np.minimum(memory["pull"], 0.0), 0.0)
        slow_K = speeds.at(self._confidence) < -zone
        cut_K = np.where(slow_K, self._strength * slower_K, held_K)
        return cut_K + self._strength * np.maximum(speeds.at(-self._confidence) - zone, 0.0), slow_K

    def _restore(self, points: BlockPoints, laws: ScalingLawFit) -> None:
        """Restores the share of a domain that was cut and still learns, from the other domains' text.

        That is: whose loss fell, since the cut, by at least 1 / d of what the others' fell. Its law starts anew.
        """
        memory = self.memory
        recent_K, samples_K = points.recent(_LEAST_BLOCKS)
        pulled_K = memory["pull"] < 0.0
        weight_K = np.where(pulled_K | np.isnan(recent_K), 0.0, self.target_K)
        if not weight_K.any():
            return
        others = float(np.average(np.nan_to_num(recent_K), weights=weight_K))
        new_K = pulled_K & (memory["log_factor"] == 0.0)
        # The law's loss and not the latest: a domain is cut when it looks slow, which is when its latest losses happen
        # to be high; any return to the law would then count as a fall.
        law_K = laws.predict(np.maximum(self.law_counts(memory["samples"]), 1.0)[:, None])[:, 0]
        memory["loss_before"] = np.where(new_K, law_K, memory["loss_before"])
        memory["others_before"] = np.where(new_K, others, memory["others_before"])
        noise_K = 3.0 * memory["loss_sd"] / np.sqrt(np.maximum(samples_K, 1.0))
        fell_K = memory["loss_before"] - recent_K - noise_K  # NaN, so never enough, where nothing was seen
        enough_K = np.maximum(memory["others_before"] - others, 0.0) / np.exp(self._log_zone)
        back_K = pulled_K & ~new_K & self._is_settled(points) & (fell_K > enough_K)
        memory["pull"] = np.where(back_K, 0.0, memory["pull"])
        memory["laws_from"] = np.where(back_K, self.step, memory["laws_from"])
        for name in ("elasticity", "elasticity_sd"):
            memory[name] = np.where(back_K, np.nan, memory[name])

    def _epochs(self) -> Floats:
        if self._size_K is None:
            return np.zeros(self.num_domains)
        return np.asarray(self.memory["samples"] / np.maximum(self._size_K, 1.0))

    def _mix(self) -> Floats:
        """The mixture of the present factors; the target itself, to the bit, where none is moved."""
        log_factor_K = self.memory["log_factor"]
        mixture_K = self.target_K
        if log_factor_K.any():
            weight_K = self.target_K * np.exp(log_factor_K - log_factor_K.max())
            mixture_K = raise_to_floors(weight_K / weight_K.sum(), self._floor_K)
        if self._size_K is None or self._total_samples is None:
            return mixture_K
        left = self._total_samples - self.memory["samples"].sum()
        if left <= 0.0:
            return mixture_K
        epochs = max(self._max_epochs, self._total_samples / max(self._size_K.sum(), 1.0))
        return lower_to_ceiling(mixture_K, np.maximum(epochs * self._size_K - self.memory["samples"], 0.0) / left)

    def _use_laws(self) -> ScalingLawFit:
        self.fit = ScalingLawFit(**{name: self.memory[name] for name in LAW}, valid=np.isfinite(self.memory["alpha"]))
        return self.fit

    # State -----------------------------------------------------------------------------------------------------

    def _extra_state(self) -> JsonObject:
        return {name: blocks.state_dict() for name, blocks in self._histories.items()}

    def _load_extra(self, saved: JsonMapping, source_K: Ints, names: Sequence[str] | None) -> None:
        loaded = {name: BlockHistory(self.num_domains) for name in self._histories}
        for name, blocks in loaded.items():
            blocks.load_state_dict(state_codec.section(saved, name), source_K, saved["num_domains"])
        self._histories = loaded

    def _after_load(self, same_domains: bool) -> None:
        self.attempt_step = self.fit_step
        if self.fit_step is not None:
            self._use_laws()
        self._mixture_K = self._mix()
