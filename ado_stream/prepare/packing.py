"""Pieces' token blocks, in input order, to finished shards, with a journal that survives a kill.

The journal holds the number of pieces taken and how full every spool is. It is written after the spools are on the
disk. A full spool file is removed only after its shard is published and a journal that lists it as full is written.
So whatever the moment of a kill, the next run truncates the spools to the journal, finishes the shards that it lists
as full, and takes the next piece: the bytes are those of a run that was never killed.
"""

import json
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ado_stream.corpus.manifest import domain_folder
from ado_stream.corpus.mds import COMPRESSION, HASH, ShardFormat, encode_index, shard_name
from ado_stream.durable import sync, write_durably
from ado_stream.errors import ConfigError
from ado_stream.prepare.best_fit import PackingCounts
from ado_stream.prepare.corpus_output import CorpusOutput
from ado_stream.prepare.prepare_worker import PACKING, PieceResult, ShardJob, Worker
from ado_stream.prepare.spool import Spool, SpoolState
from ado_stream.prepare.worker_pool import WorkerPool, worker_result
from ado_stream.stream.mds_index import INDEX_NAME

JOURNAL_NAME = "state.json"
MAX_DOMAINS = 4096  # more are document ids in the domain key, and each costs a file
_COMMIT_EVERY_S = 2.0
_SYNCS_AT_ONCE = 32  # a file system commits them together, where each alone would wait for a commit of its own


