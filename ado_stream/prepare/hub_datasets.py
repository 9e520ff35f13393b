"""Data sets of the Hugging Face hub, or of a local folder in any layout of the datasets library (extra `hf`), streamed.

`hf:NAME[@REVISION][:CONFIG[:SPLIT]]` names one; each of its shards, most often a file, is an input file of kind "hf",
whose path has the revision that was found, so that all processes read the same. Rows come in the order of
`load_dataset(..., streaming=True)`. The datasets library is imported here alone.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ado_stream.corpus.manifest import json_hash
from ado_stream.errors import AdoStreamError, ConfigError, DataError, StorageError
from ado_stream.prepare.dotted_keys import splits
from ado_stream.prepare.hugging_face_folders import SAVED_MARKS
from ado_stream.prepare.record_errors import RecordErrors
from ado_stream.storage.slow_notice import slow_notice
from ado_stream.value_types import JsonObject

PREFIX = "hf:"
_SPLIT = {"val": "validation"}  # that is read where none is named; "train" for all but --val
_ROWS_AT_ONCE = 64
_NAME = re.compile(r"hf:([^:@]+)(?:@([^:]+))?(?::([^:#]*))?(?::([^:#]*))?(?:#([0-9]+))?")


@dataclass(frozen=True)
class DataSet:
    """One split of a data set, or one shard of it."""

    name: str  # on the hub, or the absolute path of a folder
    revision: str | None
    config: str | None
    split: str
    shard: int | None = None

    @classmethod
    def parse(cls, text: str, split: str = "train") -> "DataSet":
        """What `text` names, of the split for `split` when it names none. Raises ConfigError."""
        found = _NAME.fullmatch(text)
        if found is None:
            raise ConfigError(f"{text}: expected hf:NAME, hf:NAME@REVISION, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT.")
        name, revision, config, named, shard = found.groups()
        if Path(folder := os.path.expanduser(name)).is_dir():
            name = os.path.abspath(folder)
        elif name.startswith((".", "/", "~")):
            raise ConfigError(f"{text}: no such folder. Check the path.")
        elif revision is None and "/" in name and Path(name).parent.is_dir():  # anybody may publish text of that name
            raise ConfigError(
                f"{text}: no such folder, though {Path(name).parent} is one. Check the path; for the hub add @REVISION."
            )
        number = None if shard is None else int(shard)
        return cls(name, revision, config or None, named or _SPLIT.get(split, "train"), number)

    @property
    def domain(self) -> str:
        return "-".join(filter(None, (Path(self.name).name, self.config)))

    @property
    def is_local(self) -> bool:
        return os.path.isabs(self.name)

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        shard = "" if self.shard is None else f"#{self.shard:05}"
        return f"{PREFIX}{self.name}{revision}:{self.config or ''}:{self.split}{shard}"


@dataclass(frozen=True)
class RecordBlock:
    """Some rows of a shard: all of their keys, the values of those that are needed."""

    records: list[JsonObject]
    first_row: int
    source_bytes: int


@dataclass(frozen=True)
class _Opened:
    """A split that can be read; `stamp` differs when its content does."""

    rows: Any
    revision: str | None
    stamp: str
    shard_bytes: list[int]  # of each shard, as far as it is known
    files: list[str]  # that it is read from, paths or URLs


def find_shards(text: str, split: str) -> Iterator[tuple[DataSet, int, str]]:
    """(shard, bytes, stamp) of every shard of the split that `text` names. Raises ConfigError, StorageError."""
    _open.cache_clear()  # a folder may have changed
    named = DataSet.parse(text, split)
    opened = _open(named)
    for number, size_bytes in enumerate(opened.shard_bytes):
        yield replace(named, revision=opened.revision, shard=number), size_bytes, opened.stamp


def files_of(path: str) -> list[str]:
    """The files that hold the split of the shard at `path`, paths or URLs, as far as they are known."""
    return _open(replace(DataSet.parse(path), shard=None)).files


def record_blocks(
    path: str, size_bytes: int, block_characters: int, keys: Sequence[str], errors: RecordErrors
) -> Iterator[RecordBlock]:
    """The rows of the shard at `path`, in blocks with about `block_characters` of text in the columns of `keys`.

    What follows a row that cannot be read goes to `errors`, of the hub only if the file itself is damaged.
    """
    data_set = DataSet.parse(path)
    records: list[JsonObject] = []
    characters = first_row = 0
    damage = None
    batches = _batches(data_set, keys)
    while True:
        try:
            batch = next(batches, None)
        except AdoStreamError:
            raise
        except Exception as error:  # of any reader and any client
            reason = " ".join(str(error.__cause__ or error).split())
            message = f"{path}: row {first_row + len(records)} or after: {reason or type(error).__name__}."
            if isinstance(error, OSError) and not data_set.is_local:
                raise StorageError(f"{message}\n  Finished work is kept: run the same command again.") from error
            damage, batch = DataError(f"{message}\n  The file is damaged. Download it again."), None
        if batch is None:
            break
        if characters >= block_characters:
            source_bytes = min(size_bytes, characters)
            size_bytes -= source_bytes
            yield RecordBlock(records, first_row, source_bytes)
            first_row, records, characters = first_row + len(records), [], 0
        records += batch
        characters += sum(len(value) for record in batch for value in record.values() if isinstance(value, str))
    if records:
        yield RecordBlock(records, first_row, size_bytes)
    if damage is not None:
        errors.add_damage(damage, 0)


def _batches(data_set: DataSet, keys: Sequence[str]) -> Iterator[list[JsonObject]]:
    rows = _open(replace(data_set, shard=None)).rows
    columns = list(rows.features or ())
    needed = {name for key in keys for name, _ in splits(key)}
    if found := [column for column in columns if column in needed]:  # no picture is decoded for its caption
        rows = rows.select_columns(found)
    shard = rows.shard(rows.num_shards, data_set.shard) if rows.num_shards > 1 else rows
    for batch in shard.iter(_ROWS_AT_ONCE):
        keys_alone = dict.fromkeys([*columns, *batch])
        names = [name for name in batch if not keys or name in needed]
        num_rows = len(next(iter(batch.values()), ()))
        yield [{**keys_alone, **{name: batch[name][row] for name in names}} for row in range(num_rows)]


@lru_cache(maxsize=8)
def _open(data_set: DataSet) -> _Opened:
    try:
        import datasets
    except ImportError:
        raise ConfigError(f"{data_set}: needs the package datasets: pip install 'ado-stream[hf]'.") from None
    with _open_errors(data_set):
        if data_set.is_local and any((Path(data_set.name) / mark).exists() for mark in SAVED_MARKS):
            return _open_saved(data_set, datasets.load_from_disk(data_set.name))
        with slow_notice(f"the Hugging Face hub, data set {data_set.name!r}"):
            builder = datasets.load_dataset_builder(data_set.name, data_set.config, revision=data_set.revision)
            rows = builder.as_streaming_dataset(split=data_set.split)
    splits = builder.config.data_files or {}
    if splits and data_set.split not in splits:  # the library joins splits that are named with a plus, or "all"
        raise ConfigError(f"{data_set}: more than one split. Give each as an input; there are: {', '.join(splits)}.")
    files = splits.get(data_set.split)
    origins = getattr(files, "origin_metadata", [])
    sizes = [_size(file) for file in files or ()]
    if len(sizes) != rows.num_shards:
        sizes = [sum(sizes) // rows.num_shards] * rows.num_shards
    revisions = {origin[1] for origin in origins if len(origin) == 2}  # (repository, commit)
    revision = revisions.pop() if len(revisions) == 1 else data_set.revision
    names = list(files or ())
    return _Opened(rows, revision, json_hash([builder.hash, names, list(map(list, origins))]), sizes, names)


def _open_saved(data_set: DataSet, saved: Any) -> _Opened:
    """What Dataset.save_to_disk or DatasetDict.save_to_disk wrote."""
    if data_set.config is not None:
        raise ConfigError(f"{data_set}: a data set that save_to_disk wrote has no configurations; leave it out.")
    if isinstance(saved, dict):
        if data_set.split not in saved:
            raise ConfigError(f"{data_set}: no split {data_set.split!r}; there are: {', '.join(saved)}.")
        saved = saved[data_set.split]
    files = [Path(file["filename"]) for file in saved.cache_files]
    num_shards = max(1, min(len(files), len(saved)))
    stamp = json_hash([saved._fingerprint, [file.stat().st_mtime_ns for file in files]])
    size_bytes = sum(file.stat().st_size for file in files) // num_shards
    return _Opened(saved.to_iterable_dataset(num_shards), None, stamp, [size_bytes] * num_shards, list(map(str, files)))


def _size(file: str) -> int:
    from fsspec.core import url_to_fs

    file_system, path = url_to_fs(file)
    return int(file_system.size(path) or 0)


@contextmanager
def _open_errors(data_set: DataSet) -> Iterator[None]:
    """Turns what the datasets library raises for a data set into ConfigError or StorageError."""
    from datasets.utils import logging as log
    from huggingface_hub.utils import logging as hub_log

    levels = log.get_verbosity(), hub_log.get_verbosity()
    log.set_verbosity(log.CRITICAL)  # they log what they raise, and each of their retries at length
    hub_log.set_verbosity(log.CRITICAL)  # type: ignore[no-untyped-call]
    try:
        yield
    except AdoStreamError:
        raise
    except Exception as error:  # of any client
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        kind = StorageError if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) else ConfigError
        raise kind(
            f"{data_set}: cannot be opened: {reason}.\n  Check name, configuration, split and network."
        ) from error
    finally:
        log.set_verbosity(levels[0])
        hub_log.set_verbosity(levels[1])  # type: ignore[no-untyped-call]
