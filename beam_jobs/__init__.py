"""Beam pipelines that embed corpora of any size into sharded TFRecords."""
