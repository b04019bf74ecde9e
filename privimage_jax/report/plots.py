"""Pictures inside the page: SVG and PNG as text, the same bytes for the same values."""

import base64
from collections.abc import Sequence

import numpy as np

from privimage_jax.training.writers import encode_png


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


def png_data_uri(image: np.ndarray) -> str:
    """A uint8 image `[H, W, C]`, C = 1 or 3, as the value of an `src` attribute."""
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode("ascii")
