"""Chooses the parameters of an index: code size, number of partitions and how many are searched."""
