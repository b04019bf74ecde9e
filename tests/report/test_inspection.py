"""The page of an inspection: it says that it is not private, what is wrong comes first, and much is cut short."""

import numpy as np
import page_inputs

from privimage_jax.report import inspection, plots
from privimage_jax.report.gallery import ImageSet

NAMES = ("cat", "<dog>")


def images(classes, n=60):
    return ImageSet(
        "training", np.random.default_rng(0).integers(0, 256, (n, 4, 4, 1), np.uint8), np.arange(n) % classes
    )


def test_the_page_is_marked_and_holds_everything():
    page = inspection.render("Pets", page_inputs.found(NAMES), [page_inputs.shown(images(2), NAMES)])
    assert "Not private: keep internal" in page and "Never\npublish it" in page
    assert "A run would be refused before it spends anything." in page
    assert page.index("nearly black") < page.index("The part val is not read.")
    assert "20 of 40 images are &lt;black&gt;; give config.data.intensity=0:4095." in page
    for words in ("class folders", "train: 40, val: 8", "9, with at most 4 images of one", "not given", "&lt;dog&gt;"):
        assert words in page
    assert page.count("<img") == 60 and page.count('class="columns"') == 1
    assert "the smallest and the largest; 10 more lie between" in page


def test_sound_sets_are_called_so():
    page = inspection.render("Pets", {"public": page_inputs.found(NAMES)["public"]}, [])
    assert "A run would start." in page and "<p>Nothing looks wrong.</p>" in page and "There is no image." in page


def test_of_many_classes_the_first_are_shown():
    names = [f"class {number}" for number in range(30)]
    page = inspection.render("Pets", page_inputs.found(NAMES), [page_inputs.shown(images(30), names)])
    assert page.count("<figure data-class") == inspection.CLASSES_SHOWN == 24 and "and 6 more classes" in page


def test_counts_are_cut_short():
    assert inspection.counted({"a": 1, "b": 3, "c": 2}, most=2) == "b: 3, c: 2, 1 more"
    assert inspection.counted({}) == "–"


def test_columns_keep_the_sum_of_their_bins():
    drawn = plots.columns(np.array([0, 1, 1, 4]), "so <often>", most=2)
    assert drawn.count("<rect") == 2 and 'height="20.0"' in drawn and 'height="100.0"' in drawn
    assert "so &lt;often&gt;" in drawn
    assert 'height="0.0"' in plots.columns(np.zeros(3, int), "none")
