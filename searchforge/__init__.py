"""What all stages share: configuration, contracts, storage and errors. It imports none of the stages."""

__version__ = "0.1.0"
