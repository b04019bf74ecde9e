import errno
import functools
import hashlib
import http.server
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import as_if_fresh
import numpy as np
import pytest
import tensorflow_datasets as tfds
from catalogue import own_sets
from packaging.utils import canonicalize_name
from prepared import picture, png
from tensorflow_datasets.core.download.checksums import UrlInfo

from privimage_jax.data import load
from privimage_jax.data.prepare import prepare
from privimage_jax.errors import UserError

SUPPORT = Path(own_sets.__file__).parents[1]
PICTURE = png(picture(0))


@pytest.fixture
def with_tensorflow(monkeypatch):
    """In name alone: the sets here are prepared without."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.fixture
def download(monkeypatch, tmp_path, with_tensorflow):
    """Prepares the set that is one file at an address, which fails; returns what is said."""

    def told(url, **sums):
        monkeypatch.setattr(own_sets.OwnDownload, "url", url)
        monkeypatch.setattr(own_sets.OwnDownload, "sums", sums)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
        with pytest.raises(UserError) as caught:
            prepare("own_download", str(tmp_path))
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
        assert_unprepared("own_download", tmp_path)
        return str(caught.value)

    return told


@pytest.fixture
def server(tmp_path):
    """The address of a server on this machine that has `own.png`."""
    (tmp_path / "own.png").write_bytes(PICTURE)
    handler = functools.partial(Silent, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def assert_unprepared(name, root):
    with pytest.raises(UserError, match=rf"is not prepared under .*run `privimage prepare {name} --data_dir "):
        load({"source": "tfds", "name": name, "data_dir": str(root)}, "train", 8, 3, None)


def assert_whole(root, name="own_pictures/png"):
    dataset = load({"source": "tfds", "name": name, "data_dir": str(root)}, "train", 8, 3, None)
    assert (dataset.n, dataset.class_names) == (30, own_sets.CLASSES)
    drawn = [(bytes(picture(i)), i % 3) for i in range(30)]  # TFDS shuffles them
    assert sorted(zip(map(bytes, dataset.images), dataset.labels.tolist(), strict=True)) == sorted(drawn)


def test_what_the_extra_brings_is_enough_to_prepare(tmp_path):
    """As in a fresh environment: no other package can be imported. The folder has a space."""
    command = [sys.executable, SUPPORT / "as_if_fresh.py", "prepare", "prepare", "own_pictures/png"]
    done = subprocess.run([*command, "--data_dir", tmp_path / "my sets"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"prepared {tmp_path}/my sets/own_pictures/png/1.0.0"
    assert_whole(tmp_path / "my sets")


def test_what_downloads_import_comes_with_the_extra():
    """Also on ways that no set takes here, such as the page that Google Drive shows before a large file."""
    there = as_if_fresh.distributions("privimage-jax", "prepare")
    owners = importlib.metadata.packages_distributions()
    sources = [path.read_text() for path in Path(tfds.core.download.__file__).parent.glob("*.py")]
    modules = {name for text in sources for name in re.findall(r"lazy_imports\.(\w+)", text)}
    assert "bs4" in modules
    assert {
        name for name in modules if not {canonicalize_name(owner) for owner in owners.get(name, ())} & there
    } == set()


def test_without_tensorflow_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[prepare\]"'):
        prepare("mnist", str(tmp_path))
    assert_unprepared("mnist", tmp_path)


def test_the_tilde_is_the_home_folder(monkeypatch, tmp_path, with_tensorflow):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare("own_pictures", "~/sets") == tmp_path / "sets" / "own_pictures" / "png" / "1.0.0"
    assert_whole("~/sets")


def test_what_is_prepared_stays(monkeypatch, tmp_path, with_tensorflow):
    folder = prepare("own_pictures/png", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # TensorFlow was removed meanwhile
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    assert prepare("own_pictures/png:1.0.0", str(tmp_path)) == prepare(str(folder)) == folder
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.mark.parametrize(
    "name, message",
    [
        ("mnits", "TensorFlow Datasets has no set 'mnits'; perhaps you mean mnist or "),
        ("qqqqqqqq", "TensorFlow Datasets has no set 'qqqqqqqq'; look for its name in their catalogue."),
        ("own_pictures/gif", "the set 'own_pictures' has no config 'gif'; give one of png, pixels."),
        ("own_download/gif", "the set 'own_download' has no config 'gif'; give own_download alone."),
        ("own_pictures/png:7.0.0", "no set 'own_pictures/png:7.0.0' .Dataset own_pictures cannot be loaded at version"),
        ("huggingface:mnist", "'huggingface:mnist' is neither a name of TensorFlow Datasets, such as mnist or"),
        ("../mnist", "is neither a name"),
        ("", "is neither a name"),
    ],
)
def test_an_unknown_name_is_told(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prepare(name, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_no_network(download):
    told = download("http://127.0.0.1:9/own.png")
    assert "failed, as 127.0.0.1 does not answer as it should (Failed to establish a new connection" in told
    assert "check the network" in told and "Max retries" not in told


def test_a_file_that_is_gone(download, server):
    url = f"{server}/gone.png"
    assert f"failed, as {url} answers with HTTP code 404; run the same command again later" in download(url)


def test_another_file_than_tfds_knows(download, server, monkeypatch, tmp_path):
    url, checksum = f"{server}/own.png", hashlib.sha256(PICTURE).hexdigest()
    info = functools.partial(UrlInfo, filename="own.png")
    told = download(url, **{url: info(size=1, checksum=checksum)})
    assert f"failed, as {url} is not the file that TensorFlow Datasets knows (its checksum differs, " in told
    assert f"{len(PICTURE)} bytes in place of 1); run the same command again" in told
    monkeypatch.setattr(own_sets.OwnDownload, "sums", {url: info(size=len(PICTURE), checksum=checksum)})
    prepare("own_download", str(tmp_path))  # the server has the right one by now
    alone = {"label_key": "", "test_split": "", "test_fraction": 0.0}
    dataset = load({"name": "own_download", "data_dir": str(tmp_path), **alone}, "train", 8, 3, None)
    np.testing.assert_array_equal(dataset.images, [picture(0)])


def test_a_set_to_be_fetched_by_hand(download, tmp_path):
    told = download("by hand")
    assert f"needs files that you fetch by hand: put them into {tmp_path}/downloads/manual " in told
    assert "(Register first. Then put own.zip there), and run the same command again" in told


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "as the disk is full .*; free some space or give another"),
        (RuntimeError("ArrayRecord; No space left on device"), "as the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "failed .Permission denied: /x.; see to that path"),
        (MemoryError(), "as the memory is full; run the same command again on a machine with more"),
        (
            ModuleNotFoundError("No module named 'cv2.data'"),
            "needs the Python package opencv-python-headless; run `pip",
        ),
        (RuntimeError("what\nhappened."), "failed .what happened.; see in the catalogue"),
    ],
)
def test_a_set_that_breaks_off(monkeypatch, tmp_path, with_tensorflow, error, message):
    """In its second part: the first is written by then."""

    def examples(self, count):
        yield from whole(self, count)
        if count == 6:
            raise error

    whole = own_sets.OwnPictures._generate_examples
    with monkeypatch.context() as broken, pytest.raises(UserError, match=f"preparing own_pictures/png in .* {message}"):
        broken.setattr(own_sets.OwnPictures, "_generate_examples", examples)
        prepare("own_pictures/png", str(tmp_path))
    assert_unprepared("own_pictures/png", tmp_path)
    prepare("own_pictures/png", str(tmp_path))
    assert_whole(tmp_path)


KILLED = """
import os, signal
from catalogue import own_sets
def examples(self, count):
    yield from whole(self, count)
    if count == 6:
        os.kill(os.getpid(), signal.SIGKILL)
