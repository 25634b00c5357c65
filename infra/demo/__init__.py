"""The demo: a synthetic captioned corpus, processed by every stage."""
