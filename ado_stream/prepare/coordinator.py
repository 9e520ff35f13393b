"""`prepare`: raw text to a corpus, from the list of files to corpus.json.

The coordinator (this process) cuts the input into pieces, submits them to workers, takes the results in input order
and keeps the journal; memory is a few pieces per worker, independent of the size of the input. Corpus and
journal depend on the input and the settings alone: not on the number of workers, nor on kills and restarts in between.
"""

import io
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from ado_stream.corpus.manifest import (
    BEST_FIT,
    MANIFEST_VERSION,
    SPLITS,
    DomainEntry,
    Manifest,
    SplitEntry,
    corpus_fingerprint,
    domain_fingerprint,
    domain_folder,
    encode_manifest,
)
from ado_stream.corpus.mds import ShardFormat
from ado_stream.corpus.tokenizer import (
    BYTES,
    TOKENIZER_CONFIG_NAME,
    Tokenizer,
    bpe_vocabulary,
    load_tokenizer,
    train_tokenizer,
)
from ado_stream.durable import disk_errors, write_durably
from ado_stream.errors import ConfigError
from ado_stream.prepare.corpus_output import CorpusOutput
from ado_stream.prepare.document_sample import DocumentSample
from ado_stream.prepare.documents import Piece, cut_pieces
from ado_stream.prepare.input_files import InputFile, find_input_files
from ado_stream.prepare.packing import Key, PackedCorpus, PackedSplit, Packer
from ado_stream.prepare.parts import PartPacker
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.prepare.prepare_worker import TOKENIZER_FOLDER, VAL_HASHES_NAME, PieceResult, Worker
from ado_stream.prepare.progress_bar import ProgressBar
from ado_stream.prepare.record_errors import RecordErrors
from ado_stream.prepare.worker_pool import WorkerPool, worker_result
from ado_stream.prepare.workspace import (
    PLAN_NAME,
    Plan,
    begin_or_resume,
    clear,
    is_complete,
    locked,
    open_output,
)
from ado_stream.visible import visible

_SAMPLE_BYTES_PER_TOKEN = 512  # of training text for each id of a BPE vocabulary
_SCAN_BYTES = 4 << 30  # of input to draw that text from
_R = TypeVar("_R")
_log = logging.getLogger(__name__)
_PENDING_MANIFEST = "manifest"  # corpus.json of a corpus that has only to be made visible


def prepare(config: PrepareConfig) -> Path | str:
    """Writes the corpus of `config`; returns its local folder, or its URL.

    A run that was killed is resumed; a complete corpus is left as it is. Worker processes are spawned: a script that
    calls this needs the usual `if __name__ == "__main__":`, or workers=1.

    Raises ConfigError (settings, an empty domain, another corpus in the way), NotFound (input), DataError (unreadable
    text, with file and line), StorageError (disk full, permission denied, upload failed).
    """
    by_path = config.domain_key is None
    found = find_input_files(config.inputs, "hash" if config.val_frac else "train", by_path, config.val)
    given = None if config.tokenizer == BYTES or bpe_vocabulary(config.tokenizer) else load_tokenizer(config.tokenizer)
    if given is not None and given.loses_characters:
        found.notes.append(
            f"tokenizer {given.name!r}: characters outside its vocabulary are left out of the text; "
            "give its BPE an unknown token, or bytes"
        )
    for note in (*found.notes, *(f"left out: {count:,} x {reason}" for reason, count in found.left_out.items())):
        _log.warning("%s", visible(note))
    plan = Plan.of(config, found.files, given)
    result = config.local_out or config.out
    if config.on_ray:  # whose workers are in other folders
        config = replace(config, out=str(config.local_out.absolute()) if config.local_out else config.out)
        found.files = [
            file if file.kind == "hf" else replace(file, path=os.path.abspath(file.path)) for file in found.files
        ]
    work, output = open_output(config)
    advice = "Finished work is kept: free space or fix the permissions, then run the same command again."
    with disk_errors(config.out, advice), locked(work):
        if not is_complete(output, plan, config.out):
            begin_or_resume(work, output, plan)
            _Coordinator(config, found.files, given, plan.fingerprint, work, output).execute()
        clear(work)
    return result


