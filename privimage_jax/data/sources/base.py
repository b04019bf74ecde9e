"""What a source of labelled images is, and the settings that pick one."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from privimage_jax.configs.base import data_section
from privimage_jax.data.pictures import Picture
from privimage_jax.data.sources.specs import RULES
from privimage_jax.errors import UserError
from privimage_jax.settings.rules import check_type

MAX_EXAMPLES = 1 << 26  # of a set
_END = 1 << 20  # bytes of an end of a file
MAX_CLASSES = 1 << 16  # that files alone may announce; a larger number is no class number


@dataclass(frozen=True)
class Settings:
    """The section `config.data` or `config.public` (see `configs/base.py` for each key) as plain checked values."""

    source: str
    name: str
    data_dir: str
    path: str
    split: str
    test_split: str
    test_fraction: float
    validation_fraction: float
    image_key: str
    label_key: str
    labels: str
    first_label: int
    person: str
    links: str
    intensity: str
    accept: tuple[str, ...]
    class_names: tuple[str, ...]
    crop: int
    max_examples: int
    cache: bool
    seed: int
    characters: str
    per_class: int
    style: str
    kwargs: dict[str, Any]
    key: str  # what error messages call the section

    @classmethod
    def from_section(cls, section: ConfigDict | Mapping[str, Any], key: str = "config.data") -> "Settings":
        """Reads a ConfigDict or dict; missing keys take the defaults of `configs/base.py`, others are left alone.

        Raises:
          UserError: naming a value that is not accepted.
        """
        defaults = data_section()
        names = [name for name in cls.__dataclass_fields__ if name != "key"]
        values = {name: section[name] if name in section else defaults[name] for name in names}
        for name in names:
            if name != "kwargs":
                check_type(f"{key}.{name}", values[name], defaults[name])
        for name in values.keys() & RULES.keys():
            accepts, accepted = RULES[name]
            if not accepts(values[name]):
                raise UserError(f"{key}.{name}={values[name]!r} is not accepted; give {accepted}.")
        for name in ("class_names", "accept"):
            values[name] = tuple(values[name])
        values["kwargs"] = ConfigDict(values["kwargs"]).to_dict()
        return cls(**values, key=key)

    def existing_path(self, what: str) -> Path:
        """`path` as a Path that exists; `what` says in the error message what it should be."""
        if not self.path:
            raise UserError(f"{self.key}.path is empty; set it to {what}.")
        path = Path(self.path)
        try:
            path = path.expanduser()
            path.stat()
        except RuntimeError:  # there is no such user
            raise UserError(f"{self.key}.path={path} names the home of a user who is not known.") from None
        except FileNotFoundError:
            raise UserError(f"{self.key}.path={path} does not exist; set it to {what}.") from None
        except ValueError:
            raise UserError(f"{self.key}.path={self.path!r} is no path; set it to {what}.") from None
        except OSError as error:
            raise UserError(
                f"{self.key}.path={path} cannot be read ({error.strerror}); check its permissions."
            ) from None
        return path


Example = tuple[Picture | Image.Image | np.ndarray, int]


@dataclass(frozen=True)
class Source:
    """An opened source: examples 0..n-1, read in any order by several threads at once.

    >>> def read(indices):
    ...     for index in indices:
    ...         yield np.full((4, 4), index, np.uint8), int(index) % 2
    >>> greys = Source("greys", ("even", "odd"), n=6, divided=False, read=read, fingerprint=6)
    >>> [(int(image.max()), greys.class_names[label]) for image, label in greys.read(np.array([2, 5]))]
    [(2, 'even'), (5, 'odd')]

    Attributes:
      name: the set's name.
      class_names: the list of classes that labels index.
      n: number of examples; of the asked part if `divided`, else of all parts together.
      divided: whether the source itself holds training and test examples apart.
      read: from indices [B] to B pairs (image, label), in order; an image is what `transforms.decode_image` returns, a
        PIL image, or numbers [H, W] or [H, W, C]. Pictures are decoded one by one, as they are asked for: an
        `UnreadableImage` is then that of the next index, and the others are asked for again.
      fingerprint: JSON-able value that changes when the stored examples do (names, sizes, times of the files).
      labels_from: where the labels were found, as the user is told: "class folders", "the column dx of labels.csv".
      parts: number of examples of each part that the source itself holds apart, by the part's name.
      people: text [n], whose image each example is; None where that is not known, and each is its own.
      notes: sentences for the operator: what was found and passed over, such as a part that is not read.
      files: the file of each example, as the operator is told which; None where they lie in a few large ones.
    """

    name: str
    class_names: tuple[str, ...]
    n: int
    divided: bool
    read: Callable[[np.ndarray], Iterable[Example]]
    fingerprint: Any
    labels_from: str = ""
    parts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    people: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    files: Sequence[str] | None = None


def numbered_classes(settings: Settings, count: int | None, names: Sequence[str] = ()) -> tuple[str, ...]:
    """The class list of a source whose labels are integers.

    A declared list names the integers in their order, so it must be as long as the source's own list (`names` or
    `count`, where it has one) and must not hold the source's own names in another order.

    >>> numbered_classes(Settings.from_section({}), 2)
    ('0', '1')
    >>> numbered_classes(Settings.from_section({"class_names": ("cat", "dog")}), 2)
    ('cat', 'dog')

    Raises:
      UserError: if the declared list is another than the source's, or there is none.
    """
    declared = settings.class_names
    count = len(names) or count
    if not declared:
        if count is None:
            raise UserError(f"{settings.key}.class_names is empty and the source has no list of classes; declare one.")
        return tuple(names) or tuple(str(settings.first_label + i) for i in range(count))
    if count is not None and len(declared) != count:
        raise UserError(
            f"{settings.key}.class_names declares {len(declared)} classes and the source has {count}; "
            "list one name for each class."
        )
    if names and set(declared) & set(names) and tuple(declared) != tuple(names):
        raise UserError(
            f"{settings.key}.class_names holds the source's own names in another order or only in part; "
            f"list them as {', '.join(list(names)[:10])}{', …' if len(names) > 10 else ''}, or leave it empty."
        )
    return declared


def shifted_labels(labels: np.ndarray, n_classes: int | None, settings: Settings, where: str) -> np.ndarray:
    """Labels counted from 0, from those that a source counts from `first_label`.

    Where the set has a list of classes, some of them may have no image. Where it has none, the labels are the list:
    give those of all parts, and a list that would begin with an empty class is refused.

    >>> ratings = Settings.from_section({"first_label": 1})
    >>> shifted_labels(np.array([1, 3, 2]), None, ratings, "ratings.csv")
    array([0, 2, 1])

    Args:
      labels: int [N], as the source counts them.
      n_classes: number of classes of the declared list or the source's own; None if there is neither.
      settings: which set it is.
      where: what error messages call the place of the labels.

    Returns:
      int64 [N], each below `n_classes`.

    Raises:
      UserError: naming a label outside the classes, and `first_label` where another one makes all of them fit.
    """
    first, setting = settings.first_label, f"{settings.key}.first_label"
    if not len(labels):
        return np.zeros(0, np.int64)
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < first:
        least = f"{lowest} at {int(labels.argmin())}"
        if first and lowest >= 0:
            raise UserError(f"{where} holds the label {least}, below {setting}={first}; set it to {lowest}.")
        raise UserError(f"{where} holds the negative label {least}; number classes from {first}.")
    if highest - first >= (n_classes or MAX_CLASSES):
        found = f"{where} holds the label {highest} at {int(labels.argmax())}"
        if n_classes is None:
            raise UserError(f"{found}, which is no class number; number classes from {first}.")
        if highest - first == n_classes and lowest > first:
            raise UserError(
                f"{where} numbers its {n_classes} classes from {first + 1} to {highest}; set {setting}={first + 1}."
            )
        raise UserError(
            f"{found}, outside the {n_classes} classes ({first} to {first + n_classes - 1}); "
            f"repair it or extend {settings.key}.class_names."
        )
    if n_classes is None and lowest > first:
        raise UserError(
            f"{where} holds labels from {lowest} to {highest} and none of {first}; set {setting}={lowest}, "
            f"or declare {settings.key}.class_names if lower classes have no images."
        )
    return labels.astype(np.int64) - first


def person_by(settings: Settings, *kinds: str) -> tuple[str, str]:
    """Kind and value of the setting `person`, or two empty texts: a kind that the source does not know is refused.

    >>> person_by(Settings.from_section({"person": "array:patient"}), "array")
    ('array', 'patient')

    Args:
      settings: which set it is.
      kinds: those that the source knows.

    Raises:
      UserError: for another kind.
    """
    kind, _, value = settings.person.partition(":")
    if kind and kind not in kinds:
        ways = " or ".join(f"{kind}:…" for kind in kinds)
        raise UserError(
            f"{settings.key}.person={settings.person} is nothing that source={settings.source} has; give {ways}, or "
            "leave it empty."
        )
    return kind, value


def check_people(people: Sequence[str] | np.ndarray, files: Sequence[str] | None, settings: Settings) -> None:
    """Refuses images that are nobody's.

    Args:
      people: the name of the person of each image.
      files: what the images are called; None where they have numbers alone.
      settings: which set it is.

    Raises:
      UserError: naming the first of them.
    """
    if lacking := [index for index, person in enumerate(people) if not person.strip()]:
        first = lacking[0] if files is None else files[lacking[0]]
        raise UserError(
            f"{settings.key}.person={settings.person} tells no person of {len(lacking):,} of {len(people):,} images, "
            f"such as {first}; give each image a person, its own name if no other is known."
        )


def stamp(path: Path) -> list:
    """Name, size, modification time and SHA-256 of a file, for a fingerprint.

    Of a file of more than twice `_END` bytes the digest is of its two ends. There archives have the checksums of all
    that they hold, so that other images of the same size and time are noticed in these too.
    """
    status, digest = path.stat(), hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(_END))
        file.seek(max(_END, status.st_size - _END))
        digest.update(file.read(_END))
    return [path.name, status.st_size, status.st_mtime_ns, digest.hexdigest()]
