"""The check of a JSON file that anybody may have written: its syntax, and its shape against TypedDicts.

What passes has the declared keys with values of the declared types, text that UTF-8 can hold, and numbers that are
counts: 0 or more, below 2^63.
"""

import json
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

from ado_stream.errors import AdoStreamError, IndexInvalid


def decode_json(data: bytes, where: str, error_type: type[AdoStreamError] = IndexInvalid) -> Any:
    """The JSON value in `data`; `where` names the file in errors. Raises `error_type` for anything else."""
    try:
        value = json.loads(data, object_pairs_hook=_unique)
        json.dumps(value, ensure_ascii=False).encode()  # JSON may escape half of a surrogate pair
    except (ValueError, RecursionError) as error:
        raise error_type(f"{where}: cannot be read as JSON: {error}.") from None
    return value


def check_type(value: object, kind: Any, where: str) -> None:
    """Raises IndexInvalid where `value` is not of `kind`: a TypedDict, dict[str, ...], str or int; others are free."""
    if is_typeddict(kind):
        _expect(isinstance(value, dict), where, "an object", value)
        assert isinstance(value, dict)
        missing = kind.__required_keys__ - value.keys()
        if missing:
            raise IndexInvalid(f"{where}: keys missing: {', '.join(sorted(missing))}.")
        for key, hint in get_type_hints(kind).items():
            if key in value:
                check_type(value[key], hint, f"{where}: {key}")
    elif get_origin(kind) is dict:
        _expect(isinstance(value, dict), where, "an object", value)
        assert isinstance(value, dict)
        for key, inner in value.items():
            check_type(inner, get_args(kind)[1], f"{where}: {key!r}")
    elif kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
        _expect(fits, where, "a count", value)
    elif kind is str:
        _expect(isinstance(value, str), where, "text", value)


def _expect(holds: bool, where: str, expected: str, value: object) -> None:
    if not holds:
        shown = repr(value)
        raise IndexInvalid(f"{where} {shown if len(shown) < 80 else shown[:80] + '...'}: expected {expected}.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names must differ: json.loads alone would keep the last of two."""
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{repeated!r} is given twice")
    return value
