"""The input in parts, each tokenised by one worker on any machine, and shards cut across the parts.

A part is some consecutive files. Its worker writes one file of tokens, of each domain and split in input order, and
then a table of what is where. With all tables the coordinator computes the bytes of every shard, and workers
write the shards. The corpus is that of a run in one process, byte by byte: neither parts nor workers show in it.

Everything is kept in files that appear complete, under names of the input alone, so a task may run twice, also at once,
and a run that was killed goes on with the parts that have a table and the shards that are listed. The coordinator moves
no tokens, other than to look for ends of documents between shards that keep them whole.
"""

import json
import os
import uuid
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ado_stream.corpus.manifest import BEST_FIT, json_hash
from ado_stream.corpus.mds import ShardFormat
from ado_stream.durable import damage_errors, durable_file, rename_durably
from ado_stream.errors import DataError, ResumeError
from ado_stream.json_files import decode_json
from ado_stream.prepare.best_fit import without_empty_documents
from ado_stream.prepare.corpus_output import CorpusOutput
from ado_stream.prepare.documents import cut_pieces
from ado_stream.prepare.input_files import InputFile
from ado_stream.prepare.journal import (
    PUBLISHED_NAME,
    Published,
    check_hashes,
    check_splits,
    decode_published,
    encode_published,
)
from ado_stream.prepare.packing import (
    DomainFolders,
    Key,
    PackedCorpus,
    PackedSplit,
    shard_file,
    shards_at_once,
    write_index,
)
from ado_stream.prepare.prepare_worker import PieceResult, ShardJob, Worker, read_range
from ado_stream.prepare.record_errors import RecordErrors
from ado_stream.prepare.worker_pool import WorkerPool
from ado_stream.prepare.workspace import PARTS_FOLDER, open_output
from ado_stream.regular_files import read_regular
from ado_stream.value_types import JsonObject

_PART_BYTES = 64 << 20  # of input files, or less for a small input; a larger file is a part of its own
_LEAST_PARTS = 256  # where there are as many files
_GROUP_BYTES = 64 << 20  # of tokens that are grouped by domain before they are written
_SEARCH_BYTES = 1 << 16
_Source = tuple[Path, int, int]  # file, first byte, the one after the last


class _Table(TypedDict):
    """What is where in a part's file of tokens, and what was left out of it: records by reason, their bytes."""

    tokens_bytes: int
    splits: list[tuple[str, str, int, int, list[tuple[int, int]]]]  # domain, split, documents, bytes of text, ranges
    refused: tuple[dict[str, int], dict[str, int]]
    refused_when_cut: tuple[dict[str, int], dict[str, int]]
    repeated: list[Any]  # hashes


@dataclass(frozen=True)
class Part:
    """Consecutive input files, and the file for their tokens; the table beside it is written when that is complete."""

    files: tuple[InputFile, ...]
    tokens: Path

    @property
    def table(self) -> Path:
        return self.tokens.with_suffix(".json")

    @property
    def source_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def read_table(self, dtype: str) -> _Table:
        """What `tokenise_part` wrote there. Raises StorageError when it is damaged, ResumeError without its tokens."""
        with damage_errors(self.table):
            table = decode_json(read_regular(self.table), _Table, self.table.name, DataError)
            check_hashes(table["repeated"], f"{self.table.name}: repeated")
            check_splits((split for _, split, *_ in table["splits"]), self.table.name)
            end = 0
            for begin, stop in sorted(each for *_, ranges in table["splits"] for each in ranges):
                if begin != end or stop <= begin or stop % np.dtype(dtype).itemsize:
                    raise DataError(f"{self.table.name}: tokens from byte {begin} to {stop} after those to {end}.")
                end = stop
            if end != table["tokens_bytes"]:
                raise DataError(f"{self.table.name}: tokens to byte {end} of {table['tokens_bytes']}.")
            found = self.tokens.stat().st_size if self.tokens.exists() else 0
            if found != table["tokens_bytes"]:
                raise ResumeError(
                    f"{self.tokens}: {found} bytes, but its table counts {table['tokens_bytes']}.\n"
                    f"  The disk lost the rest; remove {self.table} and run the same command again."
                )
            return table


