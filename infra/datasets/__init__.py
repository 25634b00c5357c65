"""Public datasets for `searchforge fetch`: their archives, a resumable download, verification and unpacking."""
