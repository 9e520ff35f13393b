"""Policy state as JSON values: exact to the bit, portable, and checksummed.

Arrays become {"dtype", "shape", "base64"} of little-endian bytes, so that a float64 survives to the bit. A sealed
state has a version and a CRC-32 over everything in it; `unseal` raises ResumeError where they do not match.
Invariant: unpack(pack(x)) equals x bit for bit, through json.dumps and json.loads, on any machine.
"""

import base64
import binascii
import json
import math
import sys
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ado_stream.errors import ResumeError
from ado_stream.value_types import Array, JsonMapping, JsonObject

VERSION = 1
_DTYPES = ("<f8", "<i8", "|b1")
_MAX_COUNT = 1 << 62
_MAX_NUMBER = 1e100  # its square is finite


def pack(array: Array) -> JsonObject:
    """`array` (float64, int64 or bool) as JSON values."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    assert little.dtype.str in _DTYPES, array.dtype
    text = base64.b64encode(little.tobytes()).decode("ascii")
    return {"dtype": little.dtype.str, "shape": list(array.shape), "base64": text}


def unpack(packed: Any, what: str, first: ArrayLike, shape: tuple[int | None, ...]) -> Array:
    """The array of `pack`, writable and in this machine's byte order, of `shape` (None: of any length).

    first: values that it may begin with. They decide the dtype, and what it may hold: any numbers where some are NaN,
    for what is not known yet; else finite ones or, where some are -inf, that; whole numbers none below the least of
    them. Raises ResumeError naming `what`.
    """
    like = np.asarray(first)
    try:
        array = np.frombuffer(base64.b64decode(packed["base64"], validate=True), like.dtype.newbyteorder("<"))
        found = packed["dtype"], tuple(packed["shape"])
        if found[0] != array.dtype.str or len(found[1]) != len(shape):
            raise ValueError(f"{found[0]} of shape {found[1]}")
        array = array.reshape(found[1]).astype(like.dtype)
    except (TypeError, KeyError, ValueError, binascii.Error) as error:
        raise ResumeError(f"policy state: {what} cannot be read ({type(error).__name__}: {error}).") from None
    if any(want not in (None, length) for want, length in zip(shape, array.shape, strict=True)):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ResumeError(
            f"policy state: {what} of shape {array.shape}, expected ({wanted}): saved with other options, or damaged."
        )
    least = like.min() if like.dtype.kind == "i" else -np.inf if (like == -np.inf).any() else -_MAX_NUMBER
    if not (np.isnan(like).any() or ((least <= array) & (array <= _MAX_NUMBER)).all()):
        raise ResumeError(f"policy state: {what} holds values that no policy saves, such as NaN.")
    return array


def check_shares(share_K: Array, what: str, least: float = 0.0) -> Array:
    """`share_K`, all `least` or more, whose last axis sums to 1. Raises ResumeError naming `what`."""
    if (share_K >= least).all() and (np.abs(share_K.sum(axis=-1) - 1.0) < 1e-6).all():
        return share_K
    raise ResumeError(f"policy state: {what} holds shares below {least:g}, or that do not sum to 1.")


def section(state: JsonMapping, name: str) -> JsonMapping:
    """state[name], a mapping. Raises ResumeError for anything else."""
    value = state.get(name)
    if not isinstance(value, Mapping):
        raise ResumeError(f"policy state: {name!r} is {value!r:.80}; expected a mapping.")
    return value


def whole_number(state: JsonMapping, name: str, least: int = 0) -> int:
    """state[name], a count of `least` or more. Raises ResumeError for anything else."""
    value = state.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MAX_COUNT:
        raise ResumeError(f"policy state: {name!r} is {value!r:.80}; expected a whole number, {least} or more.")
    return value


def step_or_none(state: JsonMapping, name: str) -> int | None:
    """state[name], a step, or None where there was none yet. Raises ResumeError for anything else."""
    return None if name in state and state[name] is None else whole_number(state, name)


def number_or_none(state: JsonMapping, name: str) -> float | None:
    """state[name], a finite number, or None. Raises ResumeError for anything else."""
    return None if name in state and state[name] is None else finite_number(state, name)


def finite_or_none(value: float) -> float | None:
    """`value` as a JSON value; None where it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None


def finite_number(state: JsonMapping, name: str) -> float:
    """state[name] as float. Raises ResumeError for what is no finite number."""
    value = state.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise ResumeError(f"policy state: {name!r} is {value!r:.80}; expected a finite number.")
    return float(value)


def sample_count(state: JsonMapping, name: str) -> float:
    """state[name], finite and 0 or more. Raises ResumeError for anything else."""
    value = finite_number(state, name)
    if value < 0.0:
        raise ResumeError(f"policy state: {name!r} is {value!r}; expected 0 or more.")
    return value


def seal(state: JsonObject) -> JsonObject:
    """`state` with its version and checksum."""
    sealed = {"version": VERSION, **state}
    return {**sealed, "crc32": _crc32(sealed)}


def unseal(state: object) -> JsonObject:
    """`state` without its checksum, after verifying it.

    Raises ResumeError when it is no mapping, of another version, or damaged.
    """
    if not isinstance(state, Mapping) or "version" not in state or "crc32" not in state:
        raise ResumeError("policy state: not saved by a policy (no version, no checksum).")
    if state["version"] != VERSION:
        raise ResumeError(f"policy state: version {state['version']!r}; this ado-stream reads version {VERSION}.")
    content = {key: value for key, value in state.items() if key != "crc32"}
    try:
        found = _crc32(content)
    except (TypeError, ValueError) as error:
        raise ResumeError(f"policy state: holds values that no policy saves ({error}).") from None
    if found != state["crc32"]:
        raise ResumeError(
            f"policy state: damaged, checksum {found:08x} but {state['crc32']!r} was saved.\n"
            "  Resume from an older checkpoint, or start a new run: `train ... --resume none`."
        )
    return content


def _crc32(value: object, crc: int = 0) -> int:
    """CRC-32 of JSON values, keys in sorted order, without copying long strings into one text."""
    if isinstance(value, Mapping):
        for key in sorted(value):
            crc = _crc32(value[key], zlib.crc32(str(key).encode(), crc))
        return zlib.crc32(b"}", crc)  # an end mark, so that moving a key to an outer mapping changes the sum
    if isinstance(value, (list, tuple)):
        for item in value:
            crc = _crc32(item, crc)
        return zlib.crc32(b"]", crc)
    if isinstance(value, str):
        return zlib.crc32(value.encode(), crc)
    return zlib.crc32(json.dumps(value).encode(), crc)
