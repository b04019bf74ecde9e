"""`folder`: one subfolder a class, with pictures inside (at any depth).

    root/cat/1.png              parts made by `data.test_fraction`
    root/train/cat/1.png        parts as the folders say: `data.split` and `data.test_split` are their names
    root/1.png                  no classes: one class named "all"

Hidden files, and files beside the class folders that are no pictures, are passed over; any other file inside a class
folder is an error, so that no example is lost in silence. Pictures may differ in size: the transform cuts and resizes
each.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from privimage_jax.data.sources.base import Example, Settings, Source
from privimage_jax.data.transforms import decode_image
from privimage_jax.errors import UserError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
MAX_DEPTH = 64  # of folders within each other
_CLUTTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}  # what operating systems leave behind


@dataclass(frozen=True)
class Tree:
    """One part of a folder tree: `files[i]` (a path relative to the root) belongs to class `labels[i]`."""

    files: list[str]
    labels: list[int]
    class_names: tuple[str, ...]
    divided: bool


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The asked part of the folder at `settings.path`."""
    root = settings.existing_path("a folder of class folders")
    if not root.is_dir():
        raise UserError(f"{settings.key}.path={root} is not a folder; set it to a folder of class folders.")
    tree = arrange(_walk(root, settings), settings, part)

    real = os.path.realpath(root)

    def read(indices: np.ndarray) -> Iterator[Example]:
        for i in indices:
            yield decode_image(root / tree.files[i], str(root / tree.files[i])), tree.labels[i]

    def status(name: str) -> list:
        path = root / name
        if path.is_symlink() and os.path.commonpath([real, os.path.realpath(path)]) != real:
            raise UserError(f"{path} is a link that leads out of the folder; put the picture itself there.")
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
            raise UserError(f"{path} is not a regular file; remove it.")
        return [name, found.st_size, found.st_mtime_ns]

    try:
        fingerprint = [status(name) for name in tree.files]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); repair or remove it.") from None
    return Source(root.resolve().name, tree.class_names, len(tree.files), tree.divided, read, fingerprint)


def _walk(root: Path, settings: Settings) -> list[str]:
    """All files below `root` relative to it, and all folders, the latter with a slash at the end."""
    names, waiting = [], [("", 0)]
    while waiting:
        folder, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise UserError(f"{settings.key}.path: {root / folder[:100]}… lies more than {MAX_DEPTH} folders deep.")
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    name = folder + entry.name
                    if entry.is_symlink() and entry.is_dir():
                        raise UserError(f"{root / name} is a link to a folder; put the folder itself there.")
                    if entry.is_dir(follow_symlinks=False):
                        name += "/"
                        waiting.append((name, depth + 1))
                    names.append(name)
        except OSError as error:
            raise UserError(
                f"{settings.key}.path: the folder {error.filename} cannot be read ({error.strerror})."
            ) from None
    return names


def arrange(names: Sequence[str], settings: Settings, part: str) -> Tree:
    """Sorts relative names (folders end with a slash) into parts and classes, in alphabetical order."""
    where = f"{settings.key}.path={settings.path}"
    paths = sorted((PurePosixPath(name), name.endswith("/")) for name in names)
    paths = [(path, folder) for path, folder in paths if not _is_clutter(path)]
    parents = {path.parts[0] for path, folder in paths if folder and len(path.parts) > 1}  # folders that hold folders
    divided = {settings.split, settings.test_split} <= parents
    if settings.split not in parents:
        classes, files = _classes(paths, PurePosixPath(), where)
    else:
        top = {path.parts[0] for path, folder in paths if folder}
        if not divided and len(top) > 1:
            others = ", ".join(sorted(top - {settings.split}))
            raise UserError(
                f"{where} has the folder {settings.split!r} but no {settings.test_split!r} with class folders; "
                f"set {settings.key}.test_split to one of: {others}."
            )
        chosen = settings.test_split if divided and part == "test" else settings.split
        classes, files = _classes(paths, PurePosixPath(chosen), where)
        if divided and not settings.class_names:
            other = settings.split if chosen == settings.test_split else settings.test_split
            differing = classes ^ _classes(paths, PurePosixPath(other), where)[0]
            if differing:
                raise UserError(
                    f"{where}: the class folder {min(differing)!r} is only in one of {settings.split!r} and "
                    f"{settings.test_split!r}; give both the same class folders or declare {settings.key}.class_names."
                )
    if not files:
        raise UserError(f"{where} holds no images; put them in one folder per class.")
    class_names = _class_names(classes, settings, where)
    labels = [class_names.index(name) if classes else 0 for name, _ in files]
    return Tree([path for _, path in files], labels, class_names, divided)


def _classes(paths: list, root: PurePosixPath, where: str) -> tuple[set[str], list[tuple[str, str]]]:
    """The class folders below `root` and its pictures as pairs (class, path); without folders, one class ""."""
    depth = len(root.parts)
    below = [(path, folder) for path, folder in paths if path.parts[:depth] == root.parts and len(path.parts) > depth]
    classes = {path.parts[depth] for path, folder in below if folder or len(path.parts) > depth + 1}
    files = []
    for path, folder in below:
        if folder:
            continue
        loose, picture = len(path.parts) == depth + 1, path.suffix.lower() in EXTENSIONS
        if loose and picture and classes:
            raise UserError(f"{where}: {path} lies beside the class folders; move it into one of them or remove it.")
        if not loose and not picture:
            raise UserError(f"{where}: {path} is not an image of a known kind; remove or convert it.")
        if picture:
            files.append(("" if loose else path.parts[depth], str(path)))
    return classes, files


def _class_names(classes: set[str], settings: Settings, where: str) -> tuple[str, ...]:
    declared = settings.class_names
    if not classes:
        if len(declared) > 1:
            raise UserError(f"{where} has no class folders; make one folder for each of {settings.key}.class_names.")
        return declared or ("all",)
    unknown = classes - set(declared)
    if declared and unknown:
        raise UserError(
            f"{where}: the class folder {min(unknown)!r} is not in {settings.key}.class_names; declare or remove it."
        )
    return declared or tuple(sorted(classes))


def _is_clutter(path: PurePosixPath) -> bool:
    return any(name.startswith(".") or name in _CLUTTER for name in path.parts)
