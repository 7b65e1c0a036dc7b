"""The frozen base, its heads and adapters, and what they take."""
