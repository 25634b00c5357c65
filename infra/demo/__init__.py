"""The demo: a corpus that it draws itself, taken through all stages."""
