"""What looks wrong with one image set, by its pixels and by its classes."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from privimage_jax.data.dataset import Dataset, Facts
from privimage_jax.data.inspection.statistics import Statistics

MOST = 0.5  # a set looks wrong when this share of its images does: a few odd ones are in every honest set
DARK = 24  # of 255: 12-bit values in 16-bit files reach 16, masks of 0 and 1 reach 1; a faint stroke passes 24
BRIGHT = 255 - DARK  # the same, inverted
CLIPPED = 0.2  # share of an image's values at 0, and as many at 255: drawings have one ground, masks and cut scans both
RARE = 0.1  # of the images that each class would have, were all the same size
NAMED = 5  # classes that one message names
UNLABELLED = ("all",)  # the classes of a set without labels
_OF_FOLDERS = ("folder", "zip")  # sources whose classes may be folders
_OTHER_SET = "choose a set whose classes tell what its images show, or config.selection.method=unlabelled"

_NEED_CLASSES = {  # of config.selection.method: what needs labels, and what one label is too few for
    "semantic": (
        "the query asks which of their classes resemble the sensitive ones",
        "the query has nothing to choose from",
    ),
    "all": ("config.selection.method=all teaches them by label", "all public images would teach the same label"),
}

_PART = re.compile(  # what folders of a set are called that hold no class of their own
    r"(train|test|val|valid|validat|eval|dev|hold[ _-]?out)(ing|ion|uation|elopment)?([ _-]?(set|data|images?|\d+))?"
    r"|(images?|imgs?|pictures?|photos?|pics|data|dataset|jpe?gs?|pngs?|jpegimages)([ _-]?\d+)?"
    r"|(.*[ _-])?(part|split|fold|batch|shard|chunk|folder|dir)[ _-]?\d+",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"0\d{4,}")  # 00000, 00001, …: how StyleGAN's tool cuts a set into folders


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that looks wrong, for the operator alone.

    Attributes:
      code: what machines and `config.*.accept` call it.
      message: a sentence with counts: what was seen, then behind a semicolon the setting that mends it.
      refuses: whether a run stops before anything is spent.
    """

    code: str
    message: str
    refuses: bool = False

    @property
    def seen(self) -> str:
        """The message without its remedy."""
        return self.message.partition("; ")[0].rstrip(".")


def of_pixels(
    found: Statistics, facts: Facts, key: str, intensity: str, accept: Sequence[str] = ()
) -> Iterator[Finding]:
    """What the pixels of a set look like: the first that looks wrong, as it explains others, and all if it is accepted.

    Args:
      found: of its images.
      facts: what was found in its files.
      key: what messages call its section, such as "config.data".
      intensity: how its values became 0..255.
      accept: codes of findings that are as they should be, and explain nothing else.
    """
    for finding in _every_of_pixels(found, facts, key, intensity):
        yield finding
        if finding.code not in accept:
            return


def _every_of_pixels(found: Statistics, facts: Facts, key: str, intensity: str) -> Iterator[Finding]:
    """The weightiest first."""
    black, white, flat = found.high <= DARK, found.low >= BRIGHT, found.flat
    clipped = (found.black > CLIPPED) & (found.white > CLIPPED)
    if black.mean() > MOST:
        seen = f"{_share(black)} are nearly black, as none of their pixels is above {DARK} of 255"
        remedy = _brighter(not found.high[black].any(), facts, key, intensity)
        yield Finding("nearly_black", f"{seen}; {remedy}.", refuses=True)
    if white.mean() > MOST:
        seen = f"{_share(white)} are nearly white, as none of their pixels is below {BRIGHT} of 255"
        yield Finding("nearly_white", f"{seen}; give {key}.intensity=LOW:HIGH by what made them.", refuses=True)
    if flat.mean() > MOST:
        # One grey is what a failed export leaves behind; one colour is drawn by somebody, and may be meant.
        grey = flat & (found.low == found.high)
        advice = "look at the files, and at what wrote them"
        yield Finding("constant", f"{_share(flat)} have a single colour; {advice}.", refuses=bool(grey.mean() > MOST))
    if clipped.mean() > MOST:
        seen = f"in {_share(clipped)} more than {CLIPPED:.0%} of all values are 0, and as many 255"
        remedy = f"unless they are masks or drawings, let {key}.intensity span a wider range than {intensity}"
        yield Finding("saturated", f"{seen}; {remedy}.")


