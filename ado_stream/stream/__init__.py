"""Shards to batches.

dataset         AdaptiveStreamingDataset    stream_state     its state as JSON
domain          Domain                      slots            a rank's part of the global batch
sample_index    shards of any format        board            mixtures by step
mds_index       MDS files as shards         shared_mixtures  the same, over a fork
index_content   their index.json, checked   batch_draw       domains and positions of a step
flat_index      files of tokens as shards   sample_order     sample ids of a lane, in order
flat_files      their indexes, checked      numba_order      compiled loops of both
shard_view      one mapped MDS shard        device_copies    batches to a GPU
shard_table     all shards, by sample id    stream_statistics  counts and waits
row_gather      rows to one array           sample_reader    one domain, by sample id
lookahead       shards fetched ahead        batch_pipeline   batches made ahead
"""
