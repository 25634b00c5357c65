"""Exports trained encoders to a bundle's model files, and checks that they match."""
