"""Classes by folder: one folder a class, at the level that the declared names, or the tree itself, tell."""

from privimage_jax.data.inspection.codes import OTHER_FILES
from privimage_jax.data.labels.listing import Listing, same_name, some, strays
from privimage_jax.data.labels.parts import find_parts
from privimage_jax.data.labels.tree import Labelling
from privimage_jax.data.sources.base import Settings
from privimage_jax.errors import UserError


def read(listing: Listing, root: str, settings: Settings) -> Labelling:
    """The classes that the folders below `root` name; pictures without any folder are one class.

    Raises:
      UserError: where a folder is no declared class, a picture or another file lies where none should, or the level of
        the classes cannot be told.
    """
    parts = find_parts(listing, root, settings, by_folders=True)
    prefixes = [parts.training] if parts.held_out is None else [parts.training, parts.held_out]
    classes = {prefix: _class_of(listing, prefix, settings) for prefix in prefixes}
    names = [set(of.values()) for of in classes.values()]
    if len(names) == 2 and names[0] != names[1] and not settings.class_names:
        raise UserError(
            f"{listing.where}: the class folder {min(names[0] ^ names[1])!r} is only in one of "
            f"{parts.training.rstrip('/')!r} and {(parts.held_out or '').rstrip('/')!r}; give both the same class "
            f"folders or declare {settings.key}.class_names."
        )
    class_names = _names(set().union(*names), settings, listing.where)
    number = {same_name(name): i for i, name in enumerate(class_names)}
    label_of = {path: number.get(name, 0) for of in classes.values() for path, name in of.items()}
    found = "class folders" if any(set().union(*names)) else "no labels: one class"
    return Labelling(
        label_of,
        class_names,
        found,
        parts,
        {},
        None,
        (*parts.notes, *_empty(listing, parts.training, settings), *_unread(listing, prefixes)),
    )


def can_read(listing: Listing, root: str, settings: Settings) -> bool:
    """Whether the folders are the declared classes, so that no other place needs to be looked at."""
    try:
        labelling = read(listing, root, settings)
    except UserError:
        return False
    return labelling.found == "class folders"


def _class_of(listing: Listing, root: str, settings: Settings) -> dict[str, str]:
    """Path -> class name of the pictures below `root`; without folders, one class ""."""
    tops, loose = listing.tops(root), listing.loose(root)
    if not tops:
        return dict.fromkeys(loose, "")
    if loose:
        raise UserError(
            f"{listing.where}: {loose[0]} lies beside the class folders; move it into one of them or remove it."
        )
    _refuse_strays(listing, root, settings)
    level = _declared_level(listing, root, settings) if settings.class_names else _level(listing, root, settings)
    depth = root.count("/") + level
    class_of = {folder: same_name(f"{folder}/".split("/")[depth]) for folder in listing.holding}
    return {path: class_of[path[: path.rindex("/")]] for path in listing.pictures if path.startswith(root)}


def _refuse_strays(listing: Listing, root: str, settings: Settings) -> None:
    """Refuses files among the pictures that are none, so that no example is lost in silence."""
    among, _ = strays(listing, root)
    if among and OTHER_FILES not in settings.accept:
        seen = f"{among[0]} is not an image" if len(among) == 1 else f"{some(among, 3)} ({len(among):,}) are not images"
        raise UserError(
            f"{listing.where}: {seen} of a known kind; remove or convert {'it' if len(among) == 1 else 'them'}, or "
            f'give {settings.key}.accept=("{OTHER_FILES}",) to pass over all that are none.'
        )


def _unread(listing: Listing, roots: list[str]) -> list[str]:
    """A note on what is passed over."""
    found = [path for root in roots for paths in strays(listing, root) for path in paths]
    if not found:
        return []
    seen = "1 file that is no picture is" if len(found) == 1 else f"{len(found):,} files that are no pictures are"
    return [f"{seen} not read: {some(found, 3)}"]


def _declared_level(listing: Listing, root: str, settings: Settings) -> int:
    """How many folders lie between `root` and those of the declared classes."""
    declared = set(map(same_name, settings.class_names))
    levels = _names_by_level(listing, root)
    fitting = [level for level, names in enumerate(levels) if names <= declared]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        folders = [f"{folder}/"[len(root) :].split("/") for folder in listing.holding if f"{folder}/".startswith(root)]
        if all(same_name(names[level]) == same_name(names[fitting[0]]) for names in folders for level in fitting):
            return fitting[0]
        raise UserError(
            f"{listing.where}: the folders at {len(fitting)} levels are called as declared classes; rename those that "
            f"are none, or say by {settings.key}.labels where the classes are."
        )
    unknown = levels[0] - declared
    deeper = f" (the folders below are {some(levels[1])})" if len(levels) > 1 else ""
    raise UserError(
        f"{listing.where}: the class folder {min(unknown)!r} is not in {settings.key}.class_names "
        f"({some(declared)}){deeper}; declare or remove it, or say by {settings.key}.labels where the classes are."
    )


def _level(listing: Listing, root: str, settings: Settings) -> int:
    """The same of a set whose classes are not declared: 0, unless the tree leaves it open."""
    tops = listing.tops(root)
    below = {name for top in tops.values() for name in top.below}
    if any(top.direct for top in tops.values()) or len(below) == 1:
        return 0
    first = next(iter(tops))
    raise UserError(
        f"{listing.where}: its pictures lie two folders deep, as in {root}{first}/{min(tops[first].below)}, and either "
        f"level may be the classes ({some(tops, 3)}, or {some(below, 3)}); declare {settings.key}.class_names, or say "
        f"by {settings.key}.labels where the classes are."
    )


def _names_by_level(listing: Listing, root: str) -> list[set[str]]:
    """The names of the folders at each level below `root` that holds all pictures."""
    start = root.count("/")
    split = [folder.split("/")[start:] for folder in listing.holding if f"{folder}/".startswith(root)]
    return [{same_name(names[level]) for names in split} for level in range(min(map(len, split)))]


def _names(found: set[str], settings: Settings, where: str) -> tuple[str, ...]:
    declared = tuple(map(same_name, settings.class_names))
    if any(found):
        return declared or tuple(sorted(found))
    if len(declared) > 1:
        raise UserError(
            f"{where} has no class folders; make one folder for each of {settings.key}.class_names, or say by "
            f"{settings.key}.labels where the classes are."
        )
    return declared or ("all",)


def _empty(listing: Listing, root: str, settings: Settings) -> tuple[str, ...]:
    """A note on folders that might be classes but hold no picture; a declared class may be empty."""
    holding = listing.tops(root)
    beside = {path[len(root) :] for path in listing.folders if path.startswith(root) and "/" not in path[len(root) :]}
    empty = {name for name in beside - holding.keys() if same_name(name) not in map(same_name, settings.class_names)}
    if not holding or not empty:
        return ()
    return (f"{some(empty)} holds no pictures and is no class",)
