"""`privimage export`: the synthetic set of a finished run in the formats that other programs read, with a datasheet.

An export is post-processing of `release/` and of public settings. It is refused unless the ledger verifies, and says
NOT PRIVATE if the ledger does. The same release under the same name gives the same bytes: no clock time is written, and
of the path nothing but a file's own name.
"""

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from privimage_jax.commands.datasheet import describe, render
from privimage_jax.commands.release import Release, read
from privimage_jax.errors import UserError
from privimage_jax.storage.durable import atomic_dir, atomic_write_bytes, remove
from privimage_jax.storage.workdir import Workdir

DATASHEET = "README.md"
SPLIT = "train"  # the only one of the TFDS set
_SHARD = f"synthetic-{SPLIT}.array_record-00000-of-00001"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip entry can have, in place of a clock's


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
            "description": describe(release),
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
    """The page that goes with an export: `name` is one of `FORMATS`, `file` the export's own, without its folder."""
    return render(release, FORMATS[name].stored, FORMATS[name].load.replace("{file}", repr(file)))
