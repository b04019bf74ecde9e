"""A run on the disk: its folder, atomic writes, and reading what may be damaged."""
