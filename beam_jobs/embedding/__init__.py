"""The Beam pipeline and the encoders that it runs."""
