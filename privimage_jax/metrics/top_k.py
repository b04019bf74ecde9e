"""How often a classifier is right, and how often the right class is among its five strongest."""

import dataclasses

import numpy as np

FEW = 5  # classes; with no more, the right one is always among the five strongest


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """What was found of a classifier.

    Attributes:
      images: that it was tried on.
      top1: share of them whose class has the largest logit, in [0, 1].
      top5: share of them whose class is among the five largest; None where there are no more classes than that.
    """

    images: int
    top1: float
    top5: float | None = None

    def __str__(self) -> str:
        five = (
            "" if self.top5 is None else f", and has the right class among its five strongest on {100 * self.top5:.1f}%"
        )
        return f"right on {100 * self.top1:.1f}% of {self.images:,} held-out public images{five}"


def measure(logits: np.ndarray, labels: np.ndarray) -> Accuracy:
    """The accuracy of logits; of equal ones the first is the stronger, and a NaN is weaker than all.

    >>> logits = np.array([[0, 3, 2, 1, 0, 0], [9, 8, 7, 6, 5, 4]], np.float32)
    >>> measure(logits, np.array([2, 0]))
    Accuracy(images=2, top1=0.5, top5=1.0)

    Args:
      logits: float [N, classes], N > 0.
      labels: int [N], each below the number of classes.
    """
    logits = np.nan_to_num(logits, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = np.arange(logits.shape[1]) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & before)).sum(axis=1)
    top5 = float((rank < FEW).mean()) if logits.shape[1] > FEW else None
    return Accuracy(len(labels), float((rank == 0).mean()), top5)
