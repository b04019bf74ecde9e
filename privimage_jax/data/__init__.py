"""Labelled image sets: `load` one from any source, as a `Dataset`. Names are loaded on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privimage_jax.data.dataset import Dataset, check_compatible
    from privimage_jax.data.loading import check_path, load

__all__ = ["Dataset", "check_compatible", "check_path", "load"]

_MODULE_OF = {"Dataset": "dataset", "check_compatible": "dataset", "check_path": "loading", "load": "loading"}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
