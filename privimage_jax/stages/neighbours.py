"""The public images most like some synthetic ones, for the report. Looks at public images and synthetic ones alone."""

import numpy as np

from privimage_jax.metrics.features import extract, forward
from privimage_jax.report.neighbours import Neighbourhood
from privimage_jax.stages import selection, train_query
from privimage_jax.stages.context import Context

MAX_IMAGES = 20  # synthetic ones, the first of each class
NEIGHBOURS = 6  # of each
MAX_SEARCHED = 10_000  # public images, spread evenly over those that taught the generator


def enabled(config) -> bool:
    """Whether public images may be shown, taught the generator, and there is a network to compare by."""
    return config.report.public_neighbours and config.pretrain.steps > 0 and train_query.enabled(config)


def find(context: Context, images: np.ndarray, labels: np.ndarray) -> list[Neighbourhood]:
    """The nearest of the public images that the generator was pre-trained on, by features of the query network.

    Args:
      images: synthetic, uint8 [N, H, W, C].
      labels: int [N].

    Returns:
      One entry for the first image of each class, of at most `MAX_IMAGES` classes.
    """
    public = context.public
    rows, _ = selection.load_rows(context)
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_SEARCHED)).astype(np.int64)]
    shown = np.unique(labels, return_index=True)[1][:MAX_IMAGES]
    features = forward(*train_query.load(context))
    of_public = extract(features, np.asarray(public.images[rows]))
    of_images = extract(features, images[shown])
    found = []
    for image, feature in zip(shown, of_images, strict=True):
        distances = np.square(of_public - feature).sum(axis=1, dtype=np.float64)
        nearest = rows[np.argsort(distances, kind="stable")[:NEIGHBOURS]]
        found.append(
            Neighbourhood(
                images[image],
                context.sensitive.class_names[labels[image]],
                np.asarray(public.images[nearest]),
                [public.class_names[label] for label in public.labels[nearest]],
            )
        )
    return found
