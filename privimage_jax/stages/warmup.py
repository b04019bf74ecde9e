"""Noisy means of random subsets of the sensitive images, which teach the generator before DP-SGD does (DP-FETA).

Li et al., "From Easy to Hard: Building a Shortcut for Differentially Private Image Synthesis" (S&P 2025,
arXiv:2504.01395). Off by default; `config.warmup.enabled` makes it a mechanism of its own.

**Mechanism.** For t = 0, …, T - 1 each of the N records is drawn with probability q, independently of all else. Of
those drawn, each class sums up its images, made s times smaller by adding up blocks of s x s pixels; every sum gets
Gaussian noise. All classes share a draw, and a record adds to the sum of its own class alone.

**Sensitivity.** A pixel counts as 2 x - 255, a whole number in [-255, 255] and 0 at mid-grey. So a block counts at most
255 s^2, and an image of (H / s) (W / s) C blocks has an L2 norm of at most S = 255 s sqrt(H W C). A null record in
the place of one that is drawn moves one class's sum by its image, of norm at most S, and no other number. In the place
of one that is not drawn it moves nothing. A person who is drawn moves all classes' sums together by the mean of such
vectors, of norm at most S.

**Guarantee.** So draw t is the Gaussian mechanism with noise sigma S on a Poisson sample of rate q. A record may be in
several draws: all of them are the composition of T such mechanisms, however many classes there are. The sums are whole
numbers, and so is their noise: round(z) added to them is the mechanism's output rounded, and its accounting is exact.

**Post-processing.** A sum is divided by 255 s^2 times the number of images that it is expected to hold, never the
number that it holds: q N / classes, or q times the noisy count of the class where `config.class_histogram` has one.
"""

import math
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from privimage_jax.data.dataset import Subset
from privimage_jax.errors import UserError
from privimage_jax.privacy import people, sampling
from privimage_jax.run import noisy_counts, publication
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.stage import named
from privimage_jax.stages import class_histogram
from privimage_jax.storage import fingerprints, reading
from privimage_jax.storage.archives import Arrays
from privimage_jax.storage.durable import atomic_write_npz

STAGE = named("warmup")
REMEDY = "restore it from a copy, or start a new workdir"
LEVELS = 255  # the largest value of a pixel, where 0 is mid-grey and the smallest is -255
PIECE = 1 << 11  # images that are summed up at a time
MEDIAN = 3  # side of the filter over an enlarged mean, in pixels


def run(inputs: Inputs) -> None:
    """Writes `release/warmup.npz`: the noisy sums int64 [T, classes, h, w, C], and `load`'s images and labels.

    Raises:
      UserError: if the budget is spent and the output was lost, or the inputs changed since the budget was spent.
    """
    section, sensitive = inputs.config.warmup, inputs.sensitive
    output = STAGE.artefact(inputs.workdir)

    def prepare() -> tuple[dict[str, str], Callable[[np.ndarray], np.ndarray]]:
        n, owners, weights = sensitive.n_records, sensitive.owners, noisy_counts.weights(inputs)
        limit = sampling.threshold(section.subset_size, n)

        def sums_under(key: np.ndarray) -> np.ndarray:
            drawn = (np.asarray(sampling.membership(key, t, n, limit)) for t in range(section.means))
            members = drawn if owners is None else (who[owners] for who in drawn)
            images, labels, more = sensitive.images, sensitive.labels, (sensitive.n_classes, section.downscale, weights)
            return np.stack([sum_by_class(images, labels, who, *more) for who in members])

        return {"settings": fingerprints.fingerprint(STAGE.settings(inputs.config))}, sums_under

    def save(noisy: np.ndarray) -> None:
        images = to_images(noisy, expected_sizes(inputs), section.downscale)
        arrays = {"sums": noisy, "images": images, "labels": labels_of(section.means, sensitive.n_classes)}
        publication.publish(inputs, output.name, lambda path: atomic_write_npz(path, **arrays))

    noisy_counts.release_sampled(inputs, output, prepare, save)


def check_range(n: int, downscale: int) -> None:
    """Refuses weighted sums of n images that could pass 2^62, or those of a piece 2^53, where float64 ends.

    How many images people have is sensitive: a run checks it before any mechanism.

    Raises:
      UserError: naming the setting.
    """
    if max(n, PIECE << (62 - 53)) * LEVELS * downscale**2 >= 1 << (62 - people.BITS):
        raise UserError(
            f"config.warmup.downscale={downscale} makes the sums over a person's images too large; give less."
        )


