"""Rows from files, folders, URLs, the Hub, the generator and Python, as one type of table."""
