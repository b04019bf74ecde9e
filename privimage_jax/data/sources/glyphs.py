"""`glyphs`: letters and digits drawn from bundled fonts and pen strokes, a public labelled set that needs no download.

Every drawing bends, slants, thickens and stretches a character at random until printed and hand-written forms overlap,
fits it to its bounding box and shrinks it by area. White on black, grey. Drawing k of a character is a pure function of
(seed, character, k), so it does not depend on which other characters are drawn, or how many.
"""

import string
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

from privimage_jax.data.sources.base import Settings, Source, numbered_classes
from privimage_jax.data.sources.glyph_fields import BOX, SIDE, character_fields
from privimage_jax.errors import UserError

VERSION = 1  # raise it when the drawings change, so that old caches are not used
CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
STYLES = ("handwriting", "print")

_COARSE = 32  # side of the sketch that finds the bounding box
_PEN_SHARE = 0.75  # of handwriting drawn with a pen; the rest are font outlines
_WAVES = 3  # sine waves that make up the elastic bend
_DRAWS = 24 + 5 * _WAVES  # uniform numbers behind one drawing


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The glyph set; `part` is not looked at, since drawings are parted by the fixed permutation."""
    characters = settings.characters or CHARACTERS
    if len(set(characters)) != len(characters):
        raise UserError(f"{settings.key}.characters repeats a character; name each one once.")
    if settings.style not in STYLES:
        raise UserError(f"{settings.key}.style is {settings.style!r}; it accepts {', '.join(STYLES)}.")

    def read(indices: np.ndarray) -> list[tuple[np.ndarray, int]]:
        classes, numbers = np.divmod(indices, settings.per_class)
        images = np.empty((len(indices), image_size, image_size), np.uint8)
        for label in np.unique(classes):
            rows = np.flatnonzero(classes == label)
            images[rows] = draw(characters[label], numbers[rows], image_size, settings.seed, settings.style)
        return list(zip(images, classes.tolist(), strict=True))

    return Source(
        name="glyphs",
        class_names=numbered_classes(settings, len(characters), characters),
        n=len(characters) * settings.per_class,
        divided=False,
        read=read,
        fingerprint=[VERSION, matplotlib.__version__],
    )


def draw(
    character: str, numbers: Sequence[int] | np.ndarray, size: int, seed: int = 0, style: str = "handwriting"
) -> np.ndarray:
    """Draws a character: uint8 [B, size, size], one image for each of `numbers` [B], 0 = paper, 255 = ink."""
    hand = style == "handwriting"
    outline, pen = character_fields(character, hand)
    u = np.array([_uniform(seed, character, int(number)) for number in numbers])  # [B, _DRAWS]
    spread = lambda column, low, high: low + (high - low) * u[:, column]  # noqa: E731

    with_pen = (u[:, 0] < _PEN_SHARE) & (len(pen) > 0)
    fields = np.concatenate([outline, pen])
    which = np.where(with_pen, len(outline) + u[:, 1] * len(pen), u[:, 1] * len(outline)).astype(int)
    # Ink is where the field is below `level`: half the pen's width, or how far an outline is swollen (in field pixels).
    width = 0.1 + 0.15 * (u[:, 2] + u[:, 3]) / 2  # of a pen stroke, as a share of the character's height
    level = np.where(with_pen, width * BOX / 2, spread(2, -0.02, 0.045) * BOX) if hand else spread(2, -0.3, 0.8)
    warp = _warp(u, 1.0 if hand else 0.3)

    # A sketch over the whole field finds where the ink is; the drawing then looks at that box only.
    row = np.linspace(-1.6, 1.6, _COARSE)
    sketch = _ink(fields, which, level, warp, row[None].repeat(len(u), 0), row[None].repeat(len(u), 0)) > 0.5
    left, right = _extent(np.any(sketch, axis=1), row)
    top, bottom = _extent(np.any(sketch, axis=2), row)
    width, height = right - left, bottom - top
    stretch = np.exp(spread(4, -0.22, 0.3)) if hand else 1.0
    # `side` is the length, in the field's units, of the square that becomes the image.
    side = np.maximum(height, width * stretch)
    margin = 1 + 0.2 * np.maximum(0, 3 * u[:, 5] - 2)  # none for two drawings in three
    side = side * margin
    free_x, free_y = np.maximum(0, side - width * stretch), np.maximum(0, side - height)
    centre_x = (left + right) / 2 + free_x / stretch * spread(6, -0.15, 0.15)
    centre_y = (top + bottom) / 2 + free_y * spread(7, -0.3, 0.3)

    fine = size * (4 if size <= 12 else 3 if size <= 40 else 2)
    grid = (np.arange(fine) + 0.5) / fine - 0.5
    x = centre_x[:, None] + grid * (side / stretch)[:, None]
    y = centre_y[:, None] + grid * side[:, None]
    drawing = _ink(fields, which, level, warp, x, y)
    if hand:
        drawing *= _gaps(u[:, 8:13], grid)
    shrunk = drawing.reshape(len(u), size, fine // size, size, fine // size).mean((2, 4))
    return np.round(shrunk * 255).astype(np.uint8)


def _uniform(seed: int, character: str, number: int) -> np.ndarray:
    """The uniform numbers [_DRAWS] behind one drawing, from a counter-based generator keyed by what is drawn."""
    key = np.array([seed, (ord(character) << 32) | number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(_DRAWS)


def _warp(u: np.ndarray, strength: float) -> Any:
    """A map from paper to field for each drawing: rotation, slant, perspective and an elastic bend.

    Returns a function from x [B, W] and y [B, H] to field positions (float32 [B, H, W] each); the field spans [-1, 1].
    """
    centred = (2 * u - 1) * strength
    angle, slant = centred[:, 13] * np.deg2rad(15), centred[:, 14] * 0.3
    tilt_x, tilt_y = centred[:, 15] * 0.2, centred[:, 16] * 0.2
    waves = centred[:, 24:].reshape(len(u), _WAVES, 5)
    amplitude = 0.02 + 0.045 * u[:, 17]

    def apply(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        column = lambda a: a.astype(np.float32)[:, None, None]  # noqa: E731
        x, y = x.astype(np.float32)[:, None, :], y.astype(np.float32)[:, :, None]
        depth = 1 + column(tilt_x) * x + column(tilt_y) * y
        x, y = x / depth, y / depth
        x = x + column(slant) * y
        cos, sin = column(np.cos(angle)), column(np.sin(angle))
        x, y = cos * x - sin * y, sin * x + cos * y
        bend_x = bend_y = np.float32(0)
        for k in range(_WAVES):
            # Each wave runs along a random direction, up to 0.8 of a period per unit: bends, not wiggles.
            phase = column(waves[:, k, 0] * 5) * x + column(waves[:, k, 1] * 5) * y
            bend_x = bend_x + column(amplitude * strength) * np.sin(phase + column(waves[:, k, 2] * np.pi))
            bend_y = bend_y + column(amplitude * strength) * np.sin(phase + column(waves[:, k, 3] * np.pi))
        return x + bend_x, y + bend_y

    return apply


def _ink(
    fields: np.ndarray, which: np.ndarray, level: np.ndarray, warp: Any, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """How much ink (0..1, float32 [B, H, W]) lies at paper columns x [B, W] and rows y [B, H]."""
    at_x, at_y = warp(x, y)
    at_x = np.clip((at_x + 1) * (SIDE - 1) / 2, 0, SIDE - 1.001)
    at_y = np.clip((at_y + 1) * (SIDE - 1) / 2, 0, SIDE - 1.001)
    column, row = at_x.astype(np.int32), at_y.astype(np.int32)
    fx, fy = at_x - column, at_y - row
    flat = fields.reshape(-1)
    corner = which.astype(np.int32)[:, None, None] * (SIDE * SIDE) + row * SIDE + column
    upper = flat[corner] * (1 - fx) + flat[corner + 1] * fx
    lower = flat[corner + SIDE] * (1 - fx) + flat[corner + SIDE + 1] * fx
    distance = upper * (1 - fy) + lower * fy
    return np.clip(0.5 + level.astype(np.float32)[:, None, None] - distance, 0, 1)  # an edge one field pixel soft


def _extent(used: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last position where `used` [B, P] holds, half a step outwards; the whole range for an empty row."""
    step = (positions[1] - positions[0]) / 2
    first, last = used.argmax(1), used.shape[1] - 1 - used[:, ::-1].argmax(1)
    return positions[first] - step, positions[last] + step


def _gaps(u: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """What a skipping pen leaves (float32 [B, F, F]): for one drawing in eight, ink is missing from a small disc."""
    x, y = (grid - (u[:, :1] - 0.5)), (grid - (u[:, 1:2] - 0.5))
    radius = np.where(u[:, 2] < 0.125, 0.04 + 0.05 * u[:, 3], 0)[:, None, None]
    return (np.hypot(x[:, None, :], y[:, :, None]) >= radius).astype(np.float32)
