"""Finds the files of tokens at a place and reads what their headers and indexes say: Megatron's and OLMo's formats.

Everything here is untrusted input: a number is used only when it agrees with the sizes of the files. Formats:

    megatron   PREFIX.bin, the tokens, and PREFIX.idx (Megatron-LM, megatron/core/datasets/indexed_dataset.py): magic,
               uint64 version 1, uint8 code of the tokens' type, uint64 sequences, uint64 entries of the last array;
               then int32 tokens of each sequence, int64 its first byte in the .bin, int64 the first sequence of each
               document, ended by the number of sequences. int8 modes of sequences may follow.
    npy        tokens and nothing else (OLMo-core's NumpyFSLDataset), or an array as numpy.save writes it.
"""

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import xxhash

from ado_stream.durable import disk_errors, private_folder
from ado_stream.errors import ConfigError, IndexInvalid, NotFound
from ado_stream.storage.download import download, download_part, list_objects, local_path, object_status
from ado_stream.storage.object_spec import ObjectStatus, Part
from ado_stream.storage.parallel_reads import read_in_parallel
from ado_stream.storage.retry import RetryPolicy
from ado_stream.stream.flat_index import FlatContent, TokenFile
from ado_stream.value_types import INTEGER_DTYPES, Array, Ints

_MAGIC, _HEADER_BYTES = b"MMIDIDX\x00\x00", 34
_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}  # 6, 7: floating point
_NUMPY_MAGIC, _HEAD_BYTES = b"\x93NUMPY", 4096  # which NumPy's header is within
_NUMPY_DTYPES = {np.dtype(name).str[1:]: name for name in INTEGER_DTYPES}
_NUMPY_FIELDS = [
    re.compile(rb"'descr': *'([<>|]\w{1,8})'"),
    re.compile(rb"'fortran_order': *(True|False)"),
    re.compile(rb"'shape': *\((\d{1,18}(?:, *\d{1,18})*,?|)\)"),
]
_THREADS = 32
_CHUNK = 1 << 20  # entries of an index looked at at once

Found = dict[str, ObjectStatus]  # {what follows the place in a file's path: status}


