"""From any stored picture to uint8 [size, size, channels].

The order is: turn upright as the EXIF tag says, spread the stored values over 0..255 (`intensity.py`), lay transparency
on white, reduce to grey or RGB, cut the centre square (or a centre `crop`), resize. The policy for unusual pictures:

- palette, CMYK and other colour spaces become RGB;
- of an animation, the first frame;
- grey from colour is Pillow's ITU-R 601 luma, colour from grey repeats it.

Both ways of resizing use Pillow's bicubic filter: its support grows with the factor of shrinking, so it is antialiased
(the kind that Parmar et al. 2022, "On aliased resizing and surprising subtleties in GAN evaluation", recommend), it
rings less than Lanczos at the small sizes used here, and it enlarges smoothly.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from privimage_jax.data import formats, pictures
from privimage_jax.data.intensity import eight_bit
from privimage_jax.data.pictures import Picture
from privimage_jax.data.unreadable import UnreadableImage
from privimage_jax.errors import UserError, one_line
from privimage_jax.storage import memory, reading

MAX_FILE_BYTES = 1 << 28  # of one picture file
MAX_PIXELS = 89_478_485  # of one picture, Pillow's own warning limit: more is taken for a decompression bomb
_PIXEL_BYTES = 8  # while a picture is decoded: Pillow's four, and those of a copy
_LARGE = 1 << 26  # bytes, from which on memory is looked at before it is asked for


def decode_image(content: str | Path | bytes, name: str) -> Picture:
    """Reads one picture file (a path, or the file's bytes), upright; `name` is what error messages call it.

    Raises:
      UnreadableImage: if it is no regular file, too large, of another format than its readers know, or damaged.
      UserError: if there is too little memory.
    """
    try:
        if not isinstance(content, bytes):
            content = reading.read_bytes(content, MAX_FILE_BYTES)
        return _decoded(content, name)
    except UserError:
        raise
    except OSError as error:
        raise UnreadableImage(
            name, f"cannot be read ({error.strerror or error})", "check {them} and the disk"
        ) from None
    except reading.Unreadable as error:
        raise UnreadableImage(name, str(error)) from None
    except MemoryError as error:
        raise memory.shortage(f"reading {name}", error) from error


def _decoded(content: bytes, name: str) -> Picture:
    try:
        return _attempt(content, name)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise almost any type on damaged files
        bare = formats.without_notes(content)  # as texts and profiles beyond 1 MB are refused too
        if len(bare) < len(content):
            return _decoded(bare, name)
        raise _told(error, content, name) from error


def _attempt(content: bytes, name: str) -> Picture:
    image = formats.opened(content)
    if image is None:
        raise UnreadableImage(name, *formats.foreign(content))
    n_pixels = image.width * image.height
    if n_pixels > MAX_PIXELS:
        raise UnreadableImage(name, f"has more than {MAX_PIXELS:,} pixels", "shrink or remove {them}")
    if formats.is_camera_raw(image):
        raise UnreadableImage(name, "is a camera's raw file", formats.TO_PNG)
    needed = n_pixels * _PIXEL_BYTES
    size = f"{name} of {image.width}×{image.height} pixels"
    if needed > _LARGE and needed > memory.at_hand():
        raise memory.shortage(size, needed=needed)
    try:
        return pictures.as_stored(image, content, name)
    except MemoryError as error:
        raise memory.shortage(size, needed=needed) from error


def _told(error: Exception, content: bytes, name: str) -> UserError:
    """What is wrong with a file that Pillow fails to read."""
    if "out of memory" in str(error):  # some of its decoders say so in a text
        return memory.shortage(f"reading {name}")
    if formats.is_cut_short(content, error):
        return UnreadableImage(name, "is cut short")
    return UnreadableImage(name, f"is damaged ({one_line(str(error)) or type(error).__name__})")


def fit(
    image: Picture | Image.Image | np.ndarray,
    size: int,
    channels: int,
    crop: int,
    name: str,
    intensity: str = "full",
    key: str = "config.data",
) -> np.ndarray:
    """Brings a picture to uint8 [size, size, channels]; it depends on this picture alone.

    >>> picture = np.arange(24, dtype=np.uint8).reshape(4, 6)
    >>> fit(picture, size=2, channels=1, crop=2, name="a picture")[..., 0]
    array([[ 8,  9],
           [14, 15]], dtype=uint8)
    >>> fit(picture, size=2, channels=1, crop=2, name="a picture", intensity="8:15")[..., 0]
    array([[  0,  36],
           [219, 255]], dtype=uint8)
    >>> fit(picture, size=8, channels=3, crop=0, name="a picture").shape
    (8, 8, 3)

    Args:
      image: as `decode_image` returns it, a PIL image of any mode, or numbers [H, W], [H, W, 1], [H, W, 3] or
        [H, W, 4]; uint8 and uint16, or others if `intensity` gives their range.
      size: side of the result, in pixels.
      channels: 1 = grey, 3 = RGB.
      crop: side of the square cut from the centre first, in pixels; 0 = the largest there is.
      name: what error messages call the picture, unless it has a name.
      intensity: which stored values become 0 and 255: full, per_image or LOW:HIGH.
      key: what error messages call the section of the settings.

    Raises:
      UnreadableImage: if the picture is of a kind that cannot be converted.
      UserError: if it is smaller than `crop`, has no range that `intensity` could take, or needs too much memory.
    """
    picture = pictures.described(image, name)
    try:
        return _fit(picture, size, channels, crop, intensity, key)
    except UserError:
        raise
    except MemoryError as error:
        raise memory.shortage(f"{picture.name} of {'×'.join(map(str, picture.size))} pixels", error) from error
    except Exception as error:  # Pillow converts lazily, and trips over damaged palettes and tables only here
        raise UnreadableImage(picture.name, f"is damaged ({one_line(str(error))})") from error


def _fit(picture: Picture, size: int, channels: int, crop: int, intensity: str, key: str) -> np.ndarray:
    image, mode = eight_bit(picture, intensity, key), "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    width, height = image.size
    if crop > min(width, height):
        raise UserError(f"{picture.name} is {width}×{height} pixels, smaller than {key}.crop={crop}; lower crop.")
    side = crop or min(width, height)
    if (width, height) != (side, side):
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels)
