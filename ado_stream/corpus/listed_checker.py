"""Reads a corpus.yaml shard by shard, checking what can be checked of each: for `lint` and `preview`, as checker.py.

Hashes where an index has them, sizes and structure, every token inside the vocabulary, and that documents whose ends a
.idx names end with the end token.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ado_stream.corpus.listed_corpus import open_listed
from ado_stream.corpus.manifest import SPLITS
from ado_stream.errors import DataError
from ado_stream.stream.flat_files import document_ends, index_path
from ado_stream.stream.flat_index import FlatIndex
from ado_stream.stream.sample_index import SampleIndex
from ado_stream.stream.sample_reader import SampleReader
from ado_stream.value_types import Ints, JsonMapping, JsonObject


class ListedChecker:
    """The shards of the corpus that a YAML file lists; the methods of CorpusChecker."""

    def __init__(self, url: str):
        """Raises as `open_listed`."""
        self._listed = open_listed(url)
        self.manifest = self._listed.manifest
        self._opened: tuple[tuple[str, str], SampleReader] | None = None

    def splits(self) -> Iterator[tuple[str, str]]:
        """Every (domain, split) that has samples."""
        for name, entry in self.manifest["domains"].items():
            yield from ((name, split) for split in SPLITS if split in entry["splits"])

    def index(self, domain: str, split: str) -> list[JsonObject]:
        """{samples, shard} of every shard. Raises NotFound, IndexInvalid, ConfigError."""
        samples_S = self._reader(domain, split).index.samples_S.tolist()
        return [{"samples": samples, "shard": shard} for shard, samples in enumerate(samples_S)]

    def shard(self, domain: str, split: str, entry: JsonMapping) -> Ints:
        """(samples, seq_len + 1) ids of one shard of `index`. Raises NotFound, ShardCorrupt, DataError."""
        reader, shard = self._reader(domain, split), entry["shard"]
        first = int(reader.index.first_id_S[shard])
        tokens_NT = reader.read(np.arange(first, first + entry["samples"]))
        self._check_documents(reader.index, shard, tokens_NT)
        return tokens_NT

    def check_fingerprint(self, domain: str, entries: Mapping[str, Sequence[JsonObject]]) -> None:
        """Nothing: a corpus.yaml claims no fingerprint."""

    def _reader(self, domain: str, split: str) -> SampleReader:
        """The reader of one split at a time."""
        if self._opened is None or self._opened[0] != (domain, split):
            (found,) = (each for each in self._listed.domains[split] if each.name == domain)
            vocab_size, seq_len = self.manifest["vocab_size"], self.manifest["seq_len"]
            self._opened = (domain, split), SampleReader(found, vocab_size=vocab_size, seq_len=seq_len)
        return self._opened[1]

    def _check_documents(self, index: SampleIndex, shard: int, tokens_NT: Ints) -> None:
        if not isinstance(index, FlatIndex) or not tokens_NT.size:
            return
        file, first = index.first_token(shard)
        if file.num_documents is None:
            return
        token_M = np.append(tokens_NT[:, :-1], tokens_NT[-1, -1])
        place = str(index.remote or index.local)
        end_D = document_ends(index_path(place, file, index.index_folder))
        begin, end = np.searchsorted(end_D, [first, first + token_M.size], side="right")  # ends within the shard
        last_D, end_id = token_M[end_D[begin:end] - first - 1], self._listed.tokenizer.end_id
        if (last_D != end_id).any():
            number = int(np.argmax(last_D != end_id))
            raise DataError(
                f"{index.spec(shard).label}: document {begin + number} ends with token {last_D[number]}, not with the "
                f"end token, {end_id}.\n"
                "  Write it with --append-eod, or give the end_token that it has in the YAML file."
            )
