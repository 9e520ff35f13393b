"""Counter-based randomness: hashes and permutations that depend on their key and on nothing else.

Integer arithmetic only, so the same numbers come on every machine, NumPy version and thread. `mix64` is the finaliser
of SplitMix64 (Steele, Lea, Flood 2014, variant 13 of Stafford). `permute` is an alternating Feistel network with cycle
walking (Black, Rogaway 2002): a bijection of [0, n) that is evaluated one element at a time, so the order of 10^9
samples costs no memory. It shuffles; it does not encrypt.
"""

import numpy as np
import xxhash
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_ROUNDS = 8  # four for each half; six already pass the tests of uniformity
_MASK = (1 << 64) - 1


@njit(cache=True, nogil=True, inline="always")
def mix64(value: np.uint64) -> np.uint64:
    """A bijection of 64-bit words in which every output bit depends on every input bit."""
    value = (value ^ (value >> np.uint64(30))) * _MULTIPLIER_1
    value = (value ^ (value >> np.uint64(27))) * _MULTIPLIER_2
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")
def word(key: np.uint64, counter: np.uint64) -> np.uint64:
    """The 64-bit word number `counter` of the stream `key`."""
    return mix64(mix64(counter * _GOLDEN + _GOLDEN) ^ key)


@njit(cache=True, nogil=True, inline="always")
def uniform(key: np.uint64, counter: np.uint64) -> float:
    """The float64 number `counter` of the stream `key`, in [0, 1): 53 random bits."""
    return np.float64(word(key, counter) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True, nogil=True)
def permute(index: int, size: int, key: np.uint64) -> int:
    """Where `index` of [0, size) goes under the permutation `key`; fewer than two walks of the network on average."""
    if size <= 1:
        return 0
    bits = 2
    while (1 << bits) < size:
        bits += 1
    low_bits = np.uint64(bits // 2)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    high_mask = (np.uint64(1) << (np.uint64(bits) - low_bits)) - np.uint64(1)
    value = np.uint64(index)
    while True:
        low = value & low_mask
        high = value >> low_bits
        for pair in range(_ROUNDS // 2):
            low ^= mix64(((high << np.uint64(4)) | np.uint64(2 * pair)) * _GOLDEN + key) & low_mask
            high ^= mix64(((low << np.uint64(4)) | np.uint64(2 * pair + 1)) * _GOLDEN + key) & high_mask
        value = (high << low_bits) | low
        if value < np.uint64(size):
            return np.int64(value)


@njit(cache=True, nogil=True)
def _words(key: np.uint64, count: int) -> np.ndarray:
    words = np.empty(count, np.uint64)
    for index in range(count):
        words[index] = word(key, np.uint64(index))
    return words


def permutation(size: int, key: np.uint64) -> np.ndarray:
    """A whole permutation of [0, size), int64, for tables that are held anyway (shards): the order of keyed hashes."""
    return np.argsort(_words(key, size), kind="stable")


def key_of(*parts: int | str) -> np.uint64:
    """One 64-bit key from integers and strings, by xxh64 of their unambiguous text; order matters."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return np.uint64(xxhash.xxh64_intdigest(text.encode()) & _MASK)
