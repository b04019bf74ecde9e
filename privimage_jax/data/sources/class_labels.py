"""Classes from labels as they are stored: numbers, texts, or one column a class."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from privimage_jax.data.labels.listing import same_name
from privimage_jax.data.sources.base import MAX_CLASSES, Settings, numbered_classes, shifted_labels
from privimage_jax.errors import UserError


@dataclass(frozen=True)
class Labels:
    """The stored labels of some images.

    Attributes:
      numbers: int64 [N], as the source counts classes; with texts, indices into them.
      texts: the different texts that stand for classes; () where labels are numbers.
    """

    numbers: np.ndarray
    texts: tuple[str, ...] = ()


def of_texts(texts: Iterable[str]) -> Labels:
    """Labels from one text an image."""
    index: dict[str, int] = {}
    numbers = [index.setdefault(text, len(index)) for text in texts]
    return Labels(np.array(numbers, np.int64), tuple(index))


def of_array(array: np.ndarray, n: int, what: str) -> Labels:
    """Labels from an array: whole numbers or texts [N] or [N, 1], or [N, K] with a single 1 in each row.

    >>> of_array(np.array([[0.0, 1.0], [1.0, 0.0]]), 2, "the array y").numbers
    array([1, 0])

    Args:
      array: as stored.
      n: number of images.
      what: what messages call the array.

    Raises:
      UserError: for any other array.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape[:1] != (n,) or array.ndim > 2 or (array.ndim == 2 and array.dtype.kind not in "biuf"):
        raise UserError(f"{what} has the shape {list(array.shape)} beside {n} images; store one label an image.")
    if array.dtype.kind == "U":
        texts, numbers = np.unique(array, return_inverse=True)
        return Labels(numbers.astype(np.int64), tuple(texts.tolist()))
    if array.dtype.kind not in "biuf":
        raise UserError(f"{what} is of the type {array.dtype}; store labels as whole numbers or texts.")
    if array.ndim == 2:
        wrong = ~(np.isin(array, (0, 1)).all(axis=1) & (array.sum(axis=1) == 1))
        if wrong.any():
            raise UserError(
                f"{what} has the shape {list(array.shape)} and not a single 1 in its row {int(wrong.argmax())}; "
                "store one class an image."
            )
        return Labels(array.argmax(axis=1))
    if array.dtype.kind == "f":
        wrong = ~((np.abs(array) < 1 << 31) & (array == np.round(array)))
        if wrong.any():
            at = int(wrong.argmax())
            raise UserError(f"{what} holds {array[at]} at {at}, which is no whole number; store labels as integers.")
    elif n and (highest := int(array.max())) >= 1 << 63:
        raise UserError(f"{what} holds the label {highest}, which is no class number; number classes from 0.")
    return Labels(array.astype(np.int64))


def classes_of(
    labels: Labels, every: Sequence[Labels], own_names: Sequence[str], settings: Settings, what: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The class of each image, and the list of classes.

    Texts are names of classes: of the declared list, the source's own, or else all texts in alphabetical order. Texts
    that are all whole numbers and no names of that list are numbers.

    Args:
      labels: of the asked part.
      every: of all parts, which make up the list of classes where there is no other.
      own_names: the source's own list, or ().
      settings: with the declared list.
      what: what messages call the labels.

    Returns:
      int64 [N] and the list of classes.

    Raises:
      UserError: naming a label that is not in the list.
    """
    listed = tuple(own_names) or settings.class_names
    texts = sorted({text for part in every for text in part.texts})
    if texts and not ({same_name(text) for text in texts} & {same_name(name) for name in listed}):
        every, labels = [_as_numbers(part) for part in every], _as_numbers(labels)
    if not labels.texts:
        return _numbered(labels.numbers, every, own_names, settings, what)
    if len(texts) > MAX_CLASSES:
        raise UserError(f"{what} holds {len(texts):,} different texts, which are no class names; name another column.")
    class_names = numbered_classes(settings, None, own_names) if own_names else (settings.class_names or tuple(texts))
    index = {same_name(name): number for number, name in enumerate(listed or class_names)}
    for text in labels.texts:
        if same_name(text) not in index:
            raise UserError(
                f"{what} holds {text[:200]!r}, which is not in {settings.key}.class_names; declare or remove it."
            )
    return np.array([index[same_name(text)] for text in labels.texts], np.int64)[labels.numbers], class_names


def _numbered(
    numbers: np.ndarray, every: Sequence[Labels], own_names: Sequence[str], settings: Settings, what: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    listed = len(own_names) or len(settings.class_names) or None
    if listed is not None:
        return shifted_labels(numbers, listed, settings, what), numbered_classes(settings, None, own_names)
    whole = shifted_labels(np.concatenate([part.numbers for part in every]), None, settings, what)
    count = int(whole.max(initial=0)) + 1
    return shifted_labels(numbers, count, settings, what), numbered_classes(settings, count)


def _as_numbers(labels: Labels) -> Labels:
    """The same labels as numbers, if all texts are whole numbers."""
    if not labels.texts or not all(re.fullmatch(r"-?[0-9]{1,9}", text, re.ASCII) for text in labels.texts):
        return labels
    return Labels(np.array([int(text) for text in labels.texts], np.int64)[labels.numbers])
