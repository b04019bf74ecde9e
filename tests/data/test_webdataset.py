"""Shards: tar files of pictures and their labels."""

import gzip
import json

import numpy as np
import pytest
from hostile import tar_bytes, written
from prepared import picture, png

from privimage_jax.data import load
from privimage_jax.data.sources import webdataset
from privimage_jax.data.sources.base import Settings
from privimage_jax.errors import UserError


def write(path, members):
    """A tar file."""
    return written(path, tar_bytes(members))


def samples(rows, label=lambda i: {"cls": b"%d\n" % (i % 2)}, name="{:03}"):
    """The members of examples: row i is `picture(i)` of label i % 2."""
    members = {}
    for i in rows:
        members |= {f"{name.format(i)}.{ending}": content for ending, content in label(i).items()}
        members[f"{name.format(i)}.png"] = png(picture(i))
    return members


def read(path, part="train", **more):
    return load({"source": "webdataset", "path": str(path), "test_fraction": 0.0, **more}, part, 8, 3, None)


def assert_rows(dataset, rows):
    for image, row in zip(dataset.images, rows, strict=True):
        np.testing.assert_array_equal(image, picture(row))
    assert dataset.labels.tolist() == [row % 2 for row in rows]


def test_parts_and_shards(tmp_path):
    write(tmp_path / "pets-train-000.tar", samples(range(3)))
    write(tmp_path / "pets-train-001.tar", samples(range(3, 5)))
    write(tmp_path / "pets-val-000.tar", samples(range(5, 7)))
    train, test = read(tmp_path), read(tmp_path, "test")
    assert_rows(train, range(5))
    assert_rows(test, range(5, 7))
    assert train.class_names == ("0", "1") and train.facts.labels_from == "the files .cls"
    assert dict(train.facts.parts) == {"train": 5, "val": 2}
    assert train.facts.notes == ("val serves as the part held out, as there is no test",)
    assert read(tmp_path, class_names=("cat", "dog")).class_names == ("cat", "dog")


def test_pictures_are_read_in_any_order(tmp_path):
    for shard in range(3):
        write(tmp_path / f"{shard}.tar", samples(range(2 * shard, 2 * shard + 2)))
    settings = Settings.from_section({"source": "webdataset", "path": str(tmp_path)})
    source = webdataset.open_source(settings, "train", 8)
    order = np.array([5, 0, 3, 1, 4, 2])
    for (image, label), row in zip(source.read(order), order, strict=True):
        np.testing.assert_array_equal(np.asarray(image.pixels), picture(row))
        assert label == row % 2


def in_json(i):
    return {
        "json": json.dumps({"label": "ab"[i % 2], "more": {"sex": i % 2}, "who": f"p{i // 2}", "x": [0.5]}).encode()
    }


def test_labels_and_persons_in_json(tmp_path):
    path = write(tmp_path / "set.tar", samples(range(4), in_json))
    by_text, by_number = read(path), read(path, label_key="more/sex", person="column:who")
    assert_rows(by_text, range(4))
    assert_rows(by_number, range(4))
    assert by_text.class_names == ("a", "b") and by_text.facts.labels_from == "the key label of the files .json"
    assert by_number.people.tolist() == [0, 0, 1, 1] and by_text.name == "set"


def test_folders_and_patterns(tmp_path):
    members = {f"./{'dc'[i % 2]}/p{i // 2}_{i}.png": png(picture(i)) for i in range(4)}
    path = write(tmp_path / "set.tar", members | {"./d/._p0_0.png": b"clutter", "./d/.DS_Store": b"clutter"})
    dataset = read(path, class_names=("d", "c"), person="pattern:^p([0-9]+)_")
    assert_rows(dataset, range(4))
    assert dataset.people.tolist() == [0, 0, 1, 1] and dataset.facts.labels_from == "the folders in the shards"


def test_one_of_several_pictures(tmp_path):
    members = {}
    for i in range(2):
        members |= {f"{i}.input.png": png(picture(i)), f"{i}.mask.png": png(picture(9)), f"{i}.cls": b"%d" % i}
    path = write(tmp_path / "set.tar", members)
    assert_rows(read(path, image_key="input.png"), range(2))
    with pytest.raises(UserError, match="several pictures of '0'; set config.data.image_key to one of input.png, mask"):
        read(path)
    assert read(path, image_key="mask.png", label_key="").class_names == ("all",)


HONEST = samples(range(2))
WRONG = {
    "no picture": ({"2.cls": b"1", "2.heic": b""}, {}, "holds '2' without a picture of a known kind"),
    "no label": ({"2.png": b""}, {}, "holds '2' without a label, a file .cls or .json or a class folder"),
    "unknown key": ({}, {"label_key": "age"}, "holds '000' without a label"),
    "unknown ending": ({}, {"image_key": "jpg"}, "holds '000' without a picture"),
    "empty label": ({"001.cls": b"\n"}, {}, "holds '001' with an empty or very long label"),
    "label of bytes": ({"001.cls": b"\xff"}, {}, "a label that is not UTF-8"),
    "mixed labels": (
        {"2.png": b"", "2.json": b'{"label": 1}'},
        {},
        "labels in different places, the files .cls, the k",
    ),
    "unknown class": ({}, {"class_names": ("a",)}, "holds the label 1 at 1, outside the 1 classes"),
    "unknown name": (
        {"000.cls": b"cat", "001.cls": b"dog"},
        {"class_names": ("cat", "bird")},
        "'dog', which is not in config.data.class",
    ),
    "damaged json": ({"2.png": b"", "2.json": b'{"label": '}, {}, "is not JSON"),
    "no object": ({"2.png": b"", "2.json": b"[1]"}, {}, "holds 2.json, which is no object"),
    "no usual key": ({"2.png": b"", "2.json": b'{"age": 1}'}, {}, "holds 2.json with age; name the key of the label"),
    "a fraction": ({"2.png": b"", "2.json": b'{"label": 0.5}'}, {}, "whose 'label' is no whole number or text"),
    "deep folders": ({"a/b/2.png": b""}, {}, "in folders within folders; unpack it and set config.data.source to fol"),
    "two pictures": ({"001.PNG": png(picture(5))}, {}, "set.tar holds '001.PNG' beside another .png of the same exam"),
    "two labels": ({"000.Cls": b"1"}, {}, "set.tar holds '000.Cls' beside another .cls of the same example"),
    "no person": (
        {},
        {"person": "pattern:p([0-9])"},
        "holds '000.png', of which config.data.person=.* tells no person",
    ),
    "other person": ({}, {"person": "level:1"}, "person=level:1 is nothing that source=webdataset has; give pattern:"),
    "large label": (
        {"001.cls": b"1" * (2 << 20)},
        {},
        "holds '001.cls' of 2,097,152 bytes, and 1,048,576 are the most",
    ),
    "no image": ({"001.png": b"<html>"}, {}, "001.png in .*set.tar is not a readable image: it is a web page"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_shards_are_named(tmp_path, case):
    change, settings, message = WRONG[case]
    path = write(tmp_path / "set.tar", HONEST | change)
    with pytest.raises(UserError, match=message):
        read(path, **settings)


def test_packed_and_damaged_shards(tmp_path):
    path = write(tmp_path / "set.tar", HONEST)
    content = path.read_bytes()
    for size in (100, 700, 1024, 1100):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match="set.tar (is cut short|ends within .*); write or download it again"):
            read(path)
    path.write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match="set.tar is packed, .*; unpack it to a .tar file; write"):
        read(path)
