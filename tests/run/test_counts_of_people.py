"""Every mechanism of counts, where a record is a person: striking one out moves it by its sensitivity at most, exactly.

The same check catches mistakes that are planted into the weights.
"""

import numpy as np
import pytest

from privimage_jax.privacy import people
from privimage_jax.stages import choose_sampler, class_histogram, query, warmup

COUNTS = (1, 7, 500, 2, 3, 1)  # images of each person
OWNERS = np.random.default_rng(0).permutation(np.repeat(np.arange(len(COUNTS)), COUNTS)).astype(np.int32)
N, CLASSES, SEMANTICS, K1, SIDE, DOWNSCALE, CANDIDATES = len(OWNERS), 3, 6, 2, 4, 2, 3


def one_class_each():
    """Each person's images are alike, so that a person moves as much as an image can."""
    rng = np.random.default_rng(1)
    images = np.where(OWNERS % 2, 0, 255).astype(np.uint8)[:, None, None, None] * np.ones((1, SIDE, SIDE, 1), np.uint8)
    return images, OWNERS % CLASSES, rng.normal(size=(len(COUNTS), SEMANTICS))[OWNERS]


def mixed():
    """Images of one person differ in class, semantics and pixels; some logits are not finite."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(N, SEMANTICS))
    logits[::50] = np.nan
    return rng.integers(0, 256, (N, SIDE, SIDE, 1), np.uint8), rng.integers(0, CLASSES, N), logits


def sums(images, labels, logits, kept):
    """The input of each mechanism, int64 in units of 2^-BITS, of the images that are kept, each with its weight."""
    weights, every = people.weights(OWNERS)[kept], np.ones(kept.sum(), bool)
    images, labels, logits = images[kept], labels[kept].astype(np.int32), logits[kept]
    candidates = [np.roll(logits[:, :CLASSES], shift, axis=1) for shift in range(CANDIDATES)]
    return {
        "semantic query": query.count_semantics(logits, labels, CLASSES, K1, weights),
        "class histogram": class_histogram.count_classes(labels, CLASSES, weights),
        "noisy means": warmup.sum_by_class(images, labels, every, CLASSES, DOWNSCALE, weights),
        "sampler choice": choose_sampler.margins(
            np.array([choose_sampler.agreement(each, labels, weights) for each in candidates])
        ),
    }


SQUARES = {  # of the sensitivities, whole numbers
    "semantic query": K1,
    "class histogram": 1,
    "noisy means": (255 * DOWNSCALE * SIDE) ** 2,
    "sampler choice": CANDIDATES * (CANDIDATES // 2) * -(-CANDIDATES // 2),
}


def check(data, alike=True):
    """In Python's whole numbers, which do not round. With `alike`, each person moves counts by hardly less, too."""
    everybody = sums(*data, np.ones(N, bool))
    for person in range(len(COUNTS)):
        rest = sums(*data, person != OWNERS)
        for name, square in SQUARES.items():
            moved = sum(int(value) ** 2 for value in (everybody[name] - rest[name]).ravel())
            assert moved <= square << (2 * people.BITS), f"{name}: {COUNTS[person]} images move by too much"
            if alike and name in ("semantic query", "class histogram", "noisy means"):
                assert moved > 0.99 * (square << (2 * people.BITS)), f"{name}: {COUNTS[person]} images hardly count"


def test_a_person_whose_images_are_alike_moves_by_the_sensitivity():
    check(one_class_each())


def test_a_person_whose_images_differ_moves_by_less():
    check(mixed(), alike=False)


@pytest.mark.parametrize(
    ("planted", "says"),
    [
        (lambda owners: np.full(len(owners), 1 << people.BITS), "7 images move by too much"),
        (
            lambda owners: -(-(1 << people.BITS) // np.bincount(owners)[owners]),
            "7 images move by too much",
        ),  # rounded up
        (lambda owners: np.full(len(owners), (1 << people.BITS) // 500), "1 images hardly count"),
    ],
    ids=["every image counts as one", "rounded up", "the smallest weight for all"],
)
def test_planted_weights_are_caught(monkeypatch, planted, says):
    monkeypatch.setattr(people, "weights", planted)
    with pytest.raises(AssertionError, match=says):
        check(one_class_each())


def test_sums_of_images_are_what_they_were_without_weights():
    """Where the unit is an image, no weight is given, and an image adds whole ones."""
    images, labels, logits = mixed()
    labels = labels.astype(np.int32)
    assert class_histogram.count_classes(labels, CLASSES).tolist() == np.bincount(labels, minlength=CLASSES).tolist()
    assert query.count_semantics(logits, labels, CLASSES, K1).sum() == K1 * N
    by_class = warmup.sum_by_class(images, labels, np.ones(N, bool), CLASSES, 1)
    wanted = [(2 * images[labels == label].astype(int) - 255).sum(0) for label in range(CLASSES)]
    np.testing.assert_array_equal(by_class, wanted)
