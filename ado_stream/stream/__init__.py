"""Shards to batches.

dataset         AdaptiveStreamingDataset    stream_state     its state as JSON
domain          Domain                      slots            a rank's part of the global batch
sample_index    shards of any format        board            mixtures by step
mds_index       index.json, checked         shared_mixtures  the same, over a fork
flat_index      files of tokens as shards   batch_draw       domains and positions of a step
flat_files      their indexes, checked      sample_order     sample ids of a lane, in order
shard_view      one mapped MDS shard        numba_order      compiled loops of both
shard_table     all shards, by sample id    device_copies    batches to a GPU
row_gather      rows to one array           stream_statistics  counts and waits
lookahead       shards fetched ahead        sample_reader    one domain, by sample id
batch_pipeline  batches made ahead
"""
