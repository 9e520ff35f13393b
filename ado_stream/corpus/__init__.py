"""The prepared corpus: one MDS data set per domain and split, a tokenizer, and corpus.json that lists them.

    manifest   corpus.json and the folder names of domains
    mds        a shard's bytes and its index entry
    tokenizer  text -> token ids: bytes, BPE trained on the corpus (bpe), or a Hugging Face tokenizer
    corpus     a folder or URL -> domains, tokenizer, sequence length
    checker    every shard against its index
    listed_corpus, listed_checker: the same of a corpus.yaml, whose domains are tokens in any format

Shards are written here and read in ado_stream/stream, which also defines the names that both sides of the MDS format
need. Nothing here imports torch: `prepare` starts many processes.
"""

from ado_stream.corpus.corpus import Corpus, load_manifest, open_corpus

__all__ = ["Corpus", "load_manifest", "open_corpus"]
