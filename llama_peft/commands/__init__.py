"""The commands that are too long for `__main__.py`, one a file."""
