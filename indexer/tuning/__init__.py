"""Chooses the settings of an index: code size, partitions and how many of them are searched."""
