"""Artifacts that stages pass to each other in a workspace: encoders, embedding runs, searchers and their records."""
