"""Folder trees and zip files as people have them: which level holds the classes, which folders are parts."""

import os
import unicodedata
import zipfile

import pytest
from layouts import RED, colours, pets, png, read, tree, zipped

from privimage_jax.errors import UserError

PETS = {"cat": "RR", "dog": "BB"}
DECLARED = {"class_names": ("cat", "dog")}


@pytest.fixture(params=[("data", DECLARED), ("public", {})], ids=["sensitive", "public"])
def load_set(request):
    """Reads a tree as a sensitive set, whose classes are declared, or as a public one."""
    key, declared = request.param
    return lambda root, part="train", **more: read(root, part, key, **{**declared, **more})


@pytest.mark.parametrize(
    "training, held_out",
    [("Training", "Testing"), ("Train", "Test"), ("train", "valid"), ("TRAIN", "VAL"), ("training_set", "test_set")],
)
def test_parts_in_every_usual_spelling(tmp_path, load_set, training, held_out):
    pets(tmp_path, training, held_out)
    for part in ("train", "test"):
        dataset = load_set(tmp_path, part)
        assert colours(dataset) == PETS
        assert dataset.facts.parts == {"train": 4, "test": 4}


def test_a_third_part_is_told(tmp_path, load_set):
    pets(tmp_path, "train", "val", "test")
    dataset = load_set(tmp_path, "test")
    assert dataset.n == 4
    assert dataset.facts.notes == ("val lies beside the part train and is not read",)
    assert load_set(tmp_path, "test", test_split="val").facts.notes == (
        "test lies beside the part train and is not read",
    )


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_a_part_without_class_folders_is_none(tmp_path, load_set, held_out):
    tree(pets(tmp_path, "train"), red=[f"{held_out}/1.png"])
    for more in ({}, {"test_split": held_out}):
        dataset = load_set(tmp_path, **more)
        assert colours(dataset) == PETS
        assert dataset.facts.parts == {"train": 4, "test": 0}
        assert dataset.facts.notes == (f"{held_out} has pictures but no class folders and is not read",)


def test_a_class_called_train_among_others(tmp_path):
    tree(tmp_path, red=["train/ice/1.png"], blue=["bus/city/1.png"], green=["car/sedan/1.png"])
    dataset = read(tmp_path, class_names=("bus", "car", "train"))
    assert colours(dataset) == {"bus": "B", "car": "G", "train": "R"}
    with pytest.raises(UserError, match="where these are classes, declare config.public.class_names"):
        read(tmp_path, key="public")
    for i, name in enumerate(("train/2.png", "bus/2.png", "car/2.png")):
        tree(tmp_path / "flat", **{("red", "blue", "green")[i]: [name]})
    assert colours(read(tmp_path / "flat", key="public")) == {"bus": "B", "car": "G", "train": "R"}


@pytest.mark.parametrize("where", ["PetImages", "a/b/c", "archive/PetImages"])
def test_folders_around_everything_are_passed_over(tmp_path, load_set, where):
    pets(tmp_path / "set" / where)
    tree(tmp_path / "set", text={"README.txt": "x"})
    assert colours(load_set(tmp_path / "set")) == PETS
    assert colours(load_set(zipped(tmp_path / "set", tmp_path / "set.zip"))) == PETS


def test_a_single_declared_class_is_no_wrapper(tmp_path):
    tree(tmp_path, red=["cat/tabby/0.png"])
    assert colours(read(tmp_path, **DECLARED)) == {"cat": "R", "dog": ""}


def test_declared_names_tell_the_level(tmp_path):
    pets(tmp_path / "part_1", n=1)
    pets(tmp_path / "part_2", n=1)
    assert colours(read(tmp_path, **DECLARED)) == PETS
    with pytest.raises(UserError, match=r"two folders deep, as in part_1/cat.*declare config.public.class_names"):
        read(tmp_path, key="public")
    with pytest.raises(
        UserError, match=r"'part_1' is not in .*class_names \(cat, fox\) \(the folders below are cat, dog\)"
    ):
        read(tmp_path, class_names=("cat", "fox"))


def test_one_folder_in_every_class_is_passed_over(tmp_path, load_set):
    tree(tmp_path, red=["train/cat/images/0.png"], blue=["train/dog/images/0.png"])
    assert colours(load_set(tmp_path)) == {"cat": "R", "dog": "B"}


