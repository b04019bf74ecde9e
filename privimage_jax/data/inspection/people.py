"""Whom the images show: people who are protected less than they may think, or who are in both parts."""

import unicodedata
from collections import Counter
from collections.abc import Iterator

import numpy as np

from privimage_jax.data.dataset import Dataset
from privimage_jax.data.inspection.findings import Finding


def of_unit(dataset: Dataset) -> Iterator[Finding]:
    """People with several images where the unit is an image."""
    if dataset.people is None or dataset.owners is not None:
        return
    images = np.bincount(dataset.people)
    if (most := int(images.max(initial=0))) > 1:
        seen = f"the {dataset.n:,} images are of {np.count_nonzero(images):,} people, with up to {most:,} of one"
        yield Finding("unit", f"{seen}, but each image is protected alone; give config.privacy.unit=person.")


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
