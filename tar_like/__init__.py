"""tar-like: make a folder tree appear, verified, with many senders and receivers."""

__version__ = "0.1.0"