@dataclass
class TokenStream:
    """All tokens of one domain and split in input order, and the totals of their documents."""

    documents: int = 0
    text_bytes: int = 0
    _sources: list[_Source] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)  # of each source in the stream

    @property
    def num_bytes(self) -> int:
        return self._ends[-1] if self._ends else 0

    def append(self, source: _Source) -> None:
        """Adds the next bytes."""
        self._ends.append(self.num_bytes + source[2] - source[1])
        self._sources.append(source)

    def cut(self, begin: int, end: int) -> tuple[_Source, ...]:
        """Where the stream's bytes from `begin` to before `end` are."""
        sources = []
        first = bisect_right(self._ends, begin)
        for (path, low, high), stop in zip(self._sources[first:], self._ends[first:], strict=True):
            start = stop - (high - low)
            if start >= end:
                break
            sources.append((path, low + max(0, begin - start), high - max(0, stop - end)))
        return tuple(sources)

    def shards(self, shard_format: ShardFormat, end_id: int | None) -> Iterator[tuple[int, int]]:
        """(first byte, the one after the last) of each shard, as a Spool cuts them; end_id: of documents kept whole."""
        begin = 0
        while begin + shard_format.spool_bytes <= self.num_bytes:
            end = begin + shard_format.spool_bytes
            if end_id is not None:
                end = self._document_end(end, shard_format.dtype, end_id)
            yield begin, end
            begin = end
        rest = self.num_bytes - begin
        whole = rest if end_id is not None else rest // shard_format.sample_bytes * shard_format.sample_bytes
        if whole:
            yield begin, begin + whole

    def _document_end(self, least: int, dtype: str, end_id: int) -> int:
        """The end of the document that has the token before byte `least`."""
        size = np.dtype(dtype).itemsize
        begin = least - size
        while True:
            sources = self.cut(begin, min(begin + _SEARCH_BYTES, self.num_bytes))
            ids = np.frombuffer(b"".join(read_range(*source) for source in sources), dtype)
            found = np.flatnonzero(ids == end_id)
            if len(found):
                return begin + (int(found[0]) + 1) * size
            assert len(ids), "a part's last document has no end"
            begin += len(ids) * size


