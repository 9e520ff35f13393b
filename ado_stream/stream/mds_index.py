"""An MDS data set as a domain: the places of its shards, and of the tokens in a sample.

Of a sample's columns the tokens alone are read; others, pickles among them, are never decoded.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ado_stream.errors import ConfigError, IndexInvalid
from ado_stream.storage.object_spec import ObjectSpec
from ado_stream.stream.index_content import INDEX_NAME, IndexContent, Layout
from ado_stream.stream.sample_index import SampleIndex, place_id
from ado_stream.stream.shard_view import ShardView, TokenColumn
from ado_stream.value_types import INTEGER_DTYPES, Ints, TokenDtype

TOKEN_COLUMN = "tokens"


@dataclass(frozen=True)
class MdsIndex(SampleIndex):
    """An index under its domain's name, with the places of its shards."""

    name: str
    remote: str | None
    local: Path  # of the shards: the data set's own folder, or the one that caches them
    content: IndexContent
    column: TokenColumn
    first_id_S: Ints  # (S + 1,) int64: id of a shard's first sample
    versions: str = ""  # of data without hashes: changes when they are replaced at the remote
    seq_len: int | None = None  # where it was asked for

    @property
    def fingerprint(self) -> str:
        return self.content.fingerprint

    @property
    def dtype(self) -> TokenDtype:
        return self.column.dtype

    @property
    def row_tokens(self) -> int | None:
        if self.column.size_bytes is not None and not self.column.shaped:
            return self.column.size_bytes // self.column.dtype.itemsize
        return None if self.seq_len is None else self.seq_len + 1

    @property
    def samples_S(self) -> Ints:
        return self.content.samples_S

    @property
    def raw_bytes_S(self) -> Ints:
        return self.content.raw_S["bytes"]

    def data_ids(self) -> dict[Hashable, str]:
        names = self.content.stored_S["basename"].tolist()
        places = [f"{self.remote or self.local}/{name.decode()}" for name in names]
        if self.content.has_hashes:  # by which copies are recognised, too
            return {each: place for own_S in self.content.digests() for each, place in zip(own_S, places, strict=True)}
        return {place_id(place): place for place in places}

    def rows(self, mapped: memoryview, shard: int) -> ShardView:
        return ShardView(mapped, self.column, int(self.samples_S[shard]), self.spec(shard).label)

    def spec(self, shard: int) -> ObjectSpec:
        (raw_name, raw_bytes, raw_hashes), (stored_name, stored_bytes, stored_hashes) = self.content.files(shard)
        raw, stored = raw_name, stored_name
        if self.remote:  # in a cache by number: names may be any, in folders, or differ in case alone
            raw = f"{shard:08}.mds"
            stored = f"{raw}.{self.content.compression.partition(':')[0]}" if self.content.compression else raw
        return ObjectSpec(
            label=f"domain '{self.name}' {raw_name}",
            remote=f"{self.remote.rstrip('/')}/{stored_name}" if self.remote else None,
            stored=self.local / stored,
            raw=self.local / raw,
            stored_bytes=stored_bytes,
            raw_bytes=raw_bytes,
            stored_hashes=stored_hashes,
            raw_hashes=raw_hashes,
            compression=self.content.compression,
        )


def make_index(
    content: IndexContent,
    name: str,
    remote: str | None,
    local: Path,
    column: str = TOKEN_COLUMN,
    dtype: str | None = None,
    seq_len: int | None = None,
) -> MdsIndex:
    """`content` as the index of domain `name`.

    seq_len: tokens a sample less one, if it has to be that; what differs is found here or where a shard is opened.
    column: name of the token column. dtype: of the tokens when the column is plain bytes (default int64, as LLM
    Foundry writes them). Raises IndexInvalid with the place, ConfigError when there is no such column.
    """
    tokens = _token_column(content.layout, column, dtype, name, f"{remote or local}/{INDEX_NAME}")
    first_id_S = np.concatenate([[0], np.cumsum(content.samples_S)])
    index = MdsIndex(name, remote, local, content, tokens, first_id_S, seq_len=seq_len)
    if seq_len is not None and index.row_tokens != seq_len + 1:
        raise ConfigError(
            f"domain '{name}': {remote or local} has samples of {index.row_tokens} tokens; seq_len {seq_len} needs "
            f"{seq_len + 1}."
        )
    return index


def _token_column(layout: Layout, column: str, dtype: str | None, name: str, where: str) -> TokenColumn:
    names = [entry[0] for entry in layout]
    if column not in names:
        raise ConfigError(
            f"domain '{name}': no column '{column}' in {where}; columns found: {', '.join(names)}.\n"
            f"  Name the column that holds the tokens with token_column=."
        )
    number = names.index(column)
    _, encoding, size = layout[number]
    kind, _, rest = encoding.partition(":")
    written, _, shape = rest.partition(":")
    if kind == "bytes":
        written = dtype or "int64"
    elif kind != "ndarray" or not written:
        raise ConfigError(
            f"domain '{name}': column '{column}' is encoded as '{encoding}'; expected 'ndarray:<integer>' or 'bytes'."
        )
    if written not in INTEGER_DTYPES:
        raise ConfigError(f"domain '{name}': column '{column}' holds '{written}'; expected an integer type.")
    if "," in shape:
        raise ConfigError(f"domain '{name}': column '{column}' is encoded as '{encoding}'; expected one dimension.")
    itemsize = np.dtype(written).itemsize
    if size is not None and (size % itemsize or (kind == "ndarray" and shape not in ("", str(size // itemsize)))):
        raise IndexInvalid(
            f"{where}: column '{column}' of {size} bytes does not hold {shape or 'whole'} {written} tokens."
        )
    return TokenColumn(
        name=column,
        dtype=np.dtype(written).newbyteorder("<"),
        columns_before=tuple(entry[2] for entry in layout[:number]),
        num_variable=sum(entry[2] is None for entry in layout),
        size_bytes=size,
        shaped=kind == "ndarray" and not shape,
    )
