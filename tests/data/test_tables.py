"""Classes by dataset.json and by tables, in the layouts of the field's public sets."""

import json

import pytest
from layouts import colours, pets, read, tree, zipped

from privimage_jax.data.labels.names import Names
from privimage_jax.data.labels.table import parse
from privimage_jax.errors import UserError

SIX = [f"{i:05d}" for i in range(1, 7)]


def edm(root, labels=None):
    """Eight pictures in numbered folders that mean nothing, as EDM and StyleGAN store them."""
    names = [f"0000{i // 4}/img{i:08d}.png" for i in range(8)]
    tree(root, red=names[1::2], blue=names[::2])
    pairs = [[name, i % 2] for i, name in enumerate(names)] if labels is None else labels
    return tree(root, text={"dataset.json": json.dumps({"labels": pairs})})


@pytest.mark.parametrize("key, declared", [("data", {"class_names": ("blue", "red")}), ("public", {})])
def test_dataset_json(tmp_path, key, declared):
    root = edm(tmp_path / "set")
    for place in (root, zipped(root, tmp_path / "set.zip")):
        dataset = read(place, key=key, **declared)
        assert list(colours(dataset).values()) == ["BBBB", "RRRR"]
        assert dataset.facts.labels_from == "dataset.json"
    assert read(edm(tmp_path / "wrapped" / "deep").parent, key=key, **declared).n == 8


@pytest.mark.parametrize(
    "labels, message",
    [
        ([["00000/img00000000.png", 0]], "7 of 8 pictures have no class in dataset.json.*accept="),
        ([["missing.png", 0]], "names 1 pictures that are not there, such as missing.png"),
        ([["00000/img00000000.png", 0]] * 2, "names '00000/img00000000.png' twice"),
        ([["00000/img00000000.png", "cat"]], "write pairs of a file's name and a class number"),
        ({"a": 1}, "holds labels that are no list"),
        ([["00000/img00000000.png", -1]], "holds the negative label -1"),
    ],
)
def test_a_dataset_json_that_does_not_fit(tmp_path, labels, message):
    with pytest.raises(UserError, match=message):
        read(edm(tmp_path, labels))


def test_a_dataset_json_that_is_damaged(tmp_path):
    tree(edm(tmp_path), text={"dataset.json": '{"labels": [[1, '})
    with pytest.raises(UserError, match="dataset.json is not JSON"):
        read(tmp_path)


def test_pictures_without_a_class_are_left_out_if_accepted(tmp_path):
    edm(tmp_path, [["00000/img00000000.png", 0], ["00000/img00000001.png", 1]])
    dataset = read(tmp_path, accept=("unlabelled",))
    assert colours(dataset) == {"0": "B", "1": "R"}
    assert "6 pictures have no class in dataset.json and are left out" in dataset.facts.notes[0]


def ham10000(root):
    """Two folders of pictures, and a table with the files' stems."""
    tree(root, red=["part_1/ISIC_1.jpg", "part_2/ISIC_2.jpg"], blue=["part_1/ISIC_3.jpg", "part_2/ISIC_4.jpg"])
    rows = ["HAM_0,ISIC_1,mel,50", "HAM_0,ISIC_2,mel,50", "HAM_1,ISIC_3,nv,50", "HAM_1,ISIC_4,nv,50"]
    return tree(root, text={"HAM10000_metadata.csv": "\n".join(["lesion_id,image_id,dx,age", *rows]) + "\n"})


def test_a_column_that_holds_the_declared_classes(tmp_path):
    root = ham10000(tmp_path / "set")
    for place in (root, zipped(root, tmp_path / "set.zip")):
        dataset = read(place, class_names=("mel", "nv"), person="column:lesion_id")
        assert colours(dataset) == {"mel": "RR", "nv": "BB"}
        assert dataset.facts.labels_from == "the column dx of HAM10000_metadata.csv"
        assert dataset.people.tolist() == [0, 1, 0, 1]  # files in order of path
    with pytest.raises(
        UserError, match=r"labels=table:HAM10000_metadata.csv:image_id:COLUMN with one of lesion_id, dx"
    ):
        read(root, key="public")
    named = read(root, key="public", labels="table:HAM10000_metadata.csv:image_id:dx")
    assert colours(named) == {"mel": "RR", "nv": "BB"}


def celeba(root):
    tree(root, red=[f"img/{n}.jpg" for n in SIX[:2]], blue=[f"img/{n}.jpg" for n in SIX[2:4]])
    rows = "".join(f"{n}.jpg  1 {-1 if n in SIX[:2] else 1:2d}\n" for n in SIX[:4])
    identities = "".join(f"{n}.jpg {i // 2}\n" for i, n in enumerate(SIX[:4]))
    return tree(root, text={"list_attr_celeba.txt": f"4\nYoung Male\n{rows}", "identity_CelebA.txt": identities})


def test_an_attribute_is_named_as_a_class_is(tmp_path):
    root = celeba(tmp_path)
    assert colours(read(root, class_names=("female", "male"))) == {"female": "RR", "male": "BB"}
    assert colours(read(root, class_names=("male", "female"))) == {"male": "BB", "female": "RR"}
    chosen = read(root, key="public", labels="table:list_attr_celeba.txt::Male")
    assert colours(chosen) == {"not Male": "RR", "Male": "BB"}
    with pytest.raises(UserError, match="which of its columns holds the classes is not clear"):
        read(root, class_names=("old", "new"))


