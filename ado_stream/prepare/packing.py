"""Pieces' token blocks, in input order, to finished shards, with a journal that survives a kill.

The journal (journal.py) is written after all that it counts is on the disk, by one syncfs however many files they are:
an fsync each would take a thousand domains minutes. A full spool file is removed only after a journal that counts its
shard as published is written. So whatever the moment of a kill, the next run truncates the spools and the list to the
journal, finishes the shards that are full but not in the list, and takes the next piece: the bytes are those of a run
that was never killed.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import cast

import numpy as np

from ado_stream.corpus.manifest import domain_folder
from ado_stream.corpus.mds import COMPRESSION, HASH, ShardEntry, ShardFormat, encode_index, shard_name
from ado_stream.durable import damage_errors, sync_file_system
from ado_stream.errors import ConfigError, ResumeError
from ado_stream.prepare import journal
from ado_stream.prepare.best_fit import PackingCounts
from ado_stream.prepare.corpus_output import CorpusOutput
from ado_stream.prepare.prepare_worker import NUM_ENDS, PACKING, PieceResult, ShardJob, Worker
from ado_stream.prepare.spool import Spool
from ado_stream.prepare.worker_pool import WorkerPool, worker_result
from ado_stream.stream.index_content import INDEX_NAME
from ado_stream.value_types import JsonObject

_SPOOL_FOLDER = "spool"
MAX_DOMAINS = 4096  # more are document ids in the domain key, and each costs a file
_COMMIT_EVERY_S = 2.0
_WAITING_BYTES = 1 << 26  # of tokens in memory, of all domains
_SHARDS_AT_ONCE = 16
Key = tuple[str, str]  # domain, split


@dataclass(frozen=True)
class PackedSplit:
    """The totals of one domain's split."""

    documents: int
    text_bytes: int
    samples: int
    dropped_tokens: int
    shard_hashes: list[str]
    packing: PackingCounts  # all 0 where documents are joined


@dataclass(frozen=True)
class PackedCorpus:
    """The totals of all splits, in the order in which their domains came, and what was not packed."""

    splits: dict[Key, PackedSplit]
    refused: Counter[str]  # records by reason
    refused_bytes: Counter[str]
    repeated: set[int]  # hashes of training texts that validation documents have, too


class DomainFolders:
    """The folders of the domains so far. Two may not share one: the second's name may be the first's folder."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}

    def add(self, domain: str) -> None:
        """Raises ConfigError for a domain that is one too many, or whose folder is another's."""
        owner = self._owners.setdefault(domain_folder(domain), domain)
        if owner != domain:
            raise ConfigError(f"domains {owner!r} and {domain!r} would have the same folder. Rename one of them.")
        if len(self._owners) > MAX_DOMAINS:
            raise ConfigError(
                f"more than {MAX_DOMAINS} domains, the latest {domain!r}.\n"
                "  The domain key does not seem to hold a domain; correct --domain-key."
            )


