"""Which folders of a tree are the training part and the held-out part, in the spellings that people use."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from privimage_jax.data.labels.listing import Listing, same_name, some
from privimage_jax.data.sources.base import Settings
from privimage_jax.errors import UserError

_SPELLINGS = {
    "train": ("train", "training", "trn", "trainset"),
    "test": ("test", "testing", "tst", "testset", "eval"),
    "validation": ("validation", "val", "valid", "dev", "valset"),
    "more": ("extra", "unlabeled", "unlabelled"),  # of which no part is made
}
_KIND = {name: kind for kind, names in _SPELLINGS.items() for name in names}
_BESIDE = frozenset(
    ("set", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "files", "split")
)


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

    >>> [kind_of(name) for name in ("Training", "valid", "test_images", "Train2017", "bus", "train station")]
    ['train', 'validation', 'test', 'train', '', '']
    """
    words = [word for word in re.findall(r"[^\W\d_]+", name.casefold()) if word not in _BESIDE]
    return _KIND.get(words[0], "") if len(words) == 1 else ""


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
    training, held_out = pick_parts(list(tops), settings)
    declared = set(map(same_name, settings.class_names))
    if by_folders and declared and tops and {same_name(name) for name in tops} <= declared:
        if training and tops[training].below and {same_name(name) for name in tops[training].below} <= declared:
            raise UserError(
                f"{listing.where}: the folder {training!r} is called as a class and holds folders called as classes; "
                f"set {settings.key}.path to it if it is the training part, or rename the folders in it."
            )
        return Parts(root)
    if training is None:
        if tops and all(kind_of(name) for name in tops):
            raise UserError(
                f"{listing.where} has pictures in {some(tops)}, and none in a training part; add some, or say by "
                f"{settings.key}.split which folder it is."
            )
        return Parts(root)
    candidates = {name: top for name, top in tops.items() if name != training}
    notes = []
    if loose := listing.loose(root):
        if by_folders:
            raise UserError(
                f"{listing.where}: {loose[0]} lies beside the part {training}; move it into a part or remove it."
            )
        notes.append(f"{len(loose):,} pictures beside the part {training} are not read")
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


def pick_parts(names: Sequence[str], settings: Settings) -> tuple[str | None, str | None]:
    """The names that `split` and `test_split` stand for; for want of a test part, a validation part is held out."""
    training = pick(names, settings.split)
    rest = [name for name in names if name != training]
    held_out = pick(rest, settings.test_split)
    if held_out is None and kind_of(settings.test_split) == "test":
        held_out = pick(rest, "validation")
    return training, held_out


def pick(names: Iterable[str], wanted: str) -> str | None:
    """The name that a setting means: itself, or in another spelling of a usual name."""
    names = list(names)
    if wanted in names:
        return wanted
    kind = kind_of(wanted)
    return min((name for name in names if kind and kind_of(name) == kind), default=None)


def _which(listing: Listing, settings: Settings, training: str, foreign: list[str]) -> str:
    key = settings.key
    return (
        f"{listing.where} has the folder {training!r} but no {settings.test_split!r} with class folders; set "
        f"{key}.test_split to one of: {some(foreign)}, or, where these are classes, declare {key}.class_names."
    )
