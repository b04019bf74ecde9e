"""Hostile files: no reader runs code, leaves the folder, waits, fills memory or fails with anything but a UserError."""

import hashlib
import json
import os
import random
import shutil
import socket
import stat
import struct
import time
import tracemalloc
import zipfile

import cifar_files
import hostile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image
from prepared import example, write_tfds

from privimage_jax.data import load
from privimage_jax.data.sources.base import Settings
from privimage_jax.data.sources.specs import SOURCES
from privimage_jax.data.transforms import decode_image, fit
from privimage_jax.errors import UserError
from privimage_jax.generators import artefact
from privimage_jax.privacy.ledger import Ledger, spent
from privimage_jax.run import noisy_counts
from privimage_jax.stages import sample, selection
from privimage_jax.storage import archives, memory, reading
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training import checkpoint

PICTURE = hostile.picture_bytes("PNG")
IMAGES, LABELS = np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 1, 1])

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged tags; main.py silences them too

seeds = st.integers(0, 2**32 - 1)
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refuses(call, *culprits: str) -> None:
    """Asserts a `UserError` of one sentence that names every culprit."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text, text
    for culprit in culprits:
        assert culprit in text, (culprit, text)


def read_set(source: str, path, **more):
    """All examples of an image set, from the source itself."""
    return load({"source": source, "path": str(path), "test_fraction": 0.0, **more}, "train", 8, 1, None)


def may_refuse(call) -> None:
    """Runs a reader: what it returns is its own affair, what it raises is a `UserError`."""
    try:
        call()
    except UserError as error:
        assert str(error).endswith("."), error


# Pictures


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
@many
@given(seed=seeds)
def test_spoilt_pictures(kind, seed):
    spoilt = hostile.mutated(hostile.picture_bytes(kind), random.Random(seed))
    may_refuse(lambda: fit(decode_image(spoilt, "picture"), 8, 3, 0, "picture"))


def test_postscript_is_never_run(tmp_path, monkeypatch):
    """Pillow hands .eps files, whatever they are called, to Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("PostScript was run"))
    path = hostile.written(tmp_path / "a" / "0.png", hostile.picture_bytes("EPS"))
    with pytest.raises(pytest.fail.Exception):
        Image.open(path).load()
    refuses(lambda: read_set("folder", tmp_path), "0.png is not a readable image")


def test_a_picture_of_too_many_pixels(tmp_path):
    header = struct.pack(">LL", 60_000, 60_000)
    bomb = PICTURE[:16] + header + PICTURE[24:29] + struct.pack(">L", zipfile.crc32(b"IHDR" + header + PICTURE[24:29]))
    hostile.written(tmp_path / "a" / "0.png", bomb + PICTURE[33:])
    refuses(lambda: read_set("folder", tmp_path), "0.png", "has more than 89,478,485 pixels")


@pytest.mark.parametrize("source", ["folder", "zip", "npz"])
def test_pictures_are_decoded_one_at_a_time(tmp_path, source):
    """A hundred of the largest that are allowed would not fit into memory together."""
    hostile.written(tmp_path / "folder" / "a" / "0.png", PICTURE)
    hostile.written(tmp_path / "folder" / "a" / "1.png", b"damaged")
    hostile.written(tmp_path / "zip", hostile.zip_bytes({"a/0.png": PICTURE, "a/1.png": b"damaged"}))
    hostile.written(tmp_path / "npz", arrays())
    settings = Settings.from_section({"source": source, "path": str(tmp_path / source)})
    examples = iter(SOURCES[source].load("config.data.source").open_source(settings, "train", 8).read(np.arange(2)))
    next(examples)
    if source != "npz":
        refuses(lambda: next(examples), "1.png")


# Folders


def test_links_that_lead_out_of_the_folder(tmp_path):
    secret = hostile.written(tmp_path / "secret.png", PICTURE)
    inside = hostile.written(tmp_path / "set" / "a" / "0.png", PICTURE)
    (tmp_path / "set" / "a" / "1.png").symlink_to(inside)
    assert read_set("folder", tmp_path / "set").n == 2
    (tmp_path / "set" / "a" / "2.png").symlink_to(secret)
    refuses(lambda: read_set("folder", tmp_path / "set"), "2.png is a link that leads out of the folder")


def test_links_in_a_circle_and_to_nothing(tmp_path):
    hostile.written(tmp_path / "a" / "0.png", PICTURE)
    (tmp_path / "a" / "1.png").symlink_to(tmp_path / "a" / "1.png")
    refuses(lambda: read_set("folder", tmp_path), "1.png")
    (tmp_path / "a" / "1.png").unlink()
    (tmp_path / "a" / "1.png").symlink_to(tmp_path / "a" / "nothing")
    refuses(lambda: read_set("folder", tmp_path), "1.png cannot be read (No such file or directory)")


