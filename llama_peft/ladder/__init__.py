"""The whole walk of a recipe in one process: every rung is trained and measured on the same examples."""
