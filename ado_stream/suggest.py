"""The nearest known word to one that is not known, for error messages."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The text "; did you mean 'NAME'?" with the name in `known` that is nearest to `word`, or "" where none is near.

    cutoff: least similarity from 0 to 1; raise it for long names that share a prefix.
    """
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""
