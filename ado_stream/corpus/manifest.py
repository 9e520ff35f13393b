"""corpus.json: what a corpus holds. Written last, so a corpus that has one is complete.

    version 1, seq_len, tokenizer ("bytes" or the file beside it), vocab_size, token_dtype, fingerprint, source,
    refused {reason: records}, refused_bytes {reason: bytes} (if any), val_in_train (if any),
    domains {name: path, documents, bytes, fingerprint,
        splits {train | val: documents, tokens, samples, dropped_tokens}}

A corpus of `prepare --packing best-fit` has "packing": "best-fit", and in each split padding_tokens, which are not
among its `tokens`, cut_documents, and cut_by_joining, as many as joining would have cut.

`val_in_train`: validation documents whose text is that of a training document, too. `documents` and `bytes` (UTF-8)
of a domain are those read, both splits together. `tokens` are those stored, samples times seq_len + 1;
`dropped_tokens` did not fill a last sample. A domain's `fingerprint` hashes the hashes of its shards, the corpus'
hashes the domains', so a change of any shard changes both; `source` hashes the settings, a given tokenizer's content,
and the input files' names, sizes, times and content.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict, cast

import xxhash

from ado_stream.errors import IndexInvalid
from ado_stream.json_files import check_type, decode_json
from ado_stream.suggest import first_names
from ado_stream.value_types import JsonObject

MANIFEST_NAME = "corpus.json"
MANIFEST_VERSION = 1
SPLITS = ("train", "val")
JOIN, BEST_FIT = PACKINGS = ("join", "best-fit")  # documents end to end; whole where they fit, and padding
TOKEN_DTYPES = ("uint16", "uint32")
_MAX_NAME_BYTES, _MAX_PATH = 256, 1024  # of what a file system takes
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_OTHER = re.compile(r"[^A-Za-z0-9._-]+")
_RESERVED = re.compile(r"(corpus|tokenizer|tokenizer_config)\.json", re.IGNORECASE)  # the corpus' own files


class SplitEntry(TypedDict):
    """One split of a domain."""

    documents: int
    tokens: int
    samples: int
    dropped_tokens: int
    padding_tokens: NotRequired[int]
    cut_documents: NotRequired[int]
    cut_by_joining: NotRequired[int]


class DomainEntry(TypedDict):
    """One domain; of its splits, those that have documents."""

    path: str
    documents: int
    bytes: int
    fingerprint: str
    splits: dict[str, SplitEntry]


class Manifest(TypedDict):
    """The content of corpus.json."""

    version: int
    packing: NotRequired[str]
    seq_len: int
    tokenizer: str
    vocab_size: int
    token_dtype: str
    fingerprint: str
    source: NotRequired[str]
    refused: NotRequired[dict[str, int]]
    refused_bytes: NotRequired[dict[str, int]]
    val_in_train: NotRequired[int]
    domains: dict[str, DomainEntry]


def json_hash(value: object) -> str:
    """xxh64 in hexadecimal of any JSON value."""
    return xxhash.xxh64_hexdigest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def domain_fingerprint(shard_hashes: Mapping[str, Sequence[str | None]]) -> str:
    """A domain's fingerprint from the hashes of its raw shards, {split: hashes in order}."""
    return json_hash({split: list(hashes) for split, hashes in shard_hashes.items() if hashes})


def corpus_fingerprint(domains: Mapping[str, DomainEntry]) -> str:
    """The corpus' fingerprint from its domains' own."""
    return json_hash({name: domain["fingerprint"] for name, domain in domains.items()})


def num_samples(domain: DomainEntry, split: str) -> int:
    """Samples of a domain's split, 0 when it has none."""
    return domain["splits"][split]["samples"] if split in domain["splits"] else 0


def missing_validation(domains: Mapping[str, DomainEntry]) -> str:
    """A sentence about domains without validation text; "" where every domain has some."""
    missing = [name for name, domain in domains.items() if not num_samples(domain, "val")]
    if not missing:
        return ""
    if len(missing) == len(domains):
        return "no validation text: no validation loss is measured; prepare with --val, or more of --val-fraction"
    text = f"no validation text of {first_names(missing)}"
    return f"{text}: no validation loss includes what is learnt there; prepare with more --val"


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of corpus.json."""
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()


def decode_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in `data`, checked; `where` names it in errors.

    Raises IndexInvalid: not JSON, another version, missing keys or ones of another type, a repeated name or path, a
    path that leaves the corpus.
    """
    manifest = decode_json(data, JsonObject, where)
    version = manifest.get("version")
    if version != MANIFEST_VERSION:
        raise IndexInvalid(f"{where}: version {version!r}; expected version {MANIFEST_VERSION}.")
    check_type(manifest, Manifest, where)
    tokenizer = manifest["tokenizer"]
    if not _is_plain(tokenizer) or "/" in tokenizer:
        raise IndexInvalid(f"{where}: tokenizer {tokenizer!r} must be a plain file name inside the corpus.")
    if not manifest["seq_len"] or not manifest["vocab_size"] or manifest["token_dtype"] not in TOKEN_DTYPES:
        raise IndexInvalid(
            f"{where}: seq_len {manifest['seq_len']}, vocab_size {manifest['vocab_size']}, token_dtype "
            f"{manifest['token_dtype']!r}; expected 1 or more, 1 or more, one of {', '.join(TOKEN_DTYPES)}."
        )
    _check_domains(where, manifest["domains"])
    return cast(Manifest, manifest)


def domain_folder(domain: str) -> str:
    """`domain` itself where it is a plain name, else its plain characters and a hash of the whole name.

    "Pile-CC" stays; "Wikipedia (en)" becomes "Wikipedia_en-" and eight hexadecimal digits.
    """
    if _PLAIN.fullmatch(domain) and not _RESERVED.fullmatch(domain):
        return domain
    plain = _OTHER.sub("_", domain).strip("._-")[:60]
    name_hash = xxhash.xxh64_hexdigest(domain.encode())[:8]
    return f"{plain}-{name_hash}" if plain else name_hash


def _check_domains(where: str, domains: dict[str, DomainEntry]) -> None:
    if not domains:
        raise IndexInvalid(f"{where}: no domains.")
    owners: dict[str, str] = {}
    for name, domain in domains.items():
        path = domain["path"]
        if not _is_plain(path):
            raise IndexInvalid(f"{where}: domain {name!r}: path {path!r} must be a plain path inside the corpus.")
        if path in owners:
            raise IndexInvalid(f"{where}: domains {owners[path]!r} and {name!r} have the same path {path!r}.")
        owners[path] = name
        for split in domain["splits"]:
            if split not in SPLITS:
                raise IndexInvalid(f"{where}: domain {name!r}, split {split!r}: expected {' or '.join(SPLITS)}.")


def _is_plain(path: str) -> bool:
    """Whether `path` is a relative path that stays inside its folder on every system."""
    parts = path.split("/")
    plain = path.isprintable() and not any(part in ("", ".", "..") or "\\" in part for part in parts)
    return plain and len(path) < _MAX_PATH and all(len(part.encode()) < _MAX_NAME_BYTES for part in parts)
