"""Decides what a run embeds: the listing of a corpus, what is reused, and the shards."""
