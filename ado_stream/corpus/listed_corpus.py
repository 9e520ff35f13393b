"""corpus.yaml: a corpus listed by hand, whose domains are existing files of tokens, in any format.

    seq_len: 2048                  # T; samples hold T + 1 tokens
    tokenizer: tokenizer.json      # as `ado-stream prepare --tokenizer`, or a path from this file
    end_token: 0                   # ends a document; default: the tokenizer's
    packing: best-fit              # an end token after an end token is padding; default: join, where nothing is
    domains:
      web:  {format: megatron, path: data/web_text_document, weight: 3}
      code: {format: npy, path: s3://bucket/code/, token_dtype: uint16, weight: 1, val: s3://bucket/code-val.npy}
      math: {format: mds, path: math/train, token_column: ids, weight: 1}

Formats as Domain's; weight, for all or none: the prior; val: a path of the same format, of held-out samples. Relative
paths start at the file's folder. Sizes, fingerprints and documents are read from the data, whenever it is opened.
"""

import os
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NotRequired, TypedDict, cast

from ado_stream.corpus.manifest import (
    JOIN,
    MANIFEST_VERSION,
    PACKINGS,
    SPLITS,
    DomainEntry,
    Manifest,
    SplitEntry,
    corpus_fingerprint,
    domain_fingerprint,
    domain_folder,
)
from ado_stream.corpus.places import LISTED_ENDINGS, local_folder, read_tokenizer, user_cache
from ado_stream.corpus.tokenizer import Tokenizer, load_tokenizer
from ado_stream.errors import ConfigError
from ado_stream.json_files import check_type
from ado_stream.option_checks import one_of, refuse_unknown, whole
from ado_stream.storage.download import download_bytes
from ado_stream.storage.slow_notice import slow_notice
from ado_stream.stream.domain import Domain, as_domains
from ado_stream.stream.flat_index import FlatIndex
from ado_stream.stream.mds_index import TOKEN_COLUMN
from ado_stream.stream.open_indexes import open_indexes
from ado_stream.stream.sample_index import SampleIndex
from ado_stream.yaml_files import parse_yaml


class ListedDomain(TypedDict):
    """One domain of the file."""

    path: str
    format: NotRequired[str]
    val: NotRequired[str]
    weight: NotRequired[float]
    token_dtype: NotRequired[str]
    token_column: NotRequired[str]


class CorpusList(TypedDict):
    """The content of corpus.yaml."""

    seq_len: int
    tokenizer: str
    end_token: NotRequired[int]
    packing: NotRequired[str]
    domains: dict[str, ListedDomain]


@dataclass(frozen=True)
class ListedCorpus:
    """An opened corpus.yaml. manifest: what corpus.json would say; 0 documents and bytes where a format says none."""

    domains: dict[str, list[Domain]]  # by split
    tokenizer: Tokenizer
    manifest: Manifest


def is_listed(url: str | os.PathLike[str]) -> bool:
    """Whether this names a corpus.yaml, and not the folder of a prepared corpus."""
    return os.fspath(url).endswith(LISTED_ENDINGS)


def open_listed(url: str, cache_dir: str | None = None) -> ListedCorpus:
    """The corpus of the YAML file at `url`, a path or URL, with the indexes of all its domains opened.

    cache_dir: of what is remote. Raises NotFound, ConfigError (the file), IndexInvalid (an index), StorageError.
    """
    with slow_notice(url):
        data = download_bytes(url)
    given = read_list(data, url)
    folder = url.rpartition("/")[0]
    tokenizer = _tokenizer(folder, given["tokenizer"])
    if "end_token" in given:
        tokenizer.end_id = given["end_token"]
    if tokenizer.end_id >= tokenizer.vocab_size:
        raise ConfigError(f"{url}: end_token {tokenizer.end_id}; the tokenizer has {tokenizer.vocab_size} tokens.")
    domains: dict[str, list[Domain]] = {split: [] for split in SPLITS}
    for name, entry in given["domains"].items():
        for split, path in zip(SPLITS, (entry["path"], entry.get("val")), strict=True):
            if path is not None:
                domains[split].append(_domain(name, entry, _resolved(folder, path), cache_dir))
    indexes = {split: _opened(domains[split], given["seq_len"]) for split in SPLITS}
    _refuse_shared(indexes, url)
    entries: dict[str, DomainEntry] = {}
    for split in SPLITS:
        for index in indexes[split]:
            _add(entries, index, split, given)
    manifest: Manifest = {
        "version": MANIFEST_VERSION,
        "seq_len": given["seq_len"],
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "token_dtype": tokenizer.dtype,
        "fingerprint": corpus_fingerprint(entries),
        "domains": entries,
    }
    if given.get("packing", JOIN) != JOIN:
        manifest["packing"] = given["packing"]
    return ListedCorpus(domains, tokenizer, manifest)


