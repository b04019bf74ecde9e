"""`privimage export`: the synthetic set of a finished run in the formats that other programs read, with a datasheet.

An export is post-processing of `release/` and of public settings. It is refused unless the ledger verifies, and says
NOT PRIVATE if the ledger does. The same release under the same name gives the same bytes: no clock time is written, and
of the path nothing but a file's own name.
"""

import dataclasses
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import privimage_jax
from privimage_jax.errors import UserError
from privimage_jax.privacy.ledger import total_epsilon
from privimage_jax.privacy.rounding import plain_up
from privimage_jax.privacy.verification import verify, verify_artefacts
from privimage_jax.run.mechanism import open_ledger
from privimage_jax.run.stage import named
from privimage_jax.settings import units
from privimage_jax.stages import sample
from privimage_jax.storage import reading
from privimage_jax.storage.archives import Arrays
from privimage_jax.storage.workdir import Workdir, atomic_dir, atomic_write_bytes, remove
from privimage_jax.training.writers import encode_png

DATASHEET = "README.md"
SPLIT = "train"  # the only one of the TFDS set
_SHARD = f"synthetic-{SPLIT}.array_record-00000-of-00001"
_MADE_BY = ("pretrain", "finetune", "sample")  # what a run always does
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip entry can have, in place of a clock's


@dataclasses.dataclass(frozen=True)
class Release:
    """What is exported, all of it public.

    Attributes:
      images: of the synthetic set, uint8 [N, H, W, C].
      labels: int32 [N].
      class_names: the declared classes.
      npz: the content of its file.
      ledger: the lines.
      ledger_digest: SHA-256 of the ledger file.
      settings: of the run, without paths, and with the sampler's setting that a mechanism chose.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    npz: bytes
    ledger: list[dict[str, Any]]
    ledger_digest: str
    settings: dict[str, Any]

    def folders(self) -> list[str]:
        """A folder's name for each class; in the order of the alphabet they are in the order of the labels."""
        digits = len(str(len(self.class_names) - 1))
        return [f"{label:0{digits}d}_{_safe(name)}" for label, name in enumerate(self.class_names)]

    def pictures(self) -> Iterator[tuple[str, bytes]]:
        """Name, such as "3_cat/000012.png", and content of every image as a PNG file."""
        folders, digits = self.folders(), max(6, len(str(len(self.labels) - 1)))
        for row, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            yield f"{folders[label]}/{row:0{digits}d}.png", encode_png(image)


def run(workdir: Workdir, formats: Sequence[str], out: Path) -> None:
    """Writes the synthetic set as `out`, or as files and folders in the folder `out` where there are several formats.

    Args:
      workdir: of a run that is finished.
      formats: some of `FORMATS`.
      out: a path that does not exist, in a folder that does.

    Raises:
      UserError: for an unknown format, a run that is not finished, a ledger that does not verify, or an `out` that
        cannot be written.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        known = ", ".join(FORMATS)
        raise UserError(f"--format: {unknown[0]!r} is not known; give one of {known}, or several with commas between.")
    release = read(workdir)
    if len(formats) == 1:
        FORMATS[formats[0]].write(release, out)
    else:
        with atomic_dir(out) as partial:
            for name in formats:
                FORMATS[name].write(release, partial / FORMATS[name].name)
    void = "" if release.ledger[0]["private"] else " (NOT PRIVATE)"
    print(f"exported {len(release.labels):,} images in {len(release.class_names)} classes to {out}{void}")


def read(workdir: Workdir) -> Release:
    """The release of a finished run, once its ledger is verified.

    Raises:
      UserError: if something is missing, damaged, older than what it describes, or does not verify.
    """
    path, settings = named("sample").artefact(workdir), finished_settings(workdir)
    ledger = open_ledger(workdir)
    verify(ledger, finished=True)
    verify_artefacts(ledger, {"release": workdir.release})
    remedy = "delete it, and `privimage run` makes it again"
    with reading.user_errors(path, remedy), Arrays(path, remedy=remedy) as arrays:
        shape, names = arrays.headers["images"][0], arrays.read("class_names")
        if len(shape) != 4 or shape[-1] not in (1, 3) or names.dtype.kind != "U" or names.ndim != 1:
            raise reading.Unreadable("does not hold images [N, H, W, C] and the names of classes")
    if settings.get("sampler_choice.enabled"):
        choice = named("choose-sampler").artefact(workdir)
        with reading.user_errors(choice, "restore it from a copy"):
            chosen = reading.read_json(choice)
            settings = settings | {f"sample.{chosen['setting']}": chosen["chosen"]}
    class_names = tuple(names.tolist())
    images, labels = sample.read_synthetic(path, shape, len(class_names), remedy)
    digest = hashlib.sha256(workdir.ledger.read_bytes()).hexdigest()
    return Release(images, labels, class_names, path.read_bytes(), ledger.entries, digest, settings)


def finished_settings(workdir: Workdir) -> dict[str, Any]:
    """The settings that the synthetic set and the report of a finished run were made with, without paths.

    Raises:
      UserError: if something is missing or older than what it describes.
    """
    path = named("sample").artefact(workdir)
    marks: dict[str, Any] = {name: (workdir.done_mark(name) or {}).get("settings") for name in (*_MADE_BY, "report")}
    settings = marks["report"]
    if not path.exists() or not all(isinstance(mark, dict) for mark in marks.values()):
        raise UserError(f"{workdir.root} holds no finished run; finish it with `privimage run`.")
    if any(settings[key] != value for mark in marks.values() for key, value in mark.items() if key in settings):
        raise UserError(f"{path} was made with other settings than its report; finish the run with `privimage run`.")
    return settings


def _write_npz(release: Release, path: Path) -> None:
    sheet = path.with_name(f"{path.stem}.{DATASHEET}")
    if os.path.lexists(sheet):
        raise UserError(f"{sheet} exists, and the datasheet is to lie there; remove it or choose another --out.")
    atomic_write_bytes(sheet, datasheet(release, "npz", path.name).encode())
    try:
        atomic_write_bytes(path, release.npz)
    except BaseException:
        remove(sheet)
        raise


def _write_png(release: Release, path: Path) -> None:
    with atomic_dir(path) as partial:
        (partial / DATASHEET).write_bytes(datasheet(release, "png", path.name).encode())
        for folder in release.folders():
            (partial / folder).mkdir()
        for name, content in release.pictures():
            (partial / name).write_bytes(content)


def _write_zip(release: Release, path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(_entry(DATASHEET), datasheet(release, "zip", path.name).encode())
        for folder in release.folders():
            archive.writestr(_entry(f"{folder}/"), b"")
        for name, content in release.pictures():
            archive.writestr(_entry(name), content)
    atomic_write_bytes(path, buffer.getvalue())


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry, stored as it is since PNG files are compressed, that is the same whenever and wherever it is made."""
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system = 3  # permissions are meant as on Unix
    entry.external_attr = (0o40755 << 16 | 0x10) if name.endswith("/") else 0o100644 << 16
    return entry


