"""The code that determines what a mechanism sees and does: part of a replay's identity."""

import ast
import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
import optax
from ml_collections import ConfigDict

import privimage_jax
from privimage_jax import configs, generators
from privimage_jax.run.stage import Stage, enabled_stages, upstream
from privimage_jax.settings import import_strings

ROOT = Path(privimage_jax.__file__).parent


def code_version(config: ConfigDict, *stages: Stage) -> str:
    """SHA-256 of all code that these stages run; of all that the config runs, if none is given.

    It covers the modules of the stages, what their settings and those of stages upstream name by import strings, the
    family of generators where the settings speak of one, every file of the package that one of these imports, directly
    or through others, and the versions of the numerical libraries.
    """
    stages = stages or enabled_stages(config)
    settings: dict[str, Any] = {}
    for one in dict.fromkeys(one for stage in stages for one in upstream(config, stage)):
        settings |= one.settings(config)
    named = _import_strings(settings)
    if "generator" in settings:
        named[generators.path(config.generator)] = "generator"
    files = {
        *(import_strings.source_file(name, f"config.{key}") for name, key in named.items()),
        *(_file(stage.module) for stage in stages),
    }
    versions = [f"{module.__name__} {module.__version__}" for module in (privimage_jax, jax, jaxlib, flax, optax, np)]
    digest = hashlib.sha256(", ".join(versions).encode())
    for file in sorted(with_imports(frozenset(files) - {None}), key=str):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@functools.cache
def with_imports(files: frozenset[Path]) -> frozenset[Path]:
    """These files and every file of this package that they import, also inside functions, and so on."""
    found: set[Path] = set()
    waiting: list[Path | None] = list(files)
    while waiting:
        file = waiting.pop()
        if file is None or file in found:
            continue
        found.add(file)
        waiting += [_file(name) for name in _imports(file)]
    return frozenset(found)


@functools.cache
def _imports(file: Path) -> tuple[str, ...]:
    """Dotted names of all that a file may import from this package: modules, and what is taken from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return tuple(sorted(name for name in names if name.split(".")[0] == privimage_jax.__name__))


def _file(module: str) -> Path | None:
    """The file of a module; None where the name is of something inside one."""
    if module.split(".")[0] != privimage_jax.__name__:
        spec = importlib.util.find_spec(module)
        return Path(spec.origin) if spec and spec.origin else None
    folder, names = ROOT, module.split(".")[1:]
    if names[:1] == ["configs"]:
        folder, names = Path(configs.__path__[0]), names[1:]
    path = folder.joinpath(*names)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def _import_strings(settings: dict[str, Any]) -> dict[str, str]:
    """Import string -> the setting that holds it."""
    return {
        text: key
        for key, value in settings.items()
        for text in (value if isinstance(value, tuple | list) else [value])
        if import_strings.is_one(text)
    }
