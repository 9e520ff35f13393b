"""`prepare`: raw text to a corpus, from the list of files to corpus.json.

The coordinator (this process) cuts the input into pieces, hands them to workers, takes the results in input order and
keeps the journal; memory is a few pieces a worker, whatever the input's size. Corpus and journal depend on the input
and the settings alone: not on the number of workers, nor on kills and restarts in between.
"""

import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from typing import Any

from ado_stream.corpus import manifest as manifests
from ado_stream.corpus.manifest import folder_of
from ado_stream.corpus.mds import ShardFormat
from ado_stream.corpus.tokenizer import BYTES, CONFIG_NAME, Tokenizer, bpe_vocabulary, load_tokenizer, train_tokenizer
from ado_stream.durable import disk_errors, write_durably
from ado_stream.errors import ConfigError
from ado_stream.prepare.config import PrepareConfig
from ado_stream.prepare.output import Target
from ado_stream.prepare.packing import PackedSplit, Packer
from ado_stream.prepare.pool import WorkerPool, result_of
from ado_stream.prepare.progress import Progress
from ado_stream.prepare.readers import Fields, Piece, Refusals, cut_pieces
from ado_stream.prepare.sample import Sample
from ado_stream.prepare.source import SourceFile, find_sources
from ado_stream.prepare.worker import Worker, WorkerSetup
from ado_stream.prepare.workspace import begin_or_resume, clear, is_complete, locked, places_of, plan_of

_SAMPLE_BYTES_PER_TOKEN = 512  # of training text for each id of a BPE vocabulary
_SCAN_BYTES = 4 << 30
_MANIFEST_NAME = "manifest"  # corpus.json to be: from here on the run only has to be made visible


def prepare(config: PrepareConfig) -> Path | str:
    """Writes the corpus that `config` asks for; returns its local folder, or its URL.

    A run that was killed goes on where it stopped; a corpus that is complete is left as it is. Worker processes are
    spawned: a script that calls this needs the usual `if __name__ == "__main__":`, or workers=1.

    Raises ConfigError (settings, an empty domain, another corpus in the way), NotFound (input), DataError (unreadable
    text, with file and line), StorageError (disk full, permission denied, upload failed).
    """
    by_place = config.domain_key is None
    files = find_sources(config.inputs, "hash" if config.val_frac else "train", by_place)
    files += find_sources(config.val, "val", by_place)
    plan = plan_of(config, files)
    work, target = places_of(config)
    advice = "Finished work is kept: free space or fix the permissions, then run the same command again."
    with disk_errors(config.out, advice), locked(work):
        if not is_complete(target, plan, config.out):
            begin_or_resume(work, target, plan)
            _Run(config, files, plan, work, target).execute()
    shutil.rmtree(work)
    return config.out if config.is_remote else config.local_out


