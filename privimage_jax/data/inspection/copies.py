"""Images that are there twice: within a set, in the held-out part, and in the public set."""

import itertools
from collections.abc import Iterator

import numpy as np

from privimage_jax.data.dataset import Facts
from privimage_jax.data.inspection.findings import Finding
from privimage_jax.data.inspection.statistics import Statistics

LEAKED = 0.01  # of the held-out part: a share of known images moves an accuracy by as much, and a point is what counts
LEAST = 2  # images of it, as one of fifty is soon a copy by chance among tiny pictures
LISTED = 1_000  # of a kind
COMMON = 0.01  # of the public set: a few copies are in most sets from the web, and cost nothing but their room


def within(found: Statistics, is_public: bool) -> Iterator[Finding]:
    """Exact copies within the training part."""
    digests = _told_apart(found)
    copies = len(digests) - len(np.unique(digests))
    if copies > (COMMON * found.n if is_public else 0):
        kind = "public" if is_public else "sensitive"
        harm = (
            "the set is smaller than it looks" if is_public else "the promise covers each of them but not both at once"
        )
        yield Finding(
            "duplicates",
            f"{copies:,} of {found.n:,} {kind} images are exact copies of others, so that {harm}; remove the copies.",
        )


def across_parts(training: Statistics, held_out: Statistics) -> Iterator[Finding]:
    """Held-out images that are in the training part as well."""
    copies = _common(held_out, training)
    if copies:
        seen = f"{copies:,} of {held_out.n:,} held-out images are exact copies of images of the training part"
        refuses = copies >= LEAST and copies > LEAKED * held_out.n
        yield Finding(
            "duplicates_across_parts", f"{seen}, so that the evaluation flatters; remove the copies.", refuses
        )


def of_public(training: Statistics, public: Statistics) -> Iterator[Finding]:
    """Sensitive images that are in the public set as well."""
    copies = _common(training, public)
    if copies:
        seen = f"{copies:,} of {training.n:,} sensitive images are in the public set, which nothing protects"
        yield Finding("duplicates_of_public", f"{seen}; remove them from config.public, or take them for public.")


def listed(
    sensitive: tuple[Statistics, Facts],
    held_out: tuple[Statistics, Facts] | None,
    public: tuple[Statistics, Facts] | None,
) -> Iterator[dict[str, str]]:
    """Which sensitive and held-out images these are: by the code of the finding, each beside the first like it.

    Args:
      sensitive: the training part, with what its images are called.
      held_out, public: likewise; None where they are not looked at.
    """
    for code, these, those in (
        ("duplicates", sensitive, sensitive),
        ("duplicates_across_parts", held_out, sensitive),
        ("duplicates_of_public", sensitive, public),
    ):
        if these is not None and those is not None:
            for row, first in itertools.islice(_pairs(these[0], those[0]), LISTED):
                yield {"code": code, "image": these[1].called(row), "copy_of": those[1].called(first)}


def _pairs(these: Statistics, those: Statistics) -> Iterator[tuple[int, int]]:
    """(number of an image among these, of the first one like it among those), in order; no image beside itself."""
    own, others = np.flatnonzero(~these.flat), np.flatnonzero(~those.flat)
    digests, firsts = np.unique(those.digests[others], return_index=True)
    if not len(digests):
        return
    places = np.minimum(np.searchsorted(digests, these.digests[own]), len(digests) - 1)
    alike = digests[places] == these.digests[own]
    for row, first in zip(own[alike].tolist(), others[firsts[places[alike]]].tolist(), strict=True):
        if these is not those or row != first:
            yield row, first


def _common(these: Statistics, those: Statistics) -> int:
    """How many of these images are among those."""
    return int(np.isin(_told_apart(these), _told_apart(those)).sum())


def _told_apart(found: Statistics) -> np.ndarray:
    """The digests of images that show something: those of a single colour are alike and no copies."""
    return found.digests[~found.flat]
