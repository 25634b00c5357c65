"""Reads an embedding run: its shards, a scan for bad input and exact neighbours, queries and metadata."""
