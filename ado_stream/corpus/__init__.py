"""The prepared corpus: one MDS data set per domain and split, a tokenizer, and corpus.json that lists them.

    manifest   corpus.json and the folder names of domains
    mds        a shard's bytes and its index entry
    tokenizer  text -> token ids: bytes, BPE trained on the spot (bpe), or a Hugging Face tokenizer
    open       a folder or URL -> domains, tokenizer, sequence length
    check      every shard against its index

Public names are loaded on first use: a worker that only encodes shards imports nothing of the stream.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ado_stream.corpus.open import Corpus, load_manifest, open_corpus

__all__ = ["Corpus", "load_manifest", "open_corpus"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("ado_stream.corpus.open"), name)
