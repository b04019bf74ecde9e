"""What a picture holds as it is stored: its values, how large they may be, and the words for its kind.

Pillow brings some kinds to eight bits on the way: 16-bit colour, and PGM and PPM files whose white is another value
than 255. Here their values are read as they are stored, since `data.intensity` speaks of stored values.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from privimage_jax.data import formats
from privimage_jax.data.unreadable import UnreadableImage

_ORIENTATION = 0x0112  # EXIF tag
_DEPTHS = {
    "1": "1-bit",
    "L": "8-bit grey",
    "LA": "8-bit grey and alpha",
    "P": "palette",
    "PA": "palette and alpha",
    "RGB": "8-bit RGB",
    "RGBA": "8-bit RGBA",
    "I": "32-bit grey",
    "F": "floating-point",
}
_RAW_DEPTHS = {"L;2": "2-bit grey", "L;4": "4-bit grey", "I;12": "12-bit grey"}
_RAW_DEPTHS |= dict.fromkeys(("I;16S", "I;16BS"), "signed 16-bit grey")
_DEEP = {"RGB": "16-bit RGB", "RGBA": "16-bit RGBA"}
_OTHER_BYTE = {"L": "B", "B": "L", "N": "B"}  # N is the machine's order, the lower byte first
_NATIVE = {"I;16BS": "I;16S", "I;32B": "I;32", "I;32BS": "I;32S", "F;32BF": "F;32F", "F;64BF": "F;64F"}
_CHANNELS = {1: "grey", 2: "grey and alpha", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
      pixels: a PIL image, or numbers [H, W] or [H, W, C]; C = 2 and 4 have transparency as the last channel.
      name: what error messages call it.
      depth: the kind of its pixels, such as "8-bit grey".
      top: the largest value of the stored type, its white; None where the type has no usual one.
    """

    pixels: Image.Image | np.ndarray
    name: str
    depth: str
    top: int | None = 255

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        if isinstance(self.pixels, Image.Image):
            return self.pixels.size
        height, width = self.pixels.shape[:2]
        return width, height


def described(image: Picture | Image.Image | np.ndarray, name: str) -> Picture:
    """An image of any source as a `Picture`; `name` is its name unless it has one."""
    if isinstance(image, Picture):
        return image
    if isinstance(image, Image.Image):
        return Picture(image, getattr(image, "filename", "") or name, *_kind(image.mode, image.mode))
    channels = _CHANNELS.get(image.shape[2] if image.ndim == 3 else 1, "")
    if image.dtype.kind == "b":
        return Picture(image, name, "1-bit", 1)
    if image.dtype.kind == "u" and image.dtype.itemsize <= 2:
        bits = 8 * image.dtype.itemsize
        return Picture(image, name, f"{bits}-bit {channels}", (1 << bits) - 1)
    return Picture(image, name, "floating-point" if image.dtype.kind == "f" else f"{image.dtype} {channels}", None)


