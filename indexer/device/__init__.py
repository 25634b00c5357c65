"""Writes the files that a device opens: the index, and the encoders with the index inside."""
