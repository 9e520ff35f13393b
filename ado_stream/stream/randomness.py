"""Keys, and permutations of tables that are held anyway; the streams of numbers behind a key are in compiled.py."""

import numpy as np
import xxhash

from ado_stream.stream.compiled import words


def key_of(*parts: int | str) -> np.uint64:
    """One 64-bit key from integers and strings, by xxh64 of their unambiguous text; order matters."""
    text = "\x1f".join([f"{type(part).__name__}:{part}" for part in parts])
    return np.uint64(xxhash.xxh64_intdigest(text.encode()))


def permutation(size: int, key: np.uint64) -> np.ndarray:
    """A permutation of [0, size), int64: the order of keyed hashes."""
    return np.argsort(words(key, size), kind="stable")