def sensitivity(config: ConfigDict) -> float:
    """The L2 sensitivity S = 255 s sqrt(H W C) of all sums of one draw."""
    side, channels = config.data.image_size, config.data.channels
    return LEVELS * config.warmup.downscale * math.sqrt(side * side * channels)


def sum_by_class(
    images: np.ndarray | Subset,
    labels: np.ndarray,
    members: np.ndarray,
    n_classes: int,
    downscale: int,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """The sums of the members' images, one for each class: int64 [n_classes, H / s, W / s, C].

    Args:
      images: uint8 [N, H, W, C].
      labels: int32 [N] in [0, n_classes).
      members: bool [N].
      n_classes: of the labels.
      downscale: s, which divides H and W.
      weights: int64 [N], what an image is multiplied by, see `noisy_counts.weights`.
    """
    height, width, channels = images.shape[1:]
    small = (height // downscale, width // downscale, channels)
    total, rows = np.zeros((n_classes, math.prod(small)), np.int64), np.flatnonzero(members)
    for start in range(0, len(rows), PIECE):
        some = rows[start : start + PIECE]
        pixels = 2 * np.asarray(images[some]).astype(np.int64) - LEVELS
        blocks = pixels.reshape(len(some), small[0], downscale, small[1], downscale, channels).sum(axis=(2, 4))
        own = 1 if weights is None else weights[some]
        of_class = np.where(labels[some] == np.arange(n_classes)[:, None], own, 0)
        # A matrix product of whole numbers is exact in float64, below 2^53 (see check_range).
        summed = of_class.astype(np.float64) @ blocks.reshape(len(some), -1).astype(np.float64)
        total += summed.astype(np.int64)
    return total.reshape(n_classes, *small)


def expected_sizes(inputs: Inputs) -> np.ndarray:
    """How many images a sum of each class is expected to hold: float64 [classes], from public and released values."""
    n, n_classes, size = inputs.plan.n, inputs.sensitive.n_classes, inputs.config.warmup.subset_size
    counts = np.full(n_classes, n / n_classes)
    if class_histogram.STAGE.enabled(inputs.config):
        # A count below its noise says nothing but that the class is small.
        noise = noisy_counts.noise_std(inputs, class_histogram.STAGE)
        counts = np.maximum(class_histogram.counts(inputs), noise)
    return sampling.poisson_rate(size, n) * counts


def to_images(noisy: np.ndarray, expected: np.ndarray, downscale: int) -> np.ndarray:
    """Noisy sums as images, in the order of `labels_of`: a pure function of what was released.

    Args:
      noisy: int64 [T, classes, H / s, W / s, C].
      expected: float64 [classes], above 0: how many images a sum holds, in expectation.
      downscale: s.

    Returns:
      uint8 [T classes, H, W, C]: clipped to the range of pixels, enlarged (bilinear), and smoothed by a median filter.
    """
    means = noisy / (LEVELS * downscale**2 * expected[:, None, None, None])
    means = np.clip(means, -1.0, 1.0).reshape(-1, *noisy.shape[2:])
    large = ndimage.zoom(means, (1, downscale, downscale, 1), order=1, mode="nearest", grid_mode=True)
    smooth = ndimage.median_filter(large, size=(1, MEDIAN, MEDIAN, 1), mode="nearest")
    return np.rint((smooth + 1) * LEVELS / 2).astype(np.uint8)


def labels_of(means: int, n_classes: int) -> np.ndarray:
    """The classes of the images, int32 [means n_classes]: one of each class after the other."""
    return np.tile(np.arange(n_classes, dtype=np.int32), means)


def load(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """The noisy means as images uint8 [M, H, W, C] and their classes int32 [M].

    Raises:
      UserError: if they are missing or damaged.
    """
    n_classes = inputs.sensitive.n_classes
    wanted = labels_of(inputs.config.warmup.means, n_classes)
    path, shape = STAGE.artefact(inputs.workdir), (len(wanted), *inputs.sensitive.image_shape)
    with reading.user_errors(path, REMEDY), Arrays(path, remedy=REMEDY) as arrays:
        images, labels = arrays.read("images"), arrays.read("labels")
        if images.dtype != np.uint8 or images.shape != shape or not np.array_equal(labels, wanted):
            raise reading.Unreadable(f"does not hold images {list(shape)} of the noisy means")
    return images, labels