def test_pipes_sockets_and_devices_are_not_opened(tmp_path, monkeypatch):
    hostile.written(tmp_path / "set" / "a" / "0.png", PICTURE)
    path = tmp_path / "set" / "a" / "1.png"
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(path.parent)  # such names must be short
        listener.bind("1.png")
        refuses(lambda: read_set("folder", tmp_path / "set"), "1.png is not a regular file")
    path.unlink()
    os.mkfifo(path)
    refuses(lambda: decode_image(path, "1.png"), "1.png", "is not a regular file")
    refuses(lambda: decode_image(reading.Path("/dev/zero"), "zero"), "zero", "is not a regular file")
    for source in ("zip", "npz", "parquet", "webdataset", "cifar"):
        refuses(lambda source=source: read_set(source, path), "1.png is not a regular file")


FILES = {"idx": "train-images-idx3-ubyte", "cifar": "batches.meta", "parquet": "0.parquet", "webdataset": "0.tar"}


@pytest.mark.parametrize("source", FILES)
def test_files_of_sets_that_lie_elsewhere_or_are_none(tmp_path, source):
    outside, folder = hostile.written(tmp_path / "outside", b""), tmp_path / "set"
    if source == "cifar":
        cifar_files.write_cifar10(folder)
        (folder / FILES[source]).unlink()
    folder.mkdir(exist_ok=True)
    path = folder / FILES[source]
    path.symlink_to(outside)
    refuses(lambda: read_set(source, folder), f"{path} is a link that leads out of the folder")
    path.unlink()
    os.mkfifo(path)
    refuses(lambda: read_set(source, folder), f"{path} is not a regular file")


