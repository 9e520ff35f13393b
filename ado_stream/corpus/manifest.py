"""corpus.json: what a corpus holds. Written last, so a corpus that has one is complete.

    version 1, seq_len, tokenizer ("bytes" or the file beside it), vocab_size, token_dtype, fingerprint, source,
    refused {reason: records}, domains {name: path, documents, bytes, fingerprint,
        splits {train | val: documents, tokens, samples, dropped_tokens}}

`documents` and `bytes` (UTF-8) of a domain are those read, both splits together. `tokens` are those stored, samples
times seq_len + 1; `dropped_tokens` did not fill a last sample. A domain's `fingerprint` hashes the hashes of its
shards, the corpus' hashes the domains', so a change of any shard changes both; `source` hashes the input files' names,
sizes and times with the settings.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

from ado_stream.errors import IndexInvalid

FILE_NAME = "corpus.json"
VERSION = 1
SPLITS = ("train", "val")
_KEYS = {"version", "seq_len", "tokenizer", "vocab_size", "token_dtype", "fingerprint", "domains"}


def fingerprint(parts: Any) -> str:
    """xxh64 in hexadecimal of any JSON value."""
    return xxhash.xxh64_hexdigest(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode())


def domain_fingerprint(shard_hashes: Mapping[str, Sequence[str]]) -> str:
    """A domain's fingerprint from the hashes of its raw shards, {split: hashes in order}."""
    return fingerprint({split: list(hashes) for split, hashes in shard_hashes.items() if hashes})


def corpus_fingerprint(domains: Mapping[str, Mapping[str, Any]]) -> str:
    """The corpus' fingerprint from its domains' own."""
    return fingerprint({name: domain["fingerprint"] for name, domain in domains.items()})


def encode_manifest(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of corpus.json."""
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()


def decode_manifest(data: bytes, where: str) -> dict[str, Any]:
    """The manifest in `data`, checked; `where` names it in errors.

    Raises IndexInvalid: not JSON, another version, missing keys, a name or path given twice, a path that leaves the
    corpus.
    """
    try:
        manifest = json.loads(data, object_pairs_hook=_unique)
    except ValueError as error:
        raise IndexInvalid(f"{where}: cannot be read: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        version = manifest.get("version") if isinstance(manifest, dict) else None
        raise IndexInvalid(f"{where}: version {version!r}; this program reads version {VERSION}.")
    missing = _KEYS - manifest.keys()
    if missing:
        raise IndexInvalid(f"{where}: keys missing: {', '.join(sorted(missing))}.")
    _check_file_name(where, "tokenizer", manifest["tokenizer"])
    _check_domains(where, manifest["domains"])
    return manifest


def _check_domains(where: str, domains: Any) -> None:
    if not isinstance(domains, dict) or not domains:
        raise IndexInvalid(f"{where}: no domains.")
    paths: dict[str, str] = {}
    for name, domain in domains.items():
        if not isinstance(domain, dict) or not isinstance(domain.get("splits"), dict):
            raise IndexInvalid(f"{where}: domain {name!r} has no splits.")
        path = _checked_path(where, name, domain.get("path"))
        if path in paths:
            raise IndexInvalid(f"{where}: domains {paths[path]!r} and {name!r} have the same path {path!r}.")
        paths[path] = name
        for split, counts in domain["splits"].items():
            if split not in SPLITS or not isinstance(counts, dict) or not isinstance(counts.get("samples"), int):
                raise IndexInvalid(f"{where}: domain {name!r}, split {split!r}: expected train or val with samples.")


def _checked_path(where: str, name: str, path: Any) -> str:
    parts = path.split("/") if isinstance(path, str) else [""]
    if any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
        raise IndexInvalid(f"{where}: domain {name!r}: path {path!r} must be a plain path inside the corpus.")
    return path


def _check_file_name(where: str, key: str, value: Any) -> None:
    if not isinstance(value, str) or value in ("", ".", "..") or any(sign in value for sign in "/\\\0"):
        raise IndexInvalid(f"{where}: {key} {value!r} must be a plain file name inside the corpus.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice")
    return value


_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_OTHER = re.compile(r"[^A-Za-z0-9._-]+")
_RESERVED = re.compile(r"(corpus|tokenizer|tokenizer_config)\.json", re.IGNORECASE)


def folder_of(domain: str) -> str:
    """`domain` itself where it is a plain name, else what is plain of it and a hash of all of it.

    "Pile-CC" stays; "Wikipedia (en)" becomes "Wikipedia_en-" and eight hexadecimal digits.
    """
    if _PLAIN.fullmatch(domain) and not _RESERVED.fullmatch(domain):
        return domain
    plain = _OTHER.sub("_", domain).strip("._-")[:60]
    mark = xxhash.xxh64_hexdigest(domain.encode())[:8]
    return f"{plain}-{mark}" if plain else mark
