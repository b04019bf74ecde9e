"""Tables of pictures: Hugging Face's layout and others."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared import picture, png

from privimage_jax.data import load
from privimage_jax.data.sources import parquet_rows
from privimage_jax.errors import UserError

FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def table(rows, labels=None, image="image", label="label", features=None, **more):
    """Row i holds `picture(i)` of label i % 2."""
    rows = list(rows)
    columns = {
        image: [{"bytes": png(picture(i)), "path": f"{i}.png"} for i in rows],
        label: [i % 2 for i in rows] if labels is None else labels,
        **more,
    }
    found = pa.table(columns)
    return found.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})} if features else {}
    )


def write(path, content, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, **options)
    return path


def read(path, part="train", **more):
    return load({"source": "parquet", "path": str(path), "test_fraction": 0.0, **more}, part, 8, 3, None)


def assert_rows(dataset, rows):
    for image, row in zip(dataset.images, rows, strict=True):
        np.testing.assert_array_equal(image, picture(row))


def test_hugging_faces_layout(tmp_path):
    for number, rows in enumerate((range(3), range(3, 5))):
        content = table(rows, features=FEATURES)
        write(tmp_path / f"data/train-0000{number}-of-00002-ab12.parquet", content, row_group_size=2)
    write(tmp_path / "data/test-00000-of-00001.parquet", table(range(5, 7), features=FEATURES))
    train, test = read(tmp_path), read(tmp_path, "test")
    assert_rows(train, range(5))
    assert_rows(test, range(5, 7))
    assert train.labels.tolist() == [0, 1, 0, 1, 0] and test.labels.tolist() == [1, 0]
    assert train.class_names == ("cat", "dog") and train.facts.labels_from == "the column label"
    assert dict(train.facts.parts) == {"train": 5, "test": 2}
    with pytest.raises(UserError, match="in another order"):
        read(tmp_path, class_names=("dog", "cat"))


def test_rows_are_read_in_any_order(tmp_path, monkeypatch):
    """Within a large group too, where each step back starts again."""
    monkeypatch.setattr(parquet_rows.os, "cpu_count", lambda: 0)  # two batches are kept
    path = write(tmp_path / "set.parquet", table(range(300)), row_group_size=200)
    rows = parquet_rows.Rows([(path, [200, 100])], parquet_rows.Column("image", struct=True))
    for row in (0, 199, 33, 32, 299, 200, 5, 150):
        assert rows.read(row)[0] == png(picture(row))
    assert rows.read(250)[1] == f"row 50 of group 1 in {path}"


def test_other_columns_and_types(tmp_path):
    content = table(range(4), ["a", "b", "b", "a"], image="img", label="kind")
    path = write(tmp_path / "set.parquet", content)
    for kinds in (
        pa.array(["a", "b", "b", "a"]).dictionary_encode(),
        pa.array(["a", "b", "b", "a"], pa.large_string()),
    ):
        write(path, content.set_column(1, "kind", kinds))
        assert read(path, label_key="kind").labels.tolist() == [0, 1, 1, 0]
    dataset = read(path, label_key="kind")
    assert dataset.class_names == ("a", "b") and dataset.labels.tolist() == [0, 1, 1, 0] and dataset.name == "set"
    assert read(path, label_key="kind", class_names=("b", "c", "a")).labels.tolist() == [2, 0, 0, 2]
    assert read(path, label_key="").class_names == ("all",)
    plain = pa.table({"img": [png(picture(i)) for i in range(3)], "age": [2.0, 0.0, 1.0], "sick": [True, False, True]})
    path = write(tmp_path / "plain.parquet", plain)
    assert_rows(read(path, label_key="age"), range(3))
    assert read(path, label_key="age").labels.tolist() == [2, 0, 1]
    assert read(path, label_key="sick").labels.tolist() == [1, 0, 1]


def test_people(tmp_path):
    content = table(range(4), who=["b", "a", "b", "c"], number=[3, 1, 1, 3])
    path = write(tmp_path / "set.parquet", content)
    assert read(path, person="column:who").people.tolist() == [1, 0, 1, 2]
    assert read(path, person="column:number").people.tolist() == [1, 0, 0, 1]
    with pytest.raises(UserError, match="has no column 'whom' .*; correct config.data.person"):
        read(path, person="column:whom")
    with pytest.raises(UserError, match="config.data.person=array:who is nothing that source=parquet has"):
        read(path, person="array:who")
    for lacking, message in ((None, "has rows without a value"), ("", "has rows with an empty text")):
        path = write(tmp_path / "set.parquet", table(range(4), who=["b", "a", lacking, "c"]))
        with pytest.raises(UserError, match=f"the column 'who' {message}; give each image a person there, its own"):
            read(path, person="column:who")


@pytest.mark.parametrize("other", [{"names": ["dog", "cat"], "_type": "ClassLabel"}, {"_type": "Value"}])
@pytest.mark.parametrize("part", ["train-1", "test-0"])
def test_files_that_name_the_classes_differently(tmp_path, part, other):
    write(tmp_path / "train-0.parquet", table(range(2), features=FEATURES))
    write(tmp_path / f"{part}.parquet", table(range(2), features=FEATURES | {"label": other}))
    with pytest.raises(
        UserError, match="names the classes of the column 'label' .*; write all files with one list"
    ) as e:
        read(tmp_path, class_names=("cat", "dog"))
    assert f"{part}.parquet" in str(e.value)


@pytest.mark.parametrize("note", ["[1]", "{", "7", '{"info": null}', '{"info": {"features": [1]}}', '{"a": 1, "a": 2}'])
def test_foreign_notes_are_passed_over(tmp_path, note):
    content = table(range(3)).replace_schema_metadata({"huggingface": note})
    assert_rows(read(write(tmp_path / "set.parquet", content)), range(3))


WITHOUT_PICTURES = pa.array([None, None], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
NUMBERS = [[[0, 1]], [[2, 3]]]
WRONG = {
    "no image": ({"image": None, "other": [1, 2]}, {}, "has no column 'image' .it has label, other.; name the column"),
    "no label": ({"label": None, "other": [1, 2]}, {}, "has no column 'label' .it has image, other.; name the column"),
    "unknown key": ({}, {"image_key": "pixels"}, "no column 'pixels' .*config.data.image_key"),
    "no pictures": ({"image": NUMBERS}, {}, "the column 'image' holds list.* and no picture files"),
    "only paths": ({"image": WITHOUT_PICTURES}, {}, "holds no picture in row 0 of group 0, maybe only its path"),
    "no label in a row": ({"label": [1, None]}, {}, "the column 'label' has rows without a value"),
    "unlabelled": ({"label": [-1, -1]}, {}, "'label' holds the negative label -1"),
    "lists": ({"label": [[0], [1]]}, {}, "holds list.*, neither whole numbers nor texts"),
    "fractions": ({"label": [0.5, 1.0]}, {}, "'label' holds 0.5 at 0, which is no whole number"),
    "from 1": ({"label": [1, 2]}, {"class_names": ("a", "b")}, "set config.data.first_label=1"),
    "no picture": ({"image": [b"<html>", b"<html>"]}, {}, "row 0 of group 0 in .* is a web page"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tables_are_named(tmp_path, case):
    change, settings, message = WRONG[case]
    columns = {"image": [png(picture(i)) for i in range(2)], "label": [0, 1]} | change
    path = write(tmp_path / "set.parquet", pa.table({k: v for k, v in columns.items() if v is not None}))
    with pytest.raises(UserError, match=message):
        read(path, **settings)


def test_files_that_do_not_belong_together(tmp_path):
    write(tmp_path / "0.parquet", table(range(2)))
    write(tmp_path / "1.parquet", table(range(2), ["a", "b"]))
    with pytest.raises(UserError, match="the column 'label' holds texts in some of the files only"):
        read(tmp_path)
    write(tmp_path / "1.parquet", table(range(2), label="kind"))
    with pytest.raises(UserError, match="1.parquet: the column 'label' is missing"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 40 + b"PAR1", b"<html>" * 20])
def test_files_that_are_no_tables(tmp_path, content):
    path = tmp_path / "set.parquet"
    path.write_bytes(content)
    with pytest.raises(UserError, match="set.parquet is damaged .*; write or download it again"):
        read(path)


def test_without_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path / "set.parquet", table(range(2)))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.delattr(pa, "parquet", raising=False)
    with pytest.raises(UserError, match=r"config.data.source=parquet needs pyarrow; run `pip install -e \"\.\[parquet"):
        read(path)
