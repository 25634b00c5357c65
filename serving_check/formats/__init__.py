"""Readers of the published files, independent of the code that wrote them."""
