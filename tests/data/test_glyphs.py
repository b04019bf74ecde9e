import numpy as np
import pytest
from scipy import ndimage

from privimage_jax.data import load
from privimage_jax.data.sources import glyph_fields
from privimage_jax.data.sources.glyph_strokes import FORMS, curve
from privimage_jax.data.sources.glyphs import CHARACTERS, draw
from privimage_jax.errors import UserError


def test_a_drawing_depends_on_its_number_alone():
    together = draw("R", range(6), 8)
    np.testing.assert_array_equal(draw("R", [4], 8)[0], together[4])
    assert len({image.tobytes() for image in together}) == 6
    assert (draw("R", range(6), 8, seed=1) != together).any()


def test_the_set_is_whole_and_repeatable():
    section = {"source": "glyphs", "characters": "0Aé", "per_class": 10}
    train, test = (load(section, part, 8, 1, None) for part in ("train", "test"))
    assert train.class_names == ("0", "A", "é") and (train.n, test.n) == (24, 6)
    assert np.bincount(np.concatenate([train.labels, test.labels])).tolist() == [10, 10, 10]
    again = load({**section, "per_class": 12, "test_fraction": 0.0}, "train", 8, 1, None)
    for image in train.images[train.labels == 1]:
        assert (again.images[12:24] == image).all((1, 2, 3)).any()


@pytest.mark.parametrize("style", ["handwriting", "print"])
@pytest.mark.parametrize("size", [8, 28])
def test_ink_fills_the_box_and_stays_inside(style, size):
    for character in "0Wi":
        images = draw(character, range(30), size, style=style).astype(float) / 255
        longest = [max(np.ptp(np.flatnonzero(image.max(axis))) + 1 for axis in (0, 1)) for image in images > 0.2]
        assert min(longest) > 0.6 * size and np.mean(longest) > 0.85 * size
        assert images.mean((1, 2)).min() > 0.02 and images.mean((1, 2)).max() < 0.75


def test_every_character_is_told_from_the_others():
    """Nearest class mean, on fresh drawings in print: far above the 1 in 62 of chance."""
    drawings = np.array([draw(c, range(20), 12, style="print") for c in CHARACTERS]).reshape(62, 20, -1).astype(float)
    means = drawings[:, :10].mean(1)
    nearest = ((drawings[:, 10:, None] - means) ** 2).sum(-1).argmin(-1)
    assert (nearest == np.arange(62)[:, None]).mean() > 0.6


def test_handwriting_reaches_written_digits():
    """Trained on drawn digits alone, nearest neighbours read most of scikit-learn's handwritten training digits."""
    from sklearn.neighbors import KNeighborsClassifier

    drawn = np.array([draw(c, range(80), 8) for c in "0123456789"]).reshape(800, 64)
    written = load({"source": "digits"}, "train", 8, 1, None)
    model = KNeighborsClassifier(3).fit(drawn.astype(float), np.arange(800) // 80)
    assert (model.predict(written.images.reshape(-1, 64).astype(float)) == written.labels).mean() > 0.7


def test_thinning_leaves_connected_lines():
    mask = glyph_fields.font_mask("B", "DejaVuSans-Bold")
    line = glyph_fields.thin(mask[None])[0]
    assert (line <= mask).all() and line.sum() < mask.sum() / 3
    assert ndimage.label(line, np.ones((3, 3)))[1] == 1
    assert ndimage.label(~line)[1] == 3  # outside and the two holes: none is lost
    assert not ndimage.binary_erosion(line, np.ones((2, 2))).sum() > 3


def test_fields_are_distances():
    outline, pen = glyph_fields.character_fields("4", True)
    assert len(outline) == len(glyph_fields.FONTS) and len(pen) > len(FORMS["4"]) * glyph_fields.HAND_VARIANTS
    assert (outline.min((1, 2)) < 0).all() and (pen.min((1, 2)) == 0).all()
    assert len(glyph_fields.character_fields("0", False)[0]) == len(glyph_fields.FONTS) - 4  # not the dotted zeros


def test_every_letter_and_digit_has_a_hand_made_form():
    assert set(FORMS) == set(CHARACTERS) and len(CHARACTERS) == 62


def test_curves_pass_through_their_points():
    stroke = np.array([(0.0, 0.0), (1.0, 0.5), (1.0, 0.5), (0.2, 1.0)])
    np.testing.assert_allclose(curve(stroke, 5)[::5], stroke)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"characters": "aa"}, "config.data.characters repeats"),
        ({"characters": "\u4e2d"}, "no bundled font has the character"),
        ({"style": "oil"}, "config.data.style='oil' is not accepted; give one of handwriting, print"),
        ({"per_class": 0}, "config.data.per_class=0 is not accepted"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(UserError, match=message):
        load({"source": "glyphs", **change}, "train", 8, 1, None)
