"""Opens a prepared corpus: corpus.json to domains, tokenizer and sequence length.

A local corpus is read where it is. Of a remote one, corpus.json and the tokenizer are brought into a cache folder, and
the domains point to both, so that their shards follow when the stream needs them.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ado_stream.corpus import manifest as manifests
from ado_stream.corpus.tokenizer import BYTES, CONFIG_NAME, Tokenizer, load_tokenizer
from ado_stream.errors import ConfigError, NotFound
from ado_stream.storage.download import download
from ado_stream.stream.domain import Domain


@dataclass(frozen=True)
class Corpus:
    """A corpus' split, ready for AdaptiveStreamingDataset; unpacks to (domains, tokenizer, seq_len)."""

    domains: list[Domain]
    tokenizer: Tokenizer
    seq_len: int  # tokens a model reads at once; samples hold one more
    manifest: dict[str, Any]  # corpus.json

    def __iter__(self) -> Iterator[Any]:
        return iter((self.domains, self.tokenizer, self.seq_len))

    def has(self, split: str) -> bool:
        """Whether any domain has samples in `split`."""
        return any(domain["splits"].get(split, {}).get("samples", 0) for domain in self.manifest["domains"].values())


def open_corpus(
    url: str | os.PathLike[str], split: str = "train", cache_dir: str | os.PathLike[str] | None = None
) -> Corpus:
    """The corpus at a local folder or a URL; domains in corpus.json's order, those with samples in `split`.

    `cache_dir` (remote only) defaults to a folder of the user's cache. Raises NotFound (no corpus.json there),
    IndexInvalid (corpus.json cannot be understood), ConfigError (nothing in this split), StorageError.
    """
    if split not in manifests.SPLITS:
        raise ConfigError(f"split {split!r}: a corpus has {' and '.join(manifests.SPLITS)}.")
    local, remote = _places(url, cache_dir)
    manifest = _read_manifest(local, remote)
    if remote and manifest["tokenizer"] != BYTES:
        for name in (manifest["tokenizer"], CONFIG_NAME):
            download(f"{remote}/{name}", local / name)
    domains = [
        Domain(
            name=name,
            remote=f"{remote}/{domain['path']}/{split}" if remote else None,
            local=str(local / domain["path"] / split),
            prior=None,
        )
        for name, domain in manifest["domains"].items()
        if domain["splits"].get(split, {}).get("samples", 0)
    ]
    if not domains:
        raise ConfigError(f"{url}: no sample in split {split!r}. Prepare it with --val or --val-fraction.")
    word = manifest["tokenizer"]
    tokenizer = load_tokenizer(BYTES if word == BYTES else local / word)
    return Corpus(domains, tokenizer, manifest["seq_len"], manifest)


def load_manifest(url: str | os.PathLike[str]) -> dict[str, Any]:
    """corpus.json of the corpus at a local folder or a URL, checked. Raises NotFound, IndexInvalid, StorageError."""
    return _read_manifest(*_places(url, None))


def _places(url: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None) -> tuple[Path, str | None]:
    """The corpus' local folder, and its URL if it is not local."""
    place = os.fspath(url).removeprefix("file://")
    if "://" not in place:
        return Path(place).expanduser(), None
    remote = place.rstrip("/")
    if cache_dir is not None:
        return Path(cache_dir).expanduser(), remote
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "ado-stream" / "corpora" / manifests.fingerprint(remote), remote


def _read_manifest(local: Path, remote: str | None) -> dict[str, Any]:
    path = local / manifests.FILE_NAME
    if remote:
        download(f"{remote}/{manifests.FILE_NAME}", path)
    elif not path.is_file():
        raise NotFound(f"{path}: no such file. Give the folder that `ado-stream prepare` wrote, or finish that run.")
    return manifests.decode_manifest(path.read_bytes(), f"{remote}/{manifests.FILE_NAME}" if remote else str(path))
