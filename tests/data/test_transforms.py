import io

import numpy as np
import pytest
from PIL import Image

from privimage_jax.data import transforms
from privimage_jax.data.transforms import decode_image, fit
from privimage_jax.errors import UserError


def through_file(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return decode_image(file.getvalue(), "it")


def grey(values):
    return Image.fromarray(np.array(values, np.uint8))


def test_right_sized_pixels_are_untouched():
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(fit(pixels, 8, 3, 0, "it"), pixels)
    np.testing.assert_array_equal(fit(through_file(Image.fromarray(pixels)), 8, 3, 0, "it"), pixels)
    np.testing.assert_array_equal(fit(pixels[..., :1], 8, 1, 0, "it"), pixels[..., :1])


def test_centre_square_and_crop():
    pixels = np.zeros((6, 10), np.uint8)
    pixels[:, 2:8] = 100
    assert (fit(pixels, 6, 1, 0, "it") == 100).all()
    pixels[1:5, 3:7] = 200
    assert (fit(pixels, 4, 1, 4, "it") == 200).all()
    with pytest.raises(UserError, match="it is 10×6.*config.data.crop=7"):
        fit(pixels, 4, 1, 7, "it")


def test_shrinking_is_antialiased():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))  # the finest pattern there is
    shrunk = fit(stripes, 8, 1, 0, "it")
    assert np.abs(shrunk.astype(int) - 127).max() < 12  # every eighth column alone would be all black


def test_enlarging_keeps_the_range_and_the_mean():
    enlarged = fit(np.array([[0, 255], [255, 0]], np.uint8), 16, 1, 0, "it")
    assert enlarged.shape == (16, 16, 1)
    assert abs(enlarged.mean() - 127.5) < 2


def test_grey_and_colour():
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert (fit(red, 4, 1, 0, "it") == 76).all()  # ITU-R 601: 0.299 * 255
    assert (fit(grey(np.full((4, 4), 9)), 4, 3, 0, "it") == 9).all()


def test_sixteen_bit_grey():
    deep = Image.fromarray(np.array([[0, 65535], [257, 32896]], np.uint16))
    assert fit(through_file(deep), 2, 1, 0, "it").ravel().tolist() == [0, 255, 1, 128]


def test_transparency_is_white():
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert (fit(through_file(clear), 2, 3, 0, "it") == 255).all()
    half = Image.new("LA", (2, 2), (0, 128))
    assert (fit(through_file(half), 2, 1, 0, "it") == 127).all()
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([50, 60, 70])
    assert (fit(through_file(palette), 2, 3, 0, "it") == [50, 60, 70]).all()
    assert (fit(through_file(palette, transparency=0), 2, 3, 0, "it") == 255).all()


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "HSV", "LAB", "F", "I"])
def test_every_mode_gives_pixels_or_a_clear_error(mode):
    try:
        assert fit(Image.new(mode, (4, 4)), 4, 3, 0, "it").shape == (4, 4, 3)
    except UserError as error:
        assert "it has" in str(error)
        assert mode in ("LAB", "F")


def test_cmyk_jpeg():
    assert fit(through_file(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), 8, 3, 0, "it").min() > 250


def test_exif_orientation_is_obeyed():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    turned = through_file(grey([[0, 0], [255, 255]]), exif=exif)
    assert fit(turned, 2, 1, 0, "it")[..., 0].tolist() == [[255, 0], [255, 0]]


def test_bad_files(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="missing.png is not a readable image: it cannot be read .No such file"):
        decode_image(tmp_path / "missing.png", "missing.png")
    whole = io.BytesIO()
    Image.new("RGB", (40, 40)).save(whole, "JPEG")
    monkeypatch.setattr(transforms, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match="it has more than 1,000 pixels; shrink or remove it"):
        decode_image(whole.getvalue(), "it")
