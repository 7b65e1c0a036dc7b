"""The machine: files, memory, locks."""
