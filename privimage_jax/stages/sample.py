"""Stage 6: draw the synthetic set from the released generator. Post-processing; no privacy cost."""

from pathlib import Path
from typing import Any

import numpy as np

from privimage_jax import config as configs
from privimage_jax import reading
from privimage_jax.archives import Arrays
from privimage_jax.stages import choose_sampler, class_histogram, finetune, generator, publication
from privimage_jax.stages.context import Context
from privimage_jax.stages.generator import make_labels
from privimage_jax.training.writers import progress
from privimage_jax.workdir import atomic_write_npz

NAME = "sample"
OUTPUTS = ("release/synthetic.npz",)  # a missing one makes the stage stale
REMEDY = "delete it, and the same command makes it again"


def reads(config) -> tuple[str, ...]:
    """The stages whose artefacts this one reads."""
    return (finetune.NAME, class_histogram.NAME, choose_sampler.NAME)


def settings(config) -> dict[str, Any]:
    """What of the config decides this stage's result."""
    return configs.section(
        config, "precision", "seed", "sample", "model", "diffusion", "data.image_size", "data.channels"
    )


def run(context: Context) -> None:
    """Writes `release/synthetic.npz`: images uint8 [N, H, W, C], labels int32 [N], class_names str [classes]."""
    config, class_names = choose_sampler.chosen(context), context.sensitive.class_names
    section = config.sample
    labels = make_labels(section.n, len(class_names), class_histogram.frequencies(context))
    sampler = generator.Sampler(config, generator.build(config, len(class_names)), context.mesh)
    with progress(NAME, section.n, unit="images") as bar:
        params = generator.read_params(context.workdir.release / "generator", generator.shapes(context))
        images = sampler.all(params, context.key("synthetic set"), labels, section.batch_size, bar.advance)
    arrays = {"images": images, "labels": labels, "class_names": np.array(class_names)}
    publication.publish(context, "synthetic.npz", lambda path: atomic_write_npz(path, **arrays))


def load(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """The synthetic set: images uint8 [N, H, W, C], labels int32 [N].

    Raises:
      UserError: if it is missing or damaged.
    """
    path = context.workdir.release / "synthetic.npz"
    shape = (context.config.sample.n, *context.sensitive.image_shape)
    return read_synthetic(path, shape, context.sensitive.n_classes)


def read_synthetic(
    path: Path, shape: tuple[int, ...], n_classes: int, remedy: str = REMEDY
) -> tuple[np.ndarray, np.ndarray]:
    """Images of this shape and labels below `n_classes`, of a file that `run` wrote; see `load`."""
    with reading.told(path, remedy), Arrays(path, remedy=remedy) as arrays:
        images, labels = arrays.read("images"), arrays.read("labels")
        if images.dtype != np.uint8 or images.shape != shape or labels.dtype != np.int32 or labels.shape != shape[:1]:
            raise reading.Unreadable(f"does not hold images {list(shape)} and their labels")
        if not 0 <= labels.min() <= labels.max() < n_classes:
            raise reading.Unreadable("holds a label that is no class")
    return images, labels
