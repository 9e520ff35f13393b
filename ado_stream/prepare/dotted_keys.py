"""Dotted keys of records, where the names that are joined may hold dots themselves: meta.pile.set.

Of several ways to split a key, the one with the longest first name is taken, then the longest second one, and so on.
"""

from collections.abc import Iterator

MISSING = object()


def splits(key: str) -> Iterator[tuple[str, str | None]]:
    """(first name, the rest) in every way, the longest name first: there is no rest there, None."""
    yield key, None
    end = key.rfind(".")
    while end >= 0:
        yield key[:end], key[end + 1 :]
        end = key.rfind(".", 0, end)


def names_in(key: str) -> set[str]:
    """Every name that the key may be made of."""
    parts = key.split(".")
    return {".".join(parts[n:m]) for n in range(len(parts)) for m in range(n + 1, len(parts) + 1)}


def lookup(record: object, key: str) -> object:
    """The value at a key, or MISSING."""
    if not isinstance(record, dict):
        return MISSING
    for name, rest in splits(key):
        if name in record and (found := record[name] if rest is None else lookup(record[name], rest)) is not MISSING:
            return found
    return MISSING
