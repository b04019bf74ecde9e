"""Which picture a cell of a table means: by its path or a part of it, with or without its ending."""

from collections.abc import Iterable

from privimage_jax.data.labels.listing import is_picture, same_name


class Names:
    """Finds pictures by the names that tables give them.

    A cell means the pictures whose path ends as the cell does, and the one whose whole path the cell ends in. The
    folders of a cell always count: a row on another folder's picture of the same name is on no picture here.

    >>> names = Names(["train/p1/a.png", "train/p2/a.png", "train/p2/b.jpg"])
    >>> [names.find(cell, "") for cell in ("p2/a.png", "data/train/p1/a.png", "b", "a.png", "p1/b.jpg")]
    ['train/p2/a.png', 'train/p1/a.png', 'train/p2/b.jpg', None, None]

    Args:
      pictures: paths relative to the set's folder.
      root: the folder around all of them, with a slash at its end, which a cell may leave out.
    """

    def __init__(self, pictures: Iterable[str], root: str = ""):
        self._root = root
        self._paths = {same_name(path.removeprefix(root)): path for path in pictures}
        self._stems: dict[str, list[str]] = {}
        for path in self._paths:
            self._stems.setdefault(path[: path.rindex(".")], []).append(path)
        self._tails: dict[tuple[int, bool], dict[str, list[str]]] = {}
        self._holding: dict[str, bool] = {}

    def find(self, cell: str, folder: str) -> str | None:
        """The one picture that the cell means; None where there is none, or where several would do; see `fits`."""
        fitting = self.fits(cell, folder)
        return fitting[0] if len(fitting) == 1 else None

    def fits(self, cell: str, folder: str) -> list[str]:
        """The paths of all pictures that the cell may mean.

        Args:
          cell: a path with slashes of either kind, a file's name, or such a name without its ending.
          folder: of the table, "" or a path with a slash at its end. If pictures lie in it, a cell means one of them.
        """
        wanted = same_name(cell.replace("\\", "/").removeprefix("./").strip("/"))
        folder = same_name(folder.removeprefix(self._root)) if folder.startswith(self._root) else ""
        if not wanted:
            return []
        is_stem = not is_picture(wanted)
        for exact in (folder + wanted, wanted):
            if found := self._exact(exact, is_stem):
                return [self._paths[path] for path in found]
        parts = wanted.split("/")
        fitting = list(self._with_tail(wanted, len(parts), is_stem))
        for first in range(1, len(parts)):
            fitting += self._exact("/".join(parts[first:]), is_stem)
        if folder and self._holds(folder):
            fitting = [path for path in fitting if path.startswith(folder)]
        return [self._paths[path] for path in dict.fromkeys(fitting)]

    def _exact(self, path: str, is_stem: bool) -> list[str]:
        return self._stems.get(path, []) if is_stem else [path] * (path in self._paths)

    def _with_tail(self, tail: str, length: int, is_stem: bool) -> list[str]:
        """The pictures whose last `length` names are `tail`; an index for each length is made when first needed."""
        index = self._tails.get((length, is_stem))
        if index is None:
            index = self._tails[length, is_stem] = {}
            for path in self._paths:
                parts = (path[: path.rindex(".")] if is_stem else path).split("/")
                if len(parts) >= length:
                    index.setdefault("/".join(parts[-length:]), []).append(path)
        return index.get(tail, [])

    def _holds(self, folder: str) -> bool:
        if folder not in self._holding:
            self._holding[folder] = any(path.startswith(folder) for path in self._paths)
        return self._holding[folder]