def _write_tfds(release: Release, path: Path) -> None:
    import tensorflow_datasets as tfds  # takes seconds
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    for name in release.class_names:
        if not name or name != name.strip() or len(name.splitlines()) > 1:
            raise UserError(f"TFDS cannot keep the class name {name!r} on a line of its own; choose another format.")
    n_bytes = 0
    with atomic_dir(path) as partial:
        writer = array_record_module.ArrayRecordWriter(str(partial / _SHARD), "group_size:1")
        for (_, picture), label in zip(release.pictures(), release.labels.tolist(), strict=True):
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(picture)
            example.features.feature["label"].int64_list.value.append(label)
            record = example.SerializeToString(deterministic=True)
            writer.write(record)
            n_bytes += len(record)
        writer.close()
        image = tfds.features.Image(shape=release.images.shape[1:], encoding_format="png")
        label = tfds.features.ClassLabel(names=list(release.class_names))
        tfds.features.FeaturesDict({"image": image, "label": label}).save_config(partial)
        info = {
            "name": "synthetic",
            "version": "1.0.0",
            "description": _what(release),
            "fileFormat": "array_record",
            "moduleName": "privimage_jax.commands.export",
            "splits": [
                {
                    "name": SPLIT,
                    "shardLengths": [str(len(release.labels))],
                    "numBytes": str(n_bytes),
                    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                }
            ],
        }
        (partial / "dataset_info.json").write_bytes(json.dumps(info, indent=1).encode())
        (partial / DATASHEET).write_bytes(datasheet(release, "tfds", path.name).encode())


@dataclasses.dataclass(frozen=True)
class Format:
    """One of the formats: what it is called among several, how it is written, and how a reader loads it.

    The last is in Python, with `{file}` for the file's name as a literal.
    """

    name: str
    write: Callable[[Release, Path], None]
    stored: str
    load: str


FORMATS = {
    "npz": Format(
        "synthetic.npz",
        _write_npz,
        "One NumPy archive with `images` (uint8, one image a row), `labels` (int32) and `class_names`.",
        "import numpy as np\n\nwith np.load({file}) as arrays:\n"
        '    images, labels, class_names = (arrays[name] for name in ("images", "labels", "class_names"))',
    ),
    "png": Format(
        "png",
        _write_png,
        "One folder for each class, whose name begins with the label, with PNG files named by their row.",
        'from sklearn.datasets import load_files\n\nfiles = load_files(".", load_content=False)  # filenames, target',
    ),
    "zip": Format(
        "synthetic.zip",
        _write_zip,
        "One folder for each class, whose name begins with the label, with PNG files named by their row.",
        "import zipfile\n\nfrom PIL import Image\n\n"
        "with zipfile.ZipFile({file}) as archive:\n"
        '    names = [name for name in archive.namelist() if name.endswith(".png")]\n'
        "    images = [Image.open(archive.open(name)) for name in names]\n"
        '    labels = [int(name.partition("_")[0]) for name in names]',
    ),
    "tfds": Format(
        "tfds",
        _write_tfds,
        f"A set as TensorFlow Datasets prepares it, in array_record files with the one split `{SPLIT}`.",
        "import tensorflow_datasets as tfds\n\n"
        f'examples = tfds.builder_from_directory(".").as_data_source("{SPLIT}")  # needs no TensorFlow',
    ),
}