@dataclass(frozen=True)
class FlatPlace:
    """Where a domain's files are and how to read them. url: or a path. folder: on this machine, for their indexes."""

    name: str
    url: str
    format: str
    token_dtype: str | None
    folder: Path
    retry: RetryPolicy

    def find(self) -> Found:
        """The files of tokens and their indexes. Raises NotFound, ConfigError (a scheme without its client)."""
        is_megatron = self.format == "megatron"
        found: Found = {}
        for single in (".bin", ".idx") if is_megatron else () if Path(self.url).is_dir() else ("",):
            with suppress(NotFound):
                found[single] = object_status(self.url + single, self.retry)
        if not found:
            for suffix in (".bin", ".idx") if is_megatron else (".npy",):
                listed = list_objects(self.url, suffix, self.retry)
                found |= {f"/{name}": status for name, status in listed.items()}
        if not found:
            one = f"{self.url}.bin and .idx" if is_megatron else "that file"
            raise NotFound(
                f"{self.url}: domain '{self.name}': neither {one} nor a folder of such files.\n"
                f"  Expected tokens in format '{self.format}'."
            )
        return found

    def read(self, found: Found) -> FlatContent:
        """The files with what is known of their content. Raises IndexInvalid, ConfigError, NotFound."""
        if self.format == "npy":
            reads = [partial(self._npy, name, status) for name, status in found.items()]
        else:
            stems = dict.fromkeys(name.removesuffix(".bin").removesuffix(".idx") for name in found)
            reads = [
                partial(self._megatron, stem, found.get(f"{stem}.bin"), found.get(f"{stem}.idx")) for stem in stems
            ]
        files = tuple(read_in_parallel(reads, _THREADS, self.retry.stop))
        dtypes = sorted({file.dtype for file in files})
        if len(dtypes) > 1 or self.token_dtype not in (None, dtypes[0]):
            expected = f"; token_dtype is {self.token_dtype}" if len(dtypes) == 1 else ""
            raise ConfigError(f"domain '{self.name}': {self.url} holds tokens of {' and '.join(dtypes)}{expected}.")
        return FlatContent(files)

    def _megatron(self, stem: str, tokens: ObjectStatus | None, index: ObjectStatus | None) -> TokenFile:
        if tokens is None or index is None:
            missing = f"{self.url}{stem}{'.bin' if tokens is None else '.idx'}"
            raise NotFound(f"{missing}: no such file. Megatron's format is a .bin and an .idx of one name.")
        where = f"{self.url}{stem}.idx"
        path = local_path(where)
        if path is None:
            path = self.folder / f"{_hash(where.encode())}.unchecked"
            with disk_errors(self.folder):
                private_folder(self.folder)
            part = Part(0, index.version)
            download(where, path, expected_bytes=index.num_bytes, retry=self.retry, part=part)
        dtype, num_tokens, num_documents, content_hash = read_megatron_index(path, where, tokens.num_bytes)
        is_local = local_path(where) is not None
        head_hash = _hash(self._first_bytes(f"{stem}.bin", tokens)) if is_local else ""
        file = TokenFile(f"{stem}.bin", 0, num_tokens, dtype, tokens.version, content_hash, num_documents, head_hash)
        if not is_local:
            with disk_errors(self.folder):
                path.replace(index_path(self.url, file, self.folder))
        return file

    def _npy(self, name: str, status: ObjectStatus) -> TokenFile:
        where, size, begin, dtype, expected = f"{self.url}{name}", status.num_bytes, 0, self.token_dtype, None
        head = self._first_bytes(name, status)
        if head.startswith(_NUMPY_MAGIC):
            begin, dtype, expected = _numpy_header(head, where)
        elif dtype is None:
            raise ConfigError(
                f"domain '{self.name}': {where} holds tokens without a header.\n"
                "  Give their type: token_dtype='uint16', or 'uint32'."
            )
        num_tokens, rest = divmod(size - begin, np.dtype(dtype).itemsize)
        if rest or expected not in (None, num_tokens):
            claim = "" if expected is None else f"; its header says {expected} tokens"
            raise IndexInvalid(
                f"{where}: {size - begin} bytes are {'not whole' if rest else num_tokens} tokens of {dtype}{claim}.\n"
                "  The file is cut, or its tokens are of another type."
            )
        return TokenFile(name, begin, num_tokens, str(dtype), status.version, head_hash=_hash(head))

    def _first_bytes(self, name: str, status: ObjectStatus) -> bytes:
        size = min(status.num_bytes, _HEAD_BYTES)
        return download_part(f"{self.url}{name}", 0, size, status.version, self.retry) if size else b""


def index_path(url: str, file: TokenFile, folder: Path) -> Path:
    """Where Megatron's .idx of a .bin is on this machine: beside it, or by its hash in `folder`."""
    place = local_path(f"{url}{file.name}")
    return place.with_suffix(".idx") if place is not None else folder / f"{file.content_hash}.idx"


def read_megatron_index(path: Path, where: str, bin_bytes: int) -> tuple[str, int, int, str]:
    """(type of the tokens, tokens, documents, hash) of an .idx, checked against the size of its .bin.

    Reads it in parts. `where` names it in errors. Raises IndexInvalid.
    """
    size, head = path.stat().st_size, _head(path)
    if head[:9] != _MAGIC:
        raise IndexInvalid(f"{where}: begins with {head[:9]!r}; expected {_MAGIC!r}. It is not an index of Megatron's.")
    version, code = int.from_bytes(head[9:17], "little"), head[17] if len(head) > 17 else 0
    if len(head) < _HEADER_BYTES or version != 1 or code not in _DTYPES:
        raise IndexInvalid(
            f"{where}: version {version}, tokens of type {code}, in {size} bytes; expected version 1 and an integer "
            f"type ({', '.join(f'{number}: {name}' for number, name in _DTYPES.items())})."
        )
    num_sequences, num_bounds = _sizes(head)
    need = _HEADER_BYTES + 12 * num_sequences + 8 * num_bounds
    # num_sequences more bytes: the optional modes
    if size not in (need, need + num_sequences) or not num_sequences or not num_bounds:
        raise IndexInvalid(
            f"{where}: {size} bytes; {num_sequences} sequences and {num_bounds} bounds of documents take {need}.\n"
            "  The file is cut or damaged, or has no documents. Write the data set again."
        )
    length_Q, begin_Q, bound_D = _mapped(path, head)
    num_tokens = _check_sequences(length_Q, begin_Q, np.dtype(_DTYPES[code]).itemsize, where, bin_bytes)
    if bound_D[0] != 0 or bound_D[-1] != num_sequences or any((np.diff(part) < 0).any() for part in _parts(bound_D, 1)):
        raise IndexInvalid(f"{where}: its documents do not run from sequence 0 to {num_sequences}. Write it again.")
    content_hash = xxhash.xxh3_128()
    for part in _parts(np.memmap(path, np.uint8, "r")):
        content_hash.update(part.data)
    return _DTYPES[code], num_tokens, num_bounds - 1, content_hash.hexdigest()


