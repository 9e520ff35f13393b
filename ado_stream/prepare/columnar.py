"""Parquet and Arrow files: cut into ranges of row groups or record batches; only the needed columns are read.

pyarrow is imported here alone, and only for such a file. A row group is the smallest part that can be read by itself,
so memory is bounded by the largest one; decompression bombs are refused. A column is validated before
its values are read: pyarrow does not check damaged offsets.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from ado_stream.errors import AdoStreamError, ConfigError, DataError
from ado_stream.prepare.dotted_keys import splits
from ado_stream.prepare.record_errors import RecordErrors
from ado_stream.storage.decompress import is_bomb

_ROWS_AT_ONCE = 64
_GROUP_BYTES = 4 << 20
_LOST_ROWS = "row of a damaged file"
_ARROW_FILE_HEAD = 8  # of the random access kind; what follows is a stream
_Columns: TypeAlias = list[list[object]]
_CONTINUATION = b"\xff\xff\xff\xff"  # before each message's length since Arrow 0.15; a length of 0 ends the stream


class NotUtf8:
    """The value of a text that is not UTF-8."""


@dataclass(frozen=True)
class RowRange:
    """Row groups (parquet) or record batches (arrow) `first` to `stop`, the first one starting at row `first_row`."""

    kind: str
    first: int
    stop: int
    first_row: int
    num_rows: tuple[int, ...]  # of each group
    source_bytes: int


def cut_rows(path: str, kind: str, errors: RecordErrors) -> Iterator[RowRange]:
    """The table in ranges of a few MB; of a damaged file, those before the damage."""
    groups: list[tuple[int, int]] = []
    damage = None
    try:
        groups.extend(_parquet_groups(path) if kind == "parquet" else _arrow_groups(path))
    except DataError as error:
        damage = error
    file_bytes = os.path.getsize(path)
    total_bytes = max(1, sum(size for _, size in groups))
    scale = min(1.0, file_bytes / total_bytes) if damage else file_bytes / total_bytes
    first = row = size = 0
    for number, (_, group_bytes) in enumerate(groups):
        size += group_bytes
        if size >= _GROUP_BYTES or number == len(groups) - 1:
            rows = tuple(num_rows for num_rows, _ in groups[first : number + 1])
            yield RowRange(kind, first, number + 1, row, rows, round(size * scale))
            first, row, size = number + 1, row + sum(rows), 0
    if damage is not None:
        errors.add_damage(damage, max(0, file_bytes - total_bytes) if groups else file_bytes)


def read_rows(
    path: str, part: RowRange, text_key: str, domain_key: str | None, errors: RecordErrors
) -> Iterator[tuple[str, list[object]]]:
    """(place, [value of each key]) of every readable row; the other rows of a damaged group are counted as errors."""
    keys = [key for key in (text_key, domain_key) if key is not None]
    batches = _parquet_batches(path, part, keys) if part.kind == "parquet" else _arrow_batches(path, part, keys)
    row = end = part.first_row
    group, raw_bytes = -1, 0
    for number, columns in batches:
        while group < number:
            group += 1
            row, end = end, end + part.num_rows[group]
        if isinstance(columns, DataError):
            damage = DataError(f"{path}: row {row} or after: {str(columns).removeprefix(f'{path}: ')}")
            errors.add_damage(damage, 0, _LOST_ROWS, end - row)
            continue
        for values in zip(*columns, strict=True):
            # a value that repeats is stored once, so no size in the file bounds the sum
            raw_bytes += sum(len(value) for value in values if isinstance(value, str))
            if is_bomb(raw_bytes, part.source_bytes):
                damage = DataError(f"{path}: row {row}: over {raw_bytes:,} characters so far{_bomb(part.source_bytes)}")
                errors.add_damage(damage, 0, _LOST_ROWS, part.first_row + sum(part.num_rows) - row)
                return
            yield f"{path}: row {row}", list(values)
            row += 1


def _bomb(stored_bytes: int) -> str:
    return f" in {stored_bytes:,} bytes of the file: a decompression bomb.\n  Leave the file out, or write it again."


def _parquet_groups(path: str) -> list[tuple[int, int]]:
    import pyarrow.parquet as parquet

    with _arrow_errors(path), parquet.ParquetFile(path) as table:
        groups = (table.metadata.row_group(number) for number in range(table.num_row_groups))
        return [(group.num_rows, group.total_byte_size) for group in groups]


def _parquet_batches(path: str, part: RowRange, keys: list[str]) -> Iterator[tuple[int, _Columns | DataError]]:
    """(number of the group, values of each key) of some rows at a time; an error in place of a damaged group's rest."""
    import pyarrow.parquet as parquet

    with _arrow_errors(path), parquet.ParquetFile(path) as table:
        stored = os.path.getsize(path)
        for key in keys:
            _column_path(path, table.schema_arrow, key)
        for group in range(part.first, part.stop):
            try:
                with _arrow_errors(path):
                    # The sum alone: pyarrow ends the process when a damaged group's columns are looked at one by one.
                    claimed = table.metadata.row_group(group).total_byte_size
                    if is_bomb(claimed, stored):
                        raise DataError(f"{path}: row group {group} claims {claimed:,} bytes{_bomb(stored)}")
                    for batch in table.iter_batches(_ROWS_AT_ONCE, [group], sorted(set(keys)), use_threads=False):
                        yield group - part.first, [_values(path, batch, key) for key in keys]
            except DataError as error:
                yield group - part.first, error


