"""Imports encoders that were made elsewhere: TFLite files become encoder bundles."""