whole, own_sets.OwnPictures._generate_examples = own_sets.OwnPictures._generate_examples, examples
own_sets.OwnPictures(config="png", data_dir=".").download_and_prepare(file_format="array_record")
"""


def test_a_set_whose_preparing_was_killed(tmp_path, with_tensorflow):
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, capture_output=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(tmp_path.glob("own_pictures/png/incomplete*/own_pictures-train*"))
    assert_unprepared("own_pictures/png", tmp_path)
    prepare("own_pictures/png", str(tmp_path))
    assert_whole(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path, with_tensorflow):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Not a directory.*/file/downloads.; see to that path or give another"):
        prepare("own_pictures/png", str(tmp_path / "file"))


def test_what_is_no_whole_set_is_not_taken_for_one(tmp_path, with_tensorflow):
    folder = prepare("own_pictures/png", str(tmp_path))
    shard = folder / "own_pictures-test.array_record-00000-of-00001"
    shard.rename(tmp_path / "shard")
    with pytest.raises(UserError, match=f"{folder} is not whole, as {shard} is no file of the set; delete the set's"):
        prepare("own_pictures/png", str(tmp_path))
    shutil.copy(folder / "own_pictures-train.array_record-00000-of-00001", shard)
    with pytest.raises(
        UserError, match="announces 6 examples in own_pictures-test.*, which holds 30; delete the set's"
    ):
        prepare("own_pictures/png", str(tmp_path))
    (folder / "dataset_info.json").unlink()
    with pytest.raises(UserError, match=f"{folder} is there and holds no prepared set .*; delete it, or give another"):
        prepare("own_pictures/png", str(tmp_path))
    shutil.rmtree(folder)
    prepare("own_pictures/png", str(tmp_path))
    assert_whole(tmp_path)
