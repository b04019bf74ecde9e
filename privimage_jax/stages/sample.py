"""Stage 6: draw the synthetic set from the released generator. Post-processing; no privacy cost."""

from pathlib import Path
from typing import Any

import numpy as np

from privimage_jax import config as configs
from privimage_jax import reading
from privimage_jax.archives import Arrays
from privimage_jax.processes import written_once
from privimage_jax.stages import class_histogram, finetune, generator
from privimage_jax.stages.context import Context
from privimage_jax.training.mesh import place, replicated
from privimage_jax.training.writers import encode_png, progress
from privimage_jax.workdir import atomic_dir, atomic_write_npz, remove

NAME = "sample"
OUTPUTS = ("release/synthetic.npz",)  # a missing one makes the stage stale


def reads(config) -> tuple[str, ...]:
    """The stages whose artefacts this one reads."""
    return (finetune.NAME, class_histogram.NAME)


def settings(config) -> dict[str, Any]:
    """What of the config decides this stage's result."""
    return configs.section(config, "seed", "sample", "model", "diffusion", "data.image_size", "data.channels")


def run(context: Context) -> None:
    """Writes `release/synthetic.npz`: images uint8 [N, H, W, C], labels int32 [N], class_names str [classes]."""
    section, release = context.config.sample, context.workdir.release
    class_names = context.sensitive.class_names
    labels = make_labels(section.n, len(class_names), class_histogram.frequencies(context))
    params = place(generator.read_params(release / "generator", generator.shapes(context)), replicated(context.mesh))
    draw = generator.Sampler(context.config, generator.build(context.config, len(class_names)), context.mesh)
    key = context.key("synthetic set")
    parts = []
    with progress(NAME, section.n, unit="images") as bar:
        for start in range(0, section.n, section.batch_size):
            batch = np.resize(labels[start : start + section.batch_size], section.batch_size)  # one shape, one program
            images = draw(params, key, start, batch)[: section.n - start]
            parts.append(images)
            bar.advance(len(images))
    images = np.concatenate(parts)
    atomic_write_npz(release / "synthetic.npz", images=images, labels=labels, class_names=np.array(class_names))
    remove(release / "synthetic")
    if section.png_folders:
        _write_folders(release / "synthetic", images, labels, class_names)


def make_labels(n: int, n_classes: int, weights: tuple = ()) -> np.ndarray:
    """Labels int32 [n] in the proportions of `weights` (default: equal), by largest remainder, spread evenly."""
    share = np.asarray(weights or np.ones(n_classes), float)
    share = share / share.sum() * n
    counts = np.floor(share).astype(int)
    counts[np.argsort(counts - share, kind="stable")[: n - counts.sum()]] += 1
    labels = np.repeat(np.arange(n_classes, dtype=np.int32), counts)
    position = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
    return labels[np.argsort(position, kind="stable")]


@written_once
def _write_folders(folder, images, labels, class_names) -> None:
    with atomic_dir(folder) as partial:
        for number, name in enumerate(class_names):
            (partial / f"{number}_{_safe(name)}").mkdir()
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = partial / f"{label}_{_safe(class_names[label])}" / f"{row:06d}.png"
            path.write_bytes(encode_png(image))


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:50]


def load(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """The synthetic set: images uint8 [N, H, W, C], labels int32 [N].

    Raises:
      UserError: if it is missing or damaged.
    """
    path = context.workdir.release / "synthetic.npz"
    shape = (context.config.sample.n, *context.sensitive.image_shape)
    return read_synthetic(path, shape, context.sensitive.n_classes)


def read_synthetic(path: Path, shape: tuple[int, ...], n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of this shape and labels below `n_classes`, of a file that `run` wrote; see `load`."""
    remedy = "delete it, and the same command makes it again"
    with reading.told(path, remedy), Arrays(path, remedy=remedy) as arrays:
        images, labels = arrays.read("images"), arrays.read("labels")
        if images.dtype != np.uint8 or images.shape != shape or labels.dtype != np.int32 or labels.shape != shape[:1]:
            raise reading.Unreadable(f"does not hold images {list(shape)} and their labels")
        if not 0 <= labels.min() <= labels.max() < n_classes:
            raise reading.Unreadable("holds a label that is no class")
    return images, labels
