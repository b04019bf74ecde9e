import io

import deep_pictures
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies
from hypothesis.extra.numpy import arrays
from PIL import Image

from privimage_jax.data import decoding, load, loading
from privimage_jax.data.intensity import eight_bit
from privimage_jax.data.pictures import described
from privimage_jax.data.transforms import decode_image, fit
from privimage_jax.errors import UserError

RULES = ("full", "0:4095", "100.5:300", "-7:1e9", "per_image")


def seen(image, intensity="full", channels=1):
    """The pixels of a picture whose side is known: of a file's bytes, a PIL image or an array."""
    picture = decode_image(image, "it") if isinstance(image, bytes) else image
    size = picture.size[0] if not isinstance(picture, np.ndarray) else len(picture)
    return fit(picture, size, channels, 0, "it", intensity)[..., 0 if channels == 1 else slice(None)]


def by_the_rule(values, intensity, top):
    low, high = values.min(), values.max()
    if intensity != "per_image":
        low, high = (0, top) if intensity == "full" else map(float, intensity.split(":"))
    return np.round((np.clip(values.astype(float), low, high) - low) / (high - low) * 255)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def numbers(top, shape=(16, 16), dtype=np.uint16):
    values = np.random.default_rng(top).integers(0, top + 1, shape).astype(dtype)
    values.flat[:2] = 0, top
    return values


def pgm(values, top):
    head = f"P{5 if values.ndim == 2 else 6}\n16 16\n{top}\n".encode()
    return head + values.astype(">u2" if top > 255 else np.uint8).tobytes()


GREYS = {  # (content of the file, its stored values, white of its type)
    "8-bit PNG": (saved(Image.fromarray(numbers(255, dtype=np.uint8)), "PNG"), numbers(255), 255),
    "16-bit PNG": (saved(Image.fromarray(numbers(4095)), "PNG"), numbers(4095), 65535),
    "16-bit TIFF": (deep_pictures.tiff(numbers(1023)), numbers(1023), 65535),
    "16-bit TIFF, big end first": (deep_pictures.tiff(numbers(1023), ">"), numbers(1023), 65535),
    "16-bit TIFF, big end first, deflated": (deep_pictures.tiff(numbers(1023), ">", True), numbers(1023), 65535),
    "PGM of 12 bits": (pgm(numbers(4095), 4095), numbers(4095), 4095),
    "PGM of 16 bits": (pgm(numbers(65535), 65535), numbers(65535), 65535),
    "PGM with white 100": (pgm(numbers(100), 100), numbers(100), 100),
    "PGM as text": (b"P2 16 16 4095 " + b" ".join(b"%d" % v for v in numbers(4095).flat), numbers(4095), 4095),
}


@pytest.mark.parametrize("intensity", RULES)
@pytest.mark.parametrize("kind", GREYS)
def test_stored_values_are_spread_by_the_rule(kind, intensity):
    content, values, top = GREYS[kind]
    np.testing.assert_array_equal(seen(content, intensity), by_the_rule(values, intensity, top))


@pytest.mark.parametrize("intensity", RULES)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("deflated", [False, True])
def test_values_of_other_types_need_a_range(order, deflated, intensity):
    signed = numbers(3000).astype(np.int16) - 1024  # as scanners store what tissue absorbs
    for values in (signed, signed.astype(np.float32) / 7):
        content = deep_pictures.tiff(values, order, deflated)
        if intensity == "full":
            with pytest.raises(UserError, match="^it has .*; set config.data.intensity to LOW:HIGH"):
                seen(content)
        else:
            np.testing.assert_array_equal(seen(content, intensity), by_the_rule(values, intensity, None))


