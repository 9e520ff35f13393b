"""What the fuzz tests share: JSON and bytes with something changed, and for how long to try.

`pytest tests/fuzz` tries a few dozen examples of each kind of file, the same ones every time. With FUZZ_SECONDS set, as
`make fuzz` does, each test draws new ones for so long.
"""

import json
import os
import random
import time
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["../x", "\ud800", "/", "n" * 300, "\0", "1e9", "nan", 2**63, 10**400, 2**31, -1, 0, 1, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)

_YAML = [
    "!!int x", "!!bool x", "!!float x", "!!timestamp x", "!!binary x", "!!set {a}", "!!python/name:os.system", "*a",
    "9" * 5000, "0x" + "f" * 5000, "1:30:00", "2020-13-45", "???", "${seed}", "${oc.env:HOME}", "${",
    "<<: 1", "&a [*a]",
]  # fmt: skip


def fuzz(check: Callable[[st.DataObject], None], examples: int = 30) -> None:
    """Calls `check` with examples, for SECONDS where that is set."""
    until, tried = time.monotonic() + SECONDS, 0

    @settings(
        max_examples=50 if SECONDS else examples,
        derandomize=not SECONDS,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # shrinking takes minutes where an example takes a second
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        nonlocal tried
        tried += 1
        check(data)

    run()
    while time.monotonic() < until:
        run()
    print(f"{tried} examples")


def changed(data: st.DataObject, value: Any) -> Any:
    """A JSON value with one part of it, at any depth, replaced by another, doubled or removed."""
    draw = data.draw
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 5)) == 0:
        return draw(_JSON)
    copy = value.copy()
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    choice = draw(st.integers(0, 7))
    if choice == 0:
        del copy[key]
    elif choice == 1 and isinstance(copy, list):
        copy.append(copy[key])
    else:
        copy[key] = changed(data, value[key])
    return copy


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """Bytes with up to four places changed: other bytes, a word of ones or zeros, parts cut, doubled or inserted."""
    generator = random.Random(data.draw(st.integers(0, 2**32)))
    result = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at, size = generator.randrange(len(result) + 1), generator.choice([1, 2, 4, 8, 100])
        kind = data.draw(st.sampled_from(["replace", "flip", "word", "cut", "end", "repeat", "insert"]))
        if kind == "replace":
            result[at : at + size] = generator.randbytes(size)
        elif kind == "flip" and at < len(result):
            result[at] ^= 1 << generator.randrange(8)
        elif kind == "word":
            result[at : at + size] = generator.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * size
        elif kind == "cut":
            del result[at : at + size]
        elif kind == "end":
            del result[at:]
        elif kind == "repeat":
            result[at:at] = result[at : at + size] * generator.choice([1, 50])
        else:
            result[at:at] = generator.choice([b"\0", b"\n", b'"', b"{", b"[" * 2000, b"\xef\xbb\xbf", b"\xed\xa0\x80"])
    return bytes(result)


def changed_yaml(data: st.DataObject, value: Any) -> bytes:
    """A YAML file with a part of its value, one of its lines or a few of its bytes changed."""
    content = yaml.safe_dump(changed(data, value), allow_unicode=True).encode(errors="surrogatepass")
    kind = data.draw(st.integers(0, 3))
    if kind == 0:
        return damaged(data, content)
    if kind == 1:
        lines = content.splitlines()
        number = data.draw(st.integers(0, len(lines) - 1))
        lines[number] = lines[number].partition(b":")[0] + b": " + data.draw(st.sampled_from(_YAML)).encode()
        return b"\n".join(lines)
    return content


def changed_file(data: st.DataObject, content: bytes) -> bytes:
    """A JSON file with a part of its value, or a few of its bytes, changed."""
    if data.draw(st.integers(0, 3)) == 0:
        return damaged(data, content)
    return json.dumps(changed(data, json.loads(content))).encode()
