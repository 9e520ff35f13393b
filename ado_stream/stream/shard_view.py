"""One verified MDS shard, memory-mapped: the addresses of each row's tokens.

MDS: uint32 n, uint32[n + 1] offsets, a JSON header, then the samples; a sample is a uint32 size for each variable
column, then the columns. Every offset is checked once at opening, so that a gather may read without checks.
The map stays valid when the file is unlinked, and so when the shard is evicted while it is read.
"""

from dataclasses import dataclass

import numpy as np

from ado_stream.errors import DataError, ShardCorrupt
from ado_stream.stream.sample_index import ShardRows
from ado_stream.value_types import Ints, TokenDtype, Words


@dataclass(frozen=True)
class TokenColumn:
    """Where the tokens of a sample are and how they are written.

    dtype: of one token. columns_before: the fixed size in bytes of each column before it, None when variable.
    num_variable: variable-size columns of the whole sample; each adds a uint32 size at the sample's start.
    size_bytes: of the column, None when variable. shaped: every sample starts with its shape.
    """

    name: str
    dtype: TokenDtype
    columns_before: tuple[int | None, ...]
    num_variable: int
    size_bytes: int | None
    shaped: bool


class ShardView(ShardRows):
    """The rows of one MDS shard.

    Raises ShardCorrupt when the header does not describe this file, DataError when rows differ in length.
    """

    def __init__(self, mapped: memoryview, column: TokenColumn, num_rows: int, label: str):
        self._bytes = np.frombuffer(mapped, np.uint8)  # keeps the map alive
        offset_N = self._offsets(num_rows, label)
        begin_N, length_N = self._token_spans(offset_N, column, label)
        length = int(length_N[0])
        if (length_N != length).any():
            row = int(np.argmax(length_N != length))
            raise DataError(
                f"{label}: row {row} holds {length_N[row] // column.dtype.itemsize} tokens, row 0 holds "
                f"{length // column.dtype.itemsize}. Pack the text to one length; `ado-stream prepare` does."
            )
        self.row_tokens = length // column.dtype.itemsize
        step_N = np.diff(begin_N)
        self._base = self._bytes.ctypes.data
        stride = int(step_N[0]) if num_rows > 1 else 0
        is_regular = bool((step_N == stride).all())
        self._begin_N = None if is_regular else begin_N
        self.regular = (self._base + int(begin_N[0]), stride) if is_regular else (0, 0)  # (0, 0): see `locate`

    def address(self, row_N: Ints) -> Words:
        if self._begin_N is None:
            return super().address(row_N)
        return (self._base + self._begin_N[row_N]).astype(np.uint64)

    def _offsets(self, num_rows: int, label: str) -> Ints:
        size = self._bytes.size
        head = 4 * (num_rows + 2)
        if size < head:
            raise ShardCorrupt(
                f"{label}: {size} bytes cannot hold the offsets of {num_rows} rows. Run `ado-stream lint`."
            )
        word_N = self._bytes[:head].view("<u4").astype(np.int64)
        offset_N = word_N[1:]
        if word_N[0] != num_rows or offset_N[0] < head or offset_N[-1] != size or (np.diff(offset_N) <= 0).any():
            raise ShardCorrupt(
                f"{label}: its header says {word_N[0]} rows up to byte {offset_N[-1]}, the index {num_rows} rows and "
                f"the file {size} bytes. Run `ado-stream lint` on the data set."
            )
        return offset_N

    def _token_spans(self, offset_N: Ints, column: TokenColumn, label: str) -> tuple[Ints, Ints]:
        """Start and length in bytes of every row's tokens, checked to lie inside the row."""
        begin_N = offset_N[:-1] + 4 * column.num_variable  # past the sizes of the variable columns
        size_word = 0  # which of these sizes is the next column's
        for size in column.columns_before:
            if size is None:
                begin_N = begin_N + self._word(offset_N[:-1] + 4 * size_word, offset_N[1:], label)
                size_word += 1
            else:
                begin_N = begin_N + size
        if column.size_bytes is None:
            length_N = self._word(offset_N[:-1] + 4 * size_word, offset_N[1:], label)
        else:
            length_N = np.full(begin_N.size, column.size_bytes, np.int64)
        end_N = begin_N + length_N
        if column.shaped:
            begin_N = self._after_shape(begin_N, offset_N[1:], label)
        if (
            (end_N > offset_N[1:]).any()
            or (end_N <= begin_N).any()
            or ((end_N - begin_N) % column.dtype.itemsize).any()
        ):
            raise ShardCorrupt(f"{label}: tokens outside their row. The shard or its index.json is damaged.")
        return begin_N, end_N - begin_N

    def _word(self, at_N: Ints, end_N: Ints, label: str) -> Ints:
        """The uint32 at each of `at_N`, which must lie before `end_N`."""
        if (at_N + 4 > end_N).any():
            raise ShardCorrupt(f"{label}: a row too short for its columns' sizes.")
        # By bytes: rows begin anywhere, and a view as uint32 needs alignment.
        byte_N4 = self._bytes[at_N[:, None] + np.arange(4)].astype(np.int64)
        word_N: Ints = byte_N4 @ np.array([1, 1 << 8, 1 << 16, 1 << 24])
        return word_N

    def _after_shape(self, begin_N: Ints, end_N: Ints, label: str) -> Ints:
        """Skips Streaming's (ndim << 2 | width) byte and the shape; tokens must have one dimension."""
        if (begin_N >= end_N).any():
            raise ShardCorrupt(f"{label}: a row too short for its tokens.")
        kind_N = self._bytes[begin_N].astype(np.int64)
        if (kind_N >> 2 != 1).any():
            raise DataError(f"{label}: tokens with {int(kind_N[0]) >> 2} dimensions; expected one.")
        return begin_N + 1 + (1 << (kind_N & 3))  # the code's low bits: log2 of the bytes of a dimension
