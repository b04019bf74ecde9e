"""Images that are there twice: within a set, in the held-out part, and in the public set."""

from collections.abc import Iterator

import numpy as np

from privimage_jax.data.inspection.findings import Finding
from privimage_jax.data.inspection.statistics import Statistics

LEAKED = 0.01  # of the held-out part: a share of known images moves an accuracy by as much, and a point is what counts
LEAST = 2  # images of it, as one of fifty is soon a copy by chance among tiny pictures
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


def _common(these: Statistics, those: Statistics) -> int:
    """How many of these images are among those."""
    return int(np.isin(_told_apart(these), _told_apart(those)).sum())


def _told_apart(found: Statistics) -> np.ndarray:
    """The digests of images that show something: those of a single colour are alike and no copies."""
    return found.digests[~found.flat]
