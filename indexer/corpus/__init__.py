"""Reads an embedding run: shards, metadata, tuning queries and their exact nearest neighbors."""
