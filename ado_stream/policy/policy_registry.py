"""Policies and guards by name, for configs and the command line.

A new policy is a file with its class and one entry in POLICIES; a class of your own needs no entry: its name is
"package.module:Class". Invariant: an unknown name or option is refused, with the known ones, before anything is
built.
"""

import importlib
import inspect
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any, TypeVar, cast

from ado_stream.errors import ConfigError
from ado_stream.option_checks import known_name, text
from ado_stream.policy.ado_policy import AdoPolicy
from ado_stream.policy.aioli import Aioli
from ado_stream.policy.base_policy import Policy, RunContext
from ado_stream.policy.domain_weights import Weights
from ado_stream.policy.doremi import DoReMi
from ado_stream.policy.episelect import EpiSelect
from ado_stream.policy.gap import GapPolicy
from ado_stream.policy.guards import Ceiling, Floor, Freeze, Guard, Pin, RepetitionGuard
from ado_stream.policy.odm import Odm, OdmCode
from ado_stream.policy.stage_mixtures import StageMixtures
from ado_stream.policy.static_policies import Fixed, Natural, Schedule, StaticPolicy, Temperature, Uniform, UniMax
from ado_stream.policy.target_policy import TargetPolicy
from ado_stream.policy.velocitune import Velocitune
from ado_stream.value_types import Floats, JsonMapping

P = TypeVar("P", bound=Policy)

_STATIC = (Natural, Uniform, Fixed, Temperature, UniMax, Schedule)
_ADAPTIVE = (TargetPolicy, AdoPolicy, Odm, OdmCode, DoReMi, EpiSelect, GapPolicy, Velocitune, Aioli)
POLICIES: dict[str, type[Policy]] = {policy.kind: policy for policy in (*_STATIC, *_ADAPTIVE)}
GUARDS: dict[str, type[Guard]] = {guard.kind: guard for guard in (Floor, Ceiling, Pin, Freeze, RepetitionGuard)}


def make_policy(name: str, prior: Weights, **options: Any) -> Policy:
    """The policy called `name`: natural uniform fixed temperature unimax schedule target ado odm odm-code doremi
    episelect gap velocitune aioli.

    Or "package.module:Class" of an importable subclass of `ado_stream.policy.base_policy.Policy`.
    prior: (K,) weights or {name: weight}. options: the policy's own (see its class); those of "ado" are the fields of
    AdoConfig, with `fit` also as a mapping, plus preset ("default" or "reference"), total_steps, mixture_lag, fitter.
    Raises ConfigError for a name or option that does not exist, and for values that cannot work.
    """
    policy = find_policy(name)
    return policy(prior, **policy.parse_options(options))


def make_guard(name: str, policy: Policy, **options: Any) -> Guard:
    """The guard called `name` around `policy`: floor ceiling pin freeze repetition; options as its class takes them.

    Or "package.module:Class" of an importable subclass of `ado_stream.policy.guards.Guard`.
    Raises ConfigError as `make_policy`.
    """
    guard = find_guard(name)
    return guard(policy, **guard.parse_options(options))


def make_run_policy(
    name: str, prior: Weights, options: JsonMapping, guards: Iterable[JsonMapping], run: RunContext
) -> Policy:
    """The policy of a run: `name` with `options` inside `guards`. Options left out are filled in from `run`.

    guards: [{name: floor, minimum: 0.01}, ...], the innermost first. Raises ConfigError as `make_policy`.
    """
    if isinstance(guards, str | Mapping) or not isinstance(guards, Iterable):
        raise ConfigError(f"guards: {guards!r:.80}; expected a list, as in [{{name: floor, minimum: 0.01}}].")
    policy = make_policy(name, prior, **{**run.options_for(find_policy(name)), **options})
    if any(stage.mixture is not None for stage in run.stages):
        ends = accumulate(stage.steps for stage in run.stages)
        mixtures = [_stage_mixture(stage.mixture, prior, run) for stage in run.stages]
        policy = StageMixtures(policy, list(zip(ends, mixtures, strict=True)), run.mixture_lag)
    for given in guards:
        guard = given.get("name") if isinstance(given, Mapping) else None
        if not isinstance(guard, str):
            raise ConfigError(f"guards: {given!r:.80}; each guard needs a name, as in {{name: floor, minimum: 0.01}}.")
        own = {key: value for key, value in given.items() if key != "name"}
        policy = make_guard(guard, policy, **{**run.options_for(find_guard(guard)), **own})
    return policy


def _stage_mixture(given: object, prior: Weights, run: RunContext) -> Floats | None:
    """(K,) the mixture of a stage, {domain: weight} or a policy's name; None: it has none. Raises ConfigError."""
    if given is None:
        return None
    name, options = ("fixed", {"weights": given}) if isinstance(given, Mapping) else (given, {})
    if not (isinstance(name, str) and name in POLICIES and issubclass(POLICIES[name], StaticPolicy)):
        constant = [kind for kind, policy in POLICIES.items() if issubclass(policy, StaticPolicy)]
        raise ConfigError(
            f"mixture of a stage: {given!r:.80}; expected {{domain: weight}} or one of {', '.join(constant)}.\n"
            "  What learns from losses has to see them from the first step: name it in policy.name."
        )
    return make_policy(name, prior, **{**run.options_for(POLICIES[name]), **options}).mixture


def find_policy(name: str) -> type[Policy]:
    """The class of the policy called `name`. Raises ConfigError."""
    return _find("policy", name, POLICIES, Policy)  # type: ignore[type-abstract]


def find_guard(name: str) -> type[Guard]:
    """The class of the guard called `name`. Raises ConfigError."""
    return _find("guard", name, GUARDS, Guard)  # type: ignore[type-abstract]


def _find(what: str, name: str, known: Mapping[str, type[P]], base: type[P]) -> type[P]:
    module, colon, path = text(f"{what}: name", name).partition(":")
    if not colon:
        return known[known_name(what, name, known)]
    try:
        found: Any = importlib.import_module(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except Exception as error:  # any exception of the imported module
        raise ConfigError(
            f"{what} {name!r} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())}); expected "
            "package.module:Class on Python's path."
        ) from error
    usable = isinstance(found, type) and issubclass(found, base) and not inspect.isabstract(found)
    if not usable or issubclass(found, Guard) != issubclass(base, Guard):
        wanted = f"{base.__module__}.{base.__name__}"
        raise ConfigError(
            f"{what} {name!r} is {found!r:.80}; expected a subclass of {wanted} without abstract methods."
        )
    return cast(type[P], found)