def of_classes(dataset: Dataset, key: str, is_public: bool) -> Iterator[Finding]:
    """Which classes have no images, or far fewer than others."""
    counts = np.bincount(dataset.labels, minlength=dataset.n_classes)
    if empty := [name for name, count in zip(dataset.class_names, counts, strict=True) if not count]:
        fate = "nothing is learnt of it" if is_public else "it is generated all the same"
        if not counts[0] and counts[-1]:
            fate += f", unless its labels begin with 1: then give {key}.first_label=1"
        yield Finding("empty_class", f"no {_kind(is_public)} image is of class {some(empty)}; {fate}.")
    fair = dataset.n / np.count_nonzero(counts)
    if rare := [
        f"{name} ({count:,})"
        for name, count in zip(dataset.class_names, counts, strict=True)
        if 0 < count < RARE * fair
    ]:
        seen = f"far rarer than others, of {fair:,.0f} images on average, is class {some(rare)}"
        remedy = "add images" if is_public else "add images, or let config.class_histogram draw it as seldom as it is"
        yield Finding("rare_class", f"{seen}; {remedy}.")


def of_semantics(public: Dataset, is_declared: bool, method: str = "semantic") -> Iterator[Finding]:
    """Whether the classes of the public set mean something, as some of them are picked or all of them taught.

    Args:
      public: the public set.
      is_declared: whether the user listed its classes.
      method: that selects, one of `_NEED_CLASSES` or "random", which can do with one class.
    """
    names, has_folders = public.class_names, public.facts.source in _OF_FOLDERS
    needs_several = method in _NEED_CLASSES
    if needs_several and names == UNLABELLED:
        seen = f"the public images have no labels, but {_NEED_CLASSES[method][0]}"
        remedy = "choose a labelled set or config.selection.method=unlabelled"
        yield Finding("one_class", f"{seen}; {remedy}.", refuses=True)
    elif needs_several and len(names) == 1:
        seen = f"the public set has the one class {names[0]!r}, so that {_NEED_CLASSES[method][1]}"
        remedy = "let config.public.path be the folder that holds the class folders" if has_folders else _OTHER_SET
        yield Finding("part_folders", f"{seen}; {remedy}.", refuses=True)
    elif not is_declared and looks_like_parts(names):
        seen = f"the classes of the public set look like folders of its parts: {some([*map(repr, names)])}"
        remedy = "let config.public.path lead to the class folders, or say by config.public.labels where labels are"
        remedy = remedy if has_folders else _OTHER_SET
        yield Finding("part_folders", f"{seen}; {remedy}.", refuses=True)


def looks_like_parts(names: Sequence[str]) -> bool:
    """Whether all classes have names of parts, such as train and test, or are numbered from 00000."""
    numbered = all(_NUMBERED.fullmatch(name) for name in names)
    consecutive = numbered and [*map(int, sorted(names))] == [*range(len(names))]
    return consecutive or all(_PART.fullmatch(name) for name in names)


def of_notes(*notes: Sequence[str]) -> Iterator[Finding]:
    """What was passed over where the parts of the set were read, each note once."""
    for note in dict.fromkeys(note for part in notes for note in part):
        yield Finding("unread", note)


def some(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _brighter(is_empty: bool, facts: Facts, key: str, intensity: str) -> str:
    """The remedy for black images: usual ranges of the stored kind of pixels, and none that the values themselves tell.

    A setting made from the largest value of the set would carry it into what is published.
    """
    if intensity != "full":
        return f"{key}.intensity={intensity} makes them so, give another"
    if any("16-bit" in kind or "32-bit" in kind for kind in facts.depths):
        return f"if they hold 12 bits by what made them, give {key}.intensity=0:4095, or 0:1023 for 10 bits"
    if is_empty:
        return "every value is 0, look at the files and at what wrote them"
    return f"if they are masks of 0 and 1, give {key}.intensity=0:1, or else LOW:HIGH by what made them"


def _share(chosen: np.ndarray) -> str:
    return f"{np.count_nonzero(chosen):,} of {len(chosen):,} images"


def _kind(is_public: bool) -> str:
    return "public" if is_public else "sensitive"
