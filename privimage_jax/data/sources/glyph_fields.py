"""Distance fields of characters, the form in which `glyphs` bends and thickens them.

A field is a 64×64 float32 map of distances in pixels. Thresholding it draws the character with any stroke width, and
reading it at displaced points bends the character, so one field serves for endlessly many drawings. There are two
kinds: `outline`, the signed distance to the edge of a font's glyph (negative inside), and `pen`, the distance to the
middle of its stroke, taken from a thinned glyph or from the hand-made strokes of `glyph_strokes`.
"""

import functools
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import ft2font
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from privimage_jax.data.sources.glyph_strokes import FORMS, curve
from privimage_jax.errors import UserError

SIDE = 64  # of a field, in pixels
BOX = 40  # longer side of the character in it; the rest is room for thick strokes and bends
HAND_VARIANTS = 6  # how often the points of each hand-made form are drawn with a different wobble

FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)  # of matplotlib's, all but the symbol fonts
THINNED = ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSansMono", "cmss10", "cmtt10", "cmti10", "STIXGeneralItalic")
"""Fonts whose thinned glyphs look hand-written; those with large serifs leave spurs."""


@functools.cache
def _font(name: str) -> tuple[ImageFont.FreeTypeFont, frozenset[int]]:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), 96), frozenset(ft2font.FT2Font(str(path)).get_charmap())


def font_mask(character: str, font_name: str) -> np.ndarray | None:
    """The glyph as a boolean [SIDE, SIDE] mask, centred, its longer side BOX pixels; None where the font lacks it."""
    font, covered = _font(font_name)
    if ord(character) not in covered or (character == "0" and "Mono" in font_name):  # that zero has a dot inside
        return None
    canvas = Image.new("L", (288, 288))
    ImageDraw.Draw(canvas).text((96, 96), character, font=font, fill=255)
    box = canvas.getbbox()
    if box is None:
        return None
    scale = BOX / max(box[2] - box[0], box[3] - box[1])
    size = [max(1, round((box[i + 2] - box[i]) * scale)) for i in range(2)]
    glyph = canvas.resize(size, Image.Resampling.BOX, box=box)
    square = Image.new("L", (SIDE, SIDE))
    square.paste(glyph, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return np.asarray(square) >= 128


def thin(masks: np.ndarray) -> np.ndarray:
    """Peels boolean masks [M, H, W] down to lines one pixel wide (Zhang and Suen, CACM 1984), all at once."""
    image = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    while True:
        before = image.sum()
        for odd in (False, True):
            north, south = image[:, :-2, 1:-1], image[:, 2:, 1:-1]
            west, east = image[:, 1:-1, :-2], image[:, 1:-1, 2:]
            ring = [
                north,
                image[:, :-2, 2:],
                east,
                image[:, 2:, 2:],
                south,
                image[:, 2:, :-2],
                west,
                image[:, :-2, :-2],
            ]
            neighbours = sum(pixel.astype(np.int8) for pixel in ring)
            crossings = sum((~a & b).astype(np.int8) for a, b in zip(ring, ring[1:] + ring[:1], strict=True))
            keep = (north & east & south) | (east & south & west)
            if odd:
                keep = (north & east & west) | (north & south & west)
            peel = (neighbours >= 2) & (neighbours <= 6) & (crossings == 1) & ~keep
            image[:, 1:-1, 1:-1] &= ~peel
        if image.sum() == before:
            return image[:, 1:-1, 1:-1]


def _wobble(stroke: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    moved = stroke + random.uniform(-0.05, 0.05, stroke.shape)
    doubled = (stroke[1:] == stroke[:-1]).all(1)  # stays one corner
    moved[1:][doubled] = moved[:-1][doubled]
    return moved


def _hand_drawn(form: list, random: np.random.RandomState) -> np.ndarray:
    """One hand-made form as a boolean [SIDE, SIDE] line drawing, its points displaced at random."""
    points = [curve(_wobble(np.array(stroke, np.float64), random)) for stroke in form]
    low, high = np.min([p.min(0) for p in points], 0), np.max([p.max(0) for p in points], 0)
    scale = BOX / (high - low).max()
    canvas = Image.new("L", (SIDE, SIDE))
    for line in points:
        placed = (line - (low + high) / 2) * scale + (SIDE - 1) / 2
        ImageDraw.Draw(canvas).line([tuple(point) for point in placed], fill=255)
    return np.asarray(canvas) > 0


@functools.lru_cache(maxsize=8)
def character_fields(character: str, hand: bool) -> tuple[np.ndarray, np.ndarray]:
    """The fields of one character: outline float32 [A, SIDE, SIDE] and pen float32 [B, SIDE, SIDE].

    With `hand` false there are no pen fields (B = 0). A character that no font has is a `UserError`.
    """
    masks = {name: mask for name in FONTS if (mask := font_mask(character, name)) is not None}
    if not masks:
        raise UserError(f"no bundled font has the character {character!r}; take it out of the glyph set's characters.")
    outside = [ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask) for mask in masks.values()]
    outline = np.array(outside, np.float32)
    if not hand:
        return outline, np.zeros((0, SIDE, SIDE), np.float32)
    random = np.random.RandomState(ord(character))  # the frozen generator: the same wobbles with every NumPy
    lines = [_hand_drawn(form, random) for form in FORMS.get(character, ()) for _ in range(HAND_VARIANTS)]
    lines += list(thin(np.array([masks[name] for name in THINNED if name in masks] or list(masks.values()))))
    return outline, np.array([ndimage.distance_transform_edt(~line) for line in lines], np.float32)
