"""Queries a searcher through the Task Library and measures its recall and latency against exact search."""
