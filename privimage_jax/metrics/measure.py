"""What a measure of the synthetic set is: its number, its meaning, and when two of its numbers compare."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from privimage_jax.metrics.features import Outputs
from privimage_jax.metrics.precision_recall import precision_recall
from privimage_jax.metrics.real_features import RealFeatures


@dataclasses.dataclass(frozen=True)
class Sets:
    """What measures of fidelity are computed from: three sets as one network sees them.

    Attributes:
      train: features [K, D] of real images that the generator was trained on.
      test: features [N, D] and statistics of held-out real images.
      synthetic: features [M, D] and, if the network has them, logits of the synthetic images.
      neighbours: `config.evaluate.neighbours`.
    """

    train: np.ndarray
    test: RealFeatures
    synthetic: Outputs
    neighbours: int

    @functools.cached_property
    def precision_recall(self) -> tuple[float, float]:
        """Both at once, with fewer neighbours where a set has not that many."""
        features = self.synthetic.features
        k = min(self.neighbours, len(self.test.features) - 1, len(features) - 1)
        return precision_recall(self.test.features, features, k)


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number of `internal/evaluation.json`.

    Attributes:
      title: its name in the field.
      meaning: a sentence.
      better: "lower", "higher", or "" where neither is.
      is_share: whether it is shown as a percentage.
      needs: the tool that it depends on: "extractor", "query network" or "classifier"; "" for none.
      comparable_when: beginnings of settings that two runs must share, beside `data.`, for their numbers to compare.
      of: the number from what a network sees; None where a stage has it anyway, or the result where the network lacks
        what it takes.
      name: for a measure from elsewhere, its key in `internal/evaluation.json`.
    """

    title: str
    meaning: str
    better: str = ""
    is_share: bool = False
    needs: str = "extractor"
    comparable_when: tuple[str, ...] = ("evaluate.max_images", "evaluate.neighbours")
    of: Callable[[Sets], float | None] | None = None
    name: str = ""
