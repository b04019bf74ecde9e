"""`load`: from a config section to a `Dataset`, whatever the source."""

import hashlib
import inspect
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from privimage_jax.configs.base import data_section
from privimage_jax.data import cache
from privimage_jax.data.dataset import Dataset, Facts
from privimage_jax.data.decoding import decode, failures
from privimage_jax.data.sources.base import MAX_EXAMPLES, Settings, Source, check_people
from privimage_jax.data.sources.specs import SOURCES, spec_of
from privimage_jax.errors import UserError
from privimage_jax.settings import units
from privimage_jax.storage import fingerprints, memory

PARTS = ("train", "test")
MAX_NAME = 200  # characters of a class name
_OBEYED = {"person", "first_label", "labels", "links", "intensity", "image_key", "label_key"}  # or refused
_FORMAT = 3  # raise it when the same settings give other pixels, so that old caches are not used


def load(
    section: ConfigDict | Mapping[str, Any],
    part: str,
    image_size: int,
    channels: int,
    cache_dir: Path | str | None,
    on_progress: Callable[[int, int], None] | None = None,
    key: str = "data",
    most: int = 0,
    unit: str = "image",
) -> Dataset:
    """Loads the training or test part of a labelled image set.

    The same call on the same files gives the same set: which examples are held out, and which are kept under
    `max_examples`, is decided by a fixed permutation of (seed, number of examples), never by labels or pixels. Where a
    record is a person, people are permuted: all images of one are in one part, and `max_examples` counts people.

    >>> letters = load({"source": "glyphs", "characters": "AB", "per_class": 5}, "train", 8, 1, cache_dir=None)
    >>> letters.images.shape, letters.class_names, letters.labels.tolist()
    ((8, 8, 8, 1), ('A', 'B'), [0, 0, 0, 0, 1, 1, 1, 1])

    Args:
      section: `config.data` or `config.public` (keys: see `configs/base.py`), or a dict of the same keys.
      part: "train" or "test"; with `validation_fraction` > 0, "test" is that share of the training part.
      image_size: side of the square images, in pixels.
      channels: 1 = grey, 3 = RGB.
      cache_dir: where decoded images are kept (holds sensitive pixels: made with mode 0700); None = in memory only.
      on_progress: called as on_progress(examples done, examples in all) while decoding.
      key: the section's name in the config, for error messages.
      most: only so many of the part's examples, a draw that is the same each time; 0 = all.
      unit: what one record is, "image" or "person".

    Raises:
      UserError: anything wrong with the settings, the files or the disk.
    """
    settings = Settings.from_section(section, f"config.{key}")
    if part not in PARTS:
        raise ValueError(f"part is {part!r}, not one of {PARTS}")
    if image_size < 1:
        raise UserError(f"config.data.image_size is {image_size}; give 1 or more pixels.")
    if channels not in (1, 3):
        raise UserError(f"config.data.channels is {channels}; it accepts 1 (grey) or 3 (RGB).")
    # Validation examples come out of the training part, so the test part is then never opened.
    spec = spec_of(settings.source, f"{settings.key}.source")
    _check_unread(settings)
    with failures(settings):
        module = spec.load(f"{settings.key}.source={settings.source}")
        source = module.open_source(settings, "train" if settings.validation_fraction else part, image_size)
        stored = _check_source(source, settings)
    owners = _owners(source, settings) if units.UNITS[unit].groups_images else None
    indices = choose(settings, source.n, source.divided, part, most, owners)
    if not len(indices) and owners is not None and source.n and not owners.any():
        raise UserError(
            f"all {source.n:,} images of {settings.key}.source={settings.source} are of 1 person; check "
            f"{settings.key}.person={settings.person}."
        )
    if not len(indices):
        raise UserError(
            f"{settings.key}.source={settings.source} leaves no examples for the {part} part ({source.n} in all); "
            f"add images or change {settings.key}.test_fraction or {settings.key}.validation_fraction."
        )
    shape = (image_size, image_size, channels)

    def make() -> Iterator[cache.Decoded]:
        return decode(source, indices, settings, shape, on_progress)

    if cache_dir is not None and settings.cache:
        asked = {
            name: value for name, value in vars(settings).items() if name != "accept" and (name != "kwargs" or value)
        }
        identity = [_FORMAT, asked, part, shape, source.n, source.class_names, stored]
        identity += [most] if most else []
        identity += [] if owners is None else [hashlib.sha256(owners.astype("<i4").tobytes()).hexdigest()]
        kind = settings.source
        if kind not in SOURCES:
            identity.append(hashlib.sha256(Path(inspect.getfile(module)).read_bytes()).hexdigest())
            kind = "source"
        folder = Path(cache_dir) / f"{kind}-{part}-{fingerprints.fingerprint(identity)[:16]}"
        decoded = cache.load_or_make(folder, len(indices), shape, len(source.class_names), make)
    else:
        try:
            decoded = cache.in_memory(len(indices), shape, make())
        except MemoryError as error:
            what = f"{settings.key}: the {len(indices):,} decoded images of {settings.source}={source.name}"
            raise memory.shortage(what, needed=len(indices) * math.prod(shape)) from error
    files = source.files

    def called(number: int) -> str:
        return str(indices[number]) if files is None else files[indices[number]]

    names, people = (), None
    if source.people is not None:
        named = source.people if owners is None else ids_of(source.people)
        found, numbers = np.unique(named[indices], return_inverse=True)
        names, people = () if owners is None else tuple(found.tolist()), numbers.astype(np.int32)
    facts = Facts(
        settings.source,
        source.labels_from,
        _parts(source, settings, owners),
        decoded.sizes,
        decoded.depths,
        source.notes,
        called,
        names,
    )
    return Dataset(decoded.images, decoded.labels, source.class_names, source.name, people, facts, unit)


