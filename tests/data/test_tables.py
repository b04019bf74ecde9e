"""Classes by dataset.json and by tables, in the layouts of the field's public sets."""

import json

import pytest
from layouts import colours, pets, read, tree, zipped

from privimage_jax.data import load
from privimage_jax.data.labels.names import Names
from privimage_jax.data.labels.text_table import parse
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
    with pytest.raises(
        UserError,
        match=r"list_attr_celeba.txt names every picture \(and so do identity_CelebA.txt\), and where",
    ):
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
        None,
    ]


def test_cells_may_be_quoted():
    table = parse(b'file,class\n"a, b.png","big ""cat"""\n', "t.csv", "", "set", lambda cell: False)
    assert table.columns == {"file": ["a, b.png"], "class": ['big "cat"']}


def test_a_row_of_a_picture_that_is_not_there_is_given_to_no_other():
    names = Names(["train/p1/view2.png", "train/p2/view1.png", "test/9.png"])
    assert names.find("V1/train/p2/view2.png", "") is None
    assert names.find("9.png", "train/") is None
    assert names.find("p1/view2.png", "train/") == "train/p1/view2.png"
    assert names.find("9", "") == "test/9.png"


def graded(root, *grades):
    """A table of grades: one picture for each."""
    tree(root, red=[f"{i}.png" for i in range(len(grades))])
    rows = "".join(f"{i}.png,{grade}\n" for i, grade in enumerate(grades))
    return tree(root, text={"t.csv": f"f,Male\n{rows}"})


@pytest.mark.parametrize(
    "classes, cells",
    [
        (("Male", "Female"), "0 0 1"),
        (("female", "male"), "-1 1 -1"),
        (("1", "2", "3", "4"), "1 3 2"),
        (("a", "b", "c"), "0 2 1"),
        (("a", "b", "c"), "b c 0"),
        (("3", "4"), "4 3"),
    ],
)
def test_the_class_of_a_picture_does_not_depend_on_the_other_rows(tmp_path, classes, cells):
    cells = cells.split()
    labels = "table:t.csv:f:Male"
    whole = read(graded(tmp_path / "whole", *cells), class_names=classes, labels=labels).labels.tolist()
    for i, cell in enumerate(cells):
        alone = read(graded(tmp_path / str(i), cell), class_names=classes, labels=labels).labels.tolist()
        assert alone == [whole[i]]
    assert {cells.index(name): classes.index(name) for name in set(cells) & set(classes)}.items() <= dict(
        enumerate(whole)
    ).items()


def test_an_attribute_without_a_class_of_its_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="which of man and woman that means is not clear; call the class of 1 as"):
        read(graded(tmp_path, -1, 1), class_names=("man", "woman"), labels="table:t.csv:f:Male")


def test_a_number_that_is_no_declared_name_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds '0', which is not in config.data.class_names"):
        read(graded(tmp_path, 1, 0), class_names=("1", "2"), labels="table:t.csv:f:Male")


def test_an_index_is_no_column_of_files(tmp_path):
    tree(tmp_path, red=["0.png"], blue=["1.png", "2.png"])
    tree(tmp_path, text={"t.csv": ",image,label\n0,2.png,b\n1,0.png,a\n2,1.png,b\n"})
    assert colours(read(tmp_path, class_names=("a", "b"))) == {"a": "R", "b": "BB"}
    tree(tmp_path, text={"t.csv": "id,image,label\n0,2,b\n1,0,a\n2,1,b\n"})
    with pytest.raises(UserError, match="the columns 'id' and 'image' of the table t.csv both name the pictures"):
        read(tmp_path, class_names=("a", "b"))


def test_one_stray_cell_does_not_change_the_column(tmp_path):
    root = two_columns(tmp_path, "nv")
    assert colours(read(root, class_names=("mel", "nv"))) == {"mel": "R", "nv": "B"}
    with pytest.raises(UserError, match="the column 'dx' of t.csv holds 'bkl', which is not in"):
        read(two_columns(tmp_path, "bkl"), class_names=("mel", "nv"))


def two_columns(root, second):
    tree(root, red=["0.png"], blue=["1.png"])
    return tree(root, text={"t.csv": f"f,dx,age\n0.png,mel,1\n1.png,{second},0\n"})


