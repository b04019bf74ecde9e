"""From any stored picture to uint8 [size, size, channels].

The order is: turn upright as the EXIF tag says, reduce to 8-bit grey or RGB, cut the centre square (or a centre
`crop`), resize. The policy for unusual pictures:

- transparency is laid on white, the paper that such pictures are drawn for;
- 16-bit grey is divided by 257, so that 65535 becomes 255; palette, CMYK and other colour spaces become RGB;
- of an animation, the first frame;
- grey from colour is Pillow's ITU-R 601 luma, colour from grey repeats it.

Both ways of resizing use Pillow's bicubic filter: its support grows with the factor of shrinking, so it is antialiased
(the kind that Parmar et al. 2022, "On aliased resizing and surprising subtleties in GAN evaluation", recommend), it
rings less than Lanczos at the small sizes used here, and it enlarges smoothly.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from privimage_jax.errors import UserError
from privimage_jax.storage import reading

MAX_FILE_BYTES = 1 << 28  # of one picture file
MAX_PIXELS = 89_478_485  # of one picture, Pillow's own warning limit: more is taken for a decompression bomb
_READERS = (
    PngImagePlugin.PngImageFile,
    JpegImagePlugin.JpegImageFile,
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
    WebPImagePlugin.WebPImageFile,
    TiffImagePlugin.TiffImageFile,
    PpmImagePlugin.PpmImageFile,
)
_FORMATS = [reader.format for reader in _READERS]  # no others, whatever a file's ending: EPS, say, runs PostScript
_ORIENTATION = 0x0112  # EXIF tag


def decode_image(content: Path | bytes, name: str) -> Image.Image:
    """Reads one picture file (a path, or the file's bytes), upright; `name` is what error messages call it.

    Raises:
      UserError: if it is no regular file, too large, of another format than its readers know, or damaged.
    """
    remedy = "remove or repair it"
    if not isinstance(content, bytes):
        with reading.user_errors(name, remedy):
            content = reading.read_bytes(content, MAX_FILE_BYTES)
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            upright: Any = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
            upright.filename = name  # what later messages call it
            return upright
    except Image.DecompressionBombError:
        raise UserError(f"{name} has more than {MAX_PIXELS:,} pixels; shrink or remove it.") from None
    except Exception as error:  # Pillow's readers raise almost any type on damaged files
        raise UserError(f"{name} is not a readable image; {remedy}.") from error


def fit(
    image: Image.Image | np.ndarray, size: int, channels: int, crop: int, name: str, key: str = "config.data.crop"
) -> np.ndarray:
    """Brings a picture to uint8 [size, size, channels].

    >>> picture = np.arange(24, dtype=np.uint8).reshape(4, 6)
    >>> fit(picture, size=2, channels=1, crop=2, name="a picture")[..., 0]
    array([[ 8,  9],
           [14, 15]], dtype=uint8)
    >>> fit(picture, size=8, channels=3, crop=0, name="a picture").shape
    (8, 8, 3)

    Args:
      image: a PIL image of any mode, or uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].
      size: side of the result, in pixels.
      channels: 1 = grey, 3 = RGB.
      crop: side of the square cut from the centre first, in pixels; 0 = the largest there is.
      name: what error messages call the picture.
      key: what they call the setting of `crop`.

    Raises:
      UserError: if the picture is smaller than `crop`, or of a kind that cannot be converted.
    """
    try:
        return _fit(image, size, channels, crop, name, key)
    except UserError:
        raise
    except Exception as error:  # Pillow converts lazily, and trips over damaged palettes and tables only here
        raise UserError(f"{name} is not a readable image; remove or repair it.") from error


def _fit(image: Image.Image | np.ndarray, size: int, channels: int, crop: int, name: str, key: str) -> np.ndarray:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
    image = _eight_bit(image, name).convert("L" if channels == 1 else "RGB")
    if crop > min(image.size):
        raise UserError(f"{name} is {image.width}×{image.height} pixels, smaller than {key}={crop}; lower crop.")
    side = crop or min(image.size)
    if image.size != (side, side):
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels)


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """The same picture in an 8-bit mode without transparency."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey, in Pillow's 16-bit or 32-bit modes
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{name} has grey values outside 0..65535; save it with 8 or 16 bits a pixel.")
        return Image.fromarray(np.round(values / 257).astype(np.uint8))
    if image.mode == "F":
        raise UserError(f"{name} has floating-point pixels; save it with 8 or 16 bits a pixel.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    try:
        return image.convert("L" if image.mode == "1" else "RGB")
    except ValueError:
        raise UserError(f"{name} has the colour space {image.mode}; save it as grey or RGB.") from None
