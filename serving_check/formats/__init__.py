"""Readers of searcher files and their index, independent of the code that writes them.

They share no code with the indexer beyond varints and checksum masks, so that no reader repeats a fault of a writer.
"""
