"""Opens a searcher with the TFLite Task Library as a phone would, measures it, and decides whether it may ship."""
