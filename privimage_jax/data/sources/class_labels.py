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

    With a list, the class of an image depends on its own label and the list alone, so that no image changes another's:
    a text is one of the names; a whole number counts from `first_label`, but is itself a name where all declared names
    are whole numbers. The source's own list is indexed, whatever its names. Without a list, the labels of all parts
    make it.

    Args:
      labels: of the asked part.
      every: of all parts.
      own_names: the source's own list, or ().
      settings: with the declared list.
      what: what messages call the labels.

    Returns:
      int64 [N] and the list of classes.

    Raises:
      UserError: naming a label that is not in the list.
    """
    if own_names or settings.class_names:
        class_names = numbered_classes(settings, None, own_names)
        by_value = not own_names and all(whole_number(name) is not None for name in class_names)
        return _listed(labels, tuple(own_names) or class_names, by_value, settings, what), class_names
    texts = {text for part in every for text in part.texts}
    if len(texts) > MAX_CLASSES:
        raise UserError(f"{what} holds {len(texts):,} different texts, which are no class names; name another column.")
    if any(whole_number(text) is None for text in texts):
        class_names = tuple(sorted({same_name(text) for text in texts}))
        index = {name: number for number, name in enumerate(class_names)}
        return np.array([index[same_name(text)] for text in labels.texts], np.int64)[labels.numbers], class_names
    whole = shifted_labels(np.concatenate([_numbers(part) for part in every]), None, settings, what)
    count = int(whole.max(initial=0)) + 1
    return shifted_labels(_numbers(labels), count, settings, what), numbered_classes(settings, count)


def _listed(labels: Labels, names: Sequence[str], by_value: bool, settings: Settings, what: str) -> np.ndarray:
    """The class of each image, int64 [N], by a list of names; by_value: whether whole numbers are names themselves."""
    index = {same_name(name): number for number, name in enumerate(names)}
    if not labels.texts:
        if not by_value:
            return shifted_labels(labels.numbers, len(names), settings, what)
        values, inverse = np.unique(labels.numbers, return_inverse=True)
        return _listed(Labels(inverse, tuple(map(str, values.tolist()))), names, by_value, settings, what)
    classes = np.zeros(len(labels.texts), np.int64)
    numbers: dict[int, int] = {}
    for row, text in enumerate(labels.texts):
        value = whole_number(text)
        if value is not None and (found := index.get(str(value))) is not None:
            classes[row] = found
        elif same_name(text) in index:
            classes[row] = index[same_name(text)]
        elif value is not None and not by_value:
            numbers[row] = value
        else:
            raise UserError(
                f"{what} holds {text[:200]!r}, which is not in {settings.key}.class_names; declare or remove it."
            )
    if numbers:
        rows = list(numbers)
        classes[rows] = shifted_labels(np.array(list(numbers.values()), np.int64), len(names), settings, what)
    return classes[labels.numbers]


def whole_number(text: str) -> int | None:
    """The whole number that a text is ("1", "-1", "1.0"), or None.

    >>> whole_number("1.0"), whole_number("nv"), whole_number("nan")
    (1, None, None)
    """
    if re.fullmatch(r"[+-]?[0-9]{1,9}(\.0*)?", text, re.ASCII):
        return int(text.partition(".")[0])
    return None


def _numbers(labels: Labels) -> np.ndarray:
    """Labels whose texts, if any, are whole numbers, as int64 [N]."""
    if not labels.texts:
        return labels.numbers
    return np.array([whole_number(text) for text in labels.texts], np.int64)[labels.numbers]