@dataclass(frozen=True)
class PackedSplit:
    """The totals of one domain's split."""

    documents: int
    text_bytes: int
    samples: int
    dropped_tokens: int
    shard_hashes: list[str]
    packing: PackingCounts | None  # None: documents are joined


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
        self._syncing = ThreadPoolExecutor(_SYNCS_AT_ONCE, thread_name_prefix="sync")
        self._jobs: deque[Future[None]] = deque()
        self._spools: dict[tuple[str, str], Spool] = {}
        self._last_commit_s = time.monotonic()
        self._commit_cost_s = 0.0
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
                self._finish_shard((block.domain, block.split), shard)
        self.refused.update(result.refused)
        self.refused_bytes.update(result.refused_bytes)
        self.repeated |= result.repeated
        self.num_pieces += 1
        # what a commit costs grows with the domains; it may take a tenth of the time
        if time.monotonic() - self._last_commit_s > _COMMIT_EVERY_S * max(1.0, 5 * self._commit_cost_s):
            self.commit()

    def commit(self) -> None:
        """Writes the journal, then removes the spool files of published shards."""
        begun_s = time.monotonic()
        list(self._syncing.map(Spool.sync, self._spools.values()))
        state = {
            "num_pieces": self.num_pieces,
            "refused": dict(self.refused),
            "refused_bytes": dict(self.refused_bytes),
            "repeated": list(self.repeated),
            "spools": [[*key, asdict(spool.state)] for key, spool in self._spools.items()],
        }
        write_durably(self._work / JOURNAL_NAME, json.dumps(state).encode())
        for key, spool in self._spools.items():
            for path in spool.folder.iterdir():
                if int(path.name) < spool.state.shard and self._done_path(key, int(path.name)).exists():
                    path.unlink()
        self._last_commit_s = time.monotonic()
        self._commit_cost_s = self._last_commit_s - begun_s

    def finish(self) -> dict[tuple[str, str], PackedSplit]:
        """Finishes the last shards and writes every index.json; the totals, in the order in which the domains came."""
        self.commit()
        for key, spool in self._spools.items():
            if spool.whole_bytes(spool.state.shard):
                self._finish_shard(key, spool.state.shard)
        while self._jobs:
            self._jobs.popleft().result()
        return dict(zip(self._spools, self._syncing.map(self._write_index, self._spools), strict=True))

    def close(self) -> None:
        """Drops what is not published; the journal stays."""
        for executor in (self._publishers, self._syncing):
            executor.shutdown(wait=True, cancel_futures=True)

    def _spool(self, domain: str, split: str) -> Spool:
        key = (domain, split)
        if key not in self._spools:
            if len(self._spools) >= 2 * MAX_DOMAINS:
                raise ConfigError(
                    f"more than {MAX_DOMAINS} domains, the latest {domain!r}.\n"
                    "  The domain key does not seem to hold a domain; correct --domain-key."
                )
            self._spools[key] = Spool(self._spool_folder(key), self._shard_format, end_id=self._end_id)
        return self._spools[key]

    def _resume(self) -> None:
        path = self._work / JOURNAL_NAME
        if not path.exists():
            return
        state = json.loads(path.read_bytes())
        self.num_pieces = state["num_pieces"]
        self.refused.update(state["refused"])
        self.refused_bytes.update(state["refused_bytes"])
        self.repeated.update(state["repeated"])
        for domain, split, fields in state["spools"]:
            key = (domain, split)
            found = SpoolState(**fields)
            spool = self._spools[key] = Spool(self._spool_folder(key), self._shard_format, found, self._end_id)
            for shard in range(spool.state.shard):
                self._finish_shard(key, shard)

    def _finish_shard(self, key: tuple[str, str], shard: int) -> None:
        """Has a worker finish the shard and a thread publish it; waits while `max_jobs` are running.

        A shard that an earlier run published is kept: its bytes would be the same.
        """
        if self._done_path(key, shard).exists():
            return
        while len(self._jobs) >= self._max_jobs or (self._jobs and self._jobs[0].done()):
            self._jobs.popleft().result()
        name = f"{domain_folder(key[0])}/{key[1]}/{shard_name(shard)}.{COMPRESSION}"
        job = ShardJob(
            samples_path=self._spools[key].path(shard),
            samples_bytes=self._spools[key].whole_bytes(shard),
            shard=shard,
            shard_format=self._shard_format,
            out_path=self._output.local_path(name),
            end_id=self._end_id,
            begin_token=self._spools[key].begin_bytes(shard) // np.dtype(self._shard_format.dtype).itemsize,
        )
        entry = self._pool.submit(Worker.finish_shard, job)
        self._jobs.append(self._publishers.submit(self._publish, key, shard, name, entry))

    def _publish(self, key: tuple[str, str], shard: int, name: str, entry: "Future[dict[str, Any]]") -> None:
        done = json.dumps(worker_result(entry)).encode()
        path = self._output.local_path(name)
        sync(path)
        sync(path.parent)
        self._output.publish(name)
        write_durably(self._done_path(key, shard), done)

    def _write_index(self, key: tuple[str, str]) -> PackedSplit:
        spool, state = self._spools[key], self._spools[key].state
        last_bytes = spool.whole_bytes(state.shard)
        num_shards = state.shard + (last_bytes > 0)
        entries = [json.loads(self._done_path(key, shard).read_bytes()) for shard in range(num_shards)]
        counts = [PackingCounts(**entry.pop(PACKING)) for entry in entries if PACKING in entry]
        if entries:
            name = f"{domain_folder(key[0])}/{key[1]}/{INDEX_NAME}"
            write_durably(self._output.local_path(name), encode_index(entries))
            self._output.publish(name)
        dropped_bytes = state.shard_fill_bytes - last_bytes
        return PackedSplit(
            documents=state.documents,
            text_bytes=state.text_bytes,
            samples=sum(entry["samples"] for entry in entries),
            dropped_tokens=dropped_bytes * self._shard_format.sample_tokens // self._shard_format.sample_bytes,
            shard_hashes=[entry["raw_data"]["hashes"][HASH] for entry in entries],
            packing=None if self._end_id is None else sum(counts, PackingCounts()),
        )

    def _spool_folder(self, key: tuple[str, str]) -> Path:
        return self._work / "spool" / domain_folder(key[0]) / key[1]

    def _done_path(self, key: tuple[str, str], shard: int) -> Path:
        return self._work / "done" / f"{domain_folder(key[0])}.{key[1]}.{shard:05}.json"
