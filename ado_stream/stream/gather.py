"""Copies the rows of a batch from memory-mapped shards into one int64 array, in one loop without the GIL.

Rows lie at any byte: each is first copied to an aligned scratch row, which stays in the first-level cache, and cast
from there. On the way every token is compared with the vocabulary.
"""

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic


@intrinsic
def _pointer(typing_context, address):
    """A uint64 as an untyped pointer."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.uint64), codegen


@njit(cache=True, nogil=True)
def _gather(address_N, slot_N, scratch_bytes, scratch, vocab_size, out_BT):
    bad = -1
    for n in range(address_N.size):
        scratch_bytes[:] = carray(_pointer(address_N[n]), scratch_bytes.shape, np.uint8)  # type: ignore[call-arg]
        row = out_BT[slot_N[n]]
        over = False
        for t in range(scratch.size):
            token = np.int64(scratch[t])
            row[t] = token
            over |= (token < 0) | (token >= vocab_size)
        if over and bad < 0:
            bad = n
    return bad


def gather(
    address_N: np.ndarray, slot_N: np.ndarray, dtype: np.dtype, vocab_size: int | None, out_BT: np.ndarray
) -> int:
    """Writes the row at each address to `out_BT[slot]`; returns the first n with a token >= vocab_size or < 0, or -1.

    address_N: (N,) uint64, each the begin of T tokens of `dtype`. slot_N: (N,) int64. out_BT: (B, T) int64.
    vocab_size None: any token that int64 holds.
    """
    scratch = np.empty(out_BT.shape[1], dtype)
    limit = np.iinfo(np.int64).max if vocab_size is None else vocab_size
    return _gather(address_N, slot_N, scratch.view(np.uint8), scratch, limit, out_BT)
