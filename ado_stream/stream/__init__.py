"""Shards to batches: order, draw, gather, prefetch, state."""
