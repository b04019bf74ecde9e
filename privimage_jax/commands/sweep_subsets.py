"""How near the public images that each run of a sweep pre-trained on are to its sensitive ones, and whether that
foretells its synthetic images: the second question that the PrivImage paper leaves open.

Three measures compare a run's public subset with the sensitive training set, all by the query network: semantic
distribution similarity (SDS), FID and MMD. They look at sensitive images without noise: nothing here is private.
"""

from collections.abc import Callable, Mapping, Sequence
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
RESAMPLES = 2000  # of the runs, for the interval of a correlation


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
      "spearman_95" (see `_interval`), and the number of "runs". A coefficient and its interval are None where one of
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
        row: dict[str, Any] = {"measure": name}
        for kind, coefficient in _COEFFICIENTS.items():
            row[kind] = float(coefficient(x, y)) if varied else None
            row[f"{kind}_95"] = _interval(x, y, coefficient) if varied else None
        result.append({**row, "runs": len(pairs)})
    return result


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's coefficient of [..., runs] and [..., runs], neither of which is the same in all runs."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))


_COEFFICIENTS = {"pearson": _pearson, "spearman": _spearman}


def _interval(
    x: np.ndarray, y: np.ndarray, coefficient: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[float, float]:
    """The middle 95% of a coefficient over `RESAMPLES` draws of as many runs, with replacement (percentile bootstrap).

    Draws in which all runs are alike in x or y have no coefficient, and are left out.
    """
    draws = np.random.default_rng(0).integers(len(x), size=(RESAMPLES, len(x)))
    draws = draws[(np.ptp(x[draws], axis=-1) > 0) & (np.ptp(y[draws], axis=-1) > 0)]
    low, high = np.percentile(coefficient(x[draws], y[draws]), (2.5, 97.5))
    return float(low), float(high)