class _Run:
    """One execution: the pieces of `prepare` that share files, pool and progress bar."""

    def __init__(self, config: PrepareConfig, files: list[SourceFile], plan: str, work: Path, target: Target):
        self.config = config
        self.files = files
        self.plan = plan
        self.work = work
        self.target = target
        self.source_bytes = sum(file.size_bytes for file in files)
        self.setup = WorkerSetup(
            tokenizer=BYTES if config.tokenizer == BYTES else str(work / "tokenizer"),
            fields=Fields(config.text_key, config.domain_key),
            val_frac=config.val_frac,
            skip_errors=config.skip_errors,
        )

    def execute(self) -> None:
        """Tokenizer, shards, corpus.json, in this order."""
        manifest = self.work / _MANIFEST_NAME
        if not manifest.exists():
            write_durably(manifest, manifests.encode_manifest(self._build()))
        self.target.complete(manifest.read_bytes())

    def _build(self) -> dict[str, Any]:
        """Everything but making it visible; returns the manifest."""
        pool = WorkerPool(self.setup, self.config.workers)
        try:
            with Progress(self.config.progress) as progress:
                tokenizer = self._tokenizer(pool, progress)
                packed, refused = self._shards(tokenizer, pool, progress)
        finally:
            pool.close()
        return self._manifest(tokenizer, packed, refused)

    def _tokenizer(self, pool: WorkerPool, progress: Progress) -> Tokenizer:
        """The tokenizer, kept in the working folder so that a later run goes on with the same one."""
        folder = self.work / "tokenizer"
        if self.config.tokenizer == BYTES or (folder / "complete").exists():
            return load_tokenizer(BYTES if self.config.tokenizer == BYTES else folder)
        size = bpe_vocabulary(self.config.tokenizer)
        if size is None:
            tokenizer = load_tokenizer(self.config.tokenizer)
        else:
            texts = self._sample(size * _SAMPLE_BYTES_PER_TOKEN, pool, progress)
            tokenizer = train_tokenizer(texts, self.config.tokenizer)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)
        write_durably(folder / "complete", b"")
        return tokenizer

    def _sample(self, budget_bytes: int, pool: WorkerPool, progress: Progress) -> list[str]:
        """Training documents for a BPE: a seeded sample of all files but the validation's.

        Of an input beyond _SCAN_BYTES only every n-th piece is looked at.
        """
        files = [file for file in self.files if file.split != "val"]
        progress.start("sampling text", sum(file.size_bytes for file in files))
        sample = Sample(budget_bytes)
        stride = 1 + sum(file.size_bytes for file in files) // _SCAN_BYTES
        pieces = islice(cut_pieces(files, Refusals(self.config.skip_errors)), 0, None, stride)
        jobs = (
            (pool.submit(Worker.sample, piece, self.config.seed, budget_bytes, sample.threshold), piece)
            for piece in pieces
        )
        for items, piece in self._in_order(jobs):
            sample.merge(items)
            progress.advance(piece.source_bytes, 0)
        return [text for _, text in sample.items()]

    def _shards(
        self, tokenizer: Tokenizer, pool: WorkerPool, progress: Progress
    ) -> tuple[dict[tuple[str, str], PackedSplit], dict[str, int]]:
        """All of the input, tokenised and packed."""
        form = ShardFormat(self.config.seq_len + 1, tokenizer.dtype, self.config.shard_bytes)
        packer = Packer(self.work, self.target, form, pool, max_jobs=2 * self.config.workers)
        cutting = Refusals(self.config.skip_errors)
        progress.start("tokenising", self.source_bytes)
        try:
            jobs = self._tokenise_jobs(cut_pieces(self.files, cutting), packer.num_pieces, pool, progress)
            for result, piece in self._in_order(jobs):
                packer.add(result)
                progress.advance(piece.source_bytes, sum(block.text_bytes for block in result.blocks))
            return packer.finish(), dict(packer.refused + cutting.counts)
        finally:
            packer.close()

    def _tokenise_jobs(
        self, pieces: Iterator[Piece], num_done: int, pool: WorkerPool, progress: Progress
    ) -> Iterator[tuple["Future[Any]", Piece]]:
        for number, piece in enumerate(pieces):
            if number < num_done:
                progress.advance(piece.source_bytes, 0)
            else:
                yield pool.submit(Worker.tokenise, piece), piece

    def _in_order(self, jobs: Iterable[tuple["Future[Any]", Piece]]) -> Iterator[tuple[Any, Piece]]:
        """(result, piece) in the order of `jobs`, a few of them under way at a time: this bounds the memory."""
        window: deque[tuple[Future[Any], Piece]] = deque()
        for job in jobs:
            window.append(job)
            if len(window) >= 2 * self.config.workers:
                future, piece = window.popleft()
                yield result_of(future), piece
        for future, piece in window:
            yield result_of(future), piece

    def _expected_domains(self) -> list[str]:
        """Domains that have a file of their own, so that one without a document is noticed."""
        return [] if self.config.domain_key else [file.domain for file in self.files]

    def _manifest(
        self, tokenizer: Tokenizer, packed: dict[tuple[str, str], PackedSplit], refused: dict[str, int]
    ) -> dict[str, Any]:
        """corpus.json's content; the tokenizer's files are published on the way."""
        try:
            domains = _domains(packed, self._expected_domains(), self.config.seq_len)
        except ConfigError:
            clear(self.work)  # the same input will come to the same end
            raise
        word = BYTES
        if tokenizer.name != BYTES:
            word = tokenizer.save(self.target.local_path("."))
            for name in (word, CONFIG_NAME):
                self.target.publish(name)
        return {
            "version": manifests.VERSION,
            "seq_len": self.config.seq_len,
            "tokenizer": word,
            "vocab_size": tokenizer.vocab_size,
            "token_dtype": tokenizer.dtype,
            "fingerprint": manifests.corpus_fingerprint(domains),
            "source": self.plan,
            "refused": refused,
            "domains": domains,
        }


def _domains(packed: dict[tuple[str, str], PackedSplit], expected: list[str], seq_len: int) -> dict[str, Any]:
    """corpus.json's "domains". Raises ConfigError when one has nothing to train on, or there is none at all."""
    names = list(dict.fromkeys([*(domain for domain, _ in packed), *expected]))
    if not names:
        raise ConfigError("no document in the input: nothing to write.")
    domains = {}
    for name in names:
        splits = {split: packed[name, split] for split in manifests.SPLITS if (name, split) in packed}
        _refuse_empty(name, splits, seq_len)
        domains[name] = {
            "path": folder_of(name),
            "documents": sum(split.documents for split in splits.values()),
            "bytes": sum(split.text_bytes for split in splits.values()),
            "fingerprint": manifests.domain_fingerprint({split: part.shard_hashes for split, part in splits.items()}),
            "splits": {
                split: {
                    "documents": part.documents,
                    "tokens": part.samples * (seq_len + 1),
                    "samples": part.samples,
                    "dropped_tokens": part.dropped_tokens,
                }
                for split, part in splits.items()
            },
        }
    return domains


def _refuse_empty(name: str, splits: dict[str, PackedSplit], seq_len: int) -> None:
    train = splits.get("train")
    if train is None or not train.documents:
        where = "validation documents only" if splits else "no document"
        raise ConfigError(f"domain {name!r} has {where}: nothing to train on.\n  Give it text, or leave it out.")
    if not train.samples:
        raise ConfigError(
            f"domain {name!r}: {train.documents} training documents with {train.dropped_tokens} tokens are less than "
            f"one sample of {seq_len + 1}.\n"
            "  Give it more text, leave it out, merge it with another domain, or take a smaller sequence length."
        )
