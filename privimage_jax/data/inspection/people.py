"""Whom the images show: people who are protected less than they may think, who are none, or who are in both parts."""

import unicodedata
from collections import Counter
from collections.abc import Iterator

import numpy as np

from privimage_jax.data.dataset import Dataset
from privimage_jax.data.inspection.findings import Finding, some

# Ids that stand for nobody, in small letters: what tables have where an id is not known.
NOBODY = frozenset(
    ("-", "--", "?", ".", "-1", "n/a", "na", "#n/a", "<na>", "nan", "nil", "none", "null", "unknown")
    + ("anonymous", "empty", "missing", "not available", "not given", "undefined")
)


def of_unit(dataset: Dataset) -> Iterator[Finding]:
    """People with several images where the unit is an image; ids that hardly are people's where it is a person."""
    if dataset.people is None:
        return
    images = np.bincount(dataset.people)
    if dataset.owners is not None:
        yield from _of_ids(dataset, images)
        return
    if (most := int(images.max(initial=0))) > 1:
        seen = f"the {dataset.n:,} images are of {np.count_nonzero(images):,} people, with up to {most:,} of one"
        yield Finding("unit", f"{seen}, but each image is protected alone; give config.privacy.unit=person.")


def _of_ids(dataset: Dataset, images: np.ndarray) -> Iterator[Finding]:
    """A column of images in place of people, and images of whom it is not known.

    Args:
      dataset: whose records are people.
      images: int [people], how many each has.
    """
    if 1 < dataset.n == dataset.n_records:
        seen = f"each of the {dataset.n:,} images has a person of its own, as if the ids were of images"
        remedy = "name in config.data.person what tells people"
        yield Finding("one_image_each", f"{seen}, so that a person with two would be two records; {remedy}.", True)
    shared = [
        f"{name} ({count:,} images)"
        for name, count in zip(dataset.facts.people, images.tolist(), strict=True)
        if count > 1 and name.strip().casefold() in NOBODY
    ]
    if shared:
        seen = f"the ids {some(shared)} look as if the person were not known, and make one person of all these images"
        remedy = "give each of them an id of its own, such as its file's name, or leave them out"
        yield Finding("unknown_people", f"{seen}; {remedy}.", refuses=True)


def alike(dataset: Dataset, held_out: Dataset | None = None) -> Iterator[Finding]:
    """Ids that differ in case, or in forms of a letter, alone: one person with two of them is protected less.

    Args:
      dataset: the training part.
      held_out: the ids of both parts are compared.
    """
    if dataset.owners is None:
        return
    names = set(dataset.facts.people) | (set() if held_out is None else set(held_out.facts.people))
    folded = Counter(unicodedata.normalize("NFKC", name).casefold() for name in names)
    if same := sum(times for times in folded.values() if times > 1):
        seen = f"{same:,} of {len(names):,} ids of people differ from another in capitals or forms of a letter alone"
        yield Finding("people_alike", f"{seen}; write the id of each person in one way.")


def across_parts(training: Dataset, held_out: Dataset) -> Iterator[Finding]:
    """People with images in the training and in the held-out part, where the set itself parts them."""
    if training.owners is None or held_out.owners is None:
        return
    both = len(set(training.facts.people) & set(held_out.facts.people))
    if both:
        seen = f"{both:,} of {held_out.n_records:,} held-out people have images in the training part as well"
        remedy = "part the set by people, or merge its parts and let config.data.test_fraction do it"
        yield Finding("people_across_parts", f"{seen}, so that the evaluation flatters; {remedy}.", refuses=True)
