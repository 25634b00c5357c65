"""What the command lines share: options, logs and progress."""
