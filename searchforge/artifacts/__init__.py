"""Artifacts that stages exchange through a workspace: encoders, embedding runs and searchers."""
