"""Encodes a corpus in threads or on a Beam runner, and measures the recall of the resulting index."""
