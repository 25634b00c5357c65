"""Captioned images: file formats, validation, splits and content hashes."""
