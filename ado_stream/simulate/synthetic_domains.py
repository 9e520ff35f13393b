"""Synthetic domains to try policies on: the true loss of each as a function of the samples drawn so far.

    u_k = own_k, or size_k + 15 size_k (1 - exp(-(own_k / size_k - 1) / 15)) past the first epoch
    n_k = 1 + u_k + sum_j transfer_kj u_j                            effective samples of domain k
    log gap_k = log beta_k - alpha_k log n_k - (alpha'_k - alpha_k) max(log n_k - log break_k, 0)
    L_k = min(eps_k + gap_k, cap)                                    nats per token
A broken law continues with exponent alpha' past `break` samples. The loss that a step observes is L_k plus the bump of
that step (as after a learning rate that was too high), plus noise_k / sqrt(c_k) for c_k samples drawn. n counts
samples, as in docs/math.md section 1.
The training loss of repeated text keeps falling as if it were new: own_k in place of u_k.
Sources: arXiv 2210.14891 for the broken form, with a sharp break; arXiv 2305.16264 for what repeats are worth.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ado_stream.errors import ConfigError
from ado_stream.option_checks import known_name, number, positive, whole
from ado_stream.policy.domain_weights import parse_shares, with_text_keys
from ado_stream.suggest import quoted_list
from ado_stream.value_types import Floats, JsonMapping

_DOMAIN_KEYS = {"prior", "eps", "beta", "alpha", "noise", "break_samples", "break_alpha", "samples"}
_REPEAT_EPOCHS = 15.0  # R*: what n epochs are worth tends to 1 + R* fresh ones
_BUMP_KEYS = {"step", "height", "decay_steps"}


@dataclass(frozen=True)
class SyntheticDomains:
    """Laws of K domains; all arrays (K,) float64, in the units of the file's formula.

    transfer: one number for all pairs, or (K, K) with a zero diagonal. bumps: (step, height in nats, decay in steps).
    """

    names: list[str]
    prior_K: Floats
    eps_K: Floats
    log_beta_K: Floats
    alpha_K: Floats
    noise_K: Floats
    log_break_K: Floats
    break_alpha_K: Floats
    size_K: Floats  # samples of one epoch; infinite where nothing repeats
    transfer: float | Floats = 0.0
    bumps: tuple[tuple[float, float, float], ...] = ()
    cap: float = 10.8  # nats: about log of a vocabulary of 50,000

    def __repr__(self) -> str:
        return f"SyntheticDomains({len(self.names)} domains: {quoted_list(self.names)})"

    @cached_property
    def _broken(self) -> bool:
        return bool(np.isfinite(self.log_break_K).any())

    @cached_property
    def _repeats(self) -> bool:
        return bool(np.isfinite(self.size_K).any())

    def loss(self, own_K: Floats) -> Floats:
        """(K,) true losses after `own_K` samples of each domain were drawn."""
        if self._repeats:
            epochs_K = own_K / self.size_K
            # 1 + R* (1 - exp(-(epochs - 1) / R*)), by expm1: exact for little more than one epoch
            worth_K = 1.0 - _REPEAT_EPOCHS * np.expm1(-np.maximum(epochs_K - 1.0, 0.0) / _REPEAT_EPOCHS)
            own_K = np.where(epochs_K > 1.0, np.where(np.isfinite(self.size_K), self.size_K, 0.0) * worth_K, own_K)
        return self.training_loss(own_K)

    def training_loss(self, own_K: Floats) -> Floats:
        """(K,) losses that a batch shows after `own_K` samples, without bumps and noise."""
        if isinstance(self.transfer, float):
            # own + transfer (sum - own), without a (K, K) matrix
            effective_K = (1.0 + self.transfer * own_K.sum()) + (1.0 - self.transfer) * own_K
        else:
            effective_K = 1.0 + own_K + self.transfer @ own_K
        log_n_K = np.log(effective_K)
        log_gap_K = self.log_beta_K - self.alpha_K * log_n_K
        if self._broken:
            past_K = np.maximum(log_n_K - self.log_break_K, 0.0)
            log_gap_K -= (self.break_alpha_K - self.alpha_K) * past_K
        loss_K: Floats = np.minimum(self.eps_K + np.exp(log_gap_K), self.cap)
        return loss_K

    def bump(self, steps: int) -> Floats:
        """(steps,) nats that the bumps add to every domain's loss."""
        total_T, step_T = np.zeros(steps), np.arange(steps)
        for start, height, decay in self.bumps:
            total_T += np.where(step_T >= start, height * np.exp(-np.maximum(step_T - start, 0) / decay), 0.0)
        return total_T


