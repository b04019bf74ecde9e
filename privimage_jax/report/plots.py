"""Pictures inside the pages: SVG and encoded images as text, the same bytes for the same values."""

import base64
import io
from collections.abc import Sequence

import numpy as np
import PIL.Image

from privimage_jax.report.text import escape, value
from privimage_jax.training.writers import encode_png

LOSSLESS_SIDE = 64  # pixels; larger images are encoded as JPEG
JPEG_QUALITY = 88


def stacked_bar(shares: Sequence[float]) -> str:
    """One horizontal bar as inline SVG, its segments side by side from the left.

    Args:
      shares: of the bar's whole length, each >= 0 and together at most 1. Segment i has the CSS class `part-i`; what
        is left shows the class `rest`.
    """
    rects, x = ['<rect class="rest" x="0" y="0" width="1000" height="28"/>'], 0.0
    for index, share in enumerate(shares):
        width = 1000 * share
        rects.append(f'<rect class="part-{index}" x="{x:.2f}" y="0" width="{width:.2f}" height="28"/>')
        x += width
    return (
        '<svg class="stacked" viewBox="0 0 1000 28" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(rects)}</svg>"
    )


def bar(share: float) -> str:
    """One bar of a histogram as HTML; its length is `share`, in [0, 1], of the room it is given."""
    return f'<span class="bar"><i style="width:{100 * share:.1f}%"></i></span>'


def columns(counts: np.ndarray, label: str, most: int = 64) -> str:
    """A histogram as inline SVG that fills its room: columns side by side, the longest as high as the room.

    Args:
      counts: of each bin, `[N]`, all at least 0; neighbours are added up until there are at most `most` columns.
      label: what is counted, for those who cannot see it.
    """
    counts = np.array([part.sum() for part in np.array_split(counts, min(most, len(counts)))])
    heights = 100 * counts / max(1, counts.max(initial=0))
    rects = "".join(
        f'<rect x="{place}" y="{100 - height:.1f}" width="1" height="{height:.1f}"/>'
        for place, height in enumerate(heights)
    )
    return (
        f'<svg class="columns" viewBox="0 0 {len(counts)} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{rects}</svg>'
    )


def curve(title: str, x: np.ndarray, y: np.ndarray, last: int, span: tuple[float, float] | None = None) -> str:
    """One curve with its extremes as a figure: an inline SVG that fills its room, and words around it.

    It is drawn coarsely, so that sums in another order make no other page.

    Args:
      title: what is drawn.
      x: rising, `[N]`, N >= 1, within [0, last].
      y: finite, `[N]`.
      last: end of the horizontal axis, a number of steps above 0.
      span: of the vertical axis; by default from the smallest to the largest y.
    """
    low, high = (float(np.min(y)), float(np.max(y))) if span is None else span
    down = 300 - 300 * (y - low) / ((high - low) or 1)
    points = " ".join(f"{right:.0f},{below:.0f}" for right, below in zip(1000 * x / last, down, strict=True))
    told = f"{escape(title)}: {y[0]:.3g} at first, {y[-1]:.3g} at the end"
    return (
        f'<figure class="curve"><figcaption>{escape(title)}</figcaption>'
        f'<div class="axes"><p class="high">{high:.3g}</p><p class="low">{low:.3g}</p>'
        f'<svg viewBox="0 0 1000 300" preserveAspectRatio="none" role="img" aria-label="{told}">'
        f'<polyline points="{points}"/></svg>'
        f'<p class="first">0</p><p class="last">{value(last)} steps</p></div></figure>'
    )


def data_uri(image: np.ndarray) -> str:
    """A uint8 image `[H, W, C]`, C = 1 or 3, as the value of an `src` attribute.

    Up to `LOSSLESS_SIDE` pixels a side the image is a PNG, which is exact; a larger one is a JPEG.
    """
    if max(image.shape[:2]) <= LOSSLESS_SIDE:
        kind, encoded = "png", encode_png(image)
    else:
        buffer = io.BytesIO()
        picture = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
        kind, encoded = "jpeg", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode('ascii')}"
