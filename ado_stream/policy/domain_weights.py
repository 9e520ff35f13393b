"""Per-domain numbers of a config, parsed and checked: weights, sizes, losses; shares that sum to one.

Given as a list in the order of the domains, or as a mapping {domain: number}. Invariant: what is returned is finite and
not negative; anything else raises a ConfigError that names the domain.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ado_stream.errors import ConfigError
from ado_stream.option_checks import floats
from ado_stream.suggest import quoted_list
from ado_stream.value_types import Array, Floats

Key = TypeVar("Key")
Value = TypeVar("Value")
Weights = Mapping[str, float] | Sequence[float] | Array
_HUGE = 1e300


def num_weights(weights: Weights, what: str) -> int:
    """K. Raises ConfigError for an object without a length; `parse_values` checks its numbers."""
    try:
        return len(weights)
    except TypeError:
        raise ConfigError(f"{what} is {weights!r:.80}; expected a weight for each domain.") from None


def domain_names(weights: Weights) -> list[str] | None:
    """The domains' names in order, or None when `weights` is a bare sequence."""
    return [str(name) for name in weights] if isinstance(weights, Mapping) else None


def with_text_keys(given: Mapping[Key, Value], what: str) -> dict[str, Value]:
    """`given` with its keys as text: YAML reads a domain called 2023 as a number.

    Raises ConfigError for a domain given as both.
    """
    named = {str(name): value for name, value in given.items()}
    if len(named) != len(given):
        names = [str(name) for name in given]
        twice = next(name for name in named if names.count(name) > 1)
        raise ConfigError(f"{what}: domain {twice!r} is given twice, as a number and as text.")
    return named


def domain_labels(names: Sequence[str] | None, num_domains: int) -> list[str]:
    """The domains' names in messages and counters; their indices where they have none."""
    return list(names) if names is not None else [str(index) for index in range(num_domains)]


def parse_values(weights: Weights, names: Sequence[str] | None, num_domains: int, what: str) -> NDArray[np.float64]:
    """(K,) float64 in the order of `names`; finite and not negative.

    what: what messages call the numbers. Raises ConfigError naming a domain that is missing, unknown or negative.
    """
    if isinstance(weights, Mapping):
        weights = _in_order(weights, domain_labels(names, num_domains), what)
    value_K = floats(weights)
    if value_K is None:
        raise ConfigError(f"{what}: expected {num_domains} numbers, got {weights!r:.80}.")
    if value_K.shape != (num_domains,):
        raise ConfigError(f"{what}: {num_domains} domains need {num_domains} numbers, got shape {value_K.shape}.")
    bad_K = ~(np.isfinite(value_K) & (value_K >= 0))
    if bad_K.any():
        index = int(np.argmax(bad_K))
        label = domain_labels(names, num_domains)[index]
        raise ConfigError(f"{what}: domain {label!r} has {value_K[index]}; give it a finite number, 0 or more.")
    return value_K


def parse_shares(weights: Weights, names: Sequence[str] | None, num_domains: int, what: str) -> NDArray[np.float64]:
    """(K,) float64 shares, `weights` over their sum. Raises ConfigError as `parse_values`, and when all are 0."""
    value_K = parse_values(weights, names, num_domains, what)
    if value_K.max(initial=0.0) > _HUGE:
        value_K = value_K / value_K.max()  # whose sum would be infinite
    total = float(value_K.sum())
    if not total > 0:
        raise ConfigError(f"{what}: all {num_domains} weights are 0; at least one domain must be drawn.")
    return value_K / total


def _in_order(weights: Mapping[Key, float], labels: list[str], what: str) -> list[float]:
    named = with_text_keys(weights, what)
    missing = [label for label in labels if label not in named]
    unknown = [name for name in named if name not in labels]
    if missing or unknown:
        parts = [f"missing {quoted_list(missing)}"] if missing else []
        parts += [f"unknown {quoted_list(unknown)}"] if unknown else []
        raise ConfigError(f"{what}: {'; '.join(parts)}. Give one weight to each of the {len(labels)} domains.")
    return [named[label] for label in labels]


def target_shares(
    weights: Weights | str, prior_K: Floats, names: Sequence[str] | None, val_sizes: Weights | None
) -> Floats:
    """(K,) shares that `target` starts at: "size" (the prior), "uniform", "val" (of val_sizes), or one weight a domain.

    Raises ConfigError.
    """
    num = len(prior_K)
    if not isinstance(weights, str):
        return parse_shares(weights, names, num, "target: weights")
    if weights == "val":
        if val_sizes is None:
            raise ConfigError("target: weights 'val', but the validation split's sizes are unknown; give val_sizes.")
        return parse_shares(val_sizes, names, num, "target: weights 'val': samples of the validation split")
    if weights not in ("size", "uniform"):
        raise ConfigError(f"target: weights {weights!r}; expected size, uniform, val, or one weight a domain.")
    return prior_K if weights == "size" else np.full(num, 1.0 / num)
