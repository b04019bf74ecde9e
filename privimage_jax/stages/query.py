"""Stage 2: the semantic query (mechanism 1), the noisy count of semantics in each sensitive class.

The images of a person, where records are people, count in shares of one (`privacy.people`).
"""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from privimage_jax.metrics.features import forward
from privimage_jax.privacy import people
from privimage_jax.run import counting, noisy_counts
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.stage import named
from privimage_jax.stages import train_query
from privimage_jax.storage import durable, fingerprints
from privimage_jax.training.state import tree_digest

STAGE = named("query")


def run(inputs: Inputs) -> None:
    """Writes the noisy counts to `internal/query/histogram.json`; they are released by the stage `select`.

    Where the run is going to be evaluated, which looks at real images without noise, the exact counts are kept as well,
    for the internal page of the evaluation and nothing else: they never leave `internal/`.

    Raises:
      UserError: if the budget is spent and the output was lost, or the inputs changed since the budget was spent.
    """
    section, sensitive = inputs.config.query, inputs.sensitive

    def prepare() -> tuple[dict[str, str], Callable[[], np.ndarray]]:
        model, variables = train_query.load(inputs)
        classify = forward(model, variables, method="__call__")

        def count() -> np.ndarray:
            name = f"config.query_net.model={inputs.config.query_net.model}"
            noisy_counts.check_images_apart(classify, sensitive.image_shape, name)
            weights = noisy_counts.weights(inputs)
            counts = np.zeros((sensitive.n_classes, inputs.public.n_classes), np.int64)
            for rows, logits in counting.logits(classify, sensitive, inputs.mesh):
                own = None if weights is None else weights[rows]
                counts += count_semantics(logits, sensitive.labels[rows], sensitive.n_classes, section.k1, own)
            if inputs.config.evaluate.enabled:
                exact = counts if weights is None else people.rounded(counts)
                durable.atomic_write_json(STAGE.note(inputs.workdir), {"exact": exact.tolist()}, mode=0o600)
            return counts

        determinants = {
            "network": tree_digest(variables),
            "settings": fingerprints.fingerprint(STAGE.settings(inputs.config)),
        }
        return determinants, count

    def save(noisy: np.ndarray) -> None:
        durable.atomic_write_json(output, {"histogram": noisy.tolist(), "k1": section.k1})

    output = STAGE.artefact(inputs.workdir)
    noisy_counts.release(inputs, output, prepare, save)


def sensitivity(config: ConfigDict) -> float:
    """The L2 sensitivity of the counts, sqrt(k1): one image adds k1 ones to one row, one person a mean of such."""
    return config.query.k1**0.5


def noise_std(inputs: Inputs) -> float:
    """Standard deviation of the noise on every count: sigma1 times the sensitivity."""
    return noisy_counts.noise_std(inputs, STAGE)


def count_semantics(
    logits: np.ndarray, labels: np.ndarray, n_classes: int, k1: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """H[c, s] = number of images of class c with semantic s among their k1 largest logits (PrivImage, section 4.1).

    One image adds k1 ones to one row, so that its L2 sensitivity is sqrt(k1). With weights a person adds a mean of such
    matrices, in units of 2^-BITS: the same sensitivity, as a norm is convex. An image whose logits are not all finite
    adds k1 ones as well (to the semantics that sort last), never more.

    Args:
      logits: float32 [N, semantics]; k1 must not exceed their number.
      labels: int32 [N] in [0, n_classes).
      n_classes: of the labels.
      k1: semantics counted per image.
      weights: int64 [N], what an image adds in place of ones, see `noisy_counts.weights`.

    Returns:
      int64 [n_classes, semantics].
    """
    top = np.argpartition(np.nan_to_num(logits, nan=-np.inf), -k1, axis=1)[:, -k1:]
    counts = np.zeros((n_classes, logits.shape[1]), np.int64)
    np.add.at(counts, (np.repeat(labels, k1), top.ravel()), 1 if weights is None else np.repeat(weights, k1))
    return counts


def load(inputs: Inputs) -> np.ndarray:
    """The noisy counts int64 [classes, semantics].

    Raises:
      UserError: if they are missing or damaged.
    """
    return noisy_counts.read(STAGE.artefact(inputs.workdir), "histogram", _shape(inputs))


def load_exact(inputs: Inputs) -> np.ndarray | None:
    """The counts before the noise, int64 [classes, semantics]; None where they were not kept. Not private.

    Raises:
      UserError: if they are damaged.
    """
    path = STAGE.note(inputs.workdir)
    if not path.exists():
        return None
    return noisy_counts.read(path, "exact", _shape(inputs), remedy="delete it, and the page goes without")


def _shape(inputs: Inputs) -> tuple[int, int]:
    return inputs.sensitive.n_classes, inputs.public.n_classes
