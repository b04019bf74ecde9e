"""The class histogram: how often each class is drawn when the synthetic set is made.

Class counts of the sensitive set are not public. By default every class is drawn equally often, or as often as the
config says, which costs nothing. `config.class_histogram.enabled` counts the sensitive images of each class with noise:
a mechanism of its own, whose share of the budget is reserved before any other spends.
"""

from typing import Any

import numpy as np

from privimage_jax import config as configs
from privimage_jax import workdir
from privimage_jax.stages import noisy_counts, publication
from privimage_jax.stages.context import Context
from privimage_jax.stages.plan import CLASS_HISTOGRAM

NAME = "class-histogram"
OUTPUTS = ("release/class_histogram.json",)  # a missing one makes the stage stale
MECHANISM = CLASS_HISTOGRAM
L2_SENSITIVITY = 1.0  # a record is of one class: striking it out takes 1 from one count


def enabled(config) -> bool:
    """Off by default."""
    return config.class_histogram.enabled


def reads(config) -> tuple[str, ...]:
    """The stages whose artefacts this one reads."""
    return ()


def settings(config) -> dict[str, Any]:
    """What of the config decides this stage's result."""
    return configs.section(config, "class_histogram", "privacy", "data")


def run(context: Context) -> None:
    """Writes `release/class_histogram.json`.

    Raises:
      UserError: if the budget is spent and the output was lost, or the inputs changed since the budget was spent.
    """
    sensitive = context.sensitive

    def prepare():
        inputs = {"settings": workdir.fingerprint(settings(context.config))}
        return inputs, lambda: count_classes(sensitive.labels, sensitive.n_classes)

    def save(noisy: np.ndarray) -> None:
        described = {
            "class_names": list(sensitive.class_names),
            "counts": noisy.tolist(),
            "noise_std": noisy_counts.noise_std(context, MECHANISM, L2_SENSITIVITY),
        }
        publication.publish_json(context, output.name, described)

    output = context.workdir.root / OUTPUTS[0]
    noisy_counts.release(context, MECHANISM, NAME, output, L2_SENSITIVITY, prepare, save)


def count_classes(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Number of images of each class, int64 [n_classes], from labels int32 [N] in [0, n_classes)."""
    return np.bincount(labels, minlength=n_classes).astype(np.int64)


def frequencies(context: Context) -> tuple[float, ...]:
    """The relative frequency of each class in the synthetic set; () for equal ones.

    Post-processing of the noisy counts: negative ones are noise and count as 0, and if nothing is left all classes are
    equal.
    """
    if not enabled(context.config):
        return tuple(context.config.sample.class_weights)
    counts = noisy_counts.read(context.workdir.root / OUTPUTS[0], "counts", (context.sensitive.n_classes,))
    return tuple(np.maximum(counts, 0).astype(float).tolist()) if counts.max() > 0 else ()
