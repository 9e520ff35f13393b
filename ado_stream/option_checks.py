"""Checks of arguments that users give: each returns the checked value or raises ConfigError with got and expected.

`name` is the argument in messages, with what it belongs to. Invariant: a returned value has the required type and
range; NaN, infinity, and true or false in place of a number are refused.
"""

import inspect
import math
import os
import re
from collections.abc import Callable, Collection, Iterable
from numbers import Integral, Real
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ado_stream.errors import ConfigError
from ado_stream.suggest import did_you_mean
from ado_stream.value_types import Floats

Checked = TypeVar("Checked")
_WHOLE = re.compile(r"\d{1,18}", re.ASCII)
MOST_COUNT = 1 << 53  # whole numbers are exact in a float up to here
MOST_ROWS = 1 << 24  # of a batch: arrays of so many fit in memory
MOST_LAG = 1 << 16  # steps: what is kept for each of them must fit in memory
MOST_STEPS = 100_000_000  # of a run, whose plan goes through all of them
MOST_THREADS = 1 << 12  # and processes, of one machine


def optional(check: Callable[..., Checked], name: str, value: object, *bounds: object) -> Checked | None:
    """None for None, else what `check(name, value, *bounds)` returns."""
    return None if value is None else check(name, value, *bounds)


def whole(name: str, value: object, least: float = 0, most: float = MOST_COUNT) -> int:
    """`value` as an int from `least` to `most`; NumPy's integers too."""
    found = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if found is None or not least <= found <= most:
        above = found is not None and found > most
        bound = f", {most:.0f} at most" if above else f", {least} or more" if least > -math.inf else ""
        raise ConfigError(f"{name} is {value!r:.80}; expected a whole number{bound}.")
    return found


def lag(name: str, value: object) -> int:
    """Steps between a loss and the mixture that follows from it, or made ahead: something is kept for each of them."""
    return whole(name, value, 0, MOST_LAG)


def threads(name: str, value: object, least: float = 0) -> int:
    """A number of threads or processes of one machine."""
    return whole(name, value, least, MOST_THREADS)


def environment_whole(name: str, usual: int, least: float = 0, most: float = MOST_COUNT) -> int:
    """The environment variable `name` as a whole number from `least` to `most`; `usual` where it is not set."""
    found: object = os.environ.get(name, usual)
    if isinstance(found, str) and _WHOLE.fullmatch(found.strip()):
        found = int(found)
    return whole(f"the environment variable {name}", found, least, most)


def number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """`value` as a finite float from `least` to `most`."""
    finite = _finite(value)
    if finite is None or not least <= finite <= most:
        bounds = (
            f" from {least:g} to {most:g}" if most < math.inf else f", {least:g} or more" if least > -math.inf else ""
        )
        raise ConfigError(f"{name} is {value!r:.80}; expected a finite number{bounds}.")
    return finite


def positive(name: str, value: object) -> float:
    """`value` as a finite float above 0."""
    finite = _finite(value)
    if finite is None or finite <= 0:
        raise ConfigError(f"{name} is {value!r:.80}; expected a finite number above 0.")
    return finite


def flag(name: str, value: object) -> bool:
    """`value`, which must be True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r:.80}; expected true or false.")
    return value


def one_of(name: str, value: object, choices: Collection[str]) -> str:
    """`value`, which must be among `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name} is {value!r:.80}; expected one of {', '.join(choices)}.")
    return value


def known_name(kind: str, name: str, known: Collection[str], where: str = "") -> str:
    """`name` of a domain, or of another `kind`, which must be among `known`. where: what messages begin with."""
    if name not in known:
        raise ConfigError(f"{where}no {kind} {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}.")
    return name


def text(name: str, value: object) -> str:
    """`value`, which must be a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} is {value!r:.80}; expected a text.")
    return value


def instance(name: str, value: Checked, kind: type) -> Checked:
    """`value`, which must be an object of the class `kind`."""
    if not isinstance(value, kind):
        raise ConfigError(f"{name} is {value!r:.80}; expected an object of {kind.__module__}.{kind.__name__}.")
    return value


def path_text(name: str, value: object) -> str:
    """`value`, a path or URL as a string or path object, as a string that is not blank; ~ is the home folder."""
    if not isinstance(value, str | os.PathLike) or not isinstance(found := os.fspath(value), str) or not found.strip():
        raise ConfigError(f"{name} is {value!r:.80}; expected a path.")
    if "\0" in found:
        raise ConfigError(f"{name} is {value!r:.80}; no path holds a NUL.")
    return os.path.expanduser(found)


def path_texts(name: str, value: object) -> tuple[str, ...]:
    """`value`, one path or many, as `path_text` returns each."""
    paths = (value,) if isinstance(value, str | os.PathLike) else value
    if not isinstance(paths, Iterable):
        raise ConfigError(f"{name} is {value!r:.80}; expected paths.")
    return tuple(path_text(name, path) for path in paths)


def floats(value: ArrayLike) -> Floats | None:
    """`value` as a float64 array, a copy; None where it is none of real numbers on the host, without a gradient."""
    try:
        return None if np.iscomplexobj(value) else np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: of a tensor with a gradient
        return None


def check_arguments(name: str, function: Callable[..., object], given: Iterable[str]) -> None:
    """Raises ConfigError unless `given` are keyword arguments that complete a call of `function` with one positional.

    function: a class whose constructor takes a prior or a policy first.
    """
    parameters = list(inspect.signature(function).parameters.values())[1:]
    named = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        refuse_unknown(name, given, [each.name for each in named])
    given = set(given)
    missing = [each.name for each in named if each.default is each.empty and each.name not in given]
    if missing:
        raise ConfigError(f"{name}: option {', '.join(map(repr, missing))} is missing.")


def refuse_unknown(name: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raises ConfigError for the first of `given` that is not in `known`, with the nearest known one."""
    for option in given:
        if option not in known:
            takes = f"; it takes: {', '.join(known)}" if known else "; it takes none"
            raise ConfigError(f"{name}: unknown option {option!r}{did_you_mean(option, known)}{takes}.")


def _finite(value: object) -> float | None:
    try:
        return (
            float(value) if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) else None
        )
    except OverflowError:  # of an int beyond float64
        return None
