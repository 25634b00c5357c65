"""Re-indexing: what changed in the corpus is embedded, indexed, checked and published, whatever dies or races."""
