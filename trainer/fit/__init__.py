"""Training loops: of the projection heads and of whole towers, with their checkpoints."""
