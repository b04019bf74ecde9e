"""`digits`: scikit-learn's bundled 1,797 handwritten digits of 8×8 pixels (NIST, downscaled by block counting)."""

import numpy as np

from privimage_jax.data.sources.base import Settings, Source, numbered_classes


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The digits; the set has no test part, so both parts come from the fixed permutation."""
    from sklearn import __version__, datasets

    bunch = datasets.load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # counts 0..16 of inked pixels in a 4×4 block
    labels = bunch.target.astype(int).tolist()
    return Source(
        name="digits",
        class_names=numbered_classes(settings, 10),
        n=len(labels),
        divided=False,
        read=lambda indices: [(images[i], labels[i]) for i in indices],
        fingerprint=__version__,
    )
