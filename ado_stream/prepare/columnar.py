"""Parquet and Arrow files: cut into ranges of row groups or record batches; only the needed columns are read.

pyarrow is imported here alone, and only for such a file. A row group is the smallest part that can be read by itself,
so memory is bounded by the largest one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ado_stream.errors import ConfigError, DataError

_ROWS_AT_ONCE = 1024
_GROUP_BYTES = 4 << 20


@dataclass(frozen=True)
class RowRange:
    """Row groups (parquet) or record batches (arrow) `first` to `stop`, the first one starting at row `first_row`."""

    kind: str
    first: int
    stop: int
    first_row: int
    source_bytes: int


def cut_rows(path: str, kind: str) -> Iterator[RowRange]:
    """The table in ranges of a few MB. Raises DataError for a file that is not of its kind."""
    groups = _parquet_groups(path) if kind == "parquet" else _arrow_groups(path)
    total_bytes = max(1, sum(size for _, size in groups))
    scale = os.path.getsize(path) / total_bytes
    first = row = rows = size = 0
    for number, (group_rows, group_bytes) in enumerate(groups):
        rows += group_rows
        size += group_bytes
        if size >= _GROUP_BYTES or number == len(groups) - 1:
            yield RowRange(kind, first, number + 1, row, round(size * scale))
            first, row, rows, size = number + 1, row + rows, 0, 0


def read_rows(path: str, part: RowRange, text_key: str, domain_key: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of every row of the range; the record holds the columns of the two keys."""
    keys = [key for key in (text_key, domain_key) if key is not None]
    batches = _parquet_batches(path, part, keys) if part.kind == "parquet" else _arrow_batches(path, part, keys)
    row = part.first_row
    for batch in batches:
        for record in batch.to_pylist():
            yield f"{path}: row {row}", record
            row += 1


def _parquet_groups(path: str) -> list[tuple[int, int]]:
    import pyarrow.parquet as parquet

    with _arrow_errors(path), parquet.ParquetFile(path) as table:
        groups = (table.metadata.row_group(number) for number in range(table.num_row_groups))
        return [(group.num_rows, group.total_byte_size) for group in groups]


def _parquet_batches(path: str, part: RowRange, keys: list[str]) -> Iterator[Any]:
    import pyarrow.parquet as parquet

    with _arrow_errors(path), parquet.ParquetFile(path) as table:
        columns = _columns(path, table.schema_arrow.names, keys)
        yield from table.iter_batches(
            _ROWS_AT_ONCE, row_groups=list(range(part.first, part.stop)), columns=columns, use_threads=False
        )


def _arrow_groups(path: str) -> list[tuple[int, int]]:
    with _arrow_errors(path):
        return [(batch.num_rows, batch.nbytes) for batch in _arrow_file(path)]


def _arrow_batches(path: str, part: RowRange, keys: list[str]) -> Iterator[Any]:
    with _arrow_errors(path):
        for number, batch in enumerate(_arrow_file(path)):
            if number >= part.stop:
                return
            if number >= part.first:
                yield from _slices(batch.select(_columns(path, batch.schema.names, keys)))


def _slices(batch: Any) -> Iterator[Any]:
    for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
        yield batch.slice(start, _ROWS_AT_ONCE)


def _arrow_file(path: str) -> Iterator[Any]:
    """Record batches of an Arrow file of either kind: stream (as Hugging Face's datasets writes) or random access."""
    import pyarrow as pa

    with pa.memory_map(path) as source:
        try:
            table = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            yield from pa.ipc.open_stream(source)
            return
        for number in range(table.num_record_batches):
            yield table.get_batch(number)


def _columns(path: str, names: list[str], keys: list[str]) -> list[str]:
    columns = [key if key in names else key.split(".")[0] for key in keys]
    for key, column in zip(keys, columns, strict=True):
        if column not in names:
            raise ConfigError(f"{path}: no column for key {key!r}; columns: {', '.join(names)}.")
    return sorted(set(columns))


@contextmanager
def _arrow_errors(path: str) -> Iterator[None]:
    """Turns pyarrow's errors about a damaged file into a DataError that names it."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}.\n  The file is damaged. Download it again.") from error