def _arrow_groups(path: str) -> Iterator[tuple[int, int]]:
    import pyarrow as pa

    with _arrow_errors(path), pa.memory_map(path) as source:
        head, seen = source.read(6), 0
        is_file = head == b"ARROW1"
        source.seek(_ARROW_FILE_HEAD if is_file else 0)
        for message in pa.ipc.MessageReader.open_stream(source):
            if message.type == "record batch":
                rows, raw_bytes = _batch_size(memoryview(message.metadata), memoryview(message.body or b""))
                if is_bomb(raw_bytes, message.body.size):
                    raise DataError(f"{path}: a record batch claims {raw_bytes:,} bytes{_bomb(message.body.size)}")
                yield rows, raw_bytes
                seen += 1
        # Damage may look like the end, and pyarrow takes the end of the file for that of a stream.
        if is_file and seen != pa.ipc.open_file(source).num_record_batches:
            raise DataError(f"{path}: a record batch cannot be read.\n  The file is damaged. Download it again.")
        if not is_file:
            end, end_mark = source.tell(), (_CONTINUATION if head.startswith(_CONTINUATION) else b"") + bytes(4)
            source.seek(max(0, end - len(end_mark)))
            if source.read(len(end_mark)) != end_mark or end != source.size():
                raise DataError(
                    f"{path}: its end mark is not at its end: cut off, or followed by other data, after {end:,} of "
                    f"{source.size():,} bytes.\n  Download it again, or write it as one stream."
                )


def _batch_size(metadata: memoryview, body: memoryview) -> tuple[int, int]:
    """(rows, decompressed bytes) of a record batch by its flatbuffer: what pyarrow would allocate.

    Format: Message.fbs of Apache Arrow. A compressed buffer begins with its raw size as int64, -1: not compressed.
    """

    def at(kind: str, place: int, data: memoryview = metadata) -> int:
        value: int
        (value,) = struct.unpack_from(f"<{kind}", data, place)
        return value

    def field(table: int, number: int) -> int:
        """The place of a table's field, 0 where it is absent."""
        layout = table - at("i", table)
        offset = at("H", layout + 4 + 2 * number) if 4 + 2 * number < at("H", layout) else 0
        return table + offset if offset else 0

    def follow(place: int) -> int:
        return place + at("I", place)

    batch = follow(field(follow(0), 2))
    length, compression = field(batch, 0), field(batch, 3)
    buffers = follow(field(batch, 2))
    raw_bytes = 0
    for place in range(buffers + 4, buffers + 4 + 16 * at("I", buffers), 16):
        start, size = at("q", place), at("q", place + 8)
        claim = at("q", start, body) if compression and size else -1
        raw_bytes += size if claim < 0 else claim
    return at("q", length) if length else 0, raw_bytes


def _arrow_batches(path: str, part: RowRange, keys: list[str]) -> Iterator[tuple[int, _Columns | DataError]]:
    """As `_parquet_batches`; a file of the stream kind cannot be read beyond damage."""
    group = part.first
    try:
        with _arrow_errors(path):
            for group, batch in enumerate(islice(_arrow_file(path, keys), part.stop)):
                for start in range(0, batch.num_rows if group >= part.first else 0, _ROWS_AT_ONCE):
                    columns = [_values(path, batch.slice(start, _ROWS_AT_ONCE), key) for key in keys]
                    yield group - part.first, columns
    except DataError as error:
        for lost in range(max(group, part.first), part.stop):
            yield lost - part.first, error