def as_stored(image: ImageFile.ImageFile, content: bytes, name: str) -> Picture:
    """Decodes an opened file, and turns it upright.

    Args:
      image: as `formats.opened` returns it.
      content: of the file.
      name: of the file.

    Raises:
      UnreadableImage: for kinds whose stored values cannot be had.
      Exception: of almost any type, if the file is damaged.
    """
    codec, _, _, args = image.tile[0] if image.tile else ("", None, 0, None)  # some formats have no such parts
    raw = args if isinstance(args, str) else args[0] if args and isinstance(args[0], str) else ""
    if codec in ("ppm", "ppm_plain") and isinstance(args, tuple) and args[1] != 255:
        return _netpbm(image, content, codec, args[1], name)
    if image.mode in _DEEP and _bits(image, raw) > 8:
        return _deep_colour(image, content, raw, name)
    if codec == "libtiff" and raw in _NATIVE:  # libtiff has put the bytes into the machine's order already
        image.tile = _with_raw_mode(image, _NATIVE[raw])
    image.load()
    return Picture(upright(image), name, *_kind(image.mode, raw))


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF tag says."""
    # Files say so in what Pillow lists as `info`, and TIFF files in a tag: the others need not be searched.
    if (image.info or hasattr(image, "tag_v2")) and image.getexif().get(_ORIENTATION, 1) != 1:
        return ImageOps.exif_transpose(image)
    return image


def _kind(mode: str, raw: str) -> tuple[str, int | None]:
    """Words and white of a mode of Pillow's, and of the layout that it was unpacked from."""
    if raw == "I;12":
        return _RAW_DEPTHS[raw], 4095
    if mode.startswith("I;16") or (mode == "I" and raw == "I;16B"):  # the latter is a PGM file
        return "16-bit grey", 65535
    return _RAW_DEPTHS.get(raw) or _DEPTHS.get(mode, mode), {"I": 65535, "F": None}.get(mode, 255)


def _bits(image: Image.Image, raw: str) -> int:
    """Bits of a sample, as the file has them."""
    samples = getattr(image, "tag_v2", {}).get(258, ())  # BitsPerSample
    return max([16 if ";16" in raw else 8, *samples])


def _deep_colour(image: ImageFile.ImageFile, content: bytes, raw: str, name: str) -> Picture:
    """16-bit colour: Pillow keeps the upper byte of each value; unpacked in the other order, it keeps the lower."""
    if raw == "LA;16B":  # four bytes a pixel, as RGBA has them
        image.tile = _with_raw_mode(image, "RGBA")
        image.load()
        halves = np.asarray(upright(image))
        values = halves[..., 0::2].astype(np.uint16) << 8 | halves[..., 1::2]
        return Picture(values, name, "16-bit grey and alpha", 65535)
    layout, _, order = raw.partition(";16")
    if layout not in ("RGB", "RGBA", "RGBX") or order not in _OTHER_BYTE:
        raise UnreadableImage(name, f"has 16-bit colour laid out in an unusual way ({raw})", formats.TO_DEEP_PNG)
    second = formats.opened(content)
    assert second is not None  # as it was opened before
    second.tile = _with_raw_mode(second, f"{layout};16{_OTHER_BYTE[order]}")
    image.load()
    second.load()
    upper, lower = np.asarray(upright(image)), np.asarray(upright(second))
    return Picture(upper.astype(np.uint16) << 8 | lower, name, _DEEP[image.mode], 65535)


def _with_raw_mode(image: Any, raw: str) -> list:
    """The parts of an opened file, to be unpacked from another layout."""
    return [tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:])) for tile in image.tile]


def _netpbm(image: Any, content: bytes, codec: str, top: int, name: str) -> Picture:
    """A PGM or PPM file whose white is `top`."""
    channels, bits = len(image.mode) if image.mode == "RGB" else 1, 8 if top < 256 else 16
    depth = f"{bits}-bit {_CHANNELS[channels]}"
    if codec == "ppm":
        start, dtype = image.tile[0].offset, np.dtype(np.uint8 if bits == 8 else ">u2")
        width, height = image.size
        if len(content) - start < width * height * channels * dtype.itemsize:
            raise UnreadableImage(name, "is cut short")
        values = np.frombuffer(content, dtype, width * height * channels, start).astype(dtype.newbyteorder("="))
        values = np.minimum(values, top).reshape(height, width, channels)
    elif channels == 3 and bits == 16:
        raise UnreadableImage(name, "has 16-bit colour written as text", formats.TO_DEEP_PNG)
    else:  # numbers as text, which Pillow has spread over the whole range
        image.load()
        values = np.round(np.asarray(image) * (top / (255 if bits == 8 else 65535))).astype(np.uint16)
    return Picture(values[..., 0] if values.ndim == 3 and channels == 1 else values, name, depth, top)
