"""The Beam pipeline and the models that it runs."""
