"""Trains quantizers: partitions, codebooks, the query-aware map and the query direction."""
