"""Texts to ask with where there are no captions: query logs, and everyday texts that ship with the project."""
