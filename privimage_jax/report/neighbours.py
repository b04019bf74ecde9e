"""Synthetic images, each beside the public images that are most like it."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from privimage_jax.report import gallery, plots
from privimage_jax.report.text import escape

MAX_BYTES = 600_000  # of all encoded images


@dataclasses.dataclass(frozen=True)
class Neighbourhood:
    """One synthetic image and its neighbours.

    Args:
      image: synthetic, uint8 `[H, W, C]`, C = 1 or 3.
      class_name: its class.
      neighbours: public images, uint8 `[K, H, W, C]`, the nearest first.
      semantics: the public class of each neighbour.
    """

    image: np.ndarray
    class_name: str
    neighbours: np.ndarray
    semantics: Sequence[str]


def rows(neighbourhoods: Sequence[Neighbourhood]) -> str:
    """As many of them as `MAX_BYTES` allow, the first ones."""
    figures, used = [], 0
    for each in neighbourhoods:
        pictures = [(f"synthetic, class {each.class_name}", plots.data_uri(each.image))]
        pictures += [
            (f"public, {semantic}", plots.data_uri(image))
            for image, semantic in zip(each.neighbours, each.semantics, strict=True)
        ]
        used += sum(len(uri) for _, uri in pictures)
        if used > MAX_BYTES:
            break
        strip = gallery.strip(pictures, f"synthetic, class {each.class_name}, and its neighbours", len(pictures))
        figures.append(
            f"<figure>{strip}<figcaption><b>{escape(each.class_name)}</b> beside "
            f"{escape(', '.join(dict.fromkeys(each.semantics)))}</figcaption></figure>"
        )
    return f'<div class="gallery neighbours">{"".join(figures)}</div>'
