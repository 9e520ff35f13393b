"""Shards to batches.

dataset         AdaptiveStreamingDataset    stream_state     its state as JSON
domain          Domain                      slots            a rank's part of the global batch
mds_index       index.json, checked         board            mixtures by step
shard_view      one mapped shard            shared_mixtures  the same, over a fork
shard_table     all shards, by sample id    batch_draw       domains and positions of a step
row_gather      rows to one array           sample_order     sample ids of a lane, in order
lookahead       shards fetched ahead        numba_order      compiled loops of both
batch_pipeline  batches made ahead          device_copies    batches to a GPU
sample_reader   one domain, by sample id    stream_statistics  counts and waits
"""
