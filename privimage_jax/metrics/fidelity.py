"""All measures of fidelity that one network's features give."""

import math

import numpy as np

from privimage_jax.errors import UserError
from privimage_jax.metrics.features import Outputs
from privimage_jax.metrics.fid import frechet_distance, mean_and_covariance
from privimage_jax.metrics.fld import fld
from privimage_jax.metrics.inception_score import inception_score
from privimage_jax.metrics.kid import kid
from privimage_jax.metrics.precision_recall import precision_recall
from privimage_jax.metrics.real_features import RealFeatures

PARTS = 10  # of the Inception Score


def measure(train: np.ndarray, test: RealFeatures, synthetic: Outputs, neighbours: int, name: str) -> dict[str, float]:
    """FID, Inception Score, precision, recall, FLD and KID of a synthetic set.

    FID, KID, precision and recall compare it with held-out real images; FLD also with those that the generator was
    trained on.

    Args:
      train: features [K,D] of real images that the generator was trained on.
      test: features and statistics of held-out real images.
      synthetic: features and, if the network has them, logits of the synthetic images.
      neighbours: k of precision and recall; fewer where a set has not that many.
      name: of the network, for errors.

    Returns:
      name of the measure -> value. There is no `inception_score` where the network has no logits.

    Raises:
      UserError: if a set is too small, or its features so large that a measure cannot be computed.
    """
    features = synthetic.features
    results = {"fid": frechet_distance(test.mean, test.covariance, *mean_and_covariance(features))}
    if synthetic.logits is not None:
        results["inception_score"] = inception_score(synthetic.logits, min(PARTS, len(features)))
    k = min(neighbours, len(test.features) - 1, len(features) - 1)
    results["precision"], results["recall"] = precision_recall(test.features, features, k)
    results["fld"] = fld(train, test.features, features)
    results["kid"] = kid(test.features, features)
    if wrong := [measured for measured, value in results.items() if not math.isfinite(value)]:
        raise UserError(
            f"config.evaluate.extractors: {name} gives features of up to {np.abs(features).max():.1e}, for which "
            f"{', '.join(wrong)} cannot be computed; scale them, or choose another."
        )
    return results
