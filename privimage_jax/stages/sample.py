"""Stage 6: draw the synthetic set from the released generator. Post-processing; no privacy cost."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from privimage_jax import generators
from privimage_jax.generators import artefact
from privimage_jax.generators.sampler import Sampler, make_labels
from privimage_jax.run import publication
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.stage import named
from privimage_jax.run.trouble import Trouble
from privimage_jax.stages import choose_sampler, class_histogram
from privimage_jax.storage import reading
from privimage_jax.storage.archives import Arrays
from privimage_jax.storage.durable import atomic_write_npz
from privimage_jax.training.writers import progress

STAGE = named("sample")
REMEDY = "delete it, and the same command makes it again"
ALIKE = 2  # values of 0 to 255 by which images that look the same may differ


def run(inputs: Inputs) -> None:
    """Writes `release/synthetic.npz`: images uint8 [N, H, W, C], labels int32 [N], class_names str [classes]."""
    config, class_names = choose_sampler.chosen(inputs), inputs.sensitive.class_names
    section = config.sample
    labels = make_labels(section.n, len(class_names), class_histogram.frequencies(inputs))
    generator = generators.build(config, len(class_names))
    sampler = Sampler(generator, inputs.mesh)
    with progress(STAGE.name, section.n, unit="images") as bar:
        params = artefact.read_params(named("finetune").artefact(inputs.workdir), artefact.shapes(generator))
        images = sampler.all(params, inputs.key("synthetic set"), labels, section.batch_size, bar.advance)
    arrays = {"images": images, "labels": labels, "class_names": np.array(class_names)}
    publication.publish(inputs, STAGE.artefact(inputs.workdir).name, lambda path: atomic_write_npz(path, **arrays))
    if alike := classes_alike(images, labels, class_names):
        which = f"all {section.n}" if looks_alike(images) else f"{', '.join(alike)}: the"
        Trouble(inputs).tell(
            "alike",
            f"{which} released images look the same; see in internal/ whether training diverged, and look at "
            "release/report.html before you hand it over.",
        )


def looks_alike(images: np.ndarray) -> bool:
    """Whether several images, uint8 [N, H, W, C], are the same to the eye."""
    return len(images) > 1 and np.ptp(images, axis=0).max() <= ALIKE


def classes_alike(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """The names of classes whose images look the same, of those that have several.

    Args:
      images: uint8 [N, H, W, C].
      labels: int32 [N].
      class_names: of the labels.
    """
    return [name for number, name in enumerate(class_names) if looks_alike(images[labels == number])]


def load(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """The synthetic set: images uint8 [N, H, W, C], labels int32 [N].

    Raises:
      UserError: if it is missing or damaged.
    """
    path = STAGE.artefact(inputs.workdir)
    shape = (inputs.config.sample.n, *inputs.sensitive.image_shape)
    return read_synthetic(path, shape, inputs.sensitive.n_classes)


def read_synthetic(
    path: Path, shape: tuple[int, ...], n_classes: int, remedy: str = REMEDY
) -> tuple[np.ndarray, np.ndarray]:
    """Images of this shape and labels below `n_classes`, of a file that `run` wrote; see `load`."""
    with reading.user_errors(path, remedy), Arrays(path, remedy=remedy) as arrays:
        images, labels = arrays.read("images"), arrays.read("labels")
        if images.dtype != np.uint8 or images.shape != shape or labels.dtype != np.int32 or labels.shape != shape[:1]:
            raise reading.Unreadable(f"does not hold images {list(shape)} and their labels")
        if not 0 <= labels.min() <= labels.max() < n_classes:
            raise reading.Unreadable("holds a label that is no class")
    return images, labels
