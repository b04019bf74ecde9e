import json
import subprocess
import sys

import numpy as np
import pytest
from prepared import example, picture, write_tfds

from privimage_jax.data import load
from privimage_jax.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    write_tfds(root, {"train": 300, "test": 4})
    return root


def read(root, part="train", **more):
    return load({"path": str(root / "tiny" / "1.0.0"), **more}, part, 8, 3, None)


def test_by_path_and_by_name(root, monkeypatch):
    dataset = read(root)
    assert (dataset.n, dataset.class_names, dataset.name) == (300, ("cat", "dog", "fox"), "tiny")
    np.testing.assert_array_equal(dataset.labels, np.arange(300) % 3)
    np.testing.assert_array_equal(dataset.images, [picture(i) for i in range(300)])
    monkeypatch.setenv("HOME", str(root.parent))
    for folder in (str(root), f"~/{root.name}"):
        named = load({"name": "tiny", "data_dir": folder}, "test", 8, 3, None)
        assert named.digest() == read(root, "test").digest()
        assert named.n == 4


def test_nested_labels(root):
    dataset = read(root, label_key="attributes/Male")
    assert dataset.class_names == ("not Male", "Male")
    np.testing.assert_array_equal(dataset.labels, np.arange(300) % 2)


def test_unlabelled_and_undivided(root):
    assert read(root, label_key="").class_names == ("all",)
    assert read(root, "test", test_split="", test_fraction=0.1).n == 30
    assert read(root, split="train[:10]").n == 10


@pytest.mark.parametrize(
    "change, message",
    [
        ({"split": "trian"}, "no readable split 'trian' .its splits are train, test"),
        ({"image_key": "picture"}, "config.data.image_key=picture is not a feature of the set; it has "),
        ({"label_key": "attributes/Female"}, "config.data.label_key=attributes/Female .* it has Male"),
        ({"label_key": "label/deeper"}, "config.data.label_key=label/deeper"),
        ({"label_key": "image"}, "config.data.label_key=image is no class number"),
        ({"image_key": "label"}, "config.data.image_key=label is no image"),
        (
            {"class_names": ("dog", "cat", "fox")},
            "config.data.class_names holds the source's own names in another order",
        ),
        ({"path": ""}, "config.data.name and config.data.path are empty"),
    ],
)
def test_wrong_settings_are_named(root, change, message):
    with pytest.raises(UserError, match=message):
        read(root, **change)


def test_unprepared_sets_say_how_to_prepare_them(tmp_path):
    for name in ("mnist", "no_such_set"):
        with pytest.raises(UserError, match=rf'privimage prepare {name}.*pip install -e "\.\[prepare\]"'):
            load({"name": name, "data_dir": str(tmp_path)}, "train", 8, 3, None)
    with pytest.raises(UserError, match="is not a prepared TFDS set"):
        load({"path": str(tmp_path)}, "train", 8, 3, None)


def test_a_corrupt_image_and_a_damaged_file(tmp_path):
    folder = write_tfds(
        tmp_path / "a", {"train": 5, "test": 1}, lambda i: example(i) | ({"image": b"broken"} if i == 3 else {})
    )
    with pytest.raises(UserError, match="example 3 of split 'train'.*remove or repair"):
        load({"path": str(folder)}, "train", 8, 3, None)
    folder = write_tfds(tmp_path / "b", {"train": 5, "test": 1})
    (folder / "tiny-train.array_record-00000-of-00001").write_bytes(b"damaged" * 9)
    with pytest.raises(UserError, match="delete the set's folder and prepare it again|no readable split"):
        load({"path": str(folder)}, "train", 8, 3, None)


def test_labels_outside_the_classes(tmp_path):
    folder = write_tfds(tmp_path, {"train": 5, "test": 1}, lambda i: example(i) | {"label": -1 if i == 2 else 0})
    with pytest.raises(UserError, match="split 'train' of .* holds the negative label -1 at 2"):
        load({"path": str(folder)}, "train", 8, 3, None)


def write_ratings(root, labels):
    """A set whose labels are whole numbers without a list of classes."""
    folder = write_tfds(root, {"train": len(labels), "test": 1}, lambda i: example(i) | {"label": labels[i]})
    path = folder / "features.json"
    features = json.loads(path.read_text())
    inside = features["featuresDict"]["features"]
    inside["label"] = inside["attributes"]["featuresDict"]["features"]["Male"] | {
        "tensor": {"shape": {}, "dtype": "int64", "encoding": "none"}
    }
    path.write_text(json.dumps(features))
    return folder


def test_numbers_count_from_the_first_label(tmp_path):
    labels = [1] * 140 + [3, 2, 1]
    section = {"path": str(write_ratings(tmp_path, labels)), "class_names": ("bad", "fair", "good")}
    with pytest.raises(UserError, match="numbers its 3 classes from 1 to 3; set config.data.first_label=1"):
        load(section, "train", 8, 3, None)
    dataset = load(section | {"first_label": 1}, "train", 8, 3, None)
    assert (dataset.labels + 1).tolist() == labels and dataset.class_names == section["class_names"]
    by_value = load(section | {"class_names": ("3", "1", "2")}, "train", 8, 3, None)
    assert [int(by_value.class_names[label]) for label in by_value.labels] == labels


def test_a_number_outside_is_told_by_all_labels_and_shifts_no_name(tmp_path):
    section = {"path": str(write_ratings(tmp_path, [3] * 130 + [0, 1])), "class_names": ("bad", "fair", "good")}
    with pytest.raises(UserError, match=r"holds the label 3 at 0, outside the 3 classes .*extend config.data.class_n"):
        load(section, "train", 8, 3, None)
    section = {"path": str(write_tfds(tmp_path / "listed", {"train": 3, "test": 1})), "first_label": 1}
    with pytest.raises(UserError, match="holds the label 0 at 0, below config.data.first_label=1; set it to 0"):
        load(section, "train", 8, 3, None)


def test_reading_needs_neither_tensorflow_nor_the_network(root):
    program = f"""
import socket, sys
def refuse(*_, **__): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
from privimage_jax.data import load
assert load({{"name": "tiny", "data_dir": {str(root)!r}}}, "test", 8, 3, None).n == 4
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
