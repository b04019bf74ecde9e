"""Finds the classes of pictures: in folders' names, in a dataset.json, in a table."""