@pytest.mark.parametrize("name", ["lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "#recycle"])
def test_folders_of_the_system_are_no_classes(tmp_path, load_set, name):
    tree(pets(tmp_path), green=[f"{name}/1.png", f"cat/{name}/0.png/thumb.png"], folders=[f"dog/{name}"])
    for root in (tmp_path, zipped(tmp_path, tmp_path.parent / "set.zip")):
        dataset = load_set(root)
        assert colours(dataset) == PETS
        assert dataset.facts.notes == (f"{name} is of the system and is passed over",)


def test_files_of_the_system_in_any_case(tmp_path, load_set):
    clutter = dict.fromkeys(["cat/thumbs.db", "cat/Desktop.ini", "dog/ehthumbs.db", "dog/Icon\r", "dog/._0.png"], b"x")
    assert colours(load_set(tree(pets(tmp_path), text=clutter))) == PETS


def test_an_empty_folder_is_named_and_no_public_class(tmp_path):
    tree(pets(tmp_path), folders=["bird"])
    dataset = read(tmp_path, key="public")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.facts.notes == ("bird holds no pictures and is no class",)
    assert read(tmp_path, class_names=("bird", "cat", "dog")).class_names == ("bird", "cat", "dog")


def test_accents_as_macos_stores_them(tmp_path):
    composed = unicodedata.normalize("NFC", "café")
    tree(tmp_path, red=[f"{unicodedata.normalize('NFD', composed)}/0.png"], blue=["tea/0.png"])
    for names in (
        {},
        {"class_names": (composed, "tea")},
        {"class_names": (unicodedata.normalize("NFD", "café"), "tea")},
    ):
        assert colours(read(tmp_path, **names)) == {composed: "R", "tea": "B"}


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "jfif", "jpe", "pjpeg"])
def test_endings_of_jpeg(tmp_path, ending):
    assert read(tree(tmp_path, red=[f"cat/0.{ending}"])).n == 1


def test_a_control_character_is_shown_escaped(tmp_path, privimage):
    tree(tmp_path, red=["cat/0.png"], text={"cat/bad\rname": "x"})
    with pytest.raises(UserError, match="is not an image of a known kind"):
        read(tmp_path)


def test_links_may_lead_into_a_named_folder(tmp_path):
    store = tree(tmp_path / "store", red=["1.png"])
    (tmp_path / "set/cat").mkdir(parents=True)
    os.symlink(store / "1.png", tmp_path / "set/cat/0.png")
    with pytest.raises(UserError, match="leads out of the folder.*config.data.links=FOLDER"):
        read(tmp_path / "set")
    assert read(tmp_path / "set", links=str(store)).n == 1
    with pytest.raises(UserError, match="leads out of the folder"):
        read(tmp_path / "set", links=str(tmp_path / "set"))


def test_a_zip_of_windows(tmp_path, load_set):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, colour in (("cat|0.png", RED), ("dog|0.png", (0, 0, 255))):
            archive.writestr(name, png(colour))
    content = (tmp_path / "set.zip").read_bytes()
    (tmp_path / "set.zip").write_bytes(content.replace(b"cat|", b"cat\\").replace(b"dog|", b"dog\\"))
    assert colours(load_set(tmp_path / "set.zip")) == {"cat": "R", "dog": "B"}


