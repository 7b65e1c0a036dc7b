"""Shared prefixes are computed once, in training and in decoding."""
