"""What the networks that measure fidelity see of the classes of real images. Not private: it stays in `internal/`.

A network that learnt letters may find all photographs alike. An FID by it is then small, whatever the images show.
"""

import numpy as np

WORTH = 0.1  # that a classifier must gain over the commonest class: else it tells nothing of the network either


def commonest_share(labels: np.ndarray) -> float:
    """Accuracy of whoever always answers the commonest of these labels.

    >>> commonest_share(np.array([2, 0, 2, 1]))
    0.5
    """
    return float(np.bincount(labels).max() / len(labels))


def nearest_class(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Accuracy on test images of the nearest class mean among a network's features.

    >>> train, labels = np.array([[0.0], [2.0], [8.0]]), np.array([0, 0, 5])
    >>> nearest_class(train, labels, np.array([[1.0], [7.0], [6.0], [2.0]]), np.array([0, 5, 0, 0]))
    0.75

    Args:
      train: features [K, D] of real training images.
      train_labels: their classes int [K].
      test: features [N, D] of held-out real images.
      test_labels: their classes int [N].
    """
    classes = np.unique(train_labels)
    means = np.stack([train[train_labels == one].mean(axis=0, dtype=np.float64) for one in classes])
    distances = (means**2).sum(axis=1) - 2 * (test.astype(np.float64) @ means.T)  # [N, C], up to |test|²
    return float(np.mean(classes[distances.argmin(axis=1)] == test_labels))


def warning(name: str, seen: float, learnt: float, commonest: float) -> str:
    """A sentence where a network sees less than half of what a classifier learns; "" where it sees more.

    Args:
      name: of the network.
      seen: `nearest_class` by its features.
      learnt: accuracy of the classifier that learnt from the same real images.
      commonest: `commonest_share` of the held-out labels.
    """
    if learnt < commonest + WORTH or seen >= (learnt + commonest) / 2:
        return ""
    return (
        f"the features of {name} tell the real classes apart with an accuracy of {seen:.1%}, where a classifier that "
        f"learns from the images reaches {learnt:.1%} and always answering the commonest class {commonest:.1%}: "
        f"{name} knows another kind of image, and what is measured by it flatters; give another network in "
        "config.evaluate.extractors."
    )