class Packer:
    """Takes results in input order, keeps the journal, writes shards and index files."""

    def __init__(
        self,
        work: Path,
        output: CorpusOutput,
        shard_format: ShardFormat,
        pool: WorkerPool,
        max_jobs: int,
        end_id: int | None = None,
    ):
        self._work = work
        self._output = output
        self._shard_format = shard_format
        self._end_id = end_id  # where documents end that best-fit keeps whole; None: they are joined
        self._pool = pool
        self._max_jobs = max(max_jobs, output.publishes_at_once)
        self._publishers = ThreadPoolExecutor(output.publishes_at_once, thread_name_prefix="publish")
        self._jobs: deque[Future[None]] = deque()
        self._spools: dict[Key, Spool] = {}
        self._folders = DomainFolders()
        self._published: deque[journal.Published] = deque()  # since the last commit
        self._entries: defaultdict[Key, dict[int, JsonObject]] = defaultdict(dict)  # by shard, of all before
        self._last_commit_s = time.monotonic()
        self._commit_cost_s = 0.0
        self._waiting_bytes = 0
        self.num_pieces = 0
        self.refused: Counter[str] = Counter()
        self.refused_bytes: Counter[str] = Counter()
        self.repeated: set[int] = set()
        self._resume()

    def add(self, result: PieceResult) -> None:
        """Takes the next piece's blocks."""
        for block in result.blocks:
            spool = self._spool(block.domain, block.split)
            for shard in spool.append(block.documents, block.text_bytes, block.tokens):
                self._finish_shards([((block.domain, block.split), shard)])
            self._waiting_bytes += len(block.tokens)
        self.refused.update(result.refused)
        self.refused_bytes.update(result.refused_bytes)
        self.repeated |= result.repeated
        self.num_pieces += 1
        if self._waiting_bytes >= _WAITING_BYTES:
            self._flush()
        self._commit_if_due()

    def commit(self) -> None:
        """Writes the journal, then removes the spool files of published shards."""
        begun_s = time.monotonic()
        self._flush()
        published = [self._published.popleft() for _ in range(len(self._published))]
        published_bytes = journal.append_published(self._work, published)
        sync_file_system(self._work)  # with the shards of a local corpus
        state: journal.Journal = {
            "num_pieces": self.num_pieces,
            "refused": dict(self.refused),
            "refused_bytes": dict(self.refused_bytes),
            "repeated": list(self.repeated),
            "spools": [(*key, spool.state) for key, spool in self._spools.items()],
            "published_bytes": published_bytes,
        }
        journal.write_journal(self._work, state)
        for line in published:
            self._take_published(*line)
        self._last_commit_s = time.monotonic()
        self._commit_cost_s = self._last_commit_s - begun_s

    def finish(self) -> dict[Key, PackedSplit]:
        """Finishes the last shards and writes every index.json; the totals, in the order in which the domains came.

        All is on the disk, or uploaded, at the end.
        """
        self._flush()
        last = ((key, spool, spool.state.shard) for key, spool in self._spools.items())
        self._finish_shards([(key, shard) for key, spool, shard in last if spool.whole_bytes(shard)])
        while self._jobs:
            self._jobs.popleft().result()
            self._commit_if_due()
        self.commit()
        with ThreadPoolExecutor(self._output.indexes_at_once) as pool:
            splits = dict(zip(self._spools, pool.map(self._write_index, self._spools), strict=True))
        sync_file_system(self._work)
        return splits

    def close(self) -> None:
        """Drops what is not published; the journal stays."""
        self._publishers.shutdown(wait=True, cancel_futures=True)

    def _commit_if_due(self) -> None:
        """Commits every other second, or so rarely that it takes a tenth of the time."""
        if time.monotonic() - self._last_commit_s > _COMMIT_EVERY_S * max(1.0, 5 * self._commit_cost_s):
            self.commit()

    def _flush(self) -> None:
        for spool in self._spools.values():
            spool.flush()
        self._waiting_bytes = 0

    def _take_published(self, domain: str, split: str, shard: int, entry: JsonObject) -> None:
        """Removes the spool file of a shard that the journal counts as published, unless it may grow."""
        self._entries[domain, split][shard] = entry
        spool = self._spools[domain, split]
        if shard < spool.state.shard:
            spool.path(shard).unlink(missing_ok=True)

    def _spool(self, domain: str, split: str) -> Spool:
        key = (domain, split)
        if key not in self._spools:
            self._folders.add(domain)
            self._spools[key] = Spool(self._spool_path(key), self._shard_format, end_id=self._end_id)
        return self._spools[key]

    def _resume(self) -> None:
        with damage_errors(self._work / journal.JOURNAL_NAME):
            state = journal.read_journal(self._work)
            self.num_pieces = state["num_pieces"]
            self.refused.update(state["refused"])
            self.refused_bytes.update(state["refused_bytes"])
            self.repeated.update(state["repeated"])
            for domain, split, found in state["spools"]:
                key = (domain, split)
                self._folders.add(domain)
                self._spools[key] = Spool(self._spool_path(key), self._shard_format, found, self._end_id)
        spools = self._work / _SPOOL_FOLDER
        spools.mkdir(exist_ok=True)
        last = {spool.stem.name: spool.path(spool.state.shard).name for spool in self._spools.values()}
        for path in spools.iterdir():
            kept = last.get(path.stem, "")
            if (len(path.name), path.name) > (len(kept), kept):  # begun after the journal
                path.unlink()
        with damage_errors(self._work / journal.PUBLISHED_NAME):
            for published in journal.read_published(self._work, state["published_bytes"]):
                domain, split, shard, entry = published
                name = shard_file((domain, split), shard)
                if self._output.lost(name, entry["zip_data"]["bytes"]):
                    raise ResumeError(
                        f"{self._output.local_path(name)}: not there as this unfinished run's journal has it.\n"
                        "  It was removed or damaged; remove the working folder to start again."
                    )
                self._take_published(*published)
        self._finish_shards([(key, n) for key, spool in self._spools.items() for n in range(spool.state.shard)])

    def _finish_shards(self, shards: Sequence[tuple[Key, int]]) -> None:
        """Has workers finish the shards and threads publish them; waits while `max_jobs` are running.

        A shard that an earlier run published is kept: its bytes would be the same.
        """
        missing = iter([(key, shard) for key, shard in shards if shard not in self._entries[key]])
        at_once = shards_at_once(len(shards), self._pool.num_workers)
        while some := list(islice(missing, at_once)):
            while len(self._jobs) >= self._max_jobs or (self._jobs and self._jobs[0].done()):
                self._jobs.popleft().result()
            entries = self._pool.submit(Worker.finish_shards, [self._shard_job(*each) for each in some])
            self._jobs.append(self._publishers.submit(self._publish, some, entries))

    def _shard_job(self, key: Key, shard: int) -> ShardJob:
        spool = self._spools[key]
        return ShardJob(
            sources=((spool.path(shard), 0, spool.whole_bytes(shard)),),
            shard=shard,
            shard_format=self._shard_format,
            out_path=self._output.local_path(shard_file(key, shard)),
            end_id=self._end_id,
            begin_token=spool.begin_bytes(shard) // np.dtype(self._shard_format.dtype).itemsize,
        )

    def _publish(self, shards: Sequence[tuple[Key, int]], entries: "Future[list[JsonObject]]") -> None:
        done = worker_result(entries)
        for (key, shard), entry in zip(shards, done, strict=True):
            self._output.publish(shard_file(key, shard))
            self._published.append((*key, shard, entry))

    def _write_index(self, key: Key) -> PackedSplit:
        spool, state = self._spools[key], self._spools[key].state
        last_bytes = spool.whole_bytes(state.shard)
        entries = [self._entries[key][shard] for shard in range(state.shard + (last_bytes > 0))]
        dropped_bytes = state.shard_fill_bytes - last_bytes
        dropped_tokens = dropped_bytes * self._shard_format.sample_tokens // self._shard_format.sample_bytes
        return write_index(self._output, key, entries, state.documents, state.text_bytes, dropped_tokens)

    def _spool_path(self, key: Key) -> Path:
        return self._work / _SPOOL_FOLDER / f"{domain_folder(key[0])}.{key[1]}"


