"""Corpus readers: files, archives, tables and text files, in folders or buckets."""
