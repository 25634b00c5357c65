"""Training of dual encoders: frozen towers, projection heads, contrastive loss over Ray workers, export.

`trainer.train.train` is the entry point, and `python -m trainer` the command; this package imports nothing
heavy by itself.
"""
