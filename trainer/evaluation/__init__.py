"""Retrieval metrics and the reports that show them."""
