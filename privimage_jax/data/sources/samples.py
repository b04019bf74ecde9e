"""What the members of one example in a shard tell: its picture, its label, its person."""

import re
from dataclasses import dataclass, field
from typing import Any

from privimage_jax.data.labels.listing import some
from privimage_jax.data.sources.base import Settings, person_by
from privimage_jax.storage import reading, tars

MAX_TEXT = 1000  # characters of a label
_KEYS = ("label", "cls")  # usual keys of a JSON object


@dataclass(frozen=True)
class Sample:
    """One example.

    Attributes:
      key: its name, up to the first dot.
      folder: in which it lies, or "".
      pictures: by the endings of their names.
      texts: contents of label files, by the endings of their names.
    """

    key: str
    folder: str
    pictures: dict[str, tars.Member] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


def picture_of(sample: Sample, settings: Settings) -> tars.Member:
    """The picture: the only one, or the one whose ending `image_key` names ("jpg", "input.png", "jpg;png").

    Raises:
      Unreadable: if there is none, or more than one.
    """
    wanted = settings.image_key.lower().split(";")
    found = [member for ending, member in sample.pictures.items() if wanted == ["image"] or ending in wanted]
    if not found:
        raise reading.Unreadable(f"holds {sample.key!r} without a picture of a known kind")
    if len(found) > 1:
        raise reading.Unreadable(
            f"holds several pictures of {sample.key!r}; set {settings.key}.image_key to one of {some(sample.pictures)}"
        )
    return found[0]


def label_of(sample: Sample, settings: Settings) -> tuple[str, str]:
    """The label as a text, and where it was found.

    `label_key` names the ending of the label files, or a key of the JSON object, in which slashes lead deeper. By
    default it is in the file .cls, under a usual key of the JSON object, or the folder is the class.

    Raises:
      Unreadable: if there is none.
    """
    key = settings.label_key
    ending = "cls" if key == "label" else key.lower()
    if ending in sample.texts:
        return _checked(_decoded(sample.texts[ending]).strip(), sample), f"the files .{ending}"
    if "json" in sample.texts:
        told = _json(sample)
        keys = [name for name in _KEYS if name in told] if key == "label" else [key]
        if len(keys) != 1:
            raise reading.Unreadable(
                f"holds {sample.key}.json with {some(map(str, told)) or 'nothing'}; name the key of the label by "
                f"{settings.key}.label_key"
            )
        return _checked(_value(told, keys[0], sample), sample), f"the key {keys[0]} of the files .json"
    if key != "label" or not sample.folder:
        raise reading.Unreadable(
            f"holds {sample.key!r} without a label, a file .cls or .json or a class folder; correct "
            f'{settings.key}.label_key, or set it to "" for a set of one class'
        )
    if "/" in sample.folder:
        raise reading.Unreadable(
            f"holds {sample.key!r} in folders within folders; unpack it and set {settings.key}.source to folder"
        )
    return _checked(sample.folder, sample), "the folders in the shards"


def person_of(sample: Sample, name: str, settings: Settings) -> str:
    """Whose picture it is: by a pattern of its own name, or a key of the JSON object; "" if no setting says.

    Raises:
      Unreadable: if it cannot be told.
    """
    kind, value = person_by(settings, "pattern", "column")
    if not kind:
        return ""
    if kind == "column":
        return _checked(_value(_json(sample), value, sample), sample)
    found = re.search(value, name.rpartition("/")[2])
    if not found or not found[1]:
        raise reading.Unreadable(f"holds {name!r}, of which {settings.key}.person={settings.person} tells no person")
    return found[1]


def _json(sample: Sample) -> dict[str, Any]:
    told = reading.parse_json(sample.texts.get("json", b"{}"))
    if not isinstance(told, dict):
        raise reading.Unreadable(f"holds {sample.key}.json, which is no object")
    return told


def _value(told: Any, key: str, sample: Sample) -> str:
    """The whole number or text under a key such as "label" or "annotation/class"."""
    for name in [key] if isinstance(told, dict) and key in told else key.split("/"):
        if not isinstance(told, dict) or name not in told:
            raise reading.Unreadable(f"holds {sample.key!r} without the key {key!r} in its .json")
        told = told[name]
    if not isinstance(told, str | int):
        raise reading.Unreadable(f"holds {sample.key}.json, whose {key!r} is no whole number or text")
    return told if isinstance(told, str) else str(int(told))


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeError:
        raise reading.Unreadable("holds a label that is not UTF-8 text") from None


def _checked(text: str, sample: Sample) -> str:
    if not 0 < len(text) <= MAX_TEXT:
        raise reading.Unreadable(f"holds {sample.key!r} with an empty or very long label")
    return text
