"""The documents that samples were cut from, by number, as far as a corpus records them.

A prepared corpus whose documents are joined has in each split's index.json "first_documents", the number of the
document that each shard begins in; end tokens count on from there. Numbers begin at 0 and follow the order in which
`prepare` read the domain's documents of that split. A Megatron .idx says where the documents of its .bin end. Samples
of best-fit packing, .npy files and other MDS data sets do not say.
"""

from typing import NamedTuple

import numpy as np

from ado_stream.corpus.corpus import Corpus
from ado_stream.corpus.listed_corpus import is_listed
from ado_stream.errors import IndexInvalid
from ado_stream.json_files import check_type, decode_json
from ado_stream.storage.download import download_bytes
from ado_stream.stream.domain import Domain
from ado_stream.stream.flat_files import document_ends, index_path
from ado_stream.stream.flat_index import FlatIndex
from ado_stream.stream.index_content import FIRST_DOCUMENTS, INDEX_NAME
from ado_stream.stream.sample_reader import SampleReader
from ado_stream.value_types import Ints, JsonObject

_ROWS_AT_ONCE = 1024


class Documents(NamedTuple):
    """The first and the last document that a sample has tokens of. file: that numbers them; None: the whole split."""

    first: int
    last: int
    file: str | None


def locate_documents(corpus: Corpus, domain: Domain, id_N: Ints) -> list[Documents] | None:
    """The documents of each sample of the domain, by its number; None where the corpus does not say.

    Raises IndexInvalid, and what reading the samples raises.
    """
    if domain.format == "npy" or (domain.format == "mds" and is_listed(corpus.url)):
        return None
    reader = SampleReader(domain, seq_len=corpus.seq_len)
    if isinstance(reader.index, FlatIndex):
        return _of_megatron(reader.index, id_N)
    first_S = _first_documents(domain, reader.index.samples_S.size)
    return None if first_S is None else _of_joined(reader, first_S, id_N, corpus.tokenizer.end_id)


def _first_documents(domain: Domain, num_shards: int) -> list[int] | None:
    where = f"{(domain.remote or domain.local or '').rstrip('/')}/{INDEX_NAME}"
    first_S: list[int] | None = decode_json(download_bytes(where), JsonObject, where).get(FIRST_DOCUMENTS)
    if first_S is not None:
        check_type(first_S, list[int], f"{where}: {FIRST_DOCUMENTS!r}")
        if len(first_S) != num_shards:
            raise IndexInvalid(f"{where}: {FIRST_DOCUMENTS!r} has {len(first_S)} numbers for {num_shards} shards.")
    return first_S


def _of_joined(reader: SampleReader, first_S: list[int], id_N: Ints, end_token: int) -> list[Documents]:
    """Counts the end tokens of every shard up to the last of its wanted samples."""
    found: dict[int, Documents] = {}
    shard_N = reader.index.shards_at(id_N)
    for shard in np.unique(shard_N).tolist():
        wanted = set(id_N[shard_N == shard].tolist())
        document = first_S[shard]
        for begin in range(int(reader.index.first_id_S[shard]), max(wanted) + 1, _ROWS_AT_ONCE):
            id_R = np.arange(begin, min(begin + _ROWS_AT_ONCE, max(wanted) + 1))
            ends_RT = reader.read(id_R) == end_token
            for number, ends_T in zip(id_R.tolist(), ends_RT, strict=True):
                if number in wanted:
                    found[number] = Documents(document, document + int(ends_T[:-1].sum()), None)
                document += int(ends_T.sum())
    return [found[number] for number in id_N.tolist()]


def _of_megatron(index: FlatIndex, id_N: Ints) -> list[Documents]:
    found = []
    url = str(index.remote or index.local)
    for number, shard in zip(id_N.tolist(), index.shards_at(id_N).tolist(), strict=True):
        file, token = index.first_token(shard)
        begin = token + (number - int(index.first_id_S[shard])) * index.seq_len
        end_D = document_ends(index_path(url, file, index.index_folder))
        first, last = np.searchsorted(end_D, [begin, begin + index.seq_len], side="right").tolist()
        found.append(Documents(first, last, f"{url}{file.name}"))
    return found
