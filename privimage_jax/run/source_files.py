"""Which files a piece of code consists of: its own, and all that these import.

Of this package, the files that are imported, one by one. Of code from elsewhere, which may find its parts in ways that
no import tells: every file of its package, and likewise of what that imports. What such code imports of installed
packages counts by their versions.
"""

import ast
import functools
import importlib.util
import os
import sys
from collections.abc import Iterable
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

import privimage_jax
from privimage_jax import configs

ROOT = Path(privimage_jax.__file__).parent
_CODE = (".py", ".so", ".pyd")  # not what lies beside it, such as a run's folder
_INSTALLED = {"site-packages", "dist-packages"}
_OWN = privimage_jax.__name__


def of_import_string(name: str, file: Path) -> frozenset[Path]:
    """The files of an import string's module, which is loaded and lies in `file`, without what they import."""
    return of_module(name.partition(":")[0]) | {file}


def of_module(module: str) -> frozenset[Path]:
    """The file of a module of this package, or all files of the package that another belongs to.

    Returns:
      Nothing where the name is of something inside a module, or there are no files.
    """
    top = module.partition(".")[0]
    if top == _OWN:
        file = _file(module)
        return frozenset() if file is None else frozenset({file})
    spec = _spec(top)
    if spec is None:
        return frozenset()
    if spec.origin is None:  # a folder without __init__.py, in which anything may lie: the module's own folder counts
        inside = _spec(module) if "." in module else None
        return _code(Path(inside.origin).parent.glob("*")) if inside and inside.origin else frozenset()
    if spec.submodule_search_locations:
        return frozenset().union(*map(_below, spec.submodule_search_locations))
    return _code([Path(spec.origin)])


def _spec(module: str) -> ModuleSpec | None:
    """Where a module comes from; only what it lies in is imported."""
    try:
        return importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):  # the latter where a program made it up
        return None


@functools.cache
def _below(folder: str) -> frozenset[Path]:
    """The code below a folder, in which there may be much else."""
    return _code(Path(above, name) for above, _, names in os.walk(folder) for name in names)


def _code(files: Iterable[Path]) -> frozenset[Path]:
    return frozenset(file for file in files if file.suffix in _CODE)


@functools.cache
def with_imports(files: frozenset[Path]) -> frozenset[Path]:
    """These files and every file that they import, also inside functions, and so on; without what is installed."""
    found: set[Path] = set()
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for name in _imports(file):
            if name.partition(".")[0] == _OWN or not _is_installed(name.partition(".")[0]):
                waiting += of_module(name)
    return frozenset(found)


def versions(files: Iterable[Path]) -> list[str]:
    """The versions of the installed distributions that files from elsewhere import, in order."""
    tops = {name.partition(".")[0] for file in files if not _is_own(file) for name in _imports(file)}
    return sorted(
        found for top in tops - {_OWN, *sys.stdlib_module_names} if _is_installed(top) for found in _versions(top)
    )


def _versions(top: str) -> list[str]:
    """The name and version of each distribution that brings a top-level module."""
    try:
        return [f"{top} {metadata.version(top)}"]
    except metadata.PackageNotFoundError:
        return [f"{name} {metadata.version(name)}" for name in _owners().get(top, [])]


@functools.cache
def _owners() -> dict[str, list[str]]:
    """Top-level module -> the distributions that bring it, where their names differ: looking takes a second."""
    return dict(metadata.packages_distributions())


@functools.cache
def _imports(file: Path) -> tuple[str, ...]:
    """Dotted names of all that a file may import: modules, and what is taken from them.

    Files of this package need no other: the versions of the libraries count.
    """
    if file.suffix != ".py" or (_INSTALLED & {*file.parts} and not _is_own(file)):
        return ()
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return tuple(sorted(name for name in names if name.partition(".")[0] == _OWN or not _is_own(file)))


def _is_own(file: Path) -> bool:
    """Whether a file is of this package."""
    return file.is_relative_to(ROOT) or file.parent == Path(configs.__path__[0])


def _is_installed(top: str) -> bool:
    """Whether a top-level module is of Python itself, or was installed as a distribution."""
    if top in sys.stdlib_module_names:
        return True
    spec = _spec(top)
    places = [] if spec is None else [spec.origin] if spec.origin else spec.submodule_search_locations or []
    return all(_INSTALLED & {*Path(place).parts} for place in places)


def _file(module: str) -> Path | None:
    """The file of a module of this package; None where the name is of something inside one."""
    folder, names = ROOT, module.split(".")[1:]
    if names[:1] == ["configs"]:
        folder, names = Path(configs.__path__[0]), names[1:]
    path = folder.joinpath(*names)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None
