"""What a worker process does: a piece of input to token blocks, a raw shard file to a finished shard.

A worker has its tokenizer and settings from the start; every call depends on its arguments alone. No torch and no
mosaicml-streaming, so that a worker starts in a fraction of a second.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ado_stream.corpus.mds import ShardFormat, compress_shard, encode_shard, shard_entry
from ado_stream.corpus.tokenizer import BYTES, Tokenizer, load_tokenizer
from ado_stream.durable import damage_errors
from ado_stream.prepare.best_fit import pack_best_fit
from ado_stream.prepare.document_sample import DocumentSample, priority
from ado_stream.prepare.documents import Document, Piece, add_too_long, read_documents
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.prepare.record_errors import RecordErrors
from ado_stream.value_types import JsonObject, Words

TOKENIZER_FOLDER = "tokenizer"
VAL_HASHES_NAME = "val_hashes.npy"  # the sorted hashes of the text of --val
PACKING, NUM_ENDS = "packing", "end_tokens"  # beside the keys of an index entry, removed where the index is written
_SHOWN_CHARACTERS = 40
_HASH_RANGE = 1 << 64


@dataclass(frozen=True)
class TokenBlock:
    """All of a piece's documents of one domain and split, each followed by the end token."""

    domain: str
    split: str
    documents: int
    text_bytes: int
    tokens: bytes


@dataclass(frozen=True)
class PieceResult:
    """A piece's blocks, in the order in which their domains first came, and the counts of skipped records."""

    blocks: list[TokenBlock]
    refused: dict[str, int]
    refused_bytes: dict[str, int]
    repeated: set[int]  # hashes of training texts that validation documents have, too


@dataclass(frozen=True)
class ShardJob:
    """One shard to finish: where its raw samples are on disk, and its destination."""

    sources: tuple[tuple[Path, int, int], ...]  # (file, first byte, the one after the last)
    shard: int
    shard_format: ShardFormat
    out_path: Path
    end_id: int | None  # where documents end that are packed by best-fit; None: they are joined already
    begin_token: int  # of the shard among all of its split


class Worker:
    """The calls of a worker process; used directly where there is only one process.

    Tokenizer and hashes are in the working folder `work` before the first `tokenise`, but not always from the start.
    """

    def __init__(self, config: PrepareConfig, work: Path):
        self.config = config
        self.work = work

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The corpus' tokenizer."""
        return load_tokenizer(BYTES if self.config.tokenizer == BYTES else self.work / TOKENIZER_FOLDER)

    @cached_property
    def _val_hashes(self) -> Words:
        path = self.work / VAL_HASHES_NAME
        if not self.config.val:
            return np.empty(0, np.uint64)
        with damage_errors(path):
            hashes: Words = np.load(path, mmap_mode="r")
        return hashes

    def hash_texts(self, piece: Piece) -> Words:
        """(documents,) uint64: the hash of each document's text."""
        return _hashes(read_documents(piece, self.config, RecordErrors(self.config.skip_errors)))

    def tokenise(self, piece: Piece) -> PieceResult:
        """A piece's documents as token blocks per domain and split."""
        errors = RecordErrors(self.config.skip_errors)
        documents = list(read_documents(piece, self.config, errors))
        repeats = self._repeats_of_val(documents)
        if self.config.drop_duplicates_of_val and repeats:
            errors.counts["training document with the text of a validation document"] += len(repeats)
            documents = [document for number, document in enumerate(documents) if number not in repeats]
            repeats = {}
        groups: dict[tuple[str, str], list[Document]] = {}
        for document in documents:
            groups.setdefault((document.domain, self._split(document)), []).append(document)
        del documents  # so that _token_block can free their texts, of up to 128 MiB each
        blocks = [_token_block(self.tokenizer, *key, groups[key], errors) for key in groups]
        blocks = [block for block in blocks if block.documents]
        return PieceResult(blocks, errors.counts, errors.num_bytes, set(repeats.values()))

    def sample(self, piece: Piece, budget_bytes: int, threshold: int) -> list[tuple[int, str]]:
        """The piece's part of a training sample: (priority, text) of training documents below `threshold`."""
        sample = DocumentSample(budget_bytes, threshold)
        documents = list(read_documents(piece, self.config, RecordErrors(self.config.skip_errors)))
        dropped = self._repeats_of_val(documents) if self.config.drop_duplicates_of_val else {}
        for number, document in enumerate(documents):
            if self._split(document) == "train" and number not in dropped:
                sample.offer(priority(document.text.encode(), self.config.seed), document.text)
        return sample.items()

    def finish_shard(self, job: ShardJob) -> JsonObject:
        """Writes the shard; returns its index entry, with the counts of best-fit, PACKING, or of end tokens, NUM_ENDS.

        The caller syncs the file before it counts it as written.
        """
        samples = b"".join(read_range(*source) for source in job.sources)
        ids = np.frombuffer(samples, job.shard_format.dtype)
        if job.end_id is not None:
            packed, counts = pack_best_fit(ids, job.shard_format.sample_tokens, job.end_id, job.begin_token)
            samples = packed.tobytes()
            about: JsonObject = {PACKING: asdict(counts)}
        else:
            about = {NUM_ENDS: int(np.count_nonzero(ids == self.tokenizer.end_id))}
        raw = encode_shard(samples, job.shard_format)
        compressed = compress_shard(raw)
        job.out_path.write_bytes(compressed)
        return {**shard_entry(job.shard, raw, compressed, job.shard_format), **about}

    def finish_shards(self, jobs: Sequence[ShardJob]) -> list[JsonObject]:
        """What `finish_shard` returns for each of `jobs`."""
        return [self.finish_shard(job) for job in jobs]

    def _repeats_of_val(self, documents: Sequence[Document]) -> dict[int, int]:
        """{number of a training document: hash of its text} of those whose text a validation document has, too."""
        val = self._val_hashes
        if not len(val):
            return {}
        hashes = _hashes(documents)
        same = val[np.minimum(np.searchsorted(val, hashes), len(val) - 1)] == hashes
        return {int(n): int(hashes[n]) for n in np.flatnonzero(same) if self._split(documents[n]) == "train"}

    def _split(self, document: Document) -> str:
        """The document's split: its file's, else by xxh64 of its text, so the same in every corpus."""
        if document.split != "hash":
            return document.split
        return "val" if document.text_hash < self.config.val_frac * _HASH_RANGE else "train"


