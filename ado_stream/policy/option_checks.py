"""Numbers and words that users give as settings: the value comes back, or a ConfigError says what was got and expected.

`name` is how messages call the setting, with the policy or file it belongs to. Invariant: what leaves this file has the
type and the range asked for; NaN, infinity, and true or false in place of a number never pass.
"""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from ado_stream.errors import ConfigError


def whole(name: str, value: Any, least: int = 0) -> int:
    """`value` as an int, `least` or more."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}; expected a whole number, {least} or more.")
    return int(value)


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """`value` as a finite float from `least` to `most`."""
    if not _finite(value) or not least <= value <= most:
        bounds = (
            f" from {least:g} to {most:g}" if most < math.inf else f", {least:g} or more" if least > -math.inf else ""
        )
        raise ConfigError(f"{name} is {value!r}; expected a finite number{bounds}.")
    return float(value)


def positive(name: str, value: Any) -> float:
    """`value` as a finite float above 0."""
    if not _finite(value) or not value > 0:
        raise ConfigError(f"{name} is {value!r}; expected a finite number above 0.")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """`value`, which must be True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; expected true or false.")
    return value


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """`value`, which must be among `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(choices)}.")
    return value


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
