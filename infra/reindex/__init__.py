"""Re-indexing: embeds, indexes, checks and publishes the changes of a corpus, on demand or on a schedule."""
