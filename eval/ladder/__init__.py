"""What a ladder measured, read from its folders: a table, and a verdict in a few lines."""
