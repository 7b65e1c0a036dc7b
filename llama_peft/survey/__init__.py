"""Looks at data, recipes and runs, and says what is there. It trains and loads no model."""
