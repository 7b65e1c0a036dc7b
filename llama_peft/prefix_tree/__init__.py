"""Prefixes that examples share are computed once, in training and in decoding."""