class PartPacker:
    """Has a pool of workers make a corpus out of parts; what an earlier run of the same plan made is kept."""

    def __init__(
        self, work: Path, output: CorpusOutput, shard_format: ShardFormat, pool: WorkerPool, end_id: int | None
    ):
        self._folder = work / PARTS_FOLDER
        self._output = output
        self._shard_format = shard_format
        self._pool = pool
        self._end_id = end_id
        self._parts: list[Part] = []

    def tokenise(self, files: Sequence[InputFile]) -> Iterator[tuple[int, int]]:
        """Tokenises all files; yields the bytes of input and of text that are done.

        The largest parts come first, so that no large one is left over at the end.
        """
        self._folder.mkdir(exist_ok=True)
        self._parts = self._cut(files)
        missing = [part for part in self._parts if not part.table.exists()]
        yield sum(part.source_bytes for part in self._parts) - sum(part.source_bytes for part in missing), 0
        missing.sort(key=lambda part: -part.source_bytes)
        yield from self._pool.as_completed(self._pool.submit(tokenise_part, part) for part in missing)

    def finish(self) -> PackedCorpus:
        """Writes all shards and every index.json, once all is tokenised."""
        tables = [part.read_table(self._shard_format.dtype) for part in self._parts]
        streams = self._streams(tables)
        entries = self._listed_shards()
        with open(self._folder / PUBLISHED_NAME, "ab") as file:
            for written in self._pool.as_completed(self._shard_tasks(streams, entries)):
                file.writelines(encode_published(written))
                file.flush()
                entries.update({(domain, split, shard): entry for domain, split, shard, entry in written})
        splits = {key: self._write_index(key, stream, entries) for key, stream in streams.items()}
        counts = [*(table["refused"] for table in tables), *(table["refused_when_cut"] for table in tables)]
        refused, refused_bytes = (sum((Counter(each[number]) for each in counts), Counter[str]()) for number in (0, 1))
        repeated = {text_hash for table in tables for text_hash in table["repeated"]}
        return PackedCorpus(splits, refused, refused_bytes, repeated)

    def _cut(self, files: Sequence[InputFile]) -> list[Part]:
        """The parts, by the input alone: a run on another cluster finds those of this one."""
        most_bytes = min(_PART_BYTES, sum(file.size_bytes for file in files) // _LEAST_PARTS)
        groups: list[list[InputFile]] = [[]]
        size_bytes = 0
        for file in files:
            if groups[-1] and size_bytes + file.size_bytes > most_bytes:
                groups.append([])
                size_bytes = 0
            groups[-1].append(file)
            size_bytes += file.size_bytes
        names = (json_hash([file.path for file in group]) for group in groups)
        return [Part(tuple(group), self._folder / f"{name}.tokens") for group, name in zip(groups, names, strict=True)]

    def _streams(self, tables: Sequence[_Table]) -> dict[Key, TokenStream]:
        """The streams of all domains and splits, in the order in which they came."""
        streams: dict[Key, TokenStream] = {}
        folders = DomainFolders()
        for part, table in zip(self._parts, tables, strict=True):
            for domain, split, documents, text_bytes, ranges in table["splits"]:
                key = (domain, split)
                if key not in streams:
                    folders.add(domain)
                    streams[key] = TokenStream()
                streams[key].documents += documents
                streams[key].text_bytes += text_bytes
                for begin, end in ranges:
                    streams[key].append((part.tokens, begin, end))
        return streams

    def _shard_tasks(
        self, streams: dict[Key, TokenStream], done: dict[tuple[str, str, int], JsonObject]
    ) -> Iterator["Future[list[Published]]"]:
        """Submits every shard that is not `done`, some at once."""
        num_shards = sum(1 + stream.num_bytes // self._shard_format.spool_bytes for stream in streams.values())
        jobs = self._shard_jobs(streams, done)
        while some := list(islice(jobs, shards_at_once(num_shards, self._pool.num_workers))):
            yield self._pool.submit(write_shards, some)

    def _shard_jobs(
        self, streams: dict[Key, TokenStream], done: dict[tuple[str, str, int], JsonObject]
    ) -> Iterator[tuple[Key, ShardJob]]:
        for key, stream in streams.items():
            for shard, (begin, end) in enumerate(stream.shards(self._shard_format, self._end_id)):
                if (*key, shard) in done:
                    continue
                yield (
                    key,
                    ShardJob(
                        sources=stream.cut(begin, end),
                        shard=shard,
                        shard_format=self._shard_format,
                        out_path=self._output.local_path(shard_file(key, shard)),
                        end_id=self._end_id,
                        begin_token=begin // np.dtype(self._shard_format.dtype).itemsize,
                    ),
                )

    def _listed_shards(self) -> dict[tuple[str, str, int], JsonObject]:
        """The shards of an earlier run that are still there, from whose list a line that a kill cut is removed."""
        path = self._folder / PUBLISHED_NAME
        data = read_regular(path) if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        with damage_errors(path):
            return {
                (domain, split, shard): entry
                for domain, split, shard, entry in decode_published(whole)
                if not self._output.lost(shard_file((domain, split), shard), entry["zip_data"]["bytes"])
            }

    def _write_index(
        self, key: Key, stream: TokenStream, entries: dict[tuple[str, str, int], JsonObject]
    ) -> PackedSplit:
        places = list(stream.shards(self._shard_format, self._end_id))
        dropped_bytes = stream.num_bytes - (places[-1][1] if places else 0)
        return write_index(
            self._output,
            key,
            [entries[*key, shard] for shard in range(len(places))],
            stream.documents,
            stream.text_bytes,
            dropped_bytes // np.dtype(self._shard_format.dtype).itemsize,
        )


def tokenise_part(worker: Worker, part: Part) -> tuple[int, int]:
    """Writes a part's tokens and its table; returns its bytes of input, and of text."""
    cutting = RecordErrors(worker.config.skip_errors)
    writer = _PartWriter(worker.tokenizer.end_id if worker.config.packing == BEST_FIT else None)
    refused: Counter[str] = Counter()
    refused_bytes: Counter[str] = Counter()
    repeated: set[int] = set()
    with durable_file(part.tokens, _temporary(worker)) as file:
        for piece in cut_pieces(part.files, cutting, worker.config.keys):
            result = worker.tokenise(piece)
            writer.add(result, worker.tokenizer.dtype)
            if writer.waiting_bytes >= _GROUP_BYTES:
                file.write(writer.take())
            refused.update(result.refused)
            refused_bytes.update(result.refused_bytes)
            repeated |= result.repeated
        file.write(writer.take())
    table: _Table = {
        "tokens_bytes": writer.num_bytes,
        "splits": [(*key, *totals) for key, totals in writer.splits.items()],
        "refused": (refused, refused_bytes),
        "refused_when_cut": (cutting.counts, cutting.num_bytes),
        "repeated": sorted(repeated),
    }
    with durable_file(part.table, _temporary(worker)) as file:
        file.write(json.dumps(table).encode())
    return part.source_bytes, sum(text_bytes for _, text_bytes, _ in writer.splits.values())


def write_shards(worker: Worker, jobs: Sequence[tuple[Key, ShardJob]]) -> list[Published]:
    """Writes and publishes shards; returns the domain, split, number and index entry of each."""
    written = []
    for key, job in jobs:
        temporary = _temporary(worker)
        entry = worker.finish_shard(replace(job, out_path=temporary))
        with open(temporary, "rb") as file:
            rename_durably(file, temporary, job.out_path)
        _output(worker).publish(shard_file(key, job.shard))
        written.append((*key, job.shard, entry))
    return written


class _PartWriter:
    """Groups a part's token blocks by domain and split, so that there are few ranges of each in its file."""

    def __init__(self, end_id: int | None):
        self._end_id = end_id
        self._blocks: dict[Key, list[bytes]] = {}
        self.waiting_bytes = 0
        self.num_bytes = 0
        self.splits: dict[Key, tuple[int, int, list[tuple[int, int]]]] = {}  # documents, bytes of text, ranges

    def add(self, result: PieceResult, dtype: str) -> None:
        """Takes the next piece's blocks."""
        for block in result.blocks:
            key = (block.domain, block.split)
            tokens = block.tokens
            if self._end_id is not None:
                tokens = without_empty_documents(tokens, dtype, self._end_id)
            documents, text_bytes, ranges = self.splits.get(key, (0, 0, []))
            self.splits[key] = (documents + block.documents, text_bytes + block.text_bytes, ranges)
            self._blocks.setdefault(key, []).append(tokens)
            self.waiting_bytes += len(tokens)

    def take(self) -> bytes:
        """The bytes to be written next."""
        taken = []
        for key, blocks in self._blocks.items():
            taken += blocks
            end = self.num_bytes + sum(map(len, blocks))
            if end > self.num_bytes:
                self.splits[key][2].append((self.num_bytes, end))
            self.num_bytes = end
        self._blocks, self.waiting_bytes = {}, 0
        return b"".join(taken)


def _temporary(worker: Worker) -> Path:
    """A name that no other task has, where nothing of it can become part of the corpus."""
    return worker.work / PARTS_FOLDER / f".{uuid.uuid4().hex}.tmp"


@lru_cache(maxsize=1)
def _output(worker: Worker) -> CorpusOutput:
    """The worker's own client of the destination."""
    return open_output(worker.config)[1]
