"""Hostile files: no reader runs code, leaves the folder, waits, fills memory or fails with anything but a UserError."""

import json
import os
import random
import socket
import stat
import struct
import time
import tracemalloc
import zipfile

import hostile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from privimage_jax import archives, reading
from privimage_jax.data import load
from privimage_jax.data.sources import open_source
from privimage_jax.data.sources.base import Settings
from privimage_jax.data.transforms import decode_image, fit
from privimage_jax.errors import UserError

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
    refuses(lambda: read_set("folder", tmp_path), "0.png has more than 89,478,485 pixels")


@pytest.mark.parametrize("source", ["folder", "zip", "npz"])
def test_pictures_are_decoded_one_at_a_time(tmp_path, source):
    """A hundred of the largest that are allowed would not fit into memory together."""
    hostile.written(tmp_path / "folder" / "a" / "0.png", PICTURE)
    hostile.written(tmp_path / "folder" / "a" / "1.png", b"damaged")
    hostile.written(tmp_path / "zip", hostile.zip_bytes({"a/0.png": PICTURE, "a/1.png": b"damaged"}))
    hostile.written(tmp_path / "npz", arrays())
    settings = Settings.from_section({"source": source, "path": str(tmp_path / source)})
    examples = iter(open_source(settings, "train", 8).read(np.arange(2)))
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
    refuses(lambda: decode_image(path, "1.png"), "1.png is not a regular file")
    refuses(lambda: decode_image(reading.Path("/dev/zero"), "zero"), "zero is not a regular file")
    for source in ("zip", "npz"):
        refuses(lambda source=source: read_set(source, path), "1.png is not a regular file")


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
    refuses(lambda: read_set("folder", tmp_path), "0.png cannot be read (Permission denied)")


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
    "nested": (hostile.zip_bytes({"a/0.zip": TREE}), "a/0.zip is not an image of a known kind"),
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
    refuses(lambda: read_set("zip", hostile.written(tmp_path / "set.zip", small)), "a/0.png is damaged")
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
    monkeypatch.setattr(archives.os, "sysconf", lambda name: 10)
    refuses(lambda: read_set("npz", hostile.written(tmp_path / "set.npz", arrays())), "this machine has 100 bytes")


@many
@given(seed=seeds)
def test_spoilt_npz_files(tmp_path, seed):
    chance = random.Random(seed)
    content = hostile.npz_bytes(images=IMAGES, labels=LABELS, class_names=np.array(["a", "b"]))
    if chance.random() < 0.5:  # past the checksum
        content = arrays(images=hostile.mutated(npy("'|u1'", "(3, 8, 8, 1)", bytes(192)), chance))
    path = hostile.written(tmp_path / "set.npz", hostile.mutated(content, chance))
    may_refuse(lambda: read_set("npz", path))


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
