"""Extracts the features of frozen towers, caches them, and draws training batches from them."""
