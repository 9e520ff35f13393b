"""Checks of JSON files from untrusted sources: the syntax, and the types against TypedDicts and dataclasses.

What passes has the declared keys with values of the declared types, text that UTF-8 can hold, and numbers in range: int
is a count, 0 or more and below 2^63; float any number that a float64 holds, NaN and infinities included.
"""

import functools
import json
import types
from collections.abc import Collection
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints, is_typeddict

from ado_stream.errors import AdoStreamError, IndexInvalid
from ado_stream.value_types import JsonObject

_MAX_COUNT, _MAX_NUMBER = 1 << 63, 1 << 1023
_NAMES = {dict: "an object", list: "a list", tuple: "a list", int: "a count", float: "a number", str: "text"}
T = TypeVar("T")
_Error = type[AdoStreamError]
_hints = functools.cache(get_type_hints)


def decode_json(data: bytes, kind: type[T], where: str, error_type: _Error = IndexInvalid) -> T:
    """The JSON value in `data`, of `kind` by check_type, a dataclass as its fields. `where` names the file in errors.

    Raises `error_type` for anything else.
    """
    try:
        value = json.loads(data, object_pairs_hook=unique_names)
        json.dumps(value, ensure_ascii=False).encode()  # JSON may escape half of a surrogate pair
    except (ValueError, RecursionError) as error:
        raise error_type(f"{where}: cannot be read as JSON: {error}.") from None
    check_type(value, kind, where, error_type)
    return cast(T, value)


def check_type(value: object, kind: Any, where: str, error_type: _Error = IndexInvalid) -> None:
    """Raises `error_type` where `value` is not of `kind`.

    A kind is a TypedDict, a dataclass for an object with all of its fields, dict[str, ...], list[...], tuple[A, B] for
    a list of an A and a B, str, Path for its text, int or float, or such a kind | None; others are not checked.
    """
    arguments = get_args(kind)
    if types.NoneType in arguments:
        if value is not None:
            check_type(value, arguments[0], where, error_type)
        return
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, kind):  # made already
        return
    is_object = is_typeddict(kind) or is_dataclass(kind)
    base = dict if is_object else str if kind is Path else get_origin(kind) or kind
    if base in _NAMES and not _is(value, base):
        shown = repr(value)
        raise error_type(f"{where} {shown if len(shown) < 80 else shown[:80] + '...'}: expected {_NAMES[base]}.")
    if is_object:
        assert isinstance(value, dict)
        missing = getattr(kind, "__required_keys__", _hints(kind).keys()) - value.keys()
        if missing:
            raise error_type(f"{where}: keys missing: {', '.join(sorted(missing))}.")
        for key, hint in _hints(kind).items():
            if key in value:
                check_type(value[key], hint, f"{where}: {key}", error_type)
    elif base is dict:
        assert isinstance(value, dict)
        for key, inner in value.items():
            check_type(inner, arguments[1], f"{where}: {key!r}", error_type)
    elif base is list:
        assert isinstance(value, list)
        for inner in value:
            check_type(inner, arguments[0], where, error_type)
    elif base is tuple:
        assert isinstance(value, list)
        if len(value) != len(arguments):
            raise error_type(f"{where}: a list of {len(value)}: expected {len(arguments)} values.")
        for inner, each in zip(value, arguments, strict=True):
            check_type(inner, each, where, error_type)


def _is(value: object, base: type) -> bool:
    if base in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, base)):
            return False
        return 0 <= value < _MAX_COUNT if base is int else isinstance(value, float) or abs(value) < _MAX_NUMBER
    return isinstance(value, list if base is tuple else base)


def unique_names(pairs: list[tuple[str, object]], among: Collection[str] | None = None) -> JsonObject:
    """A JSON object, in which no name, or none `among` these, may be given twice: json.loads alone would keep the last.

    Raises ValueError.
    """
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs if among is None or name in among]
        if (repeated := next((name for name in names if names.count(name) > 1), None)) is not None:
            raise ValueError(f"{repeated!r} is given twice")
    return value
