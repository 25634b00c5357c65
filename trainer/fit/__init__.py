"""Trains projection heads, and fine-tunes towers, on Ray workers with checkpoints."""
