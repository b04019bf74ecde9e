"""PrivImage in JAX: from a sensitive labelled image set to a synthetic one under differential privacy."""

__version__ = "0.1.0"