def check_path(section: ConfigDict | Mapping[str, Any], key: str = "data") -> None:
    """Checks that the path that a section names is there, where a source of the package reads one.

    Args:
      section: `config.data` or `config.public`.
      key: the section's name in the config, for error messages.

    Raises:
      UserError: naming the setting.
    """
    settings = Settings.from_section(section, f"config.{key}")
    spec = SOURCES.get(settings.source)
    if settings.path and spec is not None and "path" in spec.needs:
        settings.existing_path(f"the place of {spec.what}")


def _parts(source: Source, settings: Settings, owners: np.ndarray | None) -> dict[str, int]:
    """Number of examples of each part, by the source's own names or else as they are divided here."""
    if source.parts or (source.divided and not settings.validation_fraction):
        return dict(source.parts)
    return {part: len(choose(settings, source.n, source.divided, part, owners=owners)) for part in PARTS}


def _owners(source: Source, settings: Settings) -> np.ndarray:
    """Whose each example is, int32 [n]: the place of the person's id (`ids_of`) in the order of ids.

    Raises:
      UserError: where it is not told of every example.
    """
    if source.people is None:
        raise units.untold(settings.source, SOURCES)
    names = np.asarray(source.people)
    if names.shape != (source.n,) or names.dtype.kind != "U":
        raise UserError(
            f"{settings.key}.source={settings.source} has people {names.dtype} {list(names.shape)}; let it name the "
            f"person of each of its {source.n} examples by a text."
        )
    names = ids_of(names)
    check_people(names, source.files, settings)
    return np.unique(names, return_inverse=True)[1].astype(np.int32)


def ids_of(names: np.ndarray) -> np.ndarray:
    """Names of people without the space around them and in one form of Unicode (NFC): what is left is the id.

    >>> ids_of(np.array(["eva ", "Eva"])).tolist()
    ['eva', 'Eva']
    """
    found, numbers = np.unique(names, return_inverse=True)
    return np.array([unicodedata.normalize("NFC", name).strip() for name in found.tolist()], dtype=str)[numbers]


def _check_unread(settings: Settings) -> None:
    """Refuses settings that say what the images are, where the source would pass them over.

    One from elsewhere may read any.
    """
    if settings.source not in SOURCES:
        return
    for name in sorted(_OBEYED - set(SOURCES[settings.source].reads)):
        value, default = getattr(settings, name), data_section()[name]
        if value != default:
            readers = ", ".join(kind for kind, spec in SOURCES.items() if name in spec.reads)
            raise UserError(
                f"{settings.key}.{name}={value!r} means nothing to source={settings.source}, only to {readers}; "
                f"leave it at {default!r}."
            )


def _check_source(source: Source, settings: Settings) -> str:
    """Refuses what no honest set holds: names that would disturb terminals and files, and numbers that fill memory.

    Returns the digest of the source's fingerprint.
    """
    if not isinstance(source, Source):
        raise UserError(
            f"{settings.key}.source={settings.source} opens no privimage_jax.data.sources.base.Source; return one."
        )
    if type(source.n) is not int or source.n < 0:
        raise UserError(f"{settings.key}.source={settings.source} has n={source.n!r}; let n be its number of examples.")
    if not source.class_names:
        raise UserError(f"{settings.key}.source={settings.source} has no class_names; list at least one.")
    stored = fingerprints.fingerprint(source.fingerprint)  # fails here, not after all is decoded, if it is no JSON
    if source.n > MAX_EXAMPLES:
        raise UserError(
            f"{settings.key}.source={settings.source} holds {source.n:,} examples; a set may have {MAX_EXAMPLES:,}."
        )
    for name in source.class_names:
        if not name.isprintable() or not 0 < len(name) <= MAX_NAME:
            raise UserError(
                f"{settings.key}: the class name {name[:MAX_NAME]!r} is empty, has characters that cannot be printed, "
                f"or has more than {MAX_NAME}; rename the class or declare {settings.key}.class_names."
            )
    return stored


def choose(
    settings: Settings, n: int, divided: bool, part: str, most: int = 0, owners: np.ndarray | None = None
) -> np.ndarray:
    """Which of a source's n examples belong to `part`, or some `most` of them: sorted int64 indices.

    A fixed permutation of 0..n-1 is cut into test, validation and training examples, in this order. Its generator is
    NumPy's frozen one, so the division stays the same for ever.

    With `owners`, the person int32 [n] of each example, people are permuted, cut and counted, and a part has all
    examples of its people. Who is in which part then depends on the number of people alone.
    """
    if owners is not None:
        chosen = choose(settings, int(owners.max(initial=-1)) + 1, divided, part, most)
        return np.flatnonzero(np.isin(owners, chosen))
    order = np.random.RandomState(settings.seed).permutation(n)
    held_out = 0 if divided else _share(settings.test_fraction, n)
    validation = _share(settings.validation_fraction, n - held_out)
    if part == "test" and settings.validation_fraction:
        chosen = order[held_out : held_out + validation]
    elif part == "test":
        chosen = order if divided else order[:held_out]
    else:
        chosen = order[held_out + validation :][: settings.max_examples or None]
    return np.sort(chosen[: most or None])


def _share(fraction: float, n: int) -> int:
    return math.ceil(round(fraction * n, 6))  # rounded first: 0.1 * 30 is 3.0000000000000004
