"""Mesh, state, checkpoints, writers and the public train step."""
