"""Adapter and base as one model, for tools that load no adapters."""