@pytest.mark.parametrize("intensity", ["full", "0:4095", "per_image"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colour_of_sixteen_bits_keeps_its_lower_bits(channels, intensity):
    values = numbers(4095, (16, 16, channels))
    if channels == 4:
        values[..., 3] = 65535  # opaque
    shown = by_the_rule(values[..., :3], intensity, 65535)
    files = [deep_pictures.png(values), deep_pictures.tiff(values), deep_pictures.tiff(values, ">")]
    for content in [*files, deep_pictures.tiff(values, deflated=True), deep_pictures.tiff(values, ">", True)]:
        np.testing.assert_array_equal(seen(content, intensity, 3), shown)
    if channels == 3:
        np.testing.assert_array_equal(seen(pgm(values, 65535), intensity, 3), shown)


@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_has_a_range_of_its_own(channels):
    values = numbers(4095, (16, 16, channels))
    values[..., -1] = 65535
    opaque = seen(deep_pictures.png(values), "per_image", 3)
    assert opaque.min() == 0 and opaque.max() == 255
    values[..., -1] = 0
    assert (seen(deep_pictures.png(values), "per_image", 3) == 255).all()  # white paper
    eight = Image.merge("LA", [Image.new("L", (2, 2), 7), Image.new("L", (2, 2), 255)])
    assert (seen(eight, "5:9") == 128).all() and (seen(eight, "per_image") == 0).all()


def test_eight_bits_pass_as_they_are():
    for mode in ("L", "RGB"):
        image = Image.new(mode, (4, 4))
        assert eight_bit(described(image, "it"), "full", "config.data") is image


def test_arrays_as_pictures():
    mask = np.array([[0, 1], [1, 0]], np.uint8)
    assert seen(mask).max() == 1
    for spread in (seen(mask, "0:1"), seen(mask, "per_image"), seen(mask.astype(bool)), seen(mask / 1.0, "0:1")):
        assert spread.tolist() == [[0, 255], [255, 0]]
    assert seen(mask.astype(np.uint16) * 65535).tolist() == [[0, 255], [255, 0]]
    assert (seen(np.full((2, 2), 9, np.int64), "per_image") == 0).all()
    with pytest.raises(UserError, match="it has pixels of the type int64; set config.data.intensity"):
        seen(mask.astype(np.int64))
    with pytest.raises(UserError, match="four channels of the type float64"):
        seen(np.zeros((2, 2, 4)), "0:1", 3)
    with pytest.raises(UserError, match="values of the type complex128"):
        seen(mask.astype(complex), "0:1")


def test_values_that_are_no_numbers():
    for value, intensity, fault in ((np.nan, "0:1", "holds NaN"), (np.inf, "per_image", "holds infinite values")):
        with pytest.raises(UserError, match=f"it is not a readable image: it {fault}"):
            seen(deep_pictures.tiff(np.array([[0, value]], np.float32)), intensity)
    assert seen(np.array([[-np.inf, np.inf]] * 2), "0:1").tolist() == [[0, 255]] * 2
    assert seen(np.array([[-1e308, 1e308]] * 2), "per_image").tolist() == [[0, 255]] * 2


def test_other_colours_become_eight_bits_first():
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([50, 60, 70])
    assert seen(saved(palette, "PNG"), "50:70", 3)[0, 0].tolist() == [0, 128, 255]
    bits = Image.fromarray(np.array([[True, False]] * 2))
    assert seen(saved(bits, "PNG"), "0:1").tolist() == seen(saved(bits, "PNG")).tolist() == [[255, 0]] * 2


def test_a_turned_picture_of_sixteen_bit_colour():
    values = numbers(4095, (2, 2, 3))
    turned = deep_pictures.tiff(values, t274=6)  # the camera was turned: rotate by 270 degrees to see it upright
    np.testing.assert_array_equal(seen(turned, "0:4095", 3), by_the_rule(np.rot90(values, -1), "0:4095", None))


@pytest.mark.parametrize("options", [{"planes": True}, {"t338": 1}])
def test_sixteen_bit_colour_of_other_layouts_is_refused(options):
    values = numbers(4095, (4, 4, 3 if "planes" in options else 4))
    content = deep_pictures.tiff(values, **options)
    with pytest.raises(UserError, match="16-bit colour laid out in an unusual way .*; convert it to 16-bit PNG"):
        decode_image(content, "it")


def test_sixteen_bit_colour_as_text_is_refused():
    with pytest.raises(UserError, match="16-bit colour written as text; convert it to 16-bit PNG"):
        decode_image(b"P3 1 1 4095 1 2 3", "it")


def check_each_depends_on_itself_alone(root, images, intensity):
    """Strikes out the brightest of 16-bit images [N, 4, 4], and asserts that every other stays as it was."""
    folder = root / "set" / "a"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")

    def pixels():
        section = {"source": "folder", "path": str(root / "set"), "test_fraction": 0.0, "intensity": intensity}
        return load(section, "train", 4, 1, None).images

    every, brightest = pixels(), int(images.max((1, 2)).argmax())
    (folder / f"{brightest}.png").unlink()
    np.testing.assert_array_equal(pixels(), np.delete(every, brightest, axis=0))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    images=arrays(np.uint16, strategies.tuples(strategies.integers(2, 5), strategies.just(4), strategies.just(4))),
    intensity=strategies.sampled_from(RULES),
)
def test_an_image_depends_on_itself_alone(tmp_path, images, intensity):
    check_each_depends_on_itself_alone(tmp_path, images, intensity)


def test_a_range_taken_from_the_set_is_noticed(tmp_path, monkeypatch):
    honest, of_a_set, peaks = decoding.fit, loading.decode, []

    def by_the_brightest_so_far(image, *more):
        peaks.append(np.asarray(image.pixels).max())
        return honest(image, *more[:4], f"0:{max(peaks)}", *more[5:])

    monkeypatch.setattr(decoding, "fit", by_the_brightest_so_far)
    monkeypatch.setattr(loading, "decode", lambda *arguments: (peaks.clear(), of_a_set(*arguments))[1])
    with pytest.raises(AssertionError, match="not equal"):
        check_each_depends_on_itself_alone(tmp_path, np.array([[[4000] * 4] * 4, [[1000] * 4] * 4], np.uint16), "full")


@settings(max_examples=50, deadline=None)
@given(values=arrays(np.uint16, (4, 4)), low=strategies.integers(0, 60000), width=strategies.integers(1, 5535))
def test_brighter_stays_brighter(values, low, width):
    shown = seen(values, f"{low}:{low + width}").astype(int)
    order = np.argsort(values, axis=None, kind="stable")
    assert (np.diff(shown.ravel()[order]) >= 0).all()
    assert (shown[values <= low] == 0).all() and (shown[values >= low + width] == 255).all()