def _arrow_file(path: str, keys: list[str]) -> Iterator[Any]:
    """Record batches of an Arrow file of either kind: stream (as Hugging Face's datasets writes) or random access.

    They have the columns of `keys` alone.
    """
    import pyarrow as pa

    with pa.memory_map(path) as source:
        try:
            table = pa.ipc.open_file(source)
            open_again = pa.ipc.open_file
        except pa.ArrowInvalid:
            source.seek(0)
            table = pa.ipc.open_stream(source)
            open_again = pa.ipc.open_stream
        numbers = [table.schema.names.index(_column_path(path, table.schema, key)[0]) for key in keys]
        source.seek(0)
        table = open_again(source, options=pa.ipc.IpcReadOptions(included_fields=sorted(set(numbers))))
        if open_again is pa.ipc.open_stream:
            yield from table
        else:
            yield from (table.get_batch(number) for number in range(table.num_record_batches))


def _column_path(path: str, schema: Any, key: str) -> list[str]:
    """[column, field of it, ...] of a dotted key."""

    def find(fields: list[Any], key: str) -> list[str] | None:
        for name, rest in splits(key):
            named = [field.type for field in fields if field.name == name]
            if len(named) > 1:
                columns = ", ".join(_leaves(schema))
                raise ConfigError(f"{path}: {len(named)} columns for key {name!r}; columns: {columns}.\n  Rename one.")
            if named and rest is None:
                return [name]
            inner = find(_fields(named[0]), rest) if named and rest is not None else None
            if inner is not None:
                return [name, *inner]
        return None

    found = find(list(schema), key)
    if found is None:
        raise ConfigError(f"{path}: no column for key {key!r}; columns: {', '.join(_leaves(schema))}.")
    return found


def _fields(kind: Any) -> list[Any]:
    """Those of a struct."""
    import pyarrow as pa

    return [kind.field(n) for n in range(kind.num_fields)] if pa.types.is_struct(kind) else []


def _leaves(fields: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of all columns, those inside of structs too."""
    for field in fields:
        if inner := _fields(field.type):
            yield from _leaves(inner, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _values(path: str, batch: Any, key: str) -> list[object]:
    """The values of a key, NotUtf8 for texts that are not. Raises ArrowInvalid for a damaged column."""
    import pyarrow as pa
    import pyarrow.compute

    column, *fields = _column_path(path, batch.schema, key)
    values: list[object]
    array = batch.column(batch.schema.names.index(column))
    array.validate()
    for field in fields:
        array = pyarrow.compute.struct_field(array, field)
    try:
        array.validate(full=True)
        values = array.to_pylist()
        return values
    except pa.ArrowInvalid:
        if (texts := _as_bytes(array)) is None:
            raise
        array = texts
        array.validate(full=True)
        return [None if value is None else _text_or_not(value) for value in array.to_pylist()]
    except (OverflowError, ValueError):  # a time for which Python has no object: no text in any case
        values = array.view(f"int{array.type.bit_width}").to_pylist()
        return values


def _as_bytes(array: Any) -> Any:
    """An array of texts as one of bytes, None of another. Raises ArrowInvalid for indices out of bounds."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        texts = _as_bytes(array.dictionary)
        return None if texts is None else pa.DictionaryArray.from_arrays(array.indices, texts)
    as_bytes = {
        pa.string(): pa.binary(),
        pa.large_string(): pa.large_binary(),
        pa.string_view(): pa.binary_view(),
    }
    return array.view(as_bytes[array.type]) if array.type in as_bytes else None


def _text_or_not(value: bytes) -> str | NotUtf8:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return NotUtf8()


@contextmanager
def _arrow_errors(path: str) -> Iterator[None]:
    """Turns any error of pyarrow about a damaged file into a DataError that names it."""
    try:
        yield
    except (AdoStreamError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        advice = "Decrypt the file." if "crypt" in reason else "The file is damaged. Download it again."
        raise DataError(f"{path}: cannot be read: {reason}.\n  {advice}") from error
