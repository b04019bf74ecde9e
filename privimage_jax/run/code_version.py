"""The code that determines what a mechanism sees and does: part of a replay's identity."""

import functools
import hashlib
from importlib import metadata
from typing import Any

from ml_collections import ConfigDict

import privimage_jax
from privimage_jax import generators
from privimage_jax.run import source_files
from privimage_jax.run.source_files import with_imports
from privimage_jax.run.stage import Stage, enabled_stages, upstream
from privimage_jax.settings import import_strings

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "dp-accounting")  # that compute, or count the budget


def code_version(config: ConfigDict, *stages: Stage) -> str:
    """SHA-256 of all code that these stages run; of all that the config runs, if none is given.

    It covers the modules of the stages, what their settings and those of stages upstream name by import strings, the
    family of generators where the settings speak of one, every file that one of these imports, directly or through
    others (see `source_files`), and the versions of the numerical libraries and of what code from elsewhere imports.
    """
    stages = stages or enabled_stages(config)
    settings: dict[str, Any] = {}
    for one in dict.fromkeys(one for stage in stages for one in upstream(config, stage)):
        settings |= one.settings(config)
    named = _import_strings(settings)
    if "generator" in settings:
        named[generators.path(config.generator)] = "generator"
    files = {
        file
        for name, key in named.items()
        for file in source_files.of_import_string(name, import_strings.source_file(name, f"config.{key}"))
    }
    files |= {file for stage in stages for file in source_files.of_module(stage.module)}
    found = with_imports(frozenset(files))
    versions = [f"privimage_jax {privimage_jax.__version__}", *library_versions(), *source_files.versions(found)]
    contents = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in found)  # wherever the files lie
    return hashlib.sha256(", ".join([*versions, *contents]).encode()).hexdigest()


@functools.cache
def library_versions() -> tuple[str, ...]:
    """The names and versions of `LIBRARIES`."""
    return tuple(f"{name} {metadata.version(name)}" for name in LIBRARIES)


def _import_strings(settings: dict[str, Any]) -> dict[str, str]:
    """Import string -> the setting that holds it."""
    return {
        text: key
        for key, value in settings.items()
        for text in (value if isinstance(value, tuple | list) else [value])
        if import_strings.is_one(text)
    }
