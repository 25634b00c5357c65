"""Reads a corpus: files, archives, tables and text files, in folders or buckets."""
