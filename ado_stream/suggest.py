"""Names in messages: the nearest known one to one that is not known, and long lists cut short."""

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(word: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The text " (did you mean 'NAME'?)" with the name in `known` that is nearest to `word`, or "" where none is near.

    cutoff: least similarity from 0 to 1; raise it for long names that share a prefix.
    """
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=cutoff)
    return f" (did you mean {near[0]!r}?)" if near else ""


def first_names(names: Sequence[str], most: int = 6) -> str:
    """The first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def quoted_list(names: Sequence[str], most: int = 6) -> str:
    """The same, each name in quotes."""
    return first_names([repr(name) for name in names], most)
