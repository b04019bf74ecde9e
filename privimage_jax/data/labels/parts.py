"""Which folders of a tree are the training part and the held-out part, in the spellings that people use."""

from collections.abc import Iterable
from dataclasses import dataclass

from privimage_jax.data.labels.listing import Listing, same_name, some
from privimage_jax.data.sources.base import Settings
from privimage_jax.errors import UserError

_SPELLINGS = {
    "train": ("train", "training", "trn", "train_set", "training_set", "trainset", "train_data", "training_data"),
    "test": ("test", "testing", "tst", "test_set", "testing_set", "testset", "test_data", "testing_data", "eval"),
    "validation": ("validation", "val", "valid", "dev", "val_set", "validation_set", "valset", "val_data"),
    "more": ("extra", "unlabeled", "unlabelled"),  # of which no part is made
}
_KIND = {name: kind for kind, names in _SPELLINGS.items() for name in names}


@dataclass(frozen=True)
class Parts:
    """Where the parts lie.

    Attributes:
      training: the folder of the training part, with a slash at its end, or "" for the whole tree.
      held_out: that of the held-out part, or None where the tree has none.
      notes: sentences on folders that are not read.
    """

    training: str
    held_out: str | None = None
    notes: tuple[str, ...] = ()


def kind_of(name: str) -> str:
    """Which part a name usually stands for, or "".

    >>> kind_of("Training"), kind_of("valid"), kind_of("bus")
    ('train', 'validation', '')
    """
    return _KIND.get(name.casefold().replace("-", "_").replace(" ", "_"), "")


def find_wrapper(listing: Listing, settings: Settings) -> str:
    """The folders around everything, which archivers and people put there, with a slash at the end; "" for none."""
    root = ""
    while True:
        tops = listing.tops(root)
        name = next(iter(tops), "")
        meant = kind_of(name) or name == settings.split or same_name(name) in map(same_name, settings.class_names)
        if len(tops) != 1 or listing.loose(root) or meant or len(tops[name].below) < 1 + tops[name].direct:
            return root
        root += f"{name}/"


def find_parts(listing: Listing, root: str, settings: Settings, by_folders: bool) -> Parts:
    """Tells the part folders below `root` from class folders.

    Args:
      listing: of the tree.
      root: as `find_wrapper` gives it.
      settings: `split` and `test_split` name the parts; a usual name stands for all its spellings.
      by_folders: whether the classes are folders too, so that a part without any is none.

    Raises:
      UserError: where folders may be parts or classes, and the settings do not say which.
    """
    tops = listing.tops(root)
    training = pick(tops, settings.split)
    declared = set(map(same_name, settings.class_names))
    if training is None or (by_folders and declared and {same_name(name) for name in tops} <= declared):
        return Parts(root)
    candidates = {name: top for name, top in tops.items() if name != training}
    held_out = pick(candidates, settings.test_split)
    if held_out is None and kind_of(settings.test_split) == "test":
        held_out = pick(candidates, "validation")
    notes = []
    if by_folders and tops[training].below:
        unlabelled = [name for name, top in candidates.items() if not top.below and (kind_of(name) or name == held_out)]
        if unlabelled:
            notes.append(f"{some(unlabelled)} has pictures but no class folders and is not read")
            held_out = None if held_out in unlabelled else held_out
            candidates = {name: top for name, top in candidates.items() if name not in unlabelled}
    foreign = [name for name in candidates if name != held_out and not kind_of(name)]
    if by_folders and foreign and held_out is None:
        if not declared and not any(top.below for top in tops.values()):
            return Parts(root)  # a class that is called train among others
        raise UserError(_which(listing, settings, training, foreign))
    if unread := [name for name in candidates if name != held_out]:
        notes.append(f"{some(unread)} lies beside the part {training} and is not read")
    return Parts(f"{root}{training}/", None if held_out is None else f"{root}{held_out}/", tuple(notes))


def pick(names: Iterable[str], wanted: str) -> str | None:
    """The part that a setting names: exactly, or in another spelling of a usual name."""
    known = set(names)
    if wanted in known:
        return wanted
    kind = kind_of(wanted)
    return min((name for name in known if kind and kind_of(name) == kind), default=None)


def _which(listing: Listing, settings: Settings, training: str, foreign: list[str]) -> str:
    key = settings.key
    return (
        f"{listing.where} has the folder {training!r} but no {settings.test_split!r} with class folders; set "
        f"{key}.test_split to one of: {some(foreign)}, or, where these are classes, declare {key}.class_names."
    )
