"""The `searchforge` command line."""