def shards_at_once(num_shards: int, num_workers: int) -> int:
    """Shards of a task: some, as handing out a task takes a millisecond, where each worker has several tasks then."""
    return max(1, min(_SHARDS_AT_ONCE, num_shards // (8 * num_workers)))


def shard_file(key: Key, shard: int) -> str:
    """The name of a shard's file inside the corpus."""
    return f"{domain_folder(key[0])}/{key[1]}/{shard_name(shard)}.{COMPRESSION}"


def write_index(
    output: CorpusOutput,
    key: Key,
    shards: Sequence[JsonObject],
    documents: int,
    text_bytes: int,
    dropped_tokens: int,
) -> PackedSplit:
    """Publishes index.json of a split, whose `shards` are what Worker.finish_shard returned; the split's totals."""
    entries = [dict(shard) for shard in shards]
    counts = [PackingCounts(**entry.pop(PACKING)) for entry in entries if PACKING in entry]
    ends = [entry.pop(NUM_ENDS) for entry in entries if NUM_ENDS in entry]
    firsts = list(accumulate(ends[:-1], initial=0)) if ends and len(ends) == len(entries) else []
    if entries:
        name = f"{domain_folder(key[0])}/{key[1]}/{INDEX_NAME}"
        output.local_path(name).write_bytes(encode_index(cast(list[ShardEntry], entries), firsts))
        output.publish(name)
    return PackedSplit(
        documents=documents,
        text_bytes=text_bytes,
        samples=sum(entry["samples"] for entry in entries),
        dropped_tokens=dropped_tokens,
        shard_hashes=[entry["raw_data"]["hashes"][HASH] for entry in entries],
        packing=sum(counts, PackingCounts()),
    )
