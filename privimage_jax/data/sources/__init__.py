"""Where labelled images come from: one file per kind of source, picked by `data.source`."""

import importlib

from privimage_jax.data.sources.base import Settings, Source
from privimage_jax.errors import UserError

SOURCES = ("tfds", "folder", "zip", "npz", "digits", "glyphs")
"""Accepted names; each is a module of this package with `open_source`, imported when asked for."""


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """Opens the source named by `settings.source` for "train" or "test"; some draw at `image_size` pixels."""
    if settings.source not in SOURCES:
        raise UserError(f"{settings.key}.source is {settings.source!r}; it accepts {', '.join(SOURCES)}.")
    module = importlib.import_module(f"privimage_jax.data.sources.{settings.source}")
    return module.open_source(settings, part, image_size)