def test_folders_without_end(tmp_path):
    (tmp_path / ("d/" * 66)).mkdir(parents=True)
    refuses(lambda: read_set("folder", tmp_path), "more than 64 folders deep")


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\x1b[2Jb", b"a\nb", "\u202eevil".encode(), b"x" * 201])
def test_class_names_that_are_no_names(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    os.mkdir(path)
    with open(os.path.join(path, b"0.png"), "wb") as file:
        file.write(PICTURE)
    refuses(lambda: read_set("folder", tmp_path), "config.data: the class name", "rename the class")


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    hostile.written(tmp_path / "a" / "0.png", PICTURE)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reading.os, "open", refuse)
    refuses(lambda: read_set("folder", tmp_path), "0.png", "cannot be read (Permission denied)")


# Zip files


def patched(content: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    """The bytes with `value` written `offset` after every `mark`."""
    result, at = bytearray(content), -1
    while (at := content.find(mark, at + 1)) >= 0:
        result[at + offset : at + offset + len(value)] = value
    return bytes(result)


TREE = hostile.zip_bytes({"a/0.png": PICTURE, "b/1.png": PICTURE})
LISTED, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


def _linked() -> bytes:
    entry = zipfile.ZipInfo("a/0.png")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return hostile.zip_bytes({entry: b"/etc/passwd"})


ZIPS = {
    "path that leads out": (hostile.zip_bytes({"a/../../b/0.png": PICTURE}), "leads out of the archive"),
    "absolute path": (hostile.zip_bytes({"/a/0.png": PICTURE}), "leads out of the archive"),
    "link": (_linked(), "a symbolic link"),
    "encrypted": (patched(patched(TREE, LISTED, 8, b"\1"), LOCAL, 6, b"\1"), "is encrypted"),
    "overlap": (patched(TREE, LISTED, 42, bytes(4)), "lies over another entry"),
    "twice": (TREE.replace(b"b/1.png", b"a/0.png"), "holds 'a/0.png' twice"),
    "bzip2": (hostile.zip_bytes({"a/0.png": PICTURE}, zipfile.ZIP_BZIP2), "another method than deflate"),
    "lzma": (hostile.zip_bytes({"a/0.png": PICTURE}, zipfile.ZIP_LZMA), "another method than deflate"),
    "deep": (hostile.zip_bytes({"a/" * 30_000 + "0.png": PICTURE}), "more than 64 deep"),
    "not UTF-8": (patched(TREE, LISTED, 8, b"\0\x08").replace(b"b/1.png", b"\xff/1.png"), "is not a readable .zip"),
    "nested": (hostile.zip_bytes({"a/0.png": PICTURE, "a/0.zip": TREE}), "a/0.zip is not an image of a known kind"),
    "announces gigabytes": (patched(TREE, LISTED, 24, b"\xff\xff\xff\x7f"), "would unpack to"),
    "one gigantic entry": (hostile.zip_bytes({"a/0.png": bytes(2**28 + 1)}), "one image may have 268,435,456"),
    "half": (TREE[: len(TREE) // 2], "is not a readable .zip file"),
    "empty": (b"", "is not a readable .zip file"),
}


@pytest.mark.parametrize("case", ZIPS)
def test_zip_files_made_to_harm(tmp_path, case):
    content, culprit = ZIPS[case]
    refuses(lambda: read_set("zip", hostile.written(tmp_path / "set.zip", content)), "config.data.path=", culprit)


def test_an_entry_is_not_unpacked_beyond_its_announced_size(tmp_path):
    bomb = hostile.zip_bytes({"a/0.png": bytes(10**8)})
    small = patched(patched(bomb, LISTED, 24, struct.pack("<L", 10**4)), LOCAL, 22, struct.pack("<L", 10**4))
    tracemalloc.start()
    refuses(lambda: read_set("zip", hostile.written(tmp_path / "set.zip", small)), "is damaged in the archive")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6 + 4 * len(bomb)


def test_a_list_of_entries_that_would_fill_memory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_LIST_BYTES", 1000)
    names = {f"a/{i}.png": b"" for i in range(100)}
    lying = patched(hostile.zip_bytes(names), b"PK\x05\x06", 8, struct.pack("<HH", 1, 1))  # as to their number
    refuses(
        lambda: read_set("zip", hostile.written(tmp_path / "set.zip", lying)), "bytes of names, more than the 1,000"
    )


def test_an_entry_without_a_name_is_damage(tmp_path):
    nameless = patched(hostile.zip_bytes({"a": b""}), LISTED, 28, struct.pack("<HH", 0, 1))  # its letter is no name
    refuses(lambda: read_set("zip", hostile.written(tmp_path / "set.zip", nameless)), "holds an entry without a name")


@many
@given(seed=seeds)
def test_spoilt_zip_files(tmp_path, seed):
    path = hostile.written(tmp_path / "set.zip", hostile.mutated(TREE, random.Random(seed)))
    may_refuse(lambda: read_set("zip", path))


# Arrays


def arrays(**members: bytes) -> bytes:
    """An .npz file of ready members beside honest ones."""
    honest = {
        "images": hostile.npy_bytes("{'descr': '|u1', 'fortran_order': False, 'shape': (3, 8, 8, 1)}", bytes(192))
    }
    honest["labels"] = hostile.npy_bytes("{'descr': '|u1', 'fortran_order': False, 'shape': (3,)}", bytes((0, 1, 1)))
    return hostile.zip_bytes({f"{name}.npy": content for name, content in (honest | members).items()})


def npy(descr: str, shape: str, content: bytes = b"") -> bytes:
    return hostile.npy_bytes(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}", content)


NPZS = {
    "pickle": (arrays(images=npy("'|O'", "(1,)", b"cposix\nsystem\n(S'false'\ntR.")), "Python objects in images.npy"),
    "pickle inside a record": (arrays(more=npy("[('a', '|O')]", "(1,)", b"\x80\x04N.")), "Python objects in more.npy"),
    "shape larger than the file": (arrays(images=npy("'|u1'", "(1000000000000, 8, 8)")), "not as long as its shape"),
    "shape smaller than the file": (arrays(images=npy("'|u1'", "(1, 8, 8)", bytes(192))), "not as long as its shape"),
    "negative shape": (arrays(images=npy("'|u1'", "(-1, -3, 8, 8)", bytes(192))), "not as long as its shape"),
    "no bytes an element": (arrays(class_names=npy("'<U0'", "(1000000000,)")), "neither numbers nor text"),
    "void": (arrays(labels=npy("'|V1'", "(3,)", bytes(3))), "neither numbers nor text"),
    "code in the header": (arrays(images=npy("__import__('os')", "(3,)")), "images.npy, which is not a readable array"),
    "nested header": (arrays(images=npy("(" * 4000, "(3,)")), "images.npy, which is not a readable array"),
    "signs in the header": (arrays(images=npy("-" * 8000 + "1", "(3,)")), "which is not a readable array"),
    "quotes in the header": (arrays(images=npy("'''", "(3,)")), "which is not a readable array"),
    "unknown version": (arrays(images=hostile.npy_bytes("{}", version=(9, 0))), "which is not a readable array"),
    "no array": (arrays() and hostile.zip_bytes({"images.pkl": b"cos\nsystem\n(S'false'\ntR."}), "is no array"),
    "text that is none": (arrays(class_names=npy("'<U1'", "(2,)", b"\xff" * 8)), "'class_names'"),
    "names without end": (arrays(class_names=npy("'<U1'", "(70000,)", bytes(280000))), "at most 65,536 of them"),
    "class names as numbers": (arrays(class_names=npy("'|u1'", "(2,)", b"ab")), "'class_names' as uint8"),
    "control characters": (arrays(class_names=npy("'<U1'", "(2,)", "\x1b\x07".encode("utf-32-le"))), "the class name"),
    "label of 64 bits": (arrays(labels=npy("'<u8'", "(3,)", b"\xff" * 24)), "the label 18446744073709551615"),
    "label without dimension": (
        arrays(my_labels=npy("'|u1'", "()", b"\0"), labels=npy("'|u1'", "()", b"\0")),
        "shape []",
    ),
}


@pytest.mark.parametrize("case", NPZS)
def test_arrays_made_to_harm(tmp_path, case):
    content, culprit = NPZS[case]
    refuses(lambda: read_set("npz", hostile.written(tmp_path / "set.npz", content)), "config.data", culprit)


def test_more_examples_than_can_be_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("privimage_jax.data.loading.MAX_EXAMPLES", 2)
    refuses(lambda: read_set("npz", hostile.written(tmp_path / "set.npz", arrays())), "holds 3 examples")


def test_arrays_larger_than_memory_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "at_hand", lambda: 100)
    refuses(lambda: read_set("npz", hostile.written(tmp_path / "set.npz", arrays())), "bytes of memory, and 100 are")


@many
@given(seed=seeds)
def test_spoilt_npz_files(tmp_path, seed):
    chance = random.Random(seed)
    content = hostile.npz_bytes(images=IMAGES, labels=LABELS, class_names=np.array(["a", "b"]))
    if chance.random() < 0.5:  # past the checksum
        content = arrays(images=hostile.mutated(npy("'|u1'", "(3, 8, 8, 1)", bytes(192)), chance))
    path = hostile.written(tmp_path / "set.npz", hostile.mutated(content, chance))
    may_refuse(lambda: read_set("npz", path))


# Sets prepared by TFDS


def tfds_set(root, **splits):
    """The folder of a small set, ready to be spoilt."""
    return write_tfds(root, {"train": 3, "test": 1}, **splits)


def edited(path, *place, **change) -> None:
    """Changes the object at a place of a JSON file."""
    value = held = json.loads(path.read_bytes())
    for key in place:
        held = held[key]
    held |= change
    hostile.written(path, json.dumps(value).encode())


def read_tfds(folder, **more):
    return load(
        {"source": "tfds", "path": str(folder), "test_split": "", "test_fraction": 0.0, **more}, "train", 8, 3, None
    )


FOREIGN = {"type": "canary.Feature", "content": {}}
FOREIGN_FEATURES = {
    "plain": {"pythonClassName": "canary.Feature", "text": {}},
    "other spelling": {"python_class_name": "canary.Feature", "text": {}},
    "legacy": FOREIGN,
    "as text": {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "jsonFeature": {"json": json.dumps({"a": FOREIGN})},
    },
    "as text of a legacy feature": {
        "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "proto_cls": "tensorflow_datasets.FeaturesDict",
        "content": json.dumps({"features": {"a": {"pythonClassName": "canary.Feature", "text": {}}}}),
    },
}


@pytest.mark.parametrize("case", FOREIGN_FEATURES)
@pytest.mark.parametrize("by_name", [False, True])
def test_features_of_others_are_not_imported(tmp_path, monkeypatch, case, by_name):
    hostile.written(tmp_path / "canary.py", b"raise SystemExit('code was run')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tfds_set(tmp_path)
    edited(folder / "features.json", "featuresDict", "features", more=FOREIGN_FEATURES[case])
    more = {"name": "tiny", "data_dir": str(tmp_path), "path": ""} if by_name else {}
    refuses(lambda: read_tfds(folder, **more), "features.json names the Python class 'canary.Feature'")


@pytest.mark.parametrize("name", ["huggingface:mnist", "mnist/a=1", "../mnist", "a b", "mnist:latest"])
def test_names_that_are_more_than_names(name):
    refuses(lambda: read_tfds("", name=name, data_dir="/nowhere"), f"config.data.name={name} is no name")


@pytest.mark.parametrize(
    "pattern", ["../{DATASET}-{SPLIT}", "/etc/passwd", "{SPLIT:>99999999999}", "{SPLIT.__class__}"]
)
@pytest.mark.parametrize("key", ["filepathTemplate", "filepath_template"])
def test_patterns_of_file_names_that_lead_away_or_fill_memory(tmp_path, pattern, key):
    folder = tfds_set(tmp_path)
    edited(folder / "dataset_info.json", "splits", 0, **{key: pattern})
    refuses(lambda: read_tfds(folder), f"names files of the set by the pattern {pattern!r}")


def test_shards_elsewhere_and_shards_that_are_no_files(tmp_path):
    folder = tfds_set(tmp_path)
    shard = folder / "tiny-train.array_record-00000-of-00001"
    shard.rename(tmp_path / "shard")
    shard.symlink_to(tmp_path / "shard")
    refuses(lambda: read_tfds(folder), f"{shard} is a link that leads out of the folder")
    shard.unlink()
    os.mkfifo(shard)
    refuses(lambda: read_tfds(folder), f"{folder} is not a regular file")


@pytest.mark.parametrize(
    "place, change, culprit",
    [
        (("splits", 0), {"shardLengths": ["4"]}, "announces 4 examples in tiny-train"),
        (("splits", 0), {"shardLengths": ["-3"]}, "no readable split 'train'"),
        (("splits", 0), {"shardLengths": ["1000000000000000"]}, "announces 1,000,000,000,000,000 examples"),
        (("splits", 0), {"name": "../train"}, "no readable split 'train'"),
        ((), {"fileFormat": "tfrecord"}, "is stored as tfrecord"),
        (
            (),
            {"fileFormat": "riegeli", "alternativeFileFormats": ["tfrecord", "array_record"], "splits": []},
            "no readable",
        ),
        ((), {"splits": [1]}, "dataset_info.json is damaged"),
        ((), {"name": "../tiny"}, "no readable split 'train'"),
    ],
)
def test_prepared_sets_that_lie(tmp_path, place, change, culprit):
    folder = tfds_set(tmp_path)
    edited(folder / "dataset_info.json", *place, **change)
    refuses(lambda: read_tfds(folder), culprit)


def test_classes_without_end(tmp_path):
    folder = tfds_set(tmp_path)
    edited(folder / "features.json", "featuresDict", "features", "label", "classLabel", numClasses="1000000000000")
    (folder / "label.labels.txt").unlink()
    refuses(lambda: read_tfds(folder), "announces 1,000,000,000,000 classes")


@pytest.mark.parametrize("value", [10**12, b""])
def test_records_whose_image_is_none(tmp_path, value):
    folder = tfds_set(tmp_path, example=lambda i: example(i) | {"image": value})
    refuses(lambda: read_tfds(folder), "example 0" if value else "3 of 3 images are not readable")


def test_a_record_is_decoded_only_where_it_is_asked_for(tmp_path, monkeypatch):
    """TFDS hands every other picture to Pillow, which hands PostScript to Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("PostScript was run"))
    folder = tfds_set(tmp_path, example=lambda i: example(i) | {"more": hostile.picture_bytes("EPS")})
    features = json.loads((folder / "features.json").read_bytes())["featuresDict"]["features"]
    edited(folder / "features.json", "featuresDict", "features", more=features["image"])
    assert read_tfds(folder).n == 3
    refuses(lambda: read_tfds(folder, image_key="more"), "example 0 of split 'train'", "is a PostScript file")


@settings(many, max_examples=40)
@given(seed=seeds)
def test_spoilt_metadata_of_prepared_sets(tmp_path, seed):
    chance, folder = random.Random(seed), tmp_path / "tiny" / "1.0.0"
    if not folder.exists():
        tfds_set(tmp_path)
    path = chance.choice(sorted(folder.glob("*.json")))
    honest = path.read_bytes()
    try:
        hostile.written(path, hostile.mutated_json(honest, chance))
        may_refuse(lambda: read_tfds(folder))
    finally:
        path.write_bytes(honest)


# JSON


HOSTILE_JSON = {
    b"[" * 100_000: "nests too deeply",
    b'{"a":1,"a":2}': "names a key twice",
    b"[NaN]": "holds the number NaN",
    b"-Infinity": "holds the number -Infinity",
    b"1e400": "a number that is too large",
    b"9" * 30: "an integer beyond 64 bits",
    b"9" * 5000: "an integer beyond 64 bits",
    b"9223372036854775808": "an integer beyond 64 bits",
    b'"\xff"': "is not UTF-8",
    b'"\\ud800"': "is not UTF-8",
    '"a"'.encode("utf-16"): "is not UTF-8",
    b"": "is not JSON",
    b"__import__('os')": "is not JSON",
}


@pytest.mark.parametrize("content", HOSTILE_JSON, ids=lambda content: repr(content[:20]))
def test_json_made_to_harm(content):
    with pytest.raises(reading.Unreadable, match=HOSTILE_JSON[content]):
        reading.parse_json(content)


@many
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text("aé\n\U0001f600"), st.lists
    )
)
def test_honest_json_comes_back(value):
    for ascii_only in (False, True):
        assert reading.parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


def test_files_beyond_the_limit_and_pipes(tmp_path):
    path = hostile.written(tmp_path / "file", b"12345")
    assert reading.read_bytes(path, 5) == b"12345"
    with pytest.raises(reading.Unreadable, match="more than 4 bytes"):
        reading.read_bytes(path, 4)
    os.mkfifo(tmp_path / "pipe")
    began = time.monotonic()
    for place in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(reading.Unreadable, match="not a regular file"):
            reading.read_json(place)
    assert time.monotonic() - began < 5


# Workdirs


@pytest.mark.parametrize("place", ["release", "internal", "internal/query", "release/ledger.jsonl", "config.json"])
def test_links_in_a_workdir_are_refused(tmp_path, place):
    outside, run = tmp_path / "outside", Workdir(tmp_path / "run")
    outside.mkdir()
    (run.root / place).parent.mkdir(parents=True, exist_ok=True)
    (run.root / place).symlink_to(outside)
    refuses(run.create, f"{run.root / place} is a link", "remove it")
    assert not any(outside.iterdir())


def test_pipes_in_a_workdir_are_refused(tmp_path):
    run = Workdir(tmp_path)
    run.create()
    os.mkfifo(run.internal / "lock")
    refuses(run.create, "internal/lock is a pipe, socket or device")


def test_a_workdir_may_be_reached_by_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "there")
    run = Workdir(tmp_path / "here")
    run.create()
    with run.lock():
        assert (tmp_path / "there" / "internal" / "lock").exists()


def test_a_folder_in_place_of_the_lock(tmp_path):
    run = Workdir(tmp_path)
    run.create()
    (run.internal / "lock").mkdir()
    with pytest.raises(UserError, match="internal/lock: a folder of this name is in the way"), run.lock():
        pass


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{}", b'{"fingerprint":1}', b"[" * 10**5, b"\xff"])
def test_done_marks_that_are_none(tmp_path, content):
    run = Workdir(tmp_path)
    run.create()
    run.mark_done("query", {"fingerprint": "a"})
    assert run.done_mark("query") == {"fingerprint": "a"}
    hostile.written(run.internal / "done" / "query.json", content)
    assert run.done_mark("query") is None


# Ledgers


def ledger_of(*lines: str) -> bytes:
    """A file of lines chained as they must be, whatever else is wrong with them."""
    content, previous = [], "0" * 64
    for number, line in enumerate(lines):
        text = f'{{"index":{number},{line},"previous":"{previous}"}}'.encode("utf-8", "surrogateescape")
        previous = hashlib.sha256(text).hexdigest()
        content.append(text + b"\n")
    return b"".join(content)


OPEN = (
    '"kind":"open","epsilon_target":10.0,"delta":1e-05,"n":100,"accountant":"pld","adjacency":"zero-out",'
    f'"mechanisms":["a"],"private":true,"run":"{"0f" * 16}"'
)
SPENT = (
    '"kind":"dp-sgd","mechanism":"a","steps":[0,3],"sampling_rate":0.1,"noise_multiplier":2.0,"clip_norm":0.1,'
    '"expected_batch_size":10,"key_generation":0,"epsilon":1.5,'
    f'"computation":"{"c0" * 16}"'
)


CLOSED = f'"kind":"closed","mechanism":"a","artefacts":{{"release/counts.json":"{"a1" * 32}"}}'


def test_the_lines_that_are_spoilt_below_are_honest(tmp_path):
    path = hostile.written(tmp_path / "ledger.jsonl", ledger_of(OPEN, SPENT, CLOSED))
    assert [entry["kind"] for entry in Ledger.open(path).entries] == ["open", "dp-sgd", "closed"]


@pytest.mark.parametrize(
    "old, new",
    [
        ('"epsilon":1.5', '"epsilon":NaN'),
        ('"epsilon":1.5', '"epsilon":Infinity'),
        ('"epsilon":1.5', '"epsilon":1e999'),
        ('"epsilon":1.5', '"epsilon":-1'),
        ('"epsilon":1.5', '"epsilon":"1.5"'),
        ('"epsilon":1.5', '"epsilon":1.5,"epsilon":0.1'),
        ('"epsilon":1.5', '"epsilon":' + "9" * 5000),
        ('"epsilon":1.5', '"epsilon":' + "[" * 10**5),
        ('"steps":[0,3]', '"steps":[0,1000000000000]'),
        ('"steps":[0,3]', '"steps":[3,0]'),
        ('"steps":[0,3]', '"steps":{"a":1}'),
        ('"steps":[0,3]', '"steps":[0,3],"host":"here"'),
        ('"mechanism":"a"', '"mechanism":["a"]'),
        ('"mechanism":"a"', '"mechanism":"\\u001b[2J"'),
        ('"mechanism":"a"', '"mechanism":"\\ud800"'),
        ('"mechanism":"a"', '"mechanism":"\udcff"'),
        ('"kind":"dp-sgd"', '"kind":["dp-sgd"]'),
        ('"kind":"dp-sgd"', '"kind":"open"'),
        ('"key_generation":0', '"key_generation":true'),
        *(("c0" * 16, name) for name in ("c0" * 15, "C0" * 16, "g" * 32, "")),
        (f'"{"c0" * 16}"', "1"),
    ],
)
def test_ledger_lines_made_to_harm(tmp_path, privimage, old, new):
    path = hostile.written(tmp_path / "release" / "ledger.jsonl", ledger_of(OPEN, SPENT.replace(old, new)))
    refuses(lambda: Ledger.open(path), f"line 2 of {path}", "restore it from a copy")
    privimage("ledger", tmp_path).refuses(f"line 2 of {path}")


@pytest.mark.parametrize(
    "old, new",
    [
        ("release/counts.json", name)
        for name in (
            *("", "release", "release/", "/etc/passwd", "etc/passwd", "release//etc", "release/../../etc/passwd"),
            *("release/./a", "release/.hidden", "release/a\\\\b", "release/a\\u0000", "release/" + "a" * 300),
        )
    ]
    + [
        ("a1" * 32, "a1" * 31),
        ("a1" * 32, "A1" * 32),
        (f'"{"a1" * 32}"', "1"),
        ('{"release', '["release'),
        ('{"release', "{" + ",".join(f'"release/{i}":"{"a1" * 32}"' for i in range(100)) + ',"release'),
        (f',"artefacts":{{"release/counts.json":"{"a1" * 32}"}}', ""),
    ],
)
def test_artefacts_of_ledgers_made_to_harm(tmp_path, old, new):
    """A path that leads out of the run's folder would have any file read and compared."""
    assert old in CLOSED
    closed = CLOSED.replace(old, new)
    path = hostile.written(tmp_path / "ledger.jsonl", ledger_of(OPEN, SPENT, closed))
    refuses(lambda: Ledger.open(path), f"line 3 of {path}", "restore it from a copy")


@pytest.mark.parametrize("name", ["0f" * 15, "0F" * 16, "g" * 32, ""])
def test_names_of_runs_that_are_none(tmp_path, name):
    path = hostile.written(tmp_path / "ledger.jsonl", ledger_of(OPEN.replace("0f" * 16, name)))
    refuses(lambda: Ledger.open(path), f"line 1 of {path}", "restore it from a copy")


def test_ledgers_that_are_no_files(tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    path.mkdir()
    refuses(lambda: Ledger.open(path), "ledger.jsonl is not a regular file")
    path.rmdir()
    os.mkfifo(path)
    refuses(lambda: Ledger.open(path), "ledger.jsonl is not a regular file")
    path.unlink()
    path.symlink_to(tmp_path / "nothing")
    refuses(lambda: Ledger.open(path), "ledger.jsonl is missing")
    path.unlink()
    monkeypatch.setattr("privimage_jax.privacy.ledger.MAX_BYTES", 10)
    refuses(lambda: Ledger.open(hostile.written(path, b"a" * 11)), "has more than 10 bytes")


def test_a_ledger_of_megabytes_is_read_in_seconds(tmp_path):
    blocks = [SPENT.replace("[0,3]", f"[{i},{i + 1}]").replace('tion":0', f'tion":{i}') for i in range(20_000)]
    path = hostile.written(tmp_path / "ledger.jsonl", ledger_of(OPEN, *blocks))
    began = time.monotonic()
    assert len(Ledger.open(path).entries) == 20_001
    assert time.monotonic() - began < 20  # it grows with the number of lines, not with its square


@many
@given(seed=seeds)
def test_spoilt_ledgers(tmp_path, seed):
    chance, lines = random.Random(seed), [OPEN, SPENT]
    if chance.random() < 0.5:  # a chain that holds
        line = hostile.mutated(SPENT.encode(), chance).decode("utf-8", "surrogateescape").replace("\n", "")
        content = ledger_of(OPEN, line)
    else:
        content = hostile.mutated(ledger_of(*lines), chance)
    path = hostile.written(tmp_path / "ledger.jsonl", content)
    may_refuse(lambda: spent(Ledger.open(path).entries))


# What stages read back


def test_noisy_counts_made_to_harm(tmp_path):
    path = tmp_path / "counts.json"
    hostile.written(path, b'{"counts":[[1,2],[3,-4]]}')
    assert noisy_counts.read(path, "counts", (2, 2)).tolist() == [[1, 2], [3, -4]]
    for content in (
        b'{"counts":[[1,2]]}',
        b'{"counts":[[1,2],[3]]}',
        b'{"counts":[[1,2],[3,4.5]]}',
        b'{"counts":[[1,2],[3,NaN]]}',
        b'{"counts":[[1,2],[3,99999999999999999999]]}',
        b'{"counts":[[1,2],[3,"4"]]}',
        b'{"counts":' + b"[" * 900 + b"]" * 900 + b"}",
        b"[]",
        b"",
    ):
        refuses(lambda content=content: noisy_counts.read(hostile.written(path, content), "counts", (2, 2)), str(path))
    path.unlink()
    refuses(lambda: noisy_counts.read(path, "counts", (2, 2)), "counts.json is missing; restore it from a copy")


@pytest.mark.parametrize(
    "rows, labels",
    [
        ([0, 10], [0, 1]),
        ([-1, 1], [0, 1]),
        ([0, 1], [0, 4]),
        ([0, 1], [-1, 1]),
        ([0], [0, 1]),
        ([[0, 1]], [[0, 1]]),
        ([0.0, 1.0], [0, 1]),
        ([], []),
    ],
)
def test_selections_made_to_harm(tmp_path, rows, labels):
    kind = np.float64 if any(isinstance(row, float) for row in rows) else np.int64
    spoilt = hostile.npz_bytes(rows=np.array(rows, kind), labels=np.array(labels, np.int32))
    path = hostile.written(tmp_path / "subset.npz", spoilt)
    refuses(lambda: selection.read_subset(path, 10, 3), str(path), "delete it")
    honest = hostile.npz_bytes(rows=np.array([0, 9]), labels=np.array([0, 3], np.int32))
    assert selection.read_subset(hostile.written(path, honest), 10, 3)[0].tolist() == [0, 9]


SEMANTICS = {
    "class_names": ["a", "b"],
    "semantic_names": ["x", "y", "z"],
    "histogram": [[1, 2, 3], [4, 5, -6]],
    "picked": [[2], [0]],
    "noise_std": 1.5,
}


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": ["a"]},
        {"class_names": 3},
        {"semantic_names": ["x", "y"]},
        {"semantic_names": [1, 2, 3]},
        {"semantic_names": None},
        {"histogram": [[1, 2], [4, 5]]},
        {"histogram": [[1, 2, 3]]},
        {"histogram": [[1, 2, "3"], [4, 5, 6]]},
        {"picked": [[3], [0]]},
        {"picked": [[-1], [0]]},
        {"picked": [[], [[0]]]},
        {"picked": None},
        {"noise_std": "<b>"},
    ],
)
def test_semantics_made_to_harm(tmp_path, change):
    path = hostile.written(tmp_path / "semantics.json", json.dumps(SEMANTICS).encode())
    assert selection.read_semantics(path, ("a", "b")) == SEMANTICS
    hostile.written(path, json.dumps(SEMANTICS | change).encode())
    refuses(lambda: selection.read_semantics(path, ("a", "b")), str(path), "delete it")


@pytest.mark.parametrize(
    "change",
    [
        {"images": np.zeros((2, 8, 8, 1), np.uint8)},
        {"images": np.zeros((3, 8, 8, 1), np.float32)},
        {"labels": np.zeros(3, np.int64)},
        {"labels": np.array([0, 2, 0], np.int32)},
        {"labels": np.array([0, -1, 0], np.int32)},
        {"images": np.array([None])},
    ],
)
def test_synthetic_sets_made_to_harm(tmp_path, change):
    honest = {"images": IMAGES, "labels": LABELS.astype(np.int32)}
    path = hostile.written(tmp_path / "synthetic.npz", hostile.npz_bytes(**honest))
    assert sample.read_synthetic(path, IMAGES.shape, 2)[0].shape == IMAGES.shape
    hostile.written(path, hostile.npz_bytes(**(honest | change)))
    refuses(lambda: sample.read_synthetic(path, IMAGES.shape, 2), str(path))


PARAMS = {"Dense_0": {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}}


@pytest.mark.parametrize(
    "spoilt",
    [
        {"Dense_0/kernel": np.zeros((2, 3), np.float32)},
        {"Dense_0/kernel": np.zeros((3, 2), np.float32), "Dense_0/bias": np.zeros(3, np.float32)},
        {"Dense_0/kernel": np.zeros((2, 3), np.float64), "Dense_0/bias": np.zeros(3, np.float32)},
        {"Dense_0": np.zeros(1), "Dense_0/kernel": np.zeros((2, 3), np.float32)},
        {"Dense_0/kernel": np.array([print])},
    ],
)
def test_generators_made_to_harm(tmp_path, spoilt):
    artefact.write(tmp_path / "generator", PARAMS, {})
    assert artefact.read_params(tmp_path / "generator", PARAMS).keys() == PARAMS.keys()
    hostile.written(tmp_path / "generator" / "params.npz", hostile.npz_bytes(**spoilt))
    refuses(lambda: artefact.read_params(tmp_path / "generator", PARAMS), "params.npz")


# Checkpoints


def sealed(path, tree=None):
    """A checkpoint whose manifest is right, whatever its files hold."""
    if tree is not None:
        checkpoint.save_tree(path, tree)
    manifest = {
        str(file.relative_to(path / "tree")): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((path / "tree").rglob("*"))
        if file.is_file()
    }
    hostile.written(path / "manifest.json", json.dumps(manifest).encode())
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return sealed(tmp_path_factory.mktemp("checkpoint") / "1", PARAMS)


def test_manifests_that_lie(tmp_path, saved):
    path = tmp_path / "1"
    shutil.copytree(saved, path)
    assert checkpoint.is_intact(path)
    honest = (path / "manifest.json").read_bytes()
    secret = hostile.written(tmp_path / "secret", b"secret")
    outside = json.loads(honest) | {"../../secret": hashlib.sha256(secret.read_bytes()).hexdigest()}
    for content in (json.dumps(outside).encode(), b"[]", b"null", b"[" * 10**5, b"{}", b"\xff"):
        hostile.written(path / "manifest.json", content)
        assert not checkpoint.is_intact(path)
        refuses(lambda: checkpoint.restore_tree(path, PARAMS), "is missing or damaged")
    hostile.written(path / "manifest.json", honest)
    victim = sorted(file for file in (path / "tree").rglob("*") if file.is_file())[-1]
    victim.rename(tmp_path / "moved")
    victim.symlink_to(tmp_path / "moved")
    assert not checkpoint.is_intact(path)
    victim.unlink()
    os.mkfifo(victim)
    assert not checkpoint.is_intact(path)


@pytest.mark.parametrize(
    "stored",
    [
        {"Dense_0": {"kernel": np.zeros((3, 2), np.float32), "bias": np.zeros(3, np.float32)}},
        {"Dense_0": {"kernel": np.zeros((2, 300), np.float32), "bias": np.zeros(3, np.float32)}},
        {"Dense_0": {"kernel": np.zeros((2, 3), np.float32)}},
        {"Dense_1": PARAMS["Dense_0"]},
    ],
)
def test_checkpoints_of_other_arrays(tmp_path, stored):
    """Orbax alone hands out arrays of another shape than was asked for."""
    refuses(lambda: checkpoint.restore_tree(sealed(tmp_path / "1", stored), PARAMS), str(tmp_path / "1"), "delete it")


@settings(many, max_examples=25)
@given(seed=seeds)
def test_spoilt_checkpoints_under_a_manifest_that_fits(tmp_path, saved, seed):
    chance, path = random.Random(seed), tmp_path / str(seed)
    shutil.copytree(saved, path, dirs_exist_ok=True)
    victim = chance.choice(sorted(file for file in (path / "tree").rglob("*") if file.is_file()))
    victim.write_bytes(hostile.mutated(victim.read_bytes(), chance))
    may_refuse(lambda: checkpoint.restore_tree(sealed(path), PARAMS))


def test_folders_that_are_no_checkpoints(tmp_path):
    for name in ("²", "-1", "1e3", "..1", "latest"):
        (tmp_path / name).mkdir()
    assert checkpoint.Checkpoints(tmp_path).steps() == []
