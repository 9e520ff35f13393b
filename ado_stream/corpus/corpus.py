"""Opens a prepared corpus: corpus.json to domains, tokenizer and sequence length.

A local corpus is read in place, unless a cache folder is given. For any other, the domains point to the corpus and to
the cache folder, so that the stream downloads shards when it needs them. What is parsed here is what was downloaded:
corpus.json from memory, the tokenizer from a folder that no other process has.
"""

import os
import re
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ado_stream.corpus.manifest import MANIFEST_NAME, SPLITS, Manifest, decode_manifest, json_hash, num_samples
from ado_stream.corpus.slow_notice import slow_notice
from ado_stream.corpus.tokenizer import BYTES, TOKENIZER_CONFIG_NAME, Tokenizer, load_tokenizer, load_tokenizer_file
from ado_stream.errors import ConfigError, NotFound
from ado_stream.option_checks import one_of, optional, path_text
from ado_stream.redact import redact
from ado_stream.storage.download import download_bytes
from ado_stream.stream.domain import Domain

SCHEMES = ("s3", "gs", "azure", "azure-dl", "oci", "hf", "sftp", "dbfs", "alipan")  # of streaming's clients
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):(?=/)")


@dataclass(frozen=True, repr=False)
class Corpus:
    """One split of a corpus, ready for AdaptiveStreamingDataset; unpacks to (domains, tokenizer, seq_len)."""

    domains: list[Domain]
    tokenizer: Tokenizer
    seq_len: int  # tokens a model reads at once; samples hold one more
    manifest: Manifest  # corpus.json
    url: str  # of the corpus, or its local folder
    split: str

    def __iter__(self) -> Iterator[Any]:
        return iter((self.domains, self.tokenizer, self.seq_len))

    def __repr__(self) -> str:
        entries = self.manifest["domains"]
        tokens = sum(num_samples(entries[domain.name], self.split) for domain in self.domains) * (self.seq_len + 1)
        return (
            f"Corpus({redact(self.url)!r}, split={self.split!r}: {len(self.domains)} domains, {tokens:,} tokens, "
            f"tokenizer {self.tokenizer.name}, seq_len {self.seq_len})"
        )

    @property
    def padding_token(self) -> int | None:
        """The end token, where `prepare --packing best-fit` filled samples with it; else None."""
        return self.tokenizer.end_id if self.manifest.get("packing") else None

    def has(self, split: str) -> bool:
        """Whether any domain has samples in `split`."""
        return any(num_samples(domain, split) for domain in self.manifest["domains"].values())


def open_corpus(
    url: str | os.PathLike[str], split: str = "train", cache_dir: str | os.PathLike[str] | None = None
) -> Corpus:
    """The corpus at a local folder or a URL; domains in corpus.json's order, those with samples in `split`.

    cache_dir: for the shards that are read; None: a folder of the user's cache for a URL, none for a local folder,
    where shards are unpacked in place. Corpora and jobs may share it. Raises NotFound (no corpus.json there),
    IndexInvalid (corpus.json cannot be understood), ConfigError (nothing in this split), StorageError.
    """
    url, split = path_text("url", url), one_of("split", split, SPLITS)
    cache_dir = optional(path_text, "cache_dir", cache_dir)
    local, remote = _locate(url, cache_dir)
    source = remote or str(local)
    manifest = _read_manifest(source)
    domains = [
        Domain(
            name=name,
            remote=f"{remote}/{domain['path']}/{split}" if remote else None,
            local=str(local / domain["path"] / split),
            prior=None,
        )
        for name, domain in manifest["domains"].items()
        if num_samples(domain, split)
    ]
    if not domains:
        raise ConfigError(f"{url}: no sample in split {split!r}. Prepare it with --val or --val-fraction.")
    tokenizer = _read_tokenizer(source, manifest["tokenizer"])
    return Corpus(domains, tokenizer, manifest["seq_len"], manifest, source, split)


def load_manifest(url: str | os.PathLike[str]) -> Manifest:
    """corpus.json of the corpus at a local folder or a URL, checked. Raises NotFound, IndexInvalid, StorageError."""
    local, remote = _locate(url, None)
    return _read_manifest(remote or str(local))


def local_folder(url: str | os.PathLike[str]) -> Path | None:
    """The folder behind a path or file:// URL; None for an object store's URL.

    Raises ConfigError for a scheme that no client reads, which would otherwise fail after every retry, or be a folder.
    """
    path = os.fspath(url).removeprefix("file://")
    found = _SCHEME.match(path)
    if found is None:
        return Path(path).expanduser()
    scheme, rest = found[1], path[found.end() :]
    if scheme not in SCHEMES or not (rest.startswith("//") or scheme == "dbfs") or not rest.strip("/"):
        near = f"; did you mean {scheme.lower()}:// and a path?" if scheme.lower() in (*SCHEMES, "file") else ""
        raise ConfigError(
            f"{url}: not a URL that can be read or written{near}\n"
            f"  Use a path, file://, or one of {', '.join(f'{name}://' for name in SCHEMES)}."
        )
    return None


def remote_text(url: str) -> str:
    """`url`, with the host that S3_ENDPOINT_URL names where it is one of S3, for messages; without credentials."""
    host = urllib.parse.urlsplit(os.environ.get("S3_ENDPOINT_URL", "")).netloc.rpartition("@")[2]
    return redact(f"{url} (S3_ENDPOINT_URL: {host})" if url.startswith("s3://") and host else url)


def user_cache(kind: str, url: str) -> Path:
    """The folder of the user's cache for work of this `kind` on the remote corpus at `url`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "ado-stream" / kind / json_hash(url)


def _locate(url: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None) -> tuple[Path, str | None]:
    """The folder of the shards, and the corpus' URL or path if that folder caches it."""
    local = local_folder(url)
    if local is not None and cache_dir is None:
        return local, None
    remote = os.fspath(url).rstrip("/") if local is None else str(local)
    return Path(cache_dir).expanduser() if cache_dir is not None else user_cache("corpora", remote), remote


def _read_manifest(source: str) -> Manifest:
    where = f"{source}/{MANIFEST_NAME}"
    folder = local_folder(source)
    if folder is not None and not (folder / MANIFEST_NAME).is_file():
        raise NotFound(f"{where}: no such file. Give the folder that `ado-stream prepare` wrote, or finish that run.")
    with slow_notice(remote_text(source)) if folder is None else nullcontext():
        data = download_bytes(where)
    return decode_manifest(data, where)


def _read_tokenizer(source: str, name: str) -> Tokenizer:
    if name == BYTES:
        return load_tokenizer(BYTES)
    with tempfile.TemporaryDirectory(prefix="ado-") as folder:
        for each in (name, TOKENIZER_CONFIG_NAME):
            if (local := local_folder(source)) is not None and not (local / each).is_file():
                raise NotFound(f"{local / each}: no such file. Prepare the corpus again.")
            (Path(folder) / each).write_bytes(download_bytes(f"{source}/{each}"))
        return load_tokenizer_file(Path(folder) / name)