def test_a_table_without_a_header(tmp_path):
    dataset = read(celeba(tmp_path), labels="table:identity_CelebA.txt:1:2")
    assert colours(dataset) == {"0": "RR", "1": "BB"}


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_hugging_face_folders(tmp_path, name):
    for part in ("train", "test"):
        tree(tmp_path, red=[f"{part}/0.png"], blue=[f"{part}/1.png"])
        rows = [("0.png", "cat"), ("1.png", "dog")]
        csv = "file_name,label\n" + "".join(f"{file},{label}\n" for file, label in rows)
        lines = "".join(json.dumps({"file_name": file, "label": label}) + "\n" for file, label in rows)
        tree(tmp_path, text={f"{part}/{name}": csv if name.endswith("csv") else lines})
    for part in ("train", "test"):
        dataset = read(tmp_path, part, key="public")
        assert colours(dataset) == {"cat": "R", "dog": "B"}
        assert dataset.facts.parts == {"train": 2, "test": 2}


def test_paths_as_chexpert_stores_them(tmp_path):
    root = tree(
        tmp_path / "small", red=["train/p1/s1/view1.png"], blue=["train/p2/s1/view1.png", "valid/p3/s1/view1.png"]
    )
    table = "Path,Sex,Edema\nCheXpert/train/p1/s1/view1.png,F,0.0\nCheXpert/train/p2/s1/view1.png,M,1.0\n"
    tree(root, text={"train.csv": table})
    dataset = read(root, labels="table:train.csv:Path:Edema", class_names=("no", "yes"))
    assert colours(dataset) == {"no": "R", "yes": "B"}
    assert dataset.facts.notes == ("the held-out part has 1 pictures without a class and is not read",)


def test_a_column_of_parts(tmp_path):
    tree(tmp_path, red=["p/0.png", "p/1.png"], blue=["p/2.png", "p/3.png"])
    rows = ["p/0.png,a,train", "p/1.png,a,test", "p/2.png,b,train", "p/3.png,b,val"]
    tree(tmp_path, text={"labels.tsv": "\n".join(["file,label,split", *rows]).replace(",", "\t")})
    for part, found in (("train", {"a": "R", "b": "B"}), ("test", {"a": "R", "b": ""})):
        assert colours(read(tmp_path, part, class_names=("a", "b"))) == found


def test_a_table_elsewhere_on_the_disk(tmp_path):
    tree(tmp_path, red=["set/0.png"], blue=["set/1.png"], text={"far/list.csv": "f;c\n0;x\n1;y\n"})
    dataset = read(tmp_path / "set", labels=f"table:{tmp_path}/far/list.csv:f:c")
    assert colours(dataset) == {"x": "R", "y": "B"}


def test_class_folders_go_before_a_table_when_they_are_declared(tmp_path):
    pets(tmp_path)
    rows = "".join(f"{c}/{i}.png,x\n" for c in ("cat", "dog") for i in range(2))
    tree(tmp_path, text={"notes.csv": f"file,label\n{rows}"})
    assert read(tmp_path, class_names=("cat", "dog")).facts.labels_from == "class folders"
    with pytest.raises(UserError, match="or config.public.labels=folders"):
        read(tmp_path, key="public")
    assert colours(read(tmp_path, key="public", labels="folders")) == {"cat": "RR", "dog": "BB"}


@pytest.mark.parametrize(
    "content, settings, message",
    [
        ("f,c\n0,x\n0,y\n1,x\n", {}, "gives 0.png two classes, 'x' and 'y'"),
        ("f,c\n0,x\n1\n", {}, "has 1 cells in row 3 and 2 columns"),
        ("f,c\n0,x\n1,\n", {}, "1 of 2 pictures have no class in the column c of t.csv"),
        ("f,c\n0,x\n1,z\n", {"class_names": ("x", "y")}, "holds 'z', which is not in config.data.class_names"),
        ("f,c\n0,1\n1,2\n", {"class_names": ("x", "y")}, "set config.data.first_label=1"),
        ("f,c,c\n0,x,x\n1,z,z\n", {}, "has two columns called 'c'"),
        ("g,c\n0,x\n1,z\n", {}, r"has no column 'f' \(it has g, c\)"),
        ("f,c\n8,x\n9,z\n", {}, "tells the class of no picture"),
        (b"f,c\n\xff,x\n", {}, r"is not UTF-8 text \(byte 4\)"),
        ("", {}, "is empty"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path, content, settings, message):
    tree(tmp_path, red=["0.png"], blue=["1.png"], text={"t.csv": content})
    with pytest.raises(UserError, match=message):
        read(tmp_path, labels="table:t.csv:f:c", **settings)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="the table nix.csv is missing"):
        read(pets(tmp_path), labels="table:nix.csv:f:c")


def test_names_that_several_pictures_have():
    names = Names(["a/1.png", "b/1.png", "b/2.jpg"])
    assert [names.find(cell, "") for cell in ("1.png", "b\\1.png", "./2", "a/1", "x/2.jpg")] == [
        None,
        "b/1.png",
        "b/2.jpg",
        "a/1.png",
        "b/2.jpg",
    ]


def test_cells_may_be_quoted():
    table = parse(b'file,class\n"a, b.png","big ""cat"""\n', "t.csv", "", "set", lambda cell: False)
    assert table.columns == {"file": ["a, b.png"], "class": ['big "cat"']}
