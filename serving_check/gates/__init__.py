"""The gates of a check: each compares what was measured or read with what is required."""
