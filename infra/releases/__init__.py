"""Releases: published, promoted, rolled back, pruned and downloaded."""
