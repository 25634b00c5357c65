"""Child processes for native libraries that cannot share a process with TensorFlow, forked from a server."""
