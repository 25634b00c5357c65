"""Exports embedding runs for other tools, and imports embeddings that were computed elsewhere."""