def test_windows_paths_that_lead_out(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("..|0.png", png(RED))
    (tmp_path / "set.zip").write_bytes((tmp_path / "set.zip").read_bytes().replace(b"..|", b"..\\"))
    with pytest.raises(UserError, match="leads out of the archive"):
        read(tmp_path / "set.zip")


def test_a_zip_of_macos_has_utf8_names_without_saying_so(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("caXX/0.png", png(RED))
        archive.writestr("tea/0.png", png(RED))
    content = (tmp_path / "set.zip").read_bytes()
    (tmp_path / "set.zip").write_bytes(content.replace(b"caXX", "ca\xe9".encode()))
    assert read(tmp_path / "set.zip").class_names == ("ca\xe9", "tea")


def test_persons(tmp_path):
    tree(tmp_path, red=["cat/anna_1.png", "cat/anna_2.png"], blue=["dog/bo/3.png"])
    with pytest.raises(UserError, match="tells no person of 1 of 3 images, such as dog/bo/3.png; give each image a"):
        read(tmp_path, person=r"pattern:(anna|bo)")
    assert read(tmp_path, person="level:1").people.tolist() == [0, 0, 1]
    assert read(tmp_path).people is None
    with pytest.raises(UserError, match="tells no person of 2 of 3 images, such as cat/anna_1.png"):
        read(tmp_path, person="level:2")
    with pytest.raises(UserError, match="person=column:who does not fit class folders; give level:N or pattern:REGEX"):
        read(tmp_path, person="column:who")


def test_a_pattern_looks_at_the_files_own_name_alone(tmp_path):
    """Else a patient with scans in `no_tumor` and `tumor` would be two people, each protected less."""
    tree(tmp_path, red=["no_tumor/pat0_1_left.png"], blue=["tumor/pat0_2.png", "tumor/pat1_0.png"])
    assert read(tmp_path, person=r"pattern:(\w+?)_").people.tolist() == [0, 0, 1]
    assert read(tmp_path, person="pattern:^([^_]+)_").people.tolist() == [0, 0, 1]


def test_labels_none_is_one_class(tmp_path):
    dataset = read(pets(tmp_path, "train", "test"), labels="none")
    assert colours(dataset) == {"all": "BBRR"}
    assert dataset.facts.parts == {"train": 4, "test": 4}


def test_a_test_part_alone_is_not_trained_on(tmp_path, load_set):
    pets(tmp_path, "test")
    for folders in ((), ("train",)):
        with pytest.raises(UserError, match="has pictures in test, and none in a training part"):
            load_set(tree(tmp_path, folders=folders))
    assert colours(load_set(tmp_path, split="test")) == PETS


@pytest.mark.parametrize("training, held_out", [("train_images", "test_images"), ("Train2017", "Val2017")])
def test_names_that_hold_the_word_of_a_part(tmp_path, load_set, training, held_out):
    pets(tmp_path, training, held_out)
    assert load_set(tmp_path).facts.parts == {"train": 4, "test": 4}


def test_a_part_that_is_called_as_a_class_is_refused(tmp_path):
    tree(tmp_path, red=["train/train/0.png"], blue=["train/bus/1.png"])
    with pytest.raises(UserError, match="'train' is called as a class and holds folders called as classes"):
        read(tmp_path, class_names=("train", "bus"))


def test_pictures_beside_the_parts_are_not_lost(tmp_path, load_set):
    tree(pets(tmp_path, "train", "test"), red=["loose.png"])
    with pytest.raises(UserError, match=r"loose.png lies beside the part train"):
        load_set(tmp_path)


def test_pictures_of_other_kinds_are_told(tmp_path):
    tree(tmp_path, red=["0.png"], text={"1.heic": "x", "2.dcm": "x"})
    note = "2 pictures of kinds that are not read, such as 1.heic"
    assert any(told.startswith(note) for told in read(tmp_path, labels="none").facts.notes)


def test_persons_below_the_parts(tmp_path):
    tree(tmp_path, red=["train/cat/anna/1.png", "train/cat/bo/2.png"])
    assert read(tmp_path, class_names=("cat",), person="level:2").people.tolist() == [0, 1]


def test_lists_above_the_class_folders_are_passed_over_and_told(tmp_path):
    """As SMILEsmileD is published: SMILEs/positives/positives7/1.jpg beside SMILEs/positives/smiles_01_pos.idx."""
    root = tree(tmp_path, red=["set/pos/pos7/0.png"], blue=["set/neg/neg7/1.png"], text={"set/pos/list.idx": "0.png"})
    found = read(root, class_names=("pos", "neg"))
    assert colours(found) == {"pos": "R", "neg": "B"}
    assert "1 file that is no picture is not read: set/pos/list.idx" in found.facts.notes


def test_files_of_unknown_kinds_in_a_class_of_their_own_are_told(tmp_path):
    root = tree(tmp_path, red=["cat/0.png"], text={"dog/1.raw": "x", "dog/2.raw": "x"})
    with pytest.raises(UserError, match=r"dog/1\.raw, dog/2\.raw \(2\) are not images of a known kind; .*other_files"):
        read(root, class_names=("cat", "dog"))
