"""The dual encoder: projection heads, loss, optimizer and ensembling."""
