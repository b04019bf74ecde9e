"""The class histogram: how often each class is drawn when the synthetic set is made.

Class counts of the sensitive set are not public. By default every class is drawn equally often, or as often as the
config says, which costs nothing. `config.class_histogram.enabled` counts the sensitive images of each class with noise:
a mechanism of its own, whose share of the budget is reserved before any other spends.
"""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from privimage_jax.run import noisy_counts, publication
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.stage import named
from privimage_jax.storage import fingerprints

STAGE = named("class-histogram")


def run(inputs: Inputs) -> None:
    """Writes `release/class_histogram.json`.

    Raises:
      UserError: if the budget is spent and the output was lost, or the inputs changed since the budget was spent.
    """
    sensitive = inputs.sensitive

    def prepare() -> tuple[dict[str, str], Callable[[], np.ndarray]]:
        determinants = {"settings": fingerprints.fingerprint(STAGE.settings(inputs.config))}
        weights = noisy_counts.weights(inputs)
        return determinants, lambda: count_classes(sensitive.labels, sensitive.n_classes, weights)

    def save(noisy: np.ndarray) -> None:
        described = {
            "class_names": list(sensitive.class_names),
            "counts": noisy.tolist(),
            "noise_std": noisy_counts.noise_std(inputs, STAGE),
        }
        publication.publish_json(inputs, output.name, described)

    output = STAGE.artefact(inputs.workdir)
    noisy_counts.release(inputs, output, prepare, save)


def sensitivity(config: ConfigDict) -> float:
    """The L2 sensitivity: a null record takes 1 from one count, and of a person the shares of each class."""
    return 1.0


def count_classes(labels: np.ndarray, n_classes: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Number of images of each class, int64 [n_classes], from labels int32 [N] in [0, n_classes).

    With `weights`, int64 [N], an image adds its own in place of 1, see `noisy_counts.weights`.
    """
    counts = np.zeros(n_classes, np.int64)
    np.add.at(counts, labels, 1 if weights is None else weights)
    return counts


def frequencies(inputs: Inputs) -> tuple[float, ...]:
    """The relative frequency of each class in the synthetic set; () for equal ones.

    Post-processing of the noisy counts: negative ones are noise and count as 0, and if nothing is left all classes are
    equal.
    """
    if not STAGE.enabled(inputs.config):
        return tuple(inputs.config.sample.class_weights)
    noisy = counts(inputs)
    return tuple(np.maximum(noisy, 0).astype(float).tolist()) if noisy.max() > 0 else ()


def counts(inputs: Inputs) -> np.ndarray:
    """The noisy counts, int64 [classes].

    Raises:
      UserError: if they are missing or damaged.
    """
    return noisy_counts.read(STAGE.artefact(inputs.workdir), "counts", (inputs.sensitive.n_classes,))
