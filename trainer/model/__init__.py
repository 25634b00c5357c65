"""Defines the trainable part of the dual encoder: projection heads, loss, optimizer and ensembling."""
