"""Inception Score: how sure a classifier is of each image, and how varied it finds them (Salimans et al. 2016,
arXiv:1606.03498, section 4)."""

import numpy as np
from scipy.special import log_softmax

from privimage_jax.errors import UserError

PARTS = 10


def of_logits(logits: np.ndarray | None) -> float | None:
    """The score in `PARTS` parts, or one for each image where there are fewer; None without logits.

    >>> of_logits(np.zeros((20, 4)))  # of a network that finds all images alike
    1.0
    """
    return None if logits is None else inception_score(logits, min(PARTS, len(logits)))


def inception_score(logits: np.ndarray, splits: int = 10, seed: int = 0) -> float:
    """`exp(E_x KL(p(y|x) || p(y)))`, the mean over equal parts of the set in random order.

    The order is drawn anew because sets often come sorted by class, and a part of one class would score 1. The
    published numbers take 50,000 images in 10 parts; the score grows with the size of a part.

    >>> round(inception_score(100 * np.eye(4), splits=1), 6)  # four images, of four classes without a doubt
    4.0

    Args:
      logits: `[N, classes]` of the classifier, any float type. The usual network is `models.inception`.
      splits: parts; no more than N.
      seed: of the order.

    Returns:
      A number from 1 to the number of classes, computed in float64.

    Raises:
      UserError: if there are fewer images than parts.
      ValueError: if the logits are not `[N, classes]` or not finite.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise ValueError("logits must be [N, classes] and finite")
    if len(logits) < splits:
        raise UserError(f"the Inception Score in {splits} parts needs at least {splits} images, not {len(logits)}.")
    logits = logits[np.random.default_rng(seed).permutation(len(logits))]
    return float(np.mean([_score(part) for part in np.array_split(logits, splits)]))


def _score(logits: np.ndarray) -> float:
    log_p = log_softmax(logits, axis=1)
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    # A class that is never predicted has p = 0 and adds nothing.
    log_marginal = np.log(np.where(marginal > 0, marginal, 1))
    return float(np.exp(np.mean(np.sum(p * (log_p - log_marginal), axis=1))))
