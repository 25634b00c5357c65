"""Turns an embedding run into on-device searchers: ScaNN training, the Task Library's index, TFLite packaging."""