@pytest.mark.parametrize(
    "words, settings, parts, note",
    [
        ("train test val", {}, (1, 1), "the pictures of the part val are not read"),
        ("train test val", {"test_split": "val"}, (1, 1), "the pictures of the part test are not read"),
        ("train val val", {}, (1, 2), "val is held out, as there is no test"),
        ("0 2 1", {"split": "0", "test_split": "2"}, (1, 1), "the pictures of the part 1 are not read"),
        ("0 2 1", {}, (3, 0), "the column split is not used, as none of 0, 1, 2 is train"),
    ],
)
def test_a_column_of_parts_follows_the_settings(tmp_path, words, settings, parts, note):
    tree(tmp_path, red=["0.png", "1.png", "2.png"])
    rows = "".join(f"{i}.png,a,{word}\n" for i, word in enumerate(words.split()))
    tree(tmp_path, text={"t.csv": f"f,label,split\n{rows}"})
    dataset = read(tmp_path, class_names=("a",), **settings)
    assert dataset.n == parts[0]
    assert any(told.startswith(note) for told in dataset.facts.notes)
    if parts[1]:
        assert read(tmp_path, "test", class_names=("a",), **settings).n == parts[1]


def test_a_picture_without_a_row_stops_the_run_also_with_a_column_of_parts(tmp_path):
    tree(tmp_path, red=["0.png", "1.png", "2.png"], text={"t.csv": "f,label,split\n0.png,a,train\n1.png,a,test\n"})
    with pytest.raises(UserError, match="1 of 2 pictures have no class in the column label of t.csv, such as 2.png"):
        read(tmp_path, class_names=("a",), labels="table:t.csv:f:label")


def test_a_table_that_is_not_used_is_told(tmp_path):
    tree(pets(tmp_path), text={"t.csv": b"f,label\n\xe9,x\n"})
    assert read(tmp_path, class_names=("cat", "dog")).facts.notes == (
        "t.csv is not used: t.csv is not UTF-8 text (byte 8); save it as CSV in UTF-8",
    )
    tree(tmp_path, text={"metadata.csv": b"file_name,label\n\xe9,x\n"})
    with pytest.raises(UserError, match="metadata.csv is not UTF-8 text"):
        read(tmp_path, class_names=("cat", "dog"))


def test_a_table_that_names_most_pictures_is_no_reason_to_take_folders(tmp_path):
    tree(tmp_path, red=["part_1/0.png", "part_1/1.png"], blue=["part_2/2.png"], text={"t.csv": "f,label\n0,a\n2,b\n"})
    with pytest.raises(UserError, match="the table t.csv names 67% of the pictures"):
        read(tmp_path, key="public")


def test_persons_of_a_table(tmp_path):
    tree(tmp_path, red=["0.png"], text={"t.csv": "f,label,p\n0.png,a,x\n0.png,a,y\n"})
    with pytest.raises(UserError, match="gives 0.png two persons, 'x' and 'y'"):
        read(tmp_path, labels="table:t.csv:f:label", person="column:p")


def test_lines_of_json_may_lack_keys_and_hold_any_character(tmp_path):
    tree(tmp_path, red=["0.png"], blue=["1.png"])
    lines = '{"file_name": "0.png", "label": "a", "text": "one\u2028two"}\n{"file_name": "1.png", "label": "b"}\n'
    assert colours(read(tree(tmp_path, text={"metadata.jsonl": lines}))) == {"a": "R", "b": "B"}


def test_numbers_as_names_of_columns(tmp_path):
    tree(tmp_path, red=["1.png"], blue=["2.png"], text={"t.txt": "9.png 1\n1.png 0\n2.png 1\n"})
    assert colours(read(tmp_path, labels="table:t.txt:1:2")) == {"0": "R", "1": "B"}
    tree(tmp_path, text={"t.txt": "file 1 2\n1.png 0 5\n2.png 1 5\n"})
    assert colours(read(tmp_path, labels="table:t.txt:file:1")) == {"0": "R", "1": "B"}


def test_a_zip_is_read_anew_when_a_table_outside_changes(tmp_path):
    path = zipped(tree(tmp_path / "set", red=["0.png"], blue=["1.png"]), tmp_path / "set.zip")
    found = []
    for first, second in (("train", "test"), ("test", "train")):
        tree(tmp_path, text={"t.csv": f"f,label,split\n0.png,a,{first}\n1.png,a,{second}\n"})
        section = {
            "source": "zip",
            "path": str(path),
            "labels": f"table:{tmp_path}/t.csv:f:label",
            "class_names": ("a",),
        }
        found.append(colours(load(section, "train", 4, 3, tmp_path / "cache")))
    assert found == [{"a": "R"}, {"a": "B"}]


def test_a_row_that_fits_several_pictures_is_told_as_such(tmp_path):
    rows = {"t.csv": "f,c\n0.png,x\n1.png,y\n"}
    tree(tmp_path, red=["a/0.png", "b/0.png"], blue=["a/1.png", "2.png"], text=rows)
    settings = {"labels": "table:t.csv:f:c"}
    expected = (
        "2 of 4 pictures share a name with others in the column c of t.csv, so that no row is theirs alone and 1 have "
        "no class, such as a/0.png; give more of their paths in the table"
    )
    with pytest.raises(UserError, match=expected):
        read(tmp_path, **settings)
    assert colours(read(tmp_path, **settings, accept=("unlabelled",))) == {"y": "B"}
