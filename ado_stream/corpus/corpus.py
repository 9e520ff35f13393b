"""Opens a corpus, prepared or listed in a YAML file: to domains, tokenizer and sequence length.

A local corpus is read in place, unless a cache folder is given. For any other, the domains point to the corpus and to
the cache folder, so that the stream downloads shards when it needs them. Only downloaded bytes are parsed:
corpus.json from memory, the tokenizer from a private folder.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ado_stream.corpus.listed_corpus import is_listed, open_listed
from ado_stream.corpus.manifest import MANIFEST_NAME, SPLITS, Manifest, decode_manifest, num_samples
from ado_stream.corpus.places import local_folder, locate, read_tokenizer
from ado_stream.corpus.tokenizer import Tokenizer
from ado_stream.durable import disk_errors
from ado_stream.errors import ConfigError, IndexInvalid, NotFound
from ado_stream.option_checks import one_of, optional, path_text
from ado_stream.redact import redact
from ado_stream.storage.download import download_bytes
from ado_stream.storage.slow_notice import slow_notice
from ado_stream.stream.domain import Domain


@dataclass(frozen=True, repr=False)
class Corpus:
    """One split of a corpus, ready for AdaptiveStreamingDataset; unpacks to (domains, tokenizer, seq_len)."""

    domains: list[Domain]
    tokenizer: Tokenizer
    seq_len: int  # tokens a model reads at once; samples hold one more
    manifest: Manifest  # corpus.json, or what one would say
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

    @property
    def end_token(self) -> int:
        """Ends each document."""
        return self.tokenizer.end_id

    @property
    def fim_tokens(self) -> tuple[int, int, int] | None:
        """The tokenizer's marks of fill-in-the-middle."""
        return self.tokenizer.fim_tokens

    def has(self, split: str) -> bool:
        """Whether any domain has samples in `split`."""
        return any(num_samples(domain, split) for domain in self.manifest["domains"].values())


def open_corpus(
    url: str | os.PathLike[str], split: str = "train", cache_dir: str | os.PathLike[str] | None = None
) -> Corpus:
    """The corpus at a local folder, a URL, or listed in a .yaml; its domains in order, those with samples in `split`.

    cache_dir: for the shards that are read; None: a folder of the user's cache for a URL, none for a local folder,
    where shards are unpacked in place. Corpora and jobs may share it. Raises NotFound (no corpus.json there),
    IndexInvalid (corpus.json cannot be understood), ConfigError (nothing in this split), StorageError.
    """
    url, split = path_text("url", url), one_of("split", split, SPLITS)
    cache_dir = optional(path_text, "cache_dir", cache_dir)
    if is_listed(url):
        listed = open_listed(url, cache_dir)
        if not listed.domains[split]:
            raise ConfigError(f"{url}: no domain has split {split!r}. Give domains a path under 'val'.")
        return Corpus(listed.domains[split], listed.tokenizer, listed.manifest["seq_len"], listed.manifest, url, split)
    local, remote = locate(url, cache_dir)
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
    tokenizer = read_tokenizer(source, manifest["tokenizer"])
    if tokenizer.vocab_size != manifest["vocab_size"]:
        raise IndexInvalid(
            f"{source}/{MANIFEST_NAME}: vocab_size {manifest['vocab_size']:,}, but its tokenizer "
            f"{manifest['tokenizer']!r} has {tokenizer.vocab_size:,} ids. Prepare the corpus again."
        )
    return Corpus(domains, tokenizer, manifest["seq_len"], manifest, source, split)


def load_manifest(url: str | os.PathLike[str]) -> Manifest:
    """corpus.json of the corpus at a local folder or a URL, checked, or what it would say of one that is listed.

    Raises NotFound, IndexInvalid, StorageError; ConfigError for a listed one.
    """
    if is_listed(url):
        return open_listed(os.fspath(url)).manifest
    local, remote = locate(url, None)
    return _read_manifest(remote or str(local))


@disk_errors(MANIFEST_NAME, "Make it readable.")
def _read_manifest(source: str) -> Manifest:
    where = f"{source}/{MANIFEST_NAME}"
    folder = local_folder(source)
    if folder is not None and not (folder / MANIFEST_NAME).is_file():
        raise NotFound(f"{where}: no such file. Give the folder that `ado-stream prepare` wrote, or finish that run.")
    with slow_notice(source):
        data = download_bytes(where)
    return decode_manifest(data, where)
