import io
import struct

import deep_pictures
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from privimage_jax.data.transforms import decode_image, fit
from privimage_jax.errors import UserError

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
KINDS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def archive(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


FOREIGN = {  # what it is called -> (content, what to do)
    "empty": (b"", "remove or repair it"),
    "nothing but zeros": (bytes(5000), "remove or repair it"),
    "a web page": (b"\n<!DOCTYPE html><html>404</html>", "download it again"),
    "an SVG drawing": (b'<?xml version="1.0"?><svg width="1"></svg>', "convert it to PNG"),
    "a text": (b"no image\n", "remove or repair it"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
    "a DICOM file": (bytes(128) + b"DICM\2\0", "convert it to 16-bit PNG"),
    "a NIfTI file": (struct.pack("<L", 348).ljust(344, b"\0") + b"n+1\0", "convert it to 16-bit PNG"),
    "a HEIC picture": (b"\0\0\0\x18ftypheic\0\0\0\0", "convert it to PNG"),
    "an AVIF picture": (saved(NOISE, "AVIF"), "convert it to PNG"),
    "a JPEG 2000 picture": (saved(NOISE, "JPEG2000"), "convert it to PNG"),
    "a video": (b"\0\0\0\x18ftypmp42\0\0\0\0", "save single pictures as PNG"),
    "a PostScript file": (saved(NOISE, "EPS"), "convert it to PNG"),
    "a PDF file": (saved(NOISE, "PDF"), "convert it to PNG"),
    "an icon": (saved(NOISE, "ICO"), "convert it to PNG"),
    "a zip archive": (archive(images=np.zeros(3)), "unpack it"),
    "packed by gzip": (b"\x1f\x8b\x08\0", "unpack it"),
    "a NumPy array": (b"\x93NUMPY\x01\0", "store images and labels as .npz"),
    "a camera's raw file": (deep_pictures.tiff(np.zeros((4, 4), np.uint16), t254=1), "convert it to PNG"),
    "of no known format": (b"\x80\x04N.", "convert it to PNG"),
}


@pytest.mark.parametrize("called", FOREIGN)
def test_what_is_no_picture_is_called_by_its_name(called):
    content, remedy = FOREIGN[called]
    with pytest.raises(UserError) as caught:
        decode_image(content, "it")
    assert str(caught.value).startswith(f"it is not a readable image: it {'' if 'zeros' in called else 'is '}".rstrip())
    assert called in str(caught.value) and remedy in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_picture_cut_short_is_called_so(kind, kept):
    content = saved(NOISE, kind)
    with pytest.raises(UserError, match="it is not a readable image: it is cut short; remove or repair it"):
        decode_image(content[: int(len(content) * kept)], "it")


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_known_by_what_they_hold(kind, tmp_path):
    path = tmp_path / "picture.of_another_ending"
    path.write_bytes(saved(NOISE, kind))
    assert fit(decode_image(path, "it"), 40, 3, 0, "it").shape == (40, 40, 3)


def test_damage_is_told_with_its_cause():
    content = bytearray(saved(NOISE, "PNG"))
    content[60] ^= 255
    with pytest.raises(UserError, match=r"it is not a readable image: it is damaged \(.+\); remove or repair it"):
        decode_image(bytes(content), "it")


def test_texts_and_profiles_of_any_size():
    note = PngImagePlugin.PngInfo()
    note.add_text("note", "x" * (2 << 20), zip=True)
    note.add_itxt("more", "x" * (2 << 20), zip=True)
    for options in ({"pnginfo": note}, {"icc_profile": bytes(2 << 20)}):
        content = saved(NOISE, "PNG", **options)
        with pytest.raises(ValueError, match="too large"):
            Image.open(io.BytesIO(content)).load()
        np.testing.assert_array_equal(fit(decode_image(content, "it"), 40, 3, 0, "it"), np.asarray(NOISE))
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = saved(NOISE, "PNG", pnginfo=note, exif=exif)
    np.testing.assert_array_equal(fit(decode_image(turned, "it"), 40, 3, 0, "it"), np.asarray(NOISE)[::-1, ::-1])


DEPTHS = {
    "1-bit": saved(Image.new("1", (3, 2)), "PNG"),
    "2-bit grey": saved(Image.new("L", (3, 2)), "PNG", bits=2),
    "8-bit grey": saved(Image.new("L", (3, 2)), "PNG"),
    "8-bit grey and alpha": saved(Image.new("LA", (3, 2)), "PNG"),
    "8-bit RGB": saved(Image.new("RGB", (3, 2)), "JPEG"),
    "8-bit RGBA": saved(Image.new("RGBA", (3, 2)), "PNG"),
    "palette": saved(Image.new("P", (3, 2)), "PNG"),
    "CMYK": saved(Image.new("CMYK", (3, 2)), "JPEG"),
    "16-bit grey": saved(Image.new("I;16", (3, 2)), "PNG"),
    "signed 16-bit grey": deep_pictures.tiff(np.zeros((2, 3), np.int16)),
    "16-bit grey and alpha": deep_pictures.png(np.zeros((2, 3, 2), np.uint16)),
    "16-bit RGB": deep_pictures.png(np.zeros((2, 3, 3), np.uint16)),
    "16-bit RGBA": deep_pictures.tiff(np.zeros((2, 3, 4), np.uint16)),
    "32-bit grey": saved(Image.new("I", (3, 2)), "TIFF"),
    "floating-point": saved(Image.new("F", (3, 2)), "TIFF"),
}


@pytest.mark.parametrize("depth", DEPTHS)
def test_kinds_of_pixels_are_told(depth):
    picture = decode_image(DEPTHS[depth], "it")
    assert (picture.depth, picture.size) == (depth, (3, 2))
