"""Raw text to a corpus: reading, tokenising, packing, writing.

    input_files      which files, and the domain that a file's path gives it
    line_blocks      one file's lines, from raw, gzip or zstd bytes, in bounded memory
    json_arrays      a JSON array as lines
    data_sets        shards of data sets that the datasets library streams
    columnar         rows of parquet and Arrow files
    documents        a file -> pieces (a few MB of input); a piece -> documents
    document_sample  the documents that a BPE is trained on
    prepare_worker   a piece -> token blocks per domain and split
    best_fit         whole documents into samples
    spool            token blocks in input order -> raw shard files
    packing          spools -> published shards, with a journal that survives a kill
    parts            the same from files that many machines tokenise, and shards that they write
    worker_pool      calls in this process, its children (spawned), or a Ray cluster (ray_executor)
    corpus_output    a local folder or an object store
    workspace        the working folder: lock, earlier work, disk errors
    coordinator      all of it, in order

The result is a function of the input and the settings alone: pieces are cut before any worker gets them, and their
tokens are put together again in the order of the input.
"""
