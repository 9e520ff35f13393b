"""Raw text to shards: readers, tokenizers, packing, writing, manifest."""
