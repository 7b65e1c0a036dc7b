"""Functions that torch compiles on this machine, each with a plain twin that takes its place."""
