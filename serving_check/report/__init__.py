"""Prepares and renders the HTML report of a check."""