def read_list(data: bytes, where: str) -> CorpusList:
    """The checked content of a corpus.yaml; `where` names it in errors. Raises ConfigError."""
    given = parse_yaml(data, where, "corpus")
    if isinstance(given.get("domains"), dict):
        given["domains"] = {str(name): entry for name, entry in given["domains"].items()}  # 2023 is a number to YAML
    check_type(given, CorpusList, where, ConfigError)
    refuse_unknown(where, map(str, given), list(CorpusList.__annotations__))
    for name, entry in given["domains"].items():
        refuse_unknown(f"{where}: domain '{name}'", map(str, entry), list(ListedDomain.__annotations__))
    whole(f"{where}: seq_len", given["seq_len"], 1)
    one_of(f"{where}: packing", given.get("packing", JOIN), PACKINGS)
    if not given["domains"]:
        raise ConfigError(f"{where}: no domains.")
    return cast(CorpusList, given)


def _resolved(folder: str, path: str) -> str:
    """`path` where it is a URL or starts at the root or the home folder, else below `folder`."""
    local = local_folder(path)
    if local is None or local.is_absolute():
        return path if local is None else str(local)
    return f"{folder}/{path}" if folder else path


def _tokenizer(folder: str, spec: str) -> Tokenizer:
    place = _resolved(folder, spec)
    if local_folder(place) is None:
        return read_tokenizer(*place.rsplit("/", 1))
    return load_tokenizer(place if os.path.exists(place) else spec)


def _domain(name: str, entry: ListedDomain, path: str, cache_dir: str | None) -> Domain:
    """Local tokens in place, but MDS, which may have to be unpacked, from a cache that was asked for."""
    kind = entry.get("format", "mds")
    in_place = local_folder(path) is not None and (cache_dir is None or kind != "mds")
    cache = cache_dir or str(user_cache("corpora", path))
    return Domain(
        name=name,
        remote=None if in_place else path,
        local=path if in_place else os.path.join(os.path.expanduser(cache), domain_folder(name)),
        prior=entry.get("weight"),
        format=kind,
        token_dtype=entry.get("token_dtype"),
        token_column=entry.get("token_column"),
    )


def _opened(domains: list[Domain], seq_len: int) -> list[SampleIndex]:
    return open_indexes(as_domains(domains), TOKEN_COLUMN, None, seq_len=seq_len) if domains else []


def _refuse_shared(indexes: dict[str, list[SampleIndex]], url: str) -> None:
    """Raises ConfigError for training data in two domains or in validation: by any path, or copied with hashes."""
    owners: dict[Hashable, tuple[str, str]] = {}
    for split in SPLITS:
        for index in indexes[split]:
            for each, place in index.data_ids().items():
                owner, owner_split = owners.setdefault(each, (index.name, split))
                if owner_split != split:
                    raise ConfigError(
                        f"{url}: domain '{index.name}': val, {place}, is in the path of domain '{owner}', too.\n"
                        "  What is held out must not be trained on: move it, or leave val out."
                    )
                if split == "train" and owner != index.name:
                    raise ConfigError(
                        f"{url}: domain '{index.name}': {place} is in domain '{owner}', too.\n"
                        "  It would be drawn by the weights of both: move it, or leave one of them out."
                    )


def _add(entries: dict[str, DomainEntry], index: SampleIndex, split: str, given: CorpusList) -> None:
    """Adds one opened split to what is known of its domain."""
    documents, tokens, dropped = 0, index.num_samples * (given["seq_len"] + 1), 0
    if isinstance(index, FlatIndex):
        documents, tokens = index.content.num_documents or 0, index.num_tokens
        dropped = sum(file.num_tokens for file in index.content.files) - tokens
    entry = entries.setdefault(
        index.name,
        {"path": given["domains"][index.name]["path"], "documents": 0, "bytes": 0, "fingerprint": "", "splits": {}},
    )
    entry["documents"] += documents
    entry["fingerprint"] = domain_fingerprint({"before": [entry["fingerprint"]], split: [index.fingerprint]})
    sizes = {"documents": documents, "tokens": tokens, "samples": index.num_samples, "dropped_tokens": dropped}
    entry["splits"][split] = cast(SplitEntry, sizes)