def parse_domains(spec: JsonMapping, seed: int) -> SyntheticDomains:
    """The domains of a spec's `domains`, `transfer`, `noise` and `bumps` (see closed_loop.py).

    Raises ConfigError naming the domain and key at fault.
    """
    noise = number("spec: noise", spec.get("noise", 0.0), 0.0)
    domains = spec.get("domains")
    if isinstance(domains, int):
        domains = random_domains(whole("spec: domains", domains, 1, 10_000), seed)
    if not isinstance(domains, Mapping) or not domains:
        raise ConfigError("domains: give {name: {prior, eps, beta, alpha}}, or how many random ones to make.")
    domains = with_text_keys(domains, "domains")
    for name, law in domains.items():
        _check_domain(name, law)
    laws = list(domains.values())
    alpha_K = _column(laws, "alpha")
    names = list(domains)
    return SyntheticDomains(
        names=names,
        prior_K=parse_shares([law["prior"] for law in laws], names, len(names), "prior"),
        eps_K=_column(laws, "eps"),
        log_beta_K=np.log(_column(laws, "beta")),
        alpha_K=alpha_K,
        noise_K=_column(laws, "noise", noise),
        log_break_K=np.log(_column(laws, "break_samples", np.inf)),
        break_alpha_K=np.array([law.get("break_alpha", law["alpha"]) for law in laws], dtype=np.float64),
        size_K=_column(laws, "samples", np.inf),
        transfer=_transfer(spec.get("transfer", 0.0), names),
        bumps=_bumps(spec.get("bumps", ())),
    )


def random_domains(num_domains: int, seed: int) -> dict[str, dict[str, float]]:
    """Domains drawn at random: sizes over two orders of magnitude, exponents 0.1 to 0.5."""
    generator = np.random.Generator(np.random.Philox(seed))
    width = len(str(num_domains - 1))
    domains = {}
    for index in range(num_domains):
        alpha = generator.uniform(0.1, 0.5)
        gap = generator.uniform(0.3, 2.0)  # nats above eps after a million samples
        domains[f"d{index:0{width}}"] = {
            "prior": float(10.0 ** generator.uniform(-2.0, 0.0)),
            "eps": float(generator.uniform(1.0, 2.5)),
            "beta": float(gap * 1e6**alpha),
            "alpha": float(alpha),
        }
    return domains


def _check_domain(name: str, law: object) -> None:
    if not isinstance(law, Mapping):
        raise ConfigError(f"domains: {name!r} is {law!r:.60}; give prior, eps, beta, alpha.")
    unknown, missing = set(law) - _DOMAIN_KEYS, {"prior", "eps", "beta", "alpha"} - set(law)
    wrong = [f"has unknown {quoted_list(sorted(map(str, unknown)))}"] if unknown else []
    wrong += [f"lacks {quoted_list(sorted(missing))}"] if missing else []
    if wrong:
        keys = quoted_list(sorted(_DOMAIN_KEYS), most=99)
        raise ConfigError(f"domains: {name!r} {' and '.join(wrong)}; the keys are {keys}.")
    for key, value in law.items():
        if key in ("eps", "beta", "break_samples", "samples"):
            positive(f"domains: {key} of {name!r}", value)
        else:
            number(f"domains: {key} of {name!r}", value, -math.inf if "alpha" in key else 0.0)


def _column(laws: list[Mapping[str, float]], key: str, default: float | None = None) -> Floats:
    return np.array([law.get(key, default) for law in laws], dtype=np.float64)


def _transfer(given: object, names: list[str]) -> float | Floats:
    """One number, or {learner: {teacher: weight}} as a (K, K) matrix."""
    if not isinstance(given, Mapping):
        return number("transfer", given, 0.0)
    where = {name: index for index, name in enumerate(names)}
    matrix_KK = np.zeros((len(names), len(names)))
    for learner, teachers in with_text_keys(given, "transfer").items():
        if not isinstance(teachers, Mapping):
            raise ConfigError(f"transfer: {learner!r} is {teachers!r:.60}; expected {{teacher: weight}}.")
        for teacher, weight in with_text_keys(teachers, f"transfer: {learner!r}").items():
            for name in (learner, teacher):
                known_name("domain", name, names, "transfer: ")
            matrix_KK[where[learner], where[teacher]] = number(f"transfer: {learner!r} of {teacher!r}", weight, 0.0)
    return matrix_KK


def _bumps(given: object) -> tuple[tuple[float, float, float], ...]:
    if not isinstance(given, Sequence) or not all(
        isinstance(bump, Mapping) and set(bump) == _BUMP_KEYS for bump in given
    ):
        raise ConfigError(f"bumps: {given!r:.80}; expected a list of {{step, height (nats), decay_steps}}.")
    return tuple(
        (
            number("bumps: step", bump["step"]),
            number("bumps: height", bump["height"]),
            positive("bumps: decay_steps", bump["decay_steps"]),
        )
        for bump in given
    )