class _Coordinator:
    """One run over `files`, in the locked working folder `work`."""

    def __init__(
        self,
        config: PrepareConfig,
        files: list[InputFile],
        given: Tokenizer | None,  # the tokenizer that `config` names, as the plan's fingerprint counts it
        plan: str,
        work: Path,
        output: CorpusOutput,
    ):
        self.config = config
        self.files = files
        self.given = given
        self.plan = plan
        self.work = work
        self.output = output
        self.progress = ProgressBar(config.progress)
        self.pool = WorkerPool(config, work)

    def execute(self) -> None:
        """Tokenizer, shards, corpus.json, in this order."""
        manifest = self.work / _PENDING_MANIFEST
        if not manifest.exists():
            # Once this file exists nothing is built again: after a kill in `complete` only that is repeated.
            write_durably(manifest, encode_manifest(self._build()))
        self.output.complete(manifest.read_bytes())

    def _build(self) -> Manifest:
        """Writes and publishes shards and tokenizer; returns the manifest."""
        with closing(self.pool), self.progress:
            inputs = [Path(file.path) for file in self.files if file.kind != "hf"]
            self.pool.check_shared([self.work / PLAN_NAME, *inputs[:1]])
            self._hash_validation_text()
            tokenizer = self._make_tokenizer()
            manifest = self._pack(tokenizer)
            self._check_unchanged()
            return manifest

    def _check_unchanged(self) -> None:
        """Raises ConfigError when a file was written to while it was read: what was read is neither text."""
        for file in self.files:
            if file.kind == "hf":
                continue
            with suppress(FileNotFoundError):
                status = os.stat(file.path)
                if (status.st_size, status.st_mtime_ns) == (file.size_bytes, file.stamp):
                    continue
            clear(self.work)
            raise ConfigError(
                f"{file.path}: changed or removed while it was read. Run the command again when it is whole."
            )

    def _hash_validation_text(self) -> None:
        """Writes the sorted hashes of all documents of --val, by which workers recognise them among the others."""
        path = self.work / VAL_HASHES_NAME
        files = [file for file in self.files if file.split == "val"]
        if not files or path.exists():
            return
        self.progress.start("validation text", sum(file.size_bytes for file in files))
        hashes = [np.empty(0, np.uint64)]
        pieces = cut_pieces(files, RecordErrors(self.config.skip_errors), self.config.keys)
        jobs = ((self.pool.submit(Worker.hash_texts, piece), piece.source_bytes) for piece in pieces)
        for part, source_bytes in self._in_order(jobs):
            hashes.append(part)
            self.progress.advance(source_bytes, 0)
        file = io.BytesIO()
        np.save(file, np.sort(np.concatenate(hashes)))
        write_durably(path, file.getvalue())

    def _make_tokenizer(self) -> Tokenizer:
        """The tokenizer, kept in the working folder so that a resumed run has the same one."""
        folder = self.work / TOKENIZER_FOLDER
        if self.config.tokenizer == BYTES or (folder / "complete").exists():
            return load_tokenizer(BYTES if self.config.tokenizer == BYTES else folder)
        size = bpe_vocabulary(self.config.tokenizer)
        if size is None:
            assert self.given is not None
            tokenizer = self.given
        else:
            tokenizer = train_tokenizer(self._sample_texts(size * _SAMPLE_BYTES_PER_TOKEN), self.config.tokenizer)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)
        write_durably(folder / "complete", b"")
        return tokenizer

    def _sample_texts(self, budget_bytes: int) -> list[str]:
        """Training documents for a BPE: a seeded sample of all files but those for validation.

        Of an input beyond _SCAN_BYTES only every n-th piece is read.
        """
        files = [file for file in self.files if file.split != "val"]
        source_bytes = sum(file.size_bytes for file in files)
        self.progress.start("sampling text", source_bytes)
        sample = DocumentSample(budget_bytes)
        pieces = cut_pieces(files, RecordErrors(self.config.skip_errors), self.config.keys)
        jobs = (
            (
                self.pool.submit(Worker.sample, piece, budget_bytes, sample.threshold),
                piece.source_bytes,
            )
            for piece in islice(pieces, 0, None, 1 + source_bytes // _SCAN_BYTES)
        )
        for items, source_bytes in self._in_order(jobs):
            sample.merge(items)
            self.progress.advance(source_bytes, 0)
        return [text for _, text in sample.items()]

    def _pack(self, tokenizer: Tokenizer) -> Manifest:
        """Tokenises and packs all of the input; returns the manifest."""
        shard_format = ShardFormat(self.config.seq_len + 1, tokenizer.dtype, self.config.shard_bytes)
        end_id = tokenizer.end_id if self.config.packing == BEST_FIT else None
        self.progress.start("tokenising", sum(file.size_bytes for file in self.files))
        packed = (self._pack_parts if self.config.on_ray else self._pack_pieces)(shard_format, end_id)
        manifest = self._manifest(tokenizer, packed)
        if end_id is not None:
            manifest["packing"] = BEST_FIT
        if packed.refused_bytes:
            manifest["refused_bytes"] = dict(packed.refused_bytes)
        if packed.repeated:
            hashes = np.load(self.work / VAL_HASHES_NAME)
            manifest["val_in_train"] = int(np.isin(hashes, np.array(sorted(packed.repeated), np.uint64)).sum())
        return manifest

    def _pack_pieces(self, shard_format: ShardFormat, end_id: int | None) -> PackedCorpus:
        """Cuts all files here, and packs the pieces' tokens in their order."""
        packer = Packer(self.work, self.output, shard_format, self.pool, 2 * self.config.workers, end_id)
        cutting = RecordErrors(self.config.skip_errors)
        with closing(packer):
            jobs = self._tokenise_jobs(cut_pieces(self.files, cutting, self.config.keys), packer.num_pieces)
            for result, source_bytes in self._in_order(jobs):
                packer.add(result)
                self.progress.advance(source_bytes, sum(block.text_bytes for block in result.blocks))
            splits = packer.finish()
        refused, refused_bytes = packer.refused + cutting.counts, packer.refused_bytes + cutting.num_bytes
        return PackedCorpus(splits, refused, refused_bytes, packer.repeated)

    def _pack_parts(self, shard_format: ShardFormat, end_id: int | None) -> PackedCorpus:
        """Has workers cut files and write shards, where many read and write at once."""
        packer = PartPacker(self.work, self.output, shard_format, self.pool, end_id)
        for source_bytes, text_bytes in packer.tokenise(self.files):
            self.progress.advance(source_bytes, text_bytes)
        return packer.finish()

    def _tokenise_jobs(self, pieces: Iterator[Piece], num_done: int) -> Iterator[tuple["Future[PieceResult]", int]]:
        """Submits all pieces but the first `num_done`, which an earlier run packed."""
        for number, piece in enumerate(pieces):
            if number < num_done:
                self.progress.advance(piece.source_bytes, 0)
            else:
                yield self.pool.submit(Worker.tokenise, piece), piece.source_bytes

    def _in_order(self, jobs: Iterable[tuple["Future[_R]", int]]) -> Iterator[tuple[_R, int]]:
        """(result, source bytes) in the order of `jobs`; memory is bounded by submitting only a few of them ahead."""
        window: deque[tuple[Future[_R], int]] = deque()
        for job in jobs:
            window.append(job)
            if len(window) >= 2 * self.pool.num_workers:
                future, source_bytes = window.popleft()
                yield worker_result(future), source_bytes
        for future, source_bytes in window:
            yield worker_result(future), source_bytes

    def _manifest(self, tokenizer: Tokenizer, packed: PackedCorpus) -> Manifest:
        """The content of corpus.json; publishes the tokenizer's files."""
        # A domain that has a file of its own must have a document too.
        expected = [] if self.config.domain_key else [file.domain for file in self.files]
        try:
            domains = _domains(packed.splits, expected, self.config)
        except ConfigError as error:
            clear(self.work)  # the same input will fail again, so there is nothing to resume
            left_out = ", ".join(f"{count:,} x {reason}" for reason, count in packed.refused.items())
            raise ConfigError(f"{error}\n  Left out: {left_out}." if left_out else str(error)) from None
        tokenizer_file = BYTES
        if tokenizer.name != BYTES:
            tokenizer_file = tokenizer.save(self.output.local_path("."))
            for name in (tokenizer_file, TOKENIZER_CONFIG_NAME):
                self.output.publish(name)
        return {
            "version": MANIFEST_VERSION,
            "seq_len": self.config.seq_len,
            "tokenizer": tokenizer_file,
            "vocab_size": tokenizer.vocab_size,
            "token_dtype": tokenizer.dtype,
            "fingerprint": corpus_fingerprint(domains),
            "source": self.plan,
            "refused": dict(packed.refused),
            "domains": domains,
        }


def _domains(packed: dict[Key, PackedSplit], expected: list[str], config: PrepareConfig) -> dict[str, DomainEntry]:
    """corpus.json's "domains". Raises ConfigError when one has nothing to train on, or there is none at all."""
    names = list(dict.fromkeys([*(domain for domain, _ in packed), *expected]))
    if not names:
        raise ConfigError("no document in the input.")
    domains: dict[str, DomainEntry] = {}
    for name in names:
        splits = {split: packed[name, split] for split in SPLITS if (name, split) in packed}
        _check_not_empty(name, splits, config.seq_len)
        domains[name] = {
            "path": domain_folder(name),
            "documents": sum(split.documents for split in splits.values()),
            "bytes": sum(split.text_bytes for split in splits.values()),
            "fingerprint": domain_fingerprint({split: part.shard_hashes for split, part in splits.items()}),
            "splits": {split: _split_entry(part, config) for split, part in splits.items()},
        }
    return domains


def _split_entry(part: PackedSplit, config: PrepareConfig) -> SplitEntry:
    entry: SplitEntry = {
        "documents": part.documents,
        "tokens": part.samples * (config.seq_len + 1),
        "samples": part.samples,
        "dropped_tokens": part.dropped_tokens,
    }
    if config.packing == BEST_FIT:
        entry["tokens"] -= part.packing.padding_tokens
        entry["padding_tokens"] = part.packing.padding_tokens
        entry["cut_documents"] = part.packing.cut
        entry["cut_by_joining"] = part.packing.cut_by_joining
    return entry


def _check_not_empty(name: str, splits: dict[str, PackedSplit], seq_len: int) -> None:
    train = splits.get("train")
    if train is None or not train.documents:
        documents = "validation documents only" if splits else "no document"
        raise ConfigError(f"domain {name!r} has {documents}, none to train on.\n  Give it text, or leave it out.")
    if not train.samples:
        raise ConfigError(
            f"domain {name!r}: {train.documents} training documents with {train.dropped_tokens} tokens are less than "
            f"one sample of {seq_len + 1}.\n"
            "  Give it more text, leave it out, merge it with another domain, or use a smaller sequence length."
        )
