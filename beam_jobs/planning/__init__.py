"""Planning of embedding runs: corpus listings, reuse of earlier runs, and shards."""
