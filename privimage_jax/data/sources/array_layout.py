"""How pictures lie in an array: channels last, channels first, or each in one flat row."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from privimage_jax.data.pictures import described
from privimage_jax.data.sources.base import Settings
from privimage_jax.errors import UserError

CHANNELS = (1, 3, 4)
MIN_FLAT_SIDE = 4  # of a picture in a flat row; shorter rows are something else


@dataclass(frozen=True)
class Layout:
    """The pictures of one array.

    Attributes:
      picture: from one row of the array to [H, W] or [H, W, C].
      note: what the array has, where the layout was told from the shape alone; else "".
    """

    picture: Callable[[np.ndarray], np.ndarray]
    note: str = ""


def layout_of(shape: tuple[int, ...], dtype: np.dtype, settings: Settings, what: str) -> Layout:
    """How pictures lie in an array of this shape.

    - [N, H, W] and [N, H, W, C] with C = 1, 3 or 4 are as they are.
    - [N, C, H, W] is channels first where W is none of 1, 3 and 4, so that no other reading is possible.
    - [N, L] is flat: grey where L is a square, else colour where L is three squares, in CIFAR's order: all of red, all
      of green, all of blue.

    >>> colour = layout_of((10, 3072), np.dtype("uint8"), Settings.from_section({}), "set.npz")
    >>> colour.picture(np.arange(3072))[0, 1].tolist(), colour.note
    ([1, 1025, 2049], 'flat rows, read as all of red, all of green and all of blue of 32×32 pixels')

    Args:
      shape: of the array.
      dtype: of the array.
      settings: pixels of a type without a range of its own, such as floats, need a stated `intensity`.
      what: what messages call the array, such as "set.npz: the array 'images'".

    Raises:
      UserError: for arrays that are no pictures.
    """
    _check_type(dtype, settings, what)
    if len(shape) == 2 and (side := _side(shape[1])):
        return Layout(lambda row: row.reshape(side, side), f"flat rows, read as grey of {side}×{side} pixels")
    if len(shape) == 2 and shape[1] % 3 == 0 and (side := _side(shape[1] // 3)):
        return Layout(
            lambda row: np.ascontiguousarray(row.reshape(3, side, side).transpose(1, 2, 0)),
            f"flat rows, read as all of red, all of green and all of blue of {side}×{side} pixels",
        )
    if 0 not in shape[1:] and (len(shape) == 3 or (len(shape) == 4 and shape[3] in CHANNELS)):
        return Layout(lambda row: row)
    if 0 not in shape[1:] and len(shape) == 4 and shape[1] in CHANNELS:
        return Layout(
            lambda row: np.ascontiguousarray(row.transpose(1, 2, 0)),
            f"its channels first, as its shape {list(shape)} says",
        )
    raise UserError(
        f"{what} has the shape {list(shape)}; store [N, H, W], or [N, H, W, C] with C = 1, 3 or 4, or name another "
        f"array by {settings.key}.image_key."
    )


def _check_type(dtype: np.dtype, settings: Settings, what: str) -> None:
    """Refuses pixels whose black and white no one can know."""
    if dtype.kind not in "biuf":
        raise UserError(f"{what} is of the type {dtype}; store pixels as numbers.")
    if settings.intensity == "full" and described(np.zeros((1, 1), dtype), what).top is None:
        raise UserError(
            f"{what} is of the type {dtype}; store pixels as uint8 from 0 to 255, or say what is black and white by "
            f"{settings.key}.intensity=LOW:HIGH, such as 0:1."
        )


def _side(length: int) -> int:
    """Side of the square of so many pixels, or 0."""
    side = math.isqrt(length)
    return side if side * side == length and side >= MIN_FLAT_SIDE else 0
