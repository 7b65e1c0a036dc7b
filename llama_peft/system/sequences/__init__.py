"""Sequences of rows that do not live in memory as objects."""
