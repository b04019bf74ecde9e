"""The kinds of sources, one row each: what a config and its checks must know before one is opened.

Importing this loads none of them.
"""

import dataclasses
import math
import re
from types import ModuleType

from privimage_jax.data.inspection.codes import ACCEPTABLE
from privimage_jax.settings import import_strings
from privimage_jax.settings.rules import AT_LEAST_0, DECAY, POSITIVE, SEED, Rule, one_of


@dataclasses.dataclass(frozen=True)
class Spec:
    """A kind of source.

    Attributes:
      module: that holds `open_source(settings, part, image_size) -> base.Source`.
      what: it reads, in a few words.
      reads: the settings that only some kinds read, and that this one does.
      needs: settings of which one must be given.
      declares_classes: whether the source has a public list of its classes. Else a sensitive set must declare them, as
        the list must not come from the data.
      built_in: whether its images come with the program or a library of it: nobody's sensitive ones.
    """

    module: str
    what: str
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    declares_classes: bool = True
    built_in: bool = False

    def load(self, key: str = "config.data.source") -> ModuleType:
        """The source's module; `key` is what names this record, for errors.

        Raises:
          UserError: if it cannot be imported.
        """
        return import_strings.load_module(self.module, f"{key}: the module of this Spec")


_HERE, _PARTS, _ANY = "privimage_jax.data.sources", ("split", "test_split"), ("first_label", "person", "intensity")
SOURCES: dict[str, Spec] = {
    "tfds": Spec(
        f"{_HERE}.tfds",
        "a prepared TFDS set",
        ("name", *_PARTS, *_ANY, "image_key", "label_key"),
        ("name", "path"),
    ),
    "folder": Spec(
        f"{_HERE}.folder",
        "a folder of pictures",
        (*_PARTS, *_ANY, "labels", "links"),
        ("path",),
        declares_classes=False,
    ),
    "zip": Spec(f"{_HERE}.zip", "a zip of pictures", (*_PARTS, *_ANY, "labels"), ("path",), declares_classes=False),
    "npz": Spec(
        f"{_HERE}.npz", "arrays", (*_PARTS, *_ANY, "image_key", "label_key"), ("path",), declares_classes=False
    ),
    "idx": Spec(
        f"{_HERE}.idx",
        "MNIST's own files",
        ("name", *_PARTS, "first_label", "label_key", "intensity", "links"),
        ("path",),
        declares_classes=False,
    ),
    "parquet": Spec(
        f"{_HERE}.parquet",
        "tables with a column of pictures",
        (*_PARTS, *_ANY, "image_key", "label_key", "links"),
        ("path",),
        declares_classes=False,
    ),
    "webdataset": Spec(
        f"{_HERE}.webdataset",
        "tar files of pictures",
        (*_PARTS, *_ANY, "image_key", "label_key", "links"),
        ("path",),
        declares_classes=False,
    ),
    "cifar": Spec(f"{_HERE}.cifar", "CIFAR's own files", ("label_key", "intensity", "links"), ("path",)),
    "digits": Spec(f"{_HERE}.digits", "scikit-learn's digits", built_in=True),
    "glyphs": Spec(f"{_HERE}.glyphs", "drawn characters", ("characters", "per_class", "style"), built_in=True),
}

_LABELS = re.compile(r"auto|folders|json|none|table:[^:]+:[^:]*:[^:]+")
_PERSON = re.compile(r"(column|array|feature):.+|level:[1-9][0-9]?|pattern:.+", re.DOTALL)


def _is_intensity(text: str) -> bool:
    """Whether the text is full, per_image or LOW:HIGH."""
    if text in ("full", "per_image"):
        return True
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        return False
    return math.isfinite(high - low) and low < high


def _is_person(text: str) -> bool:
    """Whether the text says where the person of an image is found; a pattern has one group."""
    kind, _, value = text.partition(":")
    try:
        return not text or bool(_PERSON.fullmatch(text)) and (kind != "pattern" or re.compile(value).groups == 1)
    except re.error:
        return False


RULES: dict[str, Rule] = {  # of the sections config.data and config.public
    "source": (
        lambda v: isinstance(v, str) and (v in SOURCES or import_strings.is_one(v)),
        f"one of {', '.join(SOURCES)}, or package.module:NAME of a Spec",
    ),
    "test_fraction": DECAY,
    "validation_fraction": DECAY,
    "crop": AT_LEAST_0,
    "max_examples": AT_LEAST_0,
    "seed": SEED,
    "per_class": POSITIVE,
    "style": one_of("handwriting", "print"),
    "residency": one_of("auto", "replicated", "sharded"),
    "labels": (
        lambda v: bool(_LABELS.fullmatch(v)),
        "auto, folders, json, none or table:FILE:FILE_COLUMN:CLASS_COLUMN",
    ),
    "first_label": AT_LEAST_0,
    "person": (_is_person, '"", column:NAME, array:NAME, feature:NAME, level:N or pattern:REGEX with one group'),
    "intensity": (_is_intensity, "full, per_image or LOW:HIGH, such as 0:4095"),
    "accept": (lambda v: set(v) <= set(ACCEPTABLE), f"a list of {', '.join(ACCEPTABLE)}, or ()"),
    "class_names": (
        lambda v: all(isinstance(name, str) for name in v) and len(set(v)) == len(v),
        "a list of distinct names, or ()",
    ),
}


def spec_of(name: str, key: str) -> Spec:
    """The kind of source that `config.data.source` names.

    Args:
      name: of `SOURCES`, or "package.module:NAME" of a `Spec` from elsewhere.
      key: the setting, for errors.

    Raises:
      UserError: if it cannot be loaded or is no `Spec`.
    """
    return SOURCES[name] if name in SOURCES else import_strings.load_record(name, key, Spec)
