"""The inputs that `fuzz.py` spoils: for every reader of the program, an honest input and how it is read."""

import contextlib
import gzip
import hashlib
import io
import json
import math
import os
import pickle
import random
import re
import shutil
import struct
import tarfile
from pathlib import Path
from unittest import mock

import cifar_files
import deep_pictures
import hostile
import numpy as np
import pipelines
from finished_runs import make_run
from fuzz import Reader
from prepared import write_tfds

from privimage_jax import config as configs
from privimage_jax import main
from privimage_jax.cli import devices
from privimage_jax.configs import base
from privimage_jax.data import load
from privimage_jax.data.prepare import prepare
from privimage_jax.errors import UserError
from privimage_jax.generators import artefact
from privimage_jax.metrics import weight_files
from privimage_jax.privacy import verification
from privimage_jax.privacy.ledger import Ledger
from privimage_jax.report import curves
from privimage_jax.report.page import ReportInputs, render
from privimage_jax.run import noisy_counts, plan
from privimage_jax.stages import sample, selection
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training import checkpoint
from privimage_jax.training.writers import MetricWriter

WEIGHTS = Path(__file__).parents[1] / "metrics"
KINDS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
PARAMS = {"Dense_0": {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}}
IMAGES, LABELS = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 0, 1], np.int32)
CLASSES = ("a", "b")


def command(*arguments) -> None:
    """Runs the command line; its refusal is raised again.

    Raises:
      UserError: what it says on standard error, where the exit status is 2.
      RuntimeError: for any other exit status than 0, or another number of lines.
    """
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.object(devices, "start"), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main.main(["privimage", *map(str, arguments)])
    said = err.getvalue()
    if status == 2 and said.startswith("privimage: error: ") and said.count("\n") == 1:
        raise UserError(said.removeprefix("privimage: error: ").rstrip("\n"))
    if status or said:
        raise RuntimeError(f"status {status}, {said!r}")


def is_plain(path: Path) -> bool:
    """Whether it is still a file, and no link to one."""
    return path.is_file() and not path.is_symlink()


# Image sets


def make_folder(folder: Path) -> None:
    for index, kind in enumerate(KINDS):
        name = CLASSES[index % 2]
        hostile.written(folder / "set" / name / f"{index}.{kind.lower()}", hostile.picture_bytes(kind))
    deep = np.arange(8 * 8 * 3, dtype=np.uint16).reshape(8, 8, 3) * 300
    for name, content in (("8.png", deep_pictures.png(deep)), ("9.tif", deep_pictures.tiff(deep[..., 0]))):
        hostile.written(folder / "set" / "a" / name, content)
    hostile.written(folder / "set" / "b" / "10.pgm", b"P5 8 8 4095\n" + deep[..., 0].tobytes())


def read_folder(folder: Path) -> None:
    for intensity in ("full", "0:4095", "per_image"):
        section = {"source": "folder", "path": str(folder / "set"), "test_fraction": 0.0, "intensity": intensity}
        load(section, "train", 8, 3, None)


def make_table(folder: Path) -> None:
    for name in ("0", "1"):
        hostile.written(folder / "set" / f"{name}.png", hostile.picture_bytes("PNG"))
    hostile.written(folder / "set" / "classes.csv", b'file,label,who\n0,a,x\n"1.png",b,y\n')


def read_table(folder: Path) -> None:
    section = {"source": "folder", "path": str(folder / "set"), "test_fraction": 0.0}
    load(section, "train", 8, 3, None)
    load(section | {"labels": "table:classes.csv:file:label", "person": "column:who"}, "train", 8, 3, None)


def make_dataset_json(folder: Path) -> None:
    hostile.written(folder / "set" / "00000" / "0.png", hostile.picture_bytes("PNG"))
    hostile.written(folder / "set" / "00000" / "1.png", hostile.picture_bytes("PNG"))
    hostile.written(folder / "set" / "dataset.json", b'{"labels": [["00000/0.png", 0], ["00000/1.png", 1]]}')


