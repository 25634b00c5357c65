"""Opens a searcher with the TFLite Task Library like an app, measures it, and decides whether it may be released."""
