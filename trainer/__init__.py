"""Trains dual encoders: frozen towers, projection heads with a contrastive loss on Ray workers, and export.

`trainer.train.train` is the entry point, and `python -m trainer` the command. Importing the package is cheap.
"""
