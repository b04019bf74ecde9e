"""Several processes that are one run, and signals."""
