"""Policies and guards by name, for configs and the command line.

Invariant: an unknown name or option is refused with what would have worked, before anything is built.
"""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ado_stream.errors import ConfigError
from ado_stream.policy.ado_config import AdoConfig
from ado_stream.policy.ado_policy import AdoPolicy, Fitter
from ado_stream.policy.base_policy import Policy
from ado_stream.policy.domain_weights import Weights
from ado_stream.policy.doremi import DoReMi
from ado_stream.policy.guards import Ceiling, Floor, Freeze, Guard, Pin, RepetitionGuard
from ado_stream.policy.odm import Odm, OdmCode
from ado_stream.policy.scaling_laws import FitConfig
from ado_stream.policy.static_policies import Fixed, Natural, Schedule, Temperature, Uniform, UniMax

POLICIES: dict[str, type[Policy]] = {
    policy.kind: policy
    for policy in (Natural, Uniform, Fixed, Temperature, UniMax, Schedule, AdoPolicy, Odm, OdmCode, DoReMi)
}
GUARDS: dict[str, type[Guard]] = {guard.kind: guard for guard in (Floor, Ceiling, Pin, Freeze, RepetitionGuard)}


@dataclass(frozen=True)
class RunFacts:
    """What only the run knows and options may need; None where nobody said.

    steps, mixture_lag: in steps. global_batch_size: samples. sizes: {domain: samples of one epoch}.
    """

    steps: int | None
    global_batch_size: int | None
    mixture_lag: int = 0
    sizes: Mapping[str, float] | None = None

    def options_of(self, name: str) -> dict[str, Any]:
        """The options of the policy or guard `name` that follow from these facts."""
        total_samples = self.steps and self.global_batch_size and self.steps * self.global_batch_size
        known: dict[str, dict[str, Any]] = {
            "ado": {"total_steps": self.steps, "mixture_lag": self.mixture_lag},
            "temperature": {"sizes": self.sizes},
            "unimax": {"sizes": self.sizes, "budget": total_samples},
            "schedule": {"mixture_lag": self.mixture_lag},
            "odm": {"mixture_lag": self.mixture_lag},
            "freeze": {"mixture_lag": self.mixture_lag},
            "repetition": {"sizes": self.sizes, "total_samples": total_samples},
        }
        return {key: value for key, value in known.get(name, {}).items() if value is not None}


def make_run_policy(
    name: str, prior: Weights, options: Mapping[str, Any], guards: Iterable[Mapping[str, Any]], run: RunFacts
) -> Policy:
    """The policy of a run: `name` with `options` inside `guards`; what is not given and the run knows is filled in.

    guards: [{name: floor, minimum: 0.01}, ...], the innermost first. Raises ConfigError as `make_policy`.
    """
    if isinstance(guards, str | Mapping) or not isinstance(guards, Iterable):
        raise ConfigError(f"guards: {guards!r:.80}; expected a list, as in [{{name: floor, minimum: 0.01}}].")
    policy = make_policy(name, prior, **{**run.options_of(name), **options})
    for given in guards:
        guard = given.get("name") if isinstance(given, Mapping) else None
        if not isinstance(guard, str):
            raise ConfigError(f"guards: {given!r:.80}; each guard needs a name, as in {{name: floor, minimum: 0.01}}.")
        own = {key: value for key, value in given.items() if key != "name"}
        policy = make_guard(guard, policy, **{**run.options_of(guard), **own})
    return policy


def make_policy(name: str, prior: Weights, **options: Any) -> Policy:
    """The policy called `name`: natural uniform fixed temperature unimax schedule ado odm odm-code doremi.

    prior: (K,) weights or {name: weight}. options: the policy's own (see its class); those of "ado" are the fields of
    AdoConfig, with `fit` also as a mapping, plus preset ("default" or "reference"), total_steps, mixture_lag, fitter.
    Raises ConfigError for a name or option that does not exist, and for values that cannot work.
    """
    if name not in POLICIES:
        raise ConfigError(f"no policy {name!r}{_closest(name, POLICIES)}; there are: {', '.join(POLICIES)}.")
    if name == "ado":
        return _make_ado(prior, options)
    return _build(name, POLICIES[name], prior, options)


def make_guard(name: str, policy: Policy, **options: Any) -> Guard:
    """The guard called `name` around `policy`: floor ceiling pin freeze repetition; options as its class takes them.

    Raises ConfigError as `make_policy`.
    """
    if name not in GUARDS:
        raise ConfigError(f"no guard {name!r}{_closest(name, GUARDS)}; there are: {', '.join(GUARDS)}.")
    return _build(name, GUARDS[name], policy, options)


def _make_ado(prior: Weights, options: dict[str, Any]) -> AdoPolicy:
    own = {"preset", "total_steps", "mixture_lag", "fitter"}
    settings = {key: value for key, value in options.items() if key not in own}
    _refuse_unknown("ado", settings, [field.name for field in fields(AdoConfig)] + sorted(own))
    if isinstance(settings.get("fit"), dict):
        _refuse_unknown("ado: fit", settings["fit"], [field.name for field in fields(FitConfig)])
        settings["fit"] = FitConfig(**settings["fit"])
    preset = options.get("preset", "default")
    if preset not in ("default", "reference"):
        raise ConfigError(f"ado: preset {preset!r}; expected default or reference.")
    config = replace(AdoConfig.reference() if preset == "reference" else AdoConfig(), **settings)
    fitter: Fitter | None = options.get("fitter")
    return AdoPolicy(prior, config, fitter, options.get("total_steps"), options.get("mixture_lag", 0))


def _build(name: str, maker: type[Any], first: Any, options: dict[str, Any]) -> Any:
    """maker(first, **options), with unknown and missing options refused by name."""
    parameters = list(inspect.signature(maker).parameters.values())[1:]
    _refuse_unknown(name, options, [parameter.name for parameter in parameters])
    missing = [p.name for p in parameters if p.default is inspect.Parameter.empty and p.name not in options]
    if missing:
        raise ConfigError(f"{name}: option {', '.join(map(repr, missing))} is missing.")
    return maker(first, **options)


def _refuse_unknown(what: str, options: Iterable[str], known: list[str]) -> None:
    for option in options:
        if option not in known:
            takes = f"; it takes: {', '.join(known)}" if known else "; it takes none"
            raise ConfigError(f"{what}: unknown option {option!r}{_closest(option, known)}{takes}.")


def _closest(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
