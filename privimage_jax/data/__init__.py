"""Labelled image sets: `load` one from any source, as a `Dataset`."""

from privimage_jax.data.dataset import Dataset, check_compatible
from privimage_jax.data.loading import load

__all__ = ["Dataset", "check_compatible", "load"]
