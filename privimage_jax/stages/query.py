"""Stage 2: the semantic query (mechanism 1), the noisy count of semantics in each sensitive class."""

from typing import Any

import numpy as np

from privimage_jax import config as configs
from privimage_jax import workdir
from privimage_jax.metrics.features import extract, forward
from privimage_jax.stages import noisy_counts, train_query
from privimage_jax.stages.context import Context
from privimage_jax.stages.plan import SEMANTIC_QUERY
from privimage_jax.training.state import tree_digest

NAME = "query"
OUTPUTS = ("internal/query/histogram.json",)  # a missing one makes the stage stale
MECHANISM = SEMANTIC_QUERY
PIECE = 1 << 15  # images whose logits are on the host at a time


def enabled(config) -> bool:
    """Only the semantic selection asks the sensitive set."""
    return config.selection.method == "semantic"


def reads(config) -> tuple[str, ...]:
    """The stages whose artefacts this one reads."""
    return (train_query.NAME,)


def settings(config) -> dict[str, Any]:
    """What of the config decides this stage's result."""
    return configs.section(config, "precision", "query", "privacy", "data")


def run(context: Context) -> None:
    """Writes the noisy counts to `internal/query/histogram.json`; they are released by the stage `select`.

    Raises:
      UserError: if the budget is spent and the output was lost, or the inputs changed since the budget was spent.
    """
    section, sensitive = context.config.query, context.sensitive

    def prepare():
        model, variables = train_query.load(context)
        classify = forward(model, variables, method="__call__")

        def count() -> np.ndarray:
            name = f"config.query_net.model={context.config.query_net.model}"
            noisy_counts.check_images_apart(classify, sensitive.image_shape, name)
            counts = np.zeros((sensitive.n_classes, context.public.n_classes), np.int64)
            for start in range(0, sensitive.n, PIECE):
                piece = slice(start, start + PIECE)
                logits = extract(classify, sensitive.images[piece])
                counts += count_semantics(logits, sensitive.labels[piece], sensitive.n_classes, section.k1)
            return counts

        inputs = {
            "network": tree_digest(variables),
            "settings": workdir.fingerprint(settings(context.config)),
        }
        return inputs, count

    def save(noisy: np.ndarray) -> None:
        workdir.atomic_write_json(output, {"histogram": noisy.tolist(), "k1": section.k1})

    output = context.workdir.root / OUTPUTS[0]
    noisy_counts.release(context, MECHANISM, NAME, output, sensitivity(context.config), prepare, save)


def sensitivity(config) -> float:
    """The L2 sensitivity of the counts, sqrt(k1): one image adds k1 ones to one row."""
    return config.query.k1**0.5


def noise_std(context: Context) -> float:
    """Standard deviation of the noise on every count: sigma1 times the sensitivity."""
    return noisy_counts.noise_std(context, MECHANISM, sensitivity(context.config))


def count_semantics(logits: np.ndarray, labels: np.ndarray, n_classes: int, k1: int) -> np.ndarray:
    """H[c, s] = number of images of class c with semantic s among their k1 largest logits (PrivImage, section 4.1).

    One image adds k1 ones to one row, so that its L2 sensitivity is sqrt(k1). An image whose logits are not all finite
    adds k1 ones as well (to the semantics that sort last), never more.

    Args:
      logits: float32 [N, semantics]; k1 must not exceed their number.
      labels: int32 [N] in [0, n_classes).

    Returns:
      int64 [n_classes, semantics].
    """
    top = np.argpartition(np.nan_to_num(logits, nan=-np.inf), -k1, axis=1)[:, -k1:]
    counts = np.zeros((n_classes, logits.shape[1]), np.int64)
    np.add.at(counts, (np.repeat(labels, k1), top.ravel()), 1)
    return counts


def load(context: Context) -> np.ndarray:
    """The noisy counts int64 [classes, semantics].

    Raises:
      UserError: if they are missing or damaged.
    """
    path = context.workdir.internal / NAME / "histogram.json"
    return noisy_counts.read(path, "histogram", (context.sensitive.n_classes, context.public.n_classes))
