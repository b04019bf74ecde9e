"""The public images most like some synthetic ones, for the report. Looks at public images and synthetic ones alone."""

import numpy as np

from privimage_jax.metrics.features import extract, forward
from privimage_jax.report.neighbours import Neighbourhood
from privimage_jax.run.inputs import Inputs
from privimage_jax.stages import selection, train_query
from privimage_jax.training.writers import progress

MAX_IMAGES = 20  # synthetic ones, the first of each class
NEIGHBOURS = 6  # of each
CHUNK = 1024  # public images in memory at a time


def find(inputs: Inputs, images: np.ndarray, labels: np.ndarray) -> list[Neighbourhood]:
    """The nearest of all the public images that the generator was pre-trained on, by features of the query network.

    Args:
      images: synthetic, uint8 [N, H, W, C].
      labels: int [N].

    Returns:
      One entry for the first image of each class, of at most `MAX_IMAGES` classes.
    """
    public = inputs.public
    shown = np.unique(labels, return_index=True)[1][:MAX_IMAGES]
    return [
        Neighbourhood(
            images[image],
            inputs.sensitive.class_names[labels[image]],
            np.asarray(public.images[rows]),
            [public.class_names[label] for label in public.labels[rows]],
        )
        for image, rows in zip(shown, nearest_rows(inputs, images[shown]), strict=True)
    ]


def nearest_rows(inputs: Inputs, images: np.ndarray) -> np.ndarray:
    """Rows of the public set nearest to each of `images` [N, H, W, C]: int64 [N, at most `NEIGHBOURS`], nearest first.

    All that taught the generator are searched, a chunk after the other, for they may be more than memory holds.
    """
    rows, _ = selection.load_rows(inputs)
    features = forward(*train_query.load(inputs))
    of_images = extract(features, images)
    nearest, distances = np.empty((len(images), 0), np.int64), np.empty((len(images), 0))
    with progress("report: public images compared", len(rows), unit="images") as bar:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            of_public = extract(features, np.asarray(inputs.public.images[chunk]))
            reached = [np.square(of_public - feature).sum(axis=1, dtype=np.float64) for feature in of_images]
            nearest = np.concatenate([nearest, np.tile(chunk, (len(images), 1))], axis=1)
            distances = np.concatenate([distances, reached], axis=1)
            best = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
            nearest = np.take_along_axis(nearest, best, axis=1)
            distances = np.take_along_axis(distances, best, axis=1)
            bar.advance(len(chunk))
    return nearest