def make_zip(folder: Path) -> None:
    picture = hostile.picture_bytes("PNG")
    hostile.written(folder / "set.zip", hostile.zip_bytes({"a/0.png": picture, "b/1.png": picture}))


def read_zip(folder: Path) -> None:
    load({"source": "zip", "path": str(folder / "set.zip"), "test_fraction": 0.0}, "train", 8, 1, None)


def make_npz(folder: Path) -> None:
    content = hostile.npz_bytes(images=IMAGES, labels=LABELS, class_names=np.array(CLASSES))
    hostile.written(folder / "set.npz", content)


def read_npz(folder: Path) -> None:
    load({"source": "npz", "path": str(folder / "set.npz"), "test_fraction": 0.0}, "train", 8, 1, None)


def make_tfds(folder: Path) -> None:
    write_tfds(folder, {"train": 5, "test": 2})


def make_tfrecord(folder: Path) -> None:
    write_tfds(folder, {"train": 5, "test": 2}, file_format="tfrecord")


def read_tfrecord(folder: Path) -> None:
    """Adds the other format, and reads that."""
    prepare(str(folder / "tiny" / "1.0.0"))
    read_tfds(folder)


def read_tfds(folder: Path) -> None:
    path = str(folder / "tiny" / "1.0.0")
    load({"source": "tfds", "path": path, "test_split": "", "test_fraction": 0.0}, "train", 8, 3, None)
    load({"source": "tfds", "name": "tiny", "data_dir": str(folder)}, "test", 8, 3, None)


def make_idx(folder: Path) -> None:
    for part, pack in (("train", gzip.compress), ("t10k", bytes)):
        for kind, array in (("images", IMAGES[..., 0]), ("labels", LABELS.astype(np.uint8))):
            content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
            name = f"{part}-{kind}-idx{array.ndim}-ubyte{'.gz' if pack is gzip.compress else ''}"
            hostile.written(folder / name, pack(content))


def read_idx(folder: Path) -> None:
    for part in ("train", "test"):
        load({"source": "idx", "path": str(folder)}, part, 8, 1, None)


def make_cifar(folder: Path) -> None:
    cifar_files.write_cifar10(folder / "a")
    cifar_files.write_cifar100(folder / "b")
    cifar_files.write_binary(folder / "c")
    cifar_files.write_cifar10(folder / "d", lambda value: pickle.dumps(value, 5))


def make_packed_cifar(folder: Path) -> None:
    cifar_files.packed(cifar_files.write_cifar10(folder / "a"))
    shutil.rmtree(folder / "a")


