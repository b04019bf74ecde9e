"""Which picture a cell of a table means: by its path or a part of it, with or without its ending."""

from collections.abc import Iterable, Sequence

from privimage_jax.data.labels.listing import is_picture, same_name


class Names:
    """Finds pictures by the names that tables give them.

    >>> names = Names(["train/p1/a.png", "train/p2/a.png", "train/p2/b.jpg"])
    >>> [names.find(cell, "") for cell in ("p2/a.png", "data/train/p1/a.png", "b", "a.png", "c")]
    ['train/p2/a.png', 'train/p1/a.png', 'train/p2/b.jpg', None, None]

    Args:
      pictures: paths relative to the tree's root.
    """

    def __init__(self, pictures: Iterable[str]):
        self._paths = {same_name(path): path for path in pictures}
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for path in self._paths:
            name = path.rpartition("/")[2]
            self._by_name.setdefault(name, []).append(path)
            self._by_stem.setdefault(name[: name.rindex(".")], []).append(path)

    def find(self, cell: str, folder: str) -> str | None:
        """The one picture that the cell means.

        Args:
          cell: a path with slashes of either kind, a file's name, or such a name without its ending.
          folder: to which it may be relative; "" or a path with a slash at its end.

        Returns:
          Its path; None where there is none, or where several would do.
        """
        wanted = same_name(cell.replace("\\", "/").removeprefix("./").lstrip("/"))
        exact = self._paths.get(same_name(folder) + wanted) or self._paths.get(wanted)
        if exact or not wanted:
            return exact
        name = wanted.rpartition("/")[2]
        known = self._by_name.get(name, ())
        if not known and not is_picture(name):
            known = [path[: path.rindex(".")] for path in self._by_stem.get(name, ())]
            return self._only(known, wanted, self._by_stem.get(name, ()))
        return self._only(known, wanted, known)

    def _only(self, known: Sequence[str], wanted: str, paths: Sequence[str]) -> str | None:
        """Of pictures with the same name, the one whose path ends as the cell does, or the cell as its path."""
        if len(known) > 1:
            ends = [
                path
                for as_named, path in zip(known, paths, strict=True)
                if f"/{as_named}".endswith(f"/{wanted}") or f"/{wanted}".endswith(f"/{as_named}")
            ]
        else:
            ends = list(paths)
        return self._paths[ends[0]] if len(ends) == 1 else None
