"""Closed loop on synthetic domains: mixtures decide the samples, samples the losses, losses the next mixture.

A spec (YAML, all keys but `domains` optional):
    steps: 60000            global_batch_size: 256      seed: 17        mixture_lag: 8 (as the loader's)
    domains: {name: {prior, eps, beta, alpha, noise, break_samples, break_alpha, samples}}, or a number of random ones
    wanted: {name: weight} of the losses that count, for regret (default: the priors)
    transfer: 0.1, or {learner: {teacher: weight}}      noise: nats of one sample's loss, for all domains
    bumps: [{step, height, decay_steps}]
    policies: {label: {policy: name (default the label), guards: [{name: floor, minimum: 0.01}], ...its options}}
Invariant: the outcome depends on the spec alone; policies are compared under the same noise.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ado_stream.errors import ConfigError
from ado_stream.option_checks import MOST_COUNT, MOST_LAG, MOST_STEPS, refuse_unknown, whole
from ado_stream.policy.base_policy import Policy, RunContext
from ado_stream.policy.domain_weights import parse_shares, with_text_keys
from ado_stream.policy.policy_registry import make_run_policy
from ado_stream.simulate.synthetic_domains import SyntheticDomains, parse_domains
from ado_stream.value_types import Floats, Ints, JsonMapping, JsonObject

_CHUNK_STEPS = 512  # of noise made at once
_MAX_ROWS = 2000  # of an outcome: enough for a picture
_KEYS = (
    "steps", "global_batch_size", "seed", "mixture_lag", "domains", "wanted", "transfer", "noise", "bumps", "policies",
)  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """Domains, the run on them, and the policies to try: {label: (name, options with "guards" among them)}."""

    domains: SyntheticDomains
    steps: int
    global_batch_size: int
    seed: int
    mixture_lag: int
    wanted_K: Floats  # weights of the losses that count; sum 1
    policies: Mapping[str, tuple[str, JsonMapping]] = field(default_factory=dict)

    def make(self, label: str) -> Policy:
        """The policy called `label` before its first step."""
        name, options = self.policies[label]
        own = {key: value for key, value in options.items() if key != "guards"}
        prior = dict(zip(self.domains.names, self.domains.prior_K.tolist(), strict=True))
        size_K = self.domains.size_K
        sizes = dict(zip(self.domains.names, size_K.tolist(), strict=True)) if np.isfinite(size_K).all() else None
        run = RunContext(self.steps, self.global_batch_size, self.mixture_lag, sizes)
        return make_run_policy(name, prior, own, options.get("guards", ()), run)


@dataclass(frozen=True)
class Outcome:
    """A simulated run: at steps (S,) mixtures in force and true losses in nats per token (S, K); samples drawn (K,)."""

    step_S: Ints
    mixture_SK: Floats
    loss_SK: Floats
    samples_K: Floats
    policy: Policy

    def mean_loss(self, weight_K: Floats) -> Floats:
        """(S,) the domains' losses averaged with `weight_K`."""
        mean_S: Floats = self.loss_SK @ weight_K
        return mean_S


def read_spec(given: JsonMapping) -> Spec:
    """The spec of a mapping, checked. Raises ConfigError for unknown keys and impossible values."""
    refuse_unknown("spec", given, _KEYS)
    numbers = {
        name: whole(f"spec: {name}", given.get(name, default), least, most)
        for name, default, least, most in (
            ("steps", 20_000, 1, MOST_STEPS),
            ("global_batch_size", 256, 1, MOST_COUNT),
            ("seed", 17, 0, MOST_COUNT),
            ("mixture_lag", 8, 0, MOST_LAG),
        )
    }
    domains = parse_domains(given, numbers["seed"])
    wanted = given.get("wanted")
    if isinstance(wanted, Mapping):
        wanted = {**dict.fromkeys(domains.names, 0.0), **with_text_keys(wanted, "wanted")}
    return Spec(
        domains=domains,
        wanted_K=domains.prior_K
        if wanted is None
        else parse_shares(wanted, domains.names, len(domains.names), "wanted"),
        policies=_parse_policies(given.get("policies", {"natural": {}, "ado": {}})),
        **numbers,
    )


def simulate(spec: Spec, policy: Policy) -> Outcome:
    """Runs `policy` on the spec's domains; it ends at the last step."""
    domains, batch = spec.domains, spec.global_batch_size
    generator = np.random.Generator(np.random.Philox(spec.seed))
    bump_T = domains.bump(spec.steps)
    own_K = np.zeros(len(domains.names))
    pending = deque([policy.mixture] * (spec.mixture_lag + 1))  # the mixture of the next step first
    every = -(-spec.steps // _MAX_ROWS)
    kept: list[tuple[int, Floats, Floats]] = []
    for step in range(spec.steps):
        row = step % _CHUNK_STEPS
        if row == 0:
            noise_CK = generator.standard_normal((_CHUNK_STEPS, len(own_K))) * domains.noise_K
            shift_C = generator.random(_CHUNK_STEPS)
        mixture_K = pending.popleft()
        count_K = systematic_counts(mixture_K, batch, shift_C[row])
        loss_K = domains.training_loss(own_K)
        if step % every == 0:
            kept.append((step, mixture_K, domains.loss(own_K)))
        with np.errstate(divide="ignore", invalid="ignore"):  # a domain without samples has no loss: NaN
            observed_K = loss_K + bump_T[step] + noise_CK[row] / np.sqrt(count_K)
        observed_K[count_K == 0.0] = np.nan
        own_K += count_K
        pending.append(policy.update(observed_K, count_K))
    kept.append((spec.steps, pending.popleft(), domains.loss(own_K)))
    steps, mixtures, losses = zip(*kept, strict=True)
    return Outcome(np.array(steps), np.stack(mixtures), np.stack(losses), own_K, policy)


def systematic_counts(mixture_K: Floats, batch: int, shift: float) -> Floats:
    """(K,) samples of each domain, float64: slot j takes the domain whose part of the cumulative p holds (u + j) / B.

    shift: u in [0, 1). |c_k - B p_k| < 1 (docs/math.md, section 7).
    """
    # slots j with (j + u) / B below the cumulative share: ceil(B * share - u) of them
    edge_K: Floats = np.ceil(mixture_K.cumsum() * batch - shift)
    edge_K[-1] = batch  # the shares' sum may round to below 1
    edge_K[1:] -= edge_K[:-1].copy()
    return edge_K


def _parse_policies(given: object) -> dict[str, tuple[str, JsonObject]]:
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"policies: {given!r:.60}; give {{label: options}}, for example {{ado: {{}}}}.")
    found = {}
    for label, options in given.items():
        options = {} if options is None else options
        if not isinstance(options, Mapping):
            raise ConfigError(
                f"policies: {label!r} is {options!r:.60}; expected options, as in {{ado: {{floor: 0.01}}}}."
            )
        options = dict(options)
        found[str(label)] = (str(options.pop("policy", label)), options)
    return found
