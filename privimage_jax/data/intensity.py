"""Which stored value becomes 0 and which 255: `data.intensity`, the one rule for 1 to 32 bits.

- `full`: the whole range of the stored type. 8 bits stay as they are, 16 bits are divided by 257, 1 bit is 0 or 255.
- `LOW:HIGH`: stored values are clipped to [LOW, HIGH], which is spread evenly over 0..255.
- `per_image`: the least and the largest value of each image, over all its colours, become 0 and 255; an image of one
  value becomes 0.

The range is public or comes from the one image that it is applied to, never from the set: otherwise each image would
depend on all others, and what one person adds to the set would have no bound. Transparency has a range of its own and
does not count. Palettes and colour spaces other than grey and RGB are brought to 8 bits first, and grey of less than
8 bits counts as spread over 0..255.
"""

import numpy as np
from PIL import Image

from privimage_jax.data.pictures import Picture
from privimage_jax.data.unreadable import UnreadableImage
from privimage_jax.errors import UserError

_PIECE = 1 << 20  # values spread at a time, which are float64 meanwhile


def eight_bit(picture: Picture, intensity: str, key: str) -> Image.Image:
    """The picture as 8-bit grey or RGB, transparency laid on white.

    Args:
      picture: of any kind.
      intensity: full, per_image or LOW:HIGH.
      key: what error messages call the section of the settings.

    Raises:
      UserError: if the stored type has no range and the setting gives none.
      UnreadableImage: if the image holds NaN, or has a colour space that cannot be converted.
    """
    pixels = picture.pixels
    if isinstance(pixels, Image.Image):
        pixels = _grey_or_rgb(pixels, picture.name)
        if intensity == "full" and picture.top == 255:
            return _on_white(pixels)
    values = np.asarray(pixels)
    if intensity != "full" or picture.top != 255:
        values = _spread_colours(values, picture, intensity, key)
    return _on_white(Image.fromarray(values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values))


def _grey_or_rgb(image: Image.Image, name: str) -> Image.Image:
    """The image with plain values: grey or RGB, with or without transparency, or numbers of more than 8 bits."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode in ("LA", "RGBA", "F") or image.mode.startswith("I"):
        return image
    if image.has_transparency_data:
        return image.convert("RGBA")
    try:
        return image.convert("L" if image.mode == "1" else "RGB")
    except ValueError:
        raise UnreadableImage(name, f"has the colour space {image.mode}", "save {them} as grey or RGB") from None


def _on_white(image: Image.Image) -> Image.Image:
    """The image without transparency: laid on white, the paper that such pictures are drawn for."""
    if image.mode in ("L", "RGB"):
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _spread_colours(values: np.ndarray, picture: Picture, intensity: str, key: str) -> np.ndarray:
    """Numbers [H, W] or [H, W, C] of any type as uint8 of the same shape, by the rule."""
    name, top = picture.name, picture.top
    if values.dtype.kind not in "biuf":
        raise UserError(f"{name} holds values of the type {values.dtype}; store whole or floating-point numbers.")
    opaque = values.shape[2] if values.ndim == 3 else 1  # the number of channels that are colours
    if opaque in (2, 4):
        opaque -= 1
        if top is None:
            raise UserError(f"{name} has four channels of the type {values.dtype}; store three, without transparency.")
    colours = values[..., :opaque] if values.ndim == 3 else values
    low, high = _range(colours, picture, intensity, key)
    spread = np.empty(values.shape, np.uint8)
    spread.reshape(*values.shape[:2], -1)[..., :opaque] = _spread(colours, low, high).reshape(*values.shape[:2], -1)
    if colours.size < values.size:
        spread[..., opaque:] = _spread(values[..., opaque:], 0.0, float(top or 0))
    return spread


def _range(colours: np.ndarray, picture: Picture, intensity: str, key: str) -> tuple[float, float]:
    """The values that become 0 and 255."""
    name, is_float = picture.name, colours.dtype.kind == "f"
    least, largest = float(colours.min()), float(colours.max())  # NaN if there is any
    if is_float and np.isnan(least):
        raise UnreadableImage(name, "holds NaN")
    if intensity == "per_image":
        if not np.isfinite([least, largest]).all():
            raise UnreadableImage(name, "holds infinite values")
        return least, largest
    if intensity != "full":
        low, _, high = intensity.partition(":")
        return float(low), float(high)
    if picture.top is None:
        what = "floating-point pixels" if is_float else f"pixels of the type {colours.dtype}"
    elif least < 0 or largest > picture.top:
        what = f"values outside 0..{picture.top}"
    else:
        return 0.0, float(picture.top)
    raise UserError(
        f"{name} has {what}; set {key}.intensity to LOW:HIGH, the values that become black and white, or to per_image."
    )


def _spread(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """[low, high] to 0..255, rounded to the nearest; values outside are clipped."""
    flat, spread = values.reshape(-1), np.zeros(values.size, np.uint8)
    half = high / 2 - low / 2  # the difference itself may exceed float64
    for start in range(0, flat.size if half else 0, _PIECE):
        piece = np.clip(flat[start : start + _PIECE].astype(np.float64), low, high)
        spread[start : start + _PIECE] = np.round((piece / 2 - low / 2) / half * 255)
    return spread.reshape(values.shape)