def read_cifar(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        load({"source": "cifar", "path": str(path)}, "train", 8, 3, None)


def make_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    noted = json.dumps({"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}})
    for part, compression in (("train", "snappy"), ("test", "none")):
        images = [{"bytes": hostile.picture_bytes(kind), "path": kind} for kind in KINDS[:4]]
        table = pa.table({"image": images, "label": LABELS, "who": list("abcd")})
        table = table.replace_schema_metadata({"huggingface": noted})
        pq.write_table(table, folder / f"{part}-0.parquet", compression=compression, row_group_size=3)


def read_parquet(folder: Path) -> None:
    section = {"source": "parquet", "path": str(folder), "person": "column:who"}
    for part in ("train", "test"):
        load(section, part, 8, 3, None)


def make_webdataset(folder: Path) -> None:
    for part, form in (("train", tarfile.PAX_FORMAT), ("test", tarfile.GNU_FORMAT)):
        members = {}
        for i, kind in enumerate(KINDS[:4]):
            members |= {f"{i}.{kind.lower()}": hostile.picture_bytes(kind), f"{i}.cls": b"%d" % LABELS[i]}
            members |= {f"{i}.json": json.dumps({"age": i, "who": CLASSES[i % 2]}).encode()}
        members |= {f"{'d' * 99}/{'e' * 99}.png": members["0.png"], f"{'d' * 99}/{'e' * 99}.cls": b"1"}
        members |= {f"{'d' * 99}/{'e' * 99}.json": members["0.json"]}
        hostile.written(folder / f"{part}-0.tar", hostile.tar_bytes(members, form))


def read_webdataset(folder: Path) -> None:
    section = {"source": "webdataset", "path": str(folder), "person": "column:who"}
    load(section, "train", 8, 3, None)
    load(section | {"label_key": "age"}, "test", 8, 3, None)


# What a user writes

SETTINGS = [key for key, _ in configs.flatten(base.get_config())]
GIVEN = (
    "nan",
    "inf",
    "-1",
    "0",
    "1",
    "2",
    "1e-300",
    "1e300",
    "9" * 30,
    "9" * 18,
    "9" * 400,
    "\udcff",
    "-0.0",
    "True",
    "None",
    "",
    "()",
    "(1,2)",
)
GIVEN += ("('a','a')", "[", "a\nb", "\x1b[2J", "\x00", "../..", "/dev/zero", "a" * 5000, "(" * 300, "0x10", "1_000")


def make_config(folder: Path) -> None:
    lines = (
        "from privimage_jax.configs import base",
        "",
        "",
        "def get_config():",
        "    config = base.get_config()",
        "    config.data.n = 60",
        "    config.privacy.epsilon = 5.0",
        "    config.query.noise_multiplier = 5.0",
        "    config.finetune.batch_size = 20",
        "    config.finetune.steps = 3",
        "    config.sample.class_weights = ()",
        "    return config",
    )
    hostile.written(folder / "my_config.py", "\n".join(lines).encode() + b"\n")


def give_settings(folder: Path, chance: random.Random) -> None:
    """Settings for the command line, most often beside a config file that is as it was."""
    path = folder / "my_config.py"
    if chance.random() < 0.7:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        make_config(folder)
    given = [f"--config.{chance.choice(SETTINGS)}={chance.choice(GIVEN)}" for _ in range(chance.randrange(4))]
    (folder / "settings.json").write_text(json.dumps(given))


def read_config(folder: Path) -> None:
    """All checks of a config, without the plan of the budget, which takes seconds."""
    with mock.patch.object(plan, "make_plan"), mock.patch.object(plan, "describe"):
        read_plan(folder)


def read_plan(folder: Path) -> None:
    settings = folder / "settings.json"
    given = json.loads(settings.read_text()) if settings.exists() else []
    command("budget", "--config", folder / "my_config.py", *given)


# What a run writes and reads again


def make_ledger(folder: Path) -> None:
    run = Workdir(folder)
    run.create()
    ledger = Ledger(run.ledger)
    ledger.append(
        "open",
        epsilon_target=10.0,
        delta=1e-5,
        n=100,
        adjacency="zero-out",
        accountant="pld",
        mechanisms=["query", "means", "finetune"],
        private=True,
        run="0f" * 16,
    )
    sample = {"sampling_rate": 0.1, "expected_batch_size": 10}
    steps = {**sample, "clip_norm": 0.1}
    for kind, name, more in (
        ("gaussian", "query", {"l2_sensitivity": 1.0}),
        ("sampled-gaussian", "means", {**sample, "steps": [0, 2]}),
        ("dp-sgd", "finetune", steps | {"steps": [0, 3]}),
        ("dp-sgd", "finetune", steps | {"steps": [3, 6]}),
    ):
        line = {"mechanism": name, "noise_multiplier": 2.0, "key_generation": 0, "computation": "c0" * 16, **more}
        cost = verification.recompute([*ledger.entries[1:], {"kind": kind, **line}], 1e-5, "pld")
        ledger.append(kind, **line, epsilon=math.ceil(cost * 1e6) / 1e6)
    counts = b'{"counts": [1, 2]}'
    hostile.written(run.release / "counts.json", counts)
    artefacts = {"release/counts.json": hashlib.sha256(counts).hexdigest()}
    for name in ("query", "means", "finetune"):
        ledger.append("closed", mechanism=name, artefacts=artefacts if name == "query" else {})
    hostile.written(run.internal / "ledger_head.json", json.dumps(ledger.head).encode())


def chain(folder: Path, chance: random.Random) -> None:
    """Makes the chain of hashes hold again, so that what lines hold is read."""
    path, head, previous = folder / "release" / "ledger.jsonl", folder / "internal" / "ledger_head.json", "0" * 64
    if chance.random() < 0.3 or not is_plain(path):
        return
    lines = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        lines.append(re.sub(rb'"previous":"\w*"', f'"previous":"{previous}"'.encode(), line))
        previous = hashlib.sha256(lines[-1]).hexdigest()
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    if chance.random() < 0.9 and is_plain(head):
        head.write_text(json.dumps({"lines": len(lines), "last": previous}))


def read_ledger(folder: Path) -> None:
    command("ledger", folder)
    command("ledger", folder, "--verify")


def make_checkpoints(folder: Path) -> None:
    saved = checkpoint.Checkpoints(folder)
    for step in (1, 2):
        saved.save(step, PARAMS)


def seal(folder: Path, chance: random.Random) -> None:
    """Makes the manifests fit again: the digests are no secret."""
    for path in sorted(folder.iterdir()):
        files = [file for file in sorted((path / "tree").rglob("*")) if is_plain(file)]
        if chance.random() < 0.7 and is_plain(path / "manifest.json"):
            digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
            names = [str(file.relative_to(path / "tree")) for file in files]
            (path / "manifest.json").write_text(json.dumps(dict(zip(names, digests, strict=True))))


def read_checkpoints(folder: Path) -> None:
    saved = checkpoint.Checkpoints(folder)
    saved.restore_latest(PARAMS, warn=lambda text: None)
    checkpoint.restore_tree(folder / "1", PARAMS)


def make_generator(folder: Path) -> None:
    artefact.write(folder / "generator", PARAMS, {"name": "tiny"})


def read_generator(folder: Path) -> None:
    artefact.read_params(folder / "generator", PARAMS)


def make_semantics(folder: Path) -> None:
    semantics = {
        "class_names": list(CLASSES),
        "semantic_names": ["x", "y", "z"],
        "histogram": [[1, 2, 3], [4, 5, -6]],
        "picked": [[2], [0]],
        "noise_std": 1.5,
    }
    hostile.written(folder / "semantics.json", json.dumps(semantics).encode())


def read_semantics(folder: Path) -> None:
    """Reads it and shows it, as the report does."""
    semantics = selection.read_semantics(folder / "semantics.json", CLASSES)
    render(ReportInputs("tiny", 1.0, 1e-5, 100, [], True, semantics, IMAGES, LABELS, CLASSES, {}))


def make_counts(folder: Path) -> None:
    hostile.written(folder / "histogram.json", b'{"histogram": [[1, 2, 3], [4, 5, -6]], "noise_std": 1.5}')


def read_counts(folder: Path) -> None:
    noisy_counts.read(folder / "histogram.json", "histogram", (2, 3))


def make_synthetic(folder: Path) -> None:
    content = hostile.npz_bytes(images=IMAGES, labels=LABELS, class_names=np.array(CLASSES))
    hostile.written(folder / "synthetic.npz", content)


def read_synthetic(folder: Path) -> None:
    sample.read_synthetic(folder / "synthetic.npz", IMAGES.shape, len(CLASSES))


def make_subset(folder: Path) -> None:
    hostile.written(folder / "subset.npz", hostile.npz_bytes(rows=np.arange(4), labels=LABELS))


def read_subset(folder: Path) -> None:
    selection.read_subset(folder / "subset.npz", 10, 2)


def make_cache(folder: Path) -> None:
    make_npz(folder)
    os.utime(folder / "set.npz", (0, 0))  # by which it is known
    read_cache(folder)


def read_cache(folder: Path) -> None:
    """Reads a set through a cache; the set is known by its path too, which is the same in all cases."""
    with contextlib.chdir(folder):
        load({"source": "npz", "path": "set.npz", "test_fraction": 0.0}, "train", 8, 1, Path("cache"))


def make_weights(folder: Path) -> None:
    numbers = np.arange(6, dtype="<f4").tobytes()
    header = json.dumps({"kernel": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    hostile.written(folder / "new.safetensors", struct.pack("<Q", len(header)) + header + numbers)
    for path in WEIGHTS.glob("*.pth"):
        shutil.copy(path, folder)


def read_weights(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        weight_files.read(path, str(path), "download it again")


def make_metrics(folder: Path) -> None:
    with MetricWriter(folder / "metrics") as writer:
        for step in (1, 2, 3):
            writer.scalars(step, {"loss": 0.5, "norm": 1.0})


def read_metrics(folder: Path) -> None:
    """Draws them, and goes on with them, as a resumed stage does."""
    curves.figures([(name, found, None) for name, found in read_curves(folder).items()])
    with MetricWriter(folder / "metrics", start_step=3) as writer:
        writer.scalars(3, {"loss": 0.5, "more": 1.0})


def read_curves(folder: Path) -> dict[str, curves.Metric]:
    return curves.read_metrics(folder / "metrics" / "metrics.csv", every=1)


def make_runs(folder: Path) -> None:
    make_run(folder / "a")
    make_run(folder / "b", {"selection.k2": 2}, {"kid": 0.1}, ("dog", "eel"))


def read_runs(folder: Path) -> None:
    """Compares them."""
    command("report", folder / "a", folder / "b", "--out", folder / "page.html")


def read_run(folder: Path) -> None:
    """Goes on with a run whose folder was changed; its image sets lie beside it."""
    (folder / "images").mkdir(exist_ok=True)
    config = pipelines.tiny_config(folder / "images")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pipelines.run(config, folder / "run")


def of_run(make, read, *more, **other) -> Reader:
    """A reader of what lies in a run's folder, which the run first checks as a whole."""

    def checked(folder: Path) -> None:
        Workdir(folder).check()
        read(folder)

    return Reader(make, checked, *more, **other)


READERS = {
    "folder": Reader(make_folder, read_folder),
    "table": Reader(make_table, read_table, named=True),
    "dataset_json": Reader(make_dataset_json, read_folder, named=True),
    "zip": Reader(make_zip, read_zip, named=True),
    "npz": Reader(make_npz, read_npz, named=True),
    "tfds": Reader(make_tfds, read_tfds),
    "idx": Reader(make_idx, read_idx),
    "cifar": Reader(make_cifar, read_cifar),
    "packed_cifar": Reader(make_packed_cifar, read_cifar, named=True),
    "parquet": Reader(make_parquet, read_parquet),
    "webdataset": Reader(make_webdataset, read_webdataset),
    "tfrecord": Reader(make_tfrecord, read_tfrecord),
    "config": Reader(make_config, read_config, give_settings, program=True, named=True),
    "ledger": Reader(make_ledger, read_ledger, chain, named=True),
    "checkpoint": of_run(make_checkpoints, read_checkpoints, seal),
    "generator": of_run(make_generator, read_generator),
    "semantics": of_run(make_semantics, read_semantics),
    "histogram": of_run(make_counts, read_counts),
    "synthetic": of_run(make_synthetic, read_synthetic),
    "subset": of_run(make_subset, read_subset),
    "cache": of_run(make_cache, read_cache, spoils="cache/**/*"),
    "weights": Reader(make_weights, read_weights, named=True),
    "comparison": Reader(make_runs, read_runs, named=True),
    "metrics": of_run(make_metrics, read_metrics),
    "plan": Reader(make_config, read_plan, give_settings, program=True, named=True),
    "run": Reader(read_run, read_run, spoils="run/**/*"),
}
