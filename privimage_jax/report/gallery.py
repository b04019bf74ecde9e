"""Images by class: a strip of each set's first images, the sets of one class side by side.

With the page's script one class can be chosen, which then shows more images, and any image can be enlarged.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from privimage_jax.data.dataset import Subset
from privimage_jax.report import plots
from privimage_jax.report.text import escape

MANY_CLASSES = 20  # from here on a class gets less room
COLUMNS = 12  # images side by side, at most
MOST = 4  # times as many images, where one class is chosen
MAX_BYTES = 1_500_000  # of all encoded images of a gallery


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Labelled images of one kind.

    Args:
      name: such as "synthetic".
      images: uint8 `[N, H, W, C]`, C = 1 or 3.
      labels: int `[N]`, indices into the gallery's classes.
    """

    name: str
    images: np.ndarray | Subset
    labels: np.ndarray


def shown_rows(labels: np.ndarray) -> np.ndarray:
    """Rows of all images that a gallery may show of a set with these labels, in their order."""
    firsts = [np.flatnonzero(labels == label)[: MOST * COLUMNS] for label in np.unique(labels)]
    return np.sort(np.concatenate(firsts))


def gallery(sets: Sequence[ImageSet], class_names: Sequence[str]) -> str:
    """One figure for each class that has an image, and a choice of one class.

    Images are taken in their order, round by round over all classes and sets, until `MAX_BYTES` are spent, so that
    every class shows as many as any other.

    Returns:
      HTML, or "" where there is no image.
    """
    columns = _columns(len(sets), len(class_names))
    encoded = _encoded(sets, len(class_names), MOST * columns)
    shown = [number for number, by_set in enumerate(encoded) if any(by_set)]
    if not shown:
        return ""
    figures = "".join(_figure(number, class_names[number], sets, encoded[number], columns) for number in shown)
    left = len({int(label) for each in sets for label in np.unique(each.labels)}) - len(shown)
    more = f'<p class="more">and {left:,} more classes, for which this page has no room</p>' if left else ""
    narrow = " narrow" if len(class_names) > MANY_CLASSES and len(sets) == 1 else ""
    return (
        f'<div class="gallery">{_filter(class_names, shown)}'
        f'<div class="samples{narrow}" style="--columns:{columns}">{figures}</div>{more}</div>'
    )


def strip(pictures: Sequence[tuple[str, str]], label: str, columns: int) -> str:
    """Images in a row, of which the first `columns` are seen at first.

    Args:
      pictures: description and data URI of each, at least one.
      label: of the whole row.
      columns: how many images there are side by side.
    """
    hidden_at_first = ' class="extra"'
    images = "".join(
        f'<img{hidden_at_first if place >= columns else ""} alt="{escape(alt)}" src="{uri}">'
        for place, (alt, uri) in enumerate(pictures)
    )
    return f'<div class="strip" role="group" aria-label="{escape(label)}">{images}</div>'


def _columns(n_sets: int, n_classes: int) -> int:
    if n_sets > 1:
        return 6
    return 6 if n_classes > MANY_CLASSES else COLUMNS


def _encoded(sets: Sequence[ImageSet], n_classes: int, most: int) -> list[list[list[str]]]:
    """Data URIs of the images to show, by class and set."""
    rows = [[np.flatnonzero(np.asarray(each.labels) == number)[:most] for each in sets] for number in range(n_classes)]
    encoded: list[list[list[str]]] = [[[] for _ in sets] for _ in range(n_classes)]
    used = 0
    for number, which, row in _rounds(rows, most):
        uri = plots.data_uri(np.asarray(sets[which].images[row]))
        used += len(uri)
        if used > MAX_BYTES:
            break
        encoded[number][which].append(uri)
    return encoded


def _rounds(rows: Sequence[Sequence[np.ndarray]], most: int) -> Iterator[tuple[int, int, int]]:
    """(class, set, row) of the first image of every class and set, then of every second one, and so on."""
    for place in range(most):
        for number, by_set in enumerate(rows):
            for which, chosen in enumerate(by_set):
                if place < len(chosen):
                    yield number, which, chosen[place]


def _figure(
    number: int, class_name: str, sets: Sequence[ImageSet], encoded: Sequence[Sequence[str]], columns: int
) -> str:
    parts = []
    for each, uris in zip(sets, encoded, strict=True):
        what = f"{each.name}, class {class_name}"
        pictures = [(f"{what}, number {place + 1}", uri) for place, uri in enumerate(uris)]
        body = strip(pictures, what, columns) if pictures else '<p class="note">no image</p>'
        heading = f'<p class="set">{escape(each.name)}</p>' if len(sets) > 1 else ""
        parts.append(f"<div>{heading}{body}</div>")
    return (
        f'<figure data-class="{number}"><figcaption>{escape(class_name)}</figcaption>'
        f'<div class="sets">{"".join(parts)}</div></figure>'
    )


def _filter(class_names: Sequence[str], shown: Sequence[int]) -> str:
    """The choice of one class; hidden until the script, which it needs, shows it."""
    if len(shown) < 2:
        return ""
    options = "".join(f'<option value="{number}">{escape(class_names[number])}</option>' for number in shown)
    return (
        '<p class="filter" hidden><label>Class <select><option value="">all</option>'
        f"{options}</select></label> <span>One class shows more of its images. Choose an image to enlarge it; the "
        "arrow keys go from one to the next.</span></p>"
    )
