"""Writes what a device opens: the index file and the encoders that it is packed into."""