def read_range(path: Path, begin: int, end: int) -> bytes:
    """A file's bytes from `begin` to before `end`."""
    with open(path, "rb") as file:
        file.seek(begin)
        return file.read(end - begin)


def _hashes(documents: Iterable[Document]) -> Words:
    return np.array([document.text_hash for document in documents], np.uint64)


def _short_enough(documents: Iterable[Document], most: int, tokenizer: str, errors: RecordErrors) -> list[Document]:
    """Those of at most `most` bytes; the others go to `errors`."""
    kept = []
    for document in documents:
        if document.text_bytes <= most:
            kept.append(document)
        else:
            where = _where(document.domain, document.text[:_SHOWN_CHARACTERS])
            add_too_long(where, document.text_bytes, errors, most, f" with tokenizer {tokenizer!r}")
    return kept


def _where(domain: str, beginning: str) -> str:
    return f"domain {domain!r}: the document that begins with {beginning!r}"


def _token_block(
    tokenizer: Tokenizer, domain: str, split: str, documents: list[Document], errors: RecordErrors
) -> TokenBlock:
    """The block of `documents`, of which the list is then empty.

    To `errors` go texts that are too long for the tokenizer, and those that have the end token, which would end a
    document in its middle: where the token is a word of the vocabulary, and not special.
    """
    if tokenizer.max_text_bytes is not None:
        documents[:] = _short_enough(documents, tokenizer.max_text_bytes, tokenizer.name, errors)
    texts = [document.text for document in documents]
    about = [(document.text_bytes, document.text[:_SHOWN_CHARACTERS]) for document in documents]
    documents.clear()
    ids = tokenizer.encode_batch(texts)
    del texts
    whole = [number for number, own in enumerate(ids) if tokenizer.end_id not in own]
    for number in sorted(set(range(len(ids))).difference(whole)):
        num_bytes, beginning = about[number]
        advice = "Name an end token that is special in tokenizer.json, so that no text is taken for it."
        errors.add(_where(domain, beginning), "end token in the text", "", advice, num_bytes)
    end = np.array([tokenizer.end_id], tokenizer.dtype)
    assert all(document.dtype == tokenizer.dtype for document in ids)
    tokens = b"".join(part.data for number in whole for part in (ids[number], end))
    return TokenBlock(domain, split, len(whole), sum(about[number][0] for number in whole), tokens)
