"""Galleries show the first images of each class, as many of all classes, and no more than the page has room for."""

import re

import numpy as np
import pytest

from privimage_jax.report import gallery, plots
from privimage_jax.report.gallery import ImageSet


def image_set(name, labels, side=2):
    labels = np.array(labels)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), side, side, 3), np.uint8)
    return ImageSet(name, images, labels)


def uris(html):
    return re.findall(r'src="([^"]*)"', html)


def test_images_are_the_first_of_their_class_and_set():
    one, two = image_set("one", [1, 0, 1]), image_set("two", [0, 0])
    html = gallery.gallery([one, two], ["cat", "dog"])
    order = [one.images[1], *two.images, one.images[0], one.images[2]]
    assert uris(html) == [plots.data_uri(image) for image in order]
    assert html.count("no image") == 1  # of dogs in the second set
    assert re.findall(r'<figure data-class="(\d)"><figcaption>(\w+)', html) == [("0", "cat"), ("1", "dog")]
    assert 'alt="one, class dog, number 2"' in html


@pytest.mark.parametrize("n_sets", [1, 2])
def test_the_rows_that_may_be_shown_show_the_same(n_sets):
    sets = [image_set(str(number), [2, 0] * 60 + [2]) for number in range(n_sets)]
    rows = gallery.shown_rows(sets[0].labels)
    few = [ImageSet(each.name, each.images[rows], each.labels[rows]) for each in sets]
    names = ["cat", "dog", "eel"]
    assert len(rows) == 2 * 48 and gallery.gallery(few, names) == gallery.gallery(sets, names)


def test_classes_without_images_are_left_out_and_a_single_one_needs_no_choice():
    html = gallery.gallery([image_set("one", [2, 2])], ["cat", "dog", "eel"])
    assert html.count("<figure") == 1 and "<select" not in html
    assert gallery.gallery([image_set("one", [])], ["cat"]) == ""


def test_all_classes_have_as_many_images_within_the_room(monkeypatch):
    images = image_set("one", [0] * 20 + [1] * 20, side=8)
    size = sum(len(plots.data_uri(images.images[row])) for row in (0, 20, 1, 21, 2, 22))
    monkeypatch.setattr(gallery, "MAX_BYTES", size)
    shown = gallery.gallery([images], ["cat", "dog"])
    assert uris(shown) == [plots.data_uri(images.images[row]) for row in (0, 1, 2, 20, 21, 22)]
    monkeypatch.setattr(gallery, "MAX_BYTES", size // 5)
    assert "and 1 more classes, for which this page has no room" in gallery.gallery([images], ["cat", "dog"])


@pytest.mark.parametrize(("side", "kind"), [(64, "png"), (65, "jpeg")])
def test_large_images_are_compressed(side, kind):
    assert plots.data_uri(np.zeros((side, side, 1), np.uint8)).startswith(f"data:image/{kind};base64,")
