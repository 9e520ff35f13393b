"""Raw text to shards: readers, tokenizers, packing, writing, manifest.

    source    which files, and the domain a file's place gives it
    lines     one file's lines, from raw, gzip or zstd bytes, in bounded memory
    readers   a file -> pieces (a few MB of input); a piece -> documents
    tokenizer text -> token ids: bytes, BPE trained on the spot (bpe), or a Hugging Face tokenizer
    worker    a piece -> token blocks per domain and split, in a process of its own (pool)
    spool     blocks in input order -> raw shard files; survives a kill (journal)
    mds       a raw shard file -> an MDS shard and its index entry
    manifest  corpus.json
    run       all of it, in order

The result is a function of the input and the settings alone: pieces are cut by the reader, before any worker sees
them, and their tokens are put together again in the order of the input.
"""
