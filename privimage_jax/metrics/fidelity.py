"""All measures of fidelity that one network's features give."""

import math
from collections.abc import Mapping

import numpy as np

from privimage_jax.errors import UserError, one_line
from privimage_jax.metrics.features import Outputs
from privimage_jax.metrics.measure import Measure, Sets
from privimage_jax.metrics.measures import MEASURES
from privimage_jax.metrics.real_features import RealFeatures


def measure(
    train: np.ndarray,
    test: RealFeatures,
    synthetic: Outputs,
    neighbours: int,
    name: str,
    table: Mapping[str, Measure] = MEASURES,
) -> dict[str, float]:
    """FID, Inception Score, precision, recall, FLD, KID and what else is in the table, of a synthetic set.

    FID, KID, precision and recall compare it with held-out real images; FLD also with those that the generator was
    trained on.

    >>> from privimage_jax.metrics.fid import mean_and_covariance
    >>> train, held_out, fake = np.random.default_rng(0).standard_normal((3, 50, 4))
    >>> test = RealFeatures(held_out, *mean_and_covariance(held_out))
    >>> spread = Measure("Spread", "How wide.", of=lambda sets: np.ptp(sets.synthetic.features))
    >>> measured = measure(train, test, Outputs(fake), 4, "a network", {"recall": MEASURES["recall"], "spread": spread})
    >>> {name: round(float(number), 2) for name, number in measured.items()}
    {'recall': 0.94, 'spread': 6.02}

    Args:
      train: features [K,D] of real images that the generator was trained on.
      test: features and statistics of held-out real images.
      synthetic: features and, if the network has them, logits of the synthetic images.
      neighbours: k of precision and recall; fewer where a set has not that many.
      name: of the network, for errors.
      table: the measures by their names; those without an `of` are left out.

    Returns:
      name of the measure -> value. There is no `inception_score` where the network has no logits.

    Raises:
      UserError: if a set is too small, its features so large that a measure cannot be computed, or a measure from
        elsewhere fails.
    """
    sets = Sets(train, test, synthetic, neighbours)
    numbers = {key: _number(key, each, sets) for key, each in table.items()}
    results = {key: value for key, value in numbers.items() if value is not None}
    if wrong := [key for key, value in results.items() if not math.isfinite(value)]:
        raise UserError(
            f"config.evaluate.extractors: {name} gives features of up to {np.abs(synthetic.features).max():.1e}, for "
            f"which {', '.join(wrong)} cannot be computed; scale them, or choose another."
        )
    return results


def _number(key: str, each: Measure, sets: Sets) -> float | None:
    if each.of is None:
        return None
    if not each.name:
        return each.of(sets)
    try:
        value = each.of(sets)
        number = None if value is None else float(value)
    except Exception as error:  # of a measure from elsewhere
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(f"config.evaluate.measures: {key} fails ({reason}); correct it.") from error
    if number is not None and not math.isfinite(number):
        raise UserError(f"config.evaluate.measures: {key} gives {number}; let it give a finite number, or None.")
    return number
