"""Captioned images: the formats that they are read from, their TFRecords and the hashes of their content."""
