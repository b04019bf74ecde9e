"""What lies in a tree of files: its pictures and tables, without what systems and programs leave behind."""

import functools
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp")
_OTHERS = (".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
EXTENSIONS = frozenset(_JPEG + _OTHERS)
FOREIGN = (
    ".heic",
    ".heif",
    ".avif",
    ".dcm",
    ".dicom",
    ".nii",
    ".nii.gz",
    ".jp2",
    ".jxl",
    ".svg",
    ".cr2",
    ".nef",
    ".dng",
)
TABLES = frozenset((".csv", ".tsv", ".txt", ".jsonl"))
_MACOS = ("__macosx", "icon\r", "icon\uf00d")
_WINDOWS = ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler")
_DISKS = ("system volume information", "lost+found", "@eadir", "@recycle", "#recycle", "#snapshot")
_CLUTTER = frozenset((*_MACOS, *_WINDOWS, *_DISKS, "__pycache__"))  # what is left behind, in small letters


@dataclass(frozen=True)
class Listing:
    """The files of a tree, by their paths relative to its root, with slashes and in alphabetical order.

    Attributes:
      where: what messages call the tree, such as "config.data.path=/pictures".
      pictures: paths of files that are named as pictures are.
      others: paths of all other files.
      folders: paths of all folders, the empty ones as well.
      clutter: names of system folders, such as `@eaDir`, that were passed over.
      read: reads a file whole; see `reading.read_bytes`.
    """

    where: str
    pictures: tuple[str, ...]
    others: tuple[str, ...]
    folders: frozenset[str]
    clutter: frozenset[str]
    read: Callable[[str], bytes]

    @functools.cached_property
    def holding(self) -> frozenset[str]:
        """Paths of the folders that pictures lie in; "" is the root."""
        return frozenset(path.rpartition("/")[0] for path in self.pictures)

    def tops(self, root: str) -> "dict[str, Top]":
        """The folders directly below `root` ("" or a path with a slash at its end), by name, in alphabetical order."""
        direct: set[str] = set()
        deeper: dict[str, set[str]] = {}
        for folder in self.holding:
            if not f"{folder}/".startswith(root):
                continue
            top, _, rest = folder[len(root) :].partition("/")
            if rest:
                deeper.setdefault(top, set()).add(rest.partition("/")[0])
            elif top:
                direct.add(top)
        return {top: Top(top in direct, frozenset(deeper.get(top, ()))) for top in sorted(direct | deeper.keys())}

    def loose(self, root: str) -> list[str]:
        """The pictures that lie directly in `root`."""
        if root.rstrip("/") not in self.holding:
            return []
        return [path for path in self.pictures if path.startswith(root) and "/" not in path[len(root) :]]


@dataclass(frozen=True)
class Top:
    """A folder that holds pictures.

    Attributes:
      direct: whether some lie in it without a folder between.
      below: names of the folders directly in it that hold others.
    """

    direct: bool
    below: frozenset[str]


def make_listing(
    names: Iterable[str],
    where: str,
    read: Callable[[str], bytes],
    folders: Iterable[str] = (),
    clutter: Iterable[str] = (),
) -> Listing:
    """Sorts the names of files.

    Args:
      names: paths of files.
      where: see `Listing`.
      read: see `Listing`.
      folders: paths of folders, without slashes at their ends; those that hold files need not be given.
      clutter: names of system folders that were passed over before.
    """
    pictures: list[str] = []
    others: list[str] = []
    passed = set(clutter)
    for path in sorted(names):
        folder, _, name = path.rpartition("/")
        if found := _clutter_in(folder):
            passed.add(found)
        elif not is_clutter(name):
            (pictures if is_picture(name) else others).append(path)
    known = {folder for folder in folders if not _clutter_in(folder)}
    for folder in {path.rpartition("/")[0] for path in (*pictures, *others)}:
        while folder and folder not in known:
            known.add(folder)
            folder = folder.rpartition("/")[0]
    told = frozenset(name for name in passed if not name.startswith((".", "__")))
    return Listing(where, tuple(pictures), tuple(others), frozenset(known), told, read)


def is_picture(name: str) -> bool:
    """Whether a file is named as a picture is."""
    return "." in name and name[name.rindex(".") :].lower() in EXTENSIONS


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name is no part of any image set.

    >>> is_clutter("Thumbs.db"), is_clutter("@eaDir"), is_clutter(".git"), is_clutter("cat")
    (True, True, True, False)
    """
    return name.startswith(".") or name.casefold() in _CLUTTER


@functools.lru_cache(1 << 16)
def _clutter_in(folder: str) -> str:
    """The first folder of the path that is clutter, or ""."""
    return next((name for name in folder.split("/") if name and is_clutter(name)), "")


def same_name(name: str) -> str:
    """A name in the one form in which names are compared: macOS stores accents as letters of their own.

    >>> same_name("cafe" + chr(0x301)) == "caf" + chr(0xE9)
    True
    """
    return unicodedata.normalize("NFC", name)


def some(names: Iterable[str], most: int = 5) -> str:
    """The first names of a list, for a message."""
    listed = sorted(names)
    return ", ".join(listed[:most]) + ", …" * (len(listed) > most)


def strays(listing: Listing, root: str) -> tuple[list[str], list[str]]:
    """The files below `root`'s folders that are no pictures: (where pictures lie or should, above those folders).

    The former may be examples of a kind that is not known. The latter lie in a folder that holds nothing but folders,
    such as a list of files beside the folder that it lists.
    """
    above: set[str] = set()
    for folder in listing.holding:
        while "/" in folder and (folder := folder.rpartition("/")[0]) not in above:
            above.add(folder)
    above -= listing.holding
    among: list[str] = []
    beside: list[str] = []
    for path in listing.others:
        if path.startswith(root) and "/" in path[len(root) :]:
            (beside if path.rpartition("/")[0] in above else among).append(path)
    return among, beside
