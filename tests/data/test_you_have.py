"""The table "You have …, set …" of docs/data.md: each row loads what it says, as the classes that it says."""

import os
import pathlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cifar_files import write_cifar10
from hostile import tar_bytes
from hostile import written as write_file
from idx_files import write_mnist
from layouts import colours, pets, tree, zipped
from PIL import Image
from prepared import png, write_tfds

from privimage_jax.data import load

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+) \| `(source=.+)` \|$", PAGE, flags=re.M)
PETS = {"cat": "RR", "dog": "BB"}
TWO = {"a": "R", "b": "B"}


def two(root, **tables):
    """A red and a blue picture, and a table beside them."""
    return tree(root, red=["part_1/anna_1.png"], blue=["part_2/bo_2.png"], text=tables)


def written(path, **arrays):
    np.savez(path, **arrays)
    return path


def deep(root):
    for name, value in (("a", 0), ("b", 4095)):
        (root / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(root / name / "0.png")
    return root


def linked(root):
    pets(root.with_name("store"), n=1)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        os.symlink(root.with_name("store") / name / "0.png", root / name / "0.png")
    return root


def prepared(root):
    write_tfds(root, {"train": 5, "test": 2})
    return root / "tiny" / "1.0.0"


def table(root, **columns):
    root.mkdir()
    pq.write_table(pa.table(columns), root / "train-00000-of-00001.parquet")
    return root


RED, BLUE = (png(np.full((8, 8, 3), colour, np.uint8)) for colour in ((200, 0, 0), (0, 0, 200)))
PICTURES = [{"bytes": content, "path": None} for content in (RED, BLUE)]
REDS = np.zeros((2, 8, 8, 3), np.uint8)
REDS[0, ..., 0] = REDS[1, ..., 2] = 200
DX = "lesion,image_id,dx,patient\n1,anna_1,a,p1\n2,bo_2,b,p2\n"
EDM = '{"labels": [["00000/0.png", 1], ["00000/1.png", 0]]}'
PAIR = {"0": "R", "1": "B"}

CASES = {  # the beginning of a row -> what lies at PATH, and what is found
    "`PATH/cat/1.png`": (pets, PETS),
    "the same in `PATH/train`": (lambda root: pets(root, "Training", "valid"), PETS),
    "parts under other names": (lambda root: pets(root, "2023", "2024"), PETS),
    "folders around everything": (lambda root: pets(root / "PetImages").parent, PETS),
    "classes below chunks": (lambda root: pets(root, "chunk1", "chunk2", n=1), PETS),
    "any of these in a zip file": (
        lambda root: zipped(pets(root, "x/Train", "x/Test"), root.with_suffix(".zip")),
        PETS,
    ),
    "pictures without classes": (lambda root: tree(root, red=["0.png", "1.png"]), {"all": "RR"}),
    "StyleGAN's or EDM's": (
        lambda root: zipped(
            tree(root, red=["00000/0.png"], blue=["00000/1.png"], text={"dataset.json": EDM}), root.with_suffix(".zip")
        ),
        {"0": "B", "1": "R"},
    ),
    "`metadata.csv`": (
        lambda root: tree(
            root,
            red=["train/0.png"],
            blue=["train/1.png"],
            text={"train/metadata.csv": "file_name,label\n0.png,a\n1.png,b\n"},
        ),
        TWO,
    ),
    "a table of files and classes": (lambda root: two(root, **{"labels.csv": DX}), TWO),
    "CelebA's attributes": (
        lambda root: two(root, **{"list_attr_celeba.txt": "2\nYoung Male\nanna_1.png 1 -1\nbo_2.png 1 1\n"}),
        {"not Male": "R", "Male": "B"},
    ),
    "a table with paths": (
        lambda root: two(root, **{"train.csv": "Path,Edema\nV1/part_1/anna_1.png,0.0\nV1/part_2/bo_2.png,1.0\n"}),
        PAIR,
    ),
    "a table without a header": (lambda root: two(root, **{"classes.txt": "anna_1.png 0\nbo_2.png 1\n"}), PAIR),
    "classes numbered from 1": (
        lambda root: two(root, **{"labels.csv": "image_id,grade\nanna_1,1\nbo_2,2\n"}),
        {"1": "R", "2": "B"},
    ),
    "pictures that are links": (linked, {"cat": "R", "dog": "B"}),
    "several pictures of one person": (
        lambda root: tree(root, red=["cat/anna_1.png", "cat/anna_2.png"]),
        {"cat": "RR"},
    ),
    "the same, as a column": (lambda root: two(root, **{"labels.csv": DX}), TWO),
    "12 bits in files of 16": (deep, {"a": "R", "b": "R"}),  # grey
    "an npz file: MedMNIST": (lambda root: written(f"{root}.npz", x_train=REDS, y_train=np.arange(2)), PAIR),
    "an npz file with other names": (lambda root: written(f"{root}.npz", scans=REDS, grade=np.arange(2)), PAIR),
    "arrays of 0 and 1": (lambda root: written(f"{root}.npz", images=REDS // 200, labels=np.arange(2)), PAIR),
    "MNIST's original files": (lambda root: root.mkdir() or write_mnist(root) or root, None),
    "CIFAR's original files": (write_cifar10, None),
    "Parquet files (Hugging Face)": (lambda root: table(root, image=PICTURES, label=[0, 1]), PAIR),
    "Parquet files with other columns": (
        lambda root: table(root, scan=[picture["bytes"] for picture in PICTURES], grade=["a", "b"], patient=[7, 8]),
        TWO,
    ),
    "tar shards": (
        lambda root: (
            write_file(
                root / "train-0.tar", tar_bytes({"1.png": RED, "1.cls": b"a", "2.png": BLUE, "2.cls": b"b"})
            ).parent
        ),
        TWO,
    ),
    "a set prepared by": (prepared, None),
}


@pytest.mark.parametrize("has, settings", ROWS, ids=[row[0][:40] for row in ROWS])
def test_each_row_loads(tmp_path, has, settings):
    (key,) = [key for key in CASES if has.startswith(key)]
    make, expected = CASES[key]
    path = make(tmp_path / "set")
    text = settings.replace("path=PATH", f"path={path}").replace("STORE", str(tmp_path / "store"))
    section = dict(word.split("=", 1) for word in text.replace("\\|", "|").split(" "))
    section |= {key: int(section[key]) for key in ("first_label",) if key in section}
    section |= {key: tuple(section[key].split(",")) for key in ("class_names",) if key in section}
    dataset = load({"test_fraction": 0.0, **section}, "train", 4, 3, None)
    assert dataset.n >= 2
    assert dataset.images.max() > 100
    if expected is not None:
        assert colours(dataset) == expected
    if "person" in section:
        assert dataset.people is not None
        assert len(set(dataset.people.tolist())) == (1 if "pattern" in section["person"] else 2)


def test_every_case_has_a_row():
    assert len(ROWS) == len(CASES)