def document_ends(path: Path) -> Ints:
    """(documents,) int64: the number of the token after each document, of an .idx that was checked."""
    head = _head(path)
    length_Q, begin_Q, bound_D = _mapped(path, head)
    itemsize, bound_D = np.dtype(_DTYPES[head[17]]).itemsize, bound_D[1:]
    inner_D = bound_D < begin_Q.size  # a document ends where the next one's first sequence begins; the last at the end
    end_D = np.full(bound_D.size, int(begin_Q[-1]) // itemsize + int(length_Q[-1]))
    end_D[inner_D] = begin_Q[bound_D[inner_D]] // itemsize
    return end_D


def _hash(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_HEADER_BYTES)


def _sizes(head: bytes) -> tuple[int, int]:
    """Sequences, and entries of the last array."""
    return int.from_bytes(head[18:26], "little"), int.from_bytes(head[26:34], "little")


def _mapped(path: Path, head: bytes) -> tuple[Array, Ints, Ints]:
    """Tokens of each sequence, its first byte, the first sequence of each document, of an .idx of the right size."""
    num_sequences, num_bounds = _sizes(head)
    begins_at = _HEADER_BYTES + 4 * num_sequences
    length_Q = np.memmap(path, "<i4", "r", _HEADER_BYTES, num_sequences)
    begin_Q = np.memmap(path, "<i8", "r", begins_at, num_sequences)
    return length_Q, begin_Q, np.memmap(path, "<i8", "r", begins_at + 8 * num_sequences, num_bounds)


def _check_sequences(length_Q: Array, begin_Q: Ints, itemsize: int, where: str, bin_bytes: int) -> int:
    """The number of tokens; raises IndexInvalid unless sequences lie one after the other and fill the .bin."""
    end = 0
    for length, begin in zip(_parts(length_Q), _parts(begin_Q), strict=True):
        end_M = end + np.cumsum(length, dtype=np.int64) * itemsize
        wrong_M = (length < 0) | (begin != end_M - length.astype(np.int64) * itemsize) | (end_M > bin_bytes)
        if wrong_M.any():
            number = int(np.argmax(wrong_M))
            raise IndexInvalid(
                f"{where}: a sequence of {length[number]} tokens from byte {begin[number]}, where "
                f"{end_M[number] - int(length[number]) * itemsize} is next, in a .bin of {bin_bytes} bytes.\n"
                "  The .bin is cut, or the two files do not belong together."
            )
        end = int(end_M[-1])
    if end != bin_bytes:
        raise IndexInvalid(
            f"{where}: its sequences end at byte {end}, but the .bin has {bin_bytes} bytes.\n"
            "  The two files do not belong together."
        )
    return end // itemsize


def _parts(array_N: Array, overlap: int = 0) -> Iterator[Array]:
    """Slices of a long array, each with the last `overlap` entries of the one before."""
    for begin in range(0, array_N.size, _CHUNK):
        yield array_N[max(0, begin - overlap) : begin + _CHUNK]


def _numpy_header(head: bytes, where: str) -> tuple[int, str, int]:
    """Bytes before the first token, the tokens' type and number, of a file as numpy.save writes it."""
    # magic (6 bytes), version (2), length of the header (2 in version 1, else 4), then a Python literal of that length
    width = 2 if head[6:7] == b"\1" else 4
    begin = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
    found = [pattern.search(head[8 + width : begin]) for pattern in _NUMPY_FIELDS]
    if begin > len(head) or None in found:
        raise IndexInvalid(f"{where}: no header of NumPy's for an array of integers.")
    descr, in_columns, shape = (match[1].decode() for match in found if match)
    sizes = [int(size) for size in shape.split(",") if size.strip()]
    if descr[1:] not in _NUMPY_DTYPES or descr[0] == ">" or (in_columns == "True" and len(sizes) > 1):
        raise IndexInvalid(f"{where}: {descr}, shape ({shape}); expected integers, little-endian, row by row.")
    return begin, _NUMPY_DTYPES[descr[1:]], math.prod(sizes)
