"""How near the public images that each run of a sweep pre-trained on are to its sensitive ones, and whether that
foretells its synthetic images: the second question that the PrivImage paper leaves open.

Three measures compare a run's public subset with the sensitive training set, all by the query network: semantic
distribution similarity (SDS), FID and MMD. They look at sensitive images without noise: nothing here is private.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from scipy import stats

from privimage_jax.data.dataset import Subset
from privimage_jax.errors import UserError
from privimage_jax.metrics.features import extract, forward
from privimage_jax.metrics.fid import fid
from privimage_jax.metrics.kid import mmd
from privimage_jax.metrics.real_features import measured_rows
from privimage_jax.metrics.sds import sds
from privimage_jax.run.inputs import Inputs
from privimage_jax.stages import query, selection, train_query
from privimage_jax.training.state import tree_digest

MEASURES = ("subset_sds", "subset_fid", "subset_mmd")
LEAST_RUNS = 3  # any two points lie on a line


class Subsets:
    """Compares subsets with the sensitive set, whose features are computed once for each query network."""

    def __init__(self) -> None:
        self._sensitive: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}

    def compare(self, inputs: Inputs) -> dict[str, float]:
        """The three measures of a finished run; none if it pre-trained on no public images.

        Raises:
          UserError: if an artefact is missing or damaged, or there are too few images.
        """
        if not selection.STAGE.enabled(inputs.config):
            return {}
        model, variables = train_query.load(inputs)
        sensitive, most = inputs.sensitive, inputs.config.evaluate.max_images
        identity = (tree_digest(variables), sensitive.digest(), str(most))
        if identity not in self._sensitive:
            self._sensitive = {
                identity: _describe(model, variables, sensitive.images, sensitive.labels, sensitive.n_classes, most)
            }
        features, histogram = self._sensitive[identity]
        images, labels = selection.load(inputs)
        subset_features, subset_histogram = _describe(model, variables, images, labels, sensitive.n_classes, most)
        values = (
            sds(subset_histogram, histogram),
            fid(subset_features, features),
            mmd(subset_features, features),
        )
        return dict(zip(MEASURES, values, strict=True))


def _describe(
    model: nn.Module, variables: Any, images: np.ndarray | Subset, labels: np.ndarray, n_classes: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [M, D] and the histogram of semantics int64 [classes, semantics] of at most `most` images.

    Each image counts for its likeliest semantic. An image of the label `n_classes`, "no label", counts for every class.
    """
    rows = measured_rows(len(images), most)
    images, labels = np.asarray(images[rows]), np.asarray(labels[rows])
    logits = extract(forward(model, variables, method="__call__"), images)
    counts = query.count_semantics(logits, labels, n_classes + 1, 1)
    return extract(forward(model, variables), images), counts[:-1] + counts[-1]


def correlations(rows: Sequence[Mapping[str, Any]], measure: str) -> list[dict[str, Any]]:
    """How each measure of the public subset goes with a measure of the synthetic images, over the runs that have both.

    Returns:
      For each of `MEASURES`: its name as "measure", "pearson", "spearman", the interval of each as "pearson_95" and
      "spearman_95" (see `interval`), and the number of "runs". A coefficient and its interval are None where one of
      the two is the same in all runs.

    Raises:
      UserError: if fewer than `LEAST_RUNS` runs have them.
    """
    result = []
    for name in MEASURES:
        pairs = [(row[name], row[measure]) for row in rows if name in row and measure in row]
        if len(pairs) < LEAST_RUNS:
            raise UserError(
                f"--correlate needs {LEAST_RUNS} finished runs with a public subset and the measure {measure}, not "
                f"{len(pairs)}; let --over name more selections."
            )
        x, y = np.asarray(pairs, float).T
        varied = np.ptp(x) > 0 and np.ptp(y) > 0
        pearson = float(stats.pearsonr(x, y).statistic) if varied else None
        spearman = float(stats.spearmanr(x, y).statistic) if varied else None
        result.append(
            {
                "measure": name,
                "pearson": pearson,
                "pearson_95": interval(pearson, len(pairs)),
                "spearman": spearman,
                "spearman_95": interval(spearman, len(pairs), of_ranks=True),
                "runs": len(pairs),
            }
        )
    return result


def interval(coefficient: float | None, runs: int, of_ranks: bool = False) -> tuple[float, float] | None:
    """The 95% confidence interval of a correlation over runs that are taken as independent (Fisher's z).

    Args:
      coefficient: in [-1, 1]; None where there is none.
      runs: their number.
      of_ranks: whether it is Spearman's r, whose z has a variance larger by 1 + r^2 / 2 (Bonett and Wright,
        Psychometrika 2000), and not Pearson's.

    Returns:
      None where there is no coefficient, of fewer than four runs, and where the runs lie on a line.

    >>> low, high = interval(0.5, 28)
    >>> round(low, 3), round(high, 3)
    (0.156, 0.736)
    """
    if coefficient is None or runs < LEAST_RUNS + 1 or abs(coefficient) > 1 - 1e-9:
        return None
    variance = (1 + coefficient**2 / 2 if of_ranks else 1) / (runs - 3)
    half = stats.norm.ppf(0.975) * math.sqrt(variance)
    z = math.atanh(coefficient)
    return math.tanh(z - half), math.tanh(z + half)
