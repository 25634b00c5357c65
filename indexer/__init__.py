"""Builds on-device searchers from an embedding run: quantizer training, the Task Library's index, TFLite packaging."""
