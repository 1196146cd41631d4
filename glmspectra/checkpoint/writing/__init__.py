"""Writing checkpoints: shards with their index, conversion, merging."""