def datasheet(release: Release, name: str, file: str) -> str:
    """The Markdown page that goes with an export: guarantee, content, origin, how to load it, and licence.

    Args:
      release: what is exported.
      name: one of `FORMATS`.
      file: the export's own name, without its folder.
    """
    terms = release.ledger[0]
    counts = np.bincount(release.labels, minlength=len(release.class_names))
    classes = [
        [label, _cell(class_name), folder, count]
        for label, (class_name, folder, count) in enumerate(
            zip(release.class_names, release.folders(), counts.tolist(), strict=True)
        )
    ]
    settings = "\n".join(
        f"{key} = {json.dumps(release.settings[key], ensure_ascii=False)}" for key in sorted(release.settings)
    )
    spending = [
        [
            _cell(line["mechanism"]),
            line["noise_multiplier"],
            line.get("sampling_rate", ""),
            "{} to {}".format(*line["steps"]) if "steps" in line else "",
            plain_up(line["epsilon"]),
        ]
        for line in release.ledger
        if "epsilon" in line
    ]
    promise, unit = _PROMISE if terms["private"] else _VOID, units.of_terms(terms)
    return _PAGE.format(
        title=_cell(str(release.settings.get("name", ""))) or "Images",
        what=_what(release),
        promise=promise.format(
            note=terms.get("note", "NOT PRIVATE"),
            n=f"{terms['n']:,}",
            record=unit.record,
            limits=unit.limits,
            one=unit.one,
            epsilon=plain_up(terms["epsilon_target"]),
            delta=plain_up(terms["delta"]),
            handed_out=plain_up(terms["n"] * terms["delta"], 2),
            spent=plain_up(total_epsilon(release.ledger)),
        ),
        ledger=_table(["mechanism", "noise multiplier", "sampling rate", "steps", "ε spent so far"], spending)
        if spending
        else "Nothing was spent: no mechanism looked at the sensitive images.",
        accountant=terms["accountant"],
        digest=release.ledger_digest,
        classes=_table(["label", "class", "folder", "images"], classes),
        stored=FORMATS[name].stored,
        load=FORMATS[name].load.replace("{file}", repr(file)),
        version=privimage_jax.__version__,
        settings=settings,
    )


def _what(release: Release) -> str:
    """One sentence."""
    n, height, width, channels = release.images.shape
    colour = "grey" if channels == 1 else "RGB"
    void = "" if release.ledger[0]["private"] else "NOT PRIVATE: "
    return f"{void}{n:,} synthetic images, {height}×{width} {colour}, in {len(release.class_names)} classes."


def _table(head: list[str], rows: list[list[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))


def _cell(text: str) -> str:
    """Text from a config, on one line and without what Markdown would take for layout."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!" else c for c in plain).strip()


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:50]


_PAGE = """\
# {title}

{what}

## Privacy

{promise}

{ledger}

Every ε above was recomputed from the other numbers with dp-accounting ({accountant}) when this was written. SHA-256 of
the release's `ledger.jsonl`: `{digest}`.

## Content

The counts are of synthetic images; how many sensitive ones a class has is protected.

{classes}

## Loading

{stored}

```python
{load}
```

## Origin

Drawn by privimage_jax {version}. The settings say how its generator was trained on public and on sensitive images.

```
{settings}
```

## Licence

*To be filled in by the owner of the sensitive images.*
"""

_PROMISE = """\
For each one of the {n} sensitive records ({record}): with a null record in its place, which counts
nowhere, the release that these images are part of would have come out almost as likely as it is. "Almost" is
(ε, δ)-differential privacy with ε = {epsilon} and δ = {delta}: no outcome's probability changes by more than the
factor e^ε, apart from a chance of δ. The mechanisms below have spent ε = {spent} of it.

- A mechanism that hands out one random record with the chance N·δ = {handed_out} meets this δ too.
- {limits}
- Exchanging one {one} for another costs two such steps.
- A second release made from the same images adds its own ε and δ.
- The number of records, the list of classes, the image shape and all settings are public and not protected.
- The guarantee of DP-SGD is for real arithmetic; attacks on the last bits of floating-point noise are outside it."""

_VOID = """\
**{note}. This set promises nothing.** The noise can be drawn again and taken off, so that the {n} sensitive records are
not protected, whatever the numbers below say. It is the result of a test: do not hand it over."""
