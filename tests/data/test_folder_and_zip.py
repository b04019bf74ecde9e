import os
import stat
import zipfile

import numpy as np
import pytest
from PIL import Image
from prepared import picture, png

from privimage_jax.data import load
from privimage_jax.errors import UserError
from privimage_jax.storage import archives


def fill(root, names, size=8):
    """Writes `picture(i)` as the i-th of `names`."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(picture(i, size)))
    return root


def zipped(root, path, prefix=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + str(file.relative_to(root)))
    return path


@pytest.fixture(params=["folder", "zip", "wrapped zip"])
def read(request, tmp_path):
    """Loads a folder tree as it is, zipped, and zipped with a folder around it."""

    def load_tree(root, part="train", **more):
        if request.param == "folder":
            return load({"source": "folder", "path": str(root), **more}, part, 8, 3, None)
        archive = zipped(root, tmp_path / "set.zip", "wrap/" if "wrapped" in request.param else "")
        return load({"source": "zip", "path": str(archive), **more}, part, 8, 3, None)

    return load_tree


def test_class_folders(tmp_path, read):
    root = fill(tmp_path / "set", ["cat/0.png", "cat/deep/1.PNG", "dog/2.png", "dog/3.png", "fox/4.png"])
    (root / "README.txt").write_text("passed over")
    (root / "cat" / ".hidden").write_text("passed over")
    dataset = read(root, test_fraction=0.0)
    assert dataset.class_names == ("cat", "dog", "fox")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2]
    np.testing.assert_array_equal(dataset.images, [picture(i) for i in range(5)])
    assert dataset.facts.called(1).endswith("cat/deep/1.PNG")
    assert {read(root, test_fraction=0.4, part=part).n for part in ("train", "test")} == {3, 2}


def test_parts_in_folders(tmp_path, read):
    root = fill(tmp_path / "set", ["train/a/0.png", "train/b/1.png", "test/a/2.png", "test/b/3.png"])
    np.testing.assert_array_equal(read(root, "test").images, [picture(2), picture(3)])
    np.testing.assert_array_equal(read(root, "train").images, [picture(0), picture(1)])
    assert read(root, "test", split="test", test_split="train").n == 2


def test_only_a_training_folder_is_divided(tmp_path, read):
    root = fill(tmp_path / "set", [f"train/{c}/{i}.png" for c in "ab" for i in range(5)])
    assert read(root, "test").n == 2
    assert read(root, "train").class_names == ("a", "b")


def test_part_folders_of_other_names_are_not_lost(tmp_path, read):
    root = fill(tmp_path / "set", ["train/a/0.png", "later/a/1.png"])
    with pytest.raises(UserError, match="no 'test' with class folders; set config.data.test_split to one of: later"):
        read(root)
    assert read(root, "test", test_split="later").n == 1


def test_parts_must_have_the_same_classes(tmp_path, read):
    root = fill(tmp_path / "set", ["train/a/0.png", "train/b/1.png", "test/a/2.png"])
    for part in ("train", "test"):
        with pytest.raises(
            UserError, match="the class folder 'b' is only in one of .(wrap/)?train. and .(wrap/)?test."
        ):
            read(root, part)
    assert read(root, "test", class_names=("a", "b", "never seen")).n_classes == 3


def test_declared_classes(tmp_path, read):
    root = fill(tmp_path / "set", ["b/0.png", "a/1.png"])
    assert read(root, class_names=("b", "a"), test_fraction=0.0).labels.tolist() == [1, 0]  # files in order of name
    with pytest.raises(UserError, match="the class folder 'b' is not in config.data.class_names"):
        read(root, class_names=("a",))


def test_no_classes_is_one_class(tmp_path, read):
    root = fill(tmp_path / "set", ["0.png", "1.png"])
    dataset = read(root, test_fraction=0.0)
    assert dataset.class_names in [("all",), ("wrap",)]  # a single folder with pictures is a class
    assert dataset.labels.tolist() == [0, 0]


def test_one_corrupt_image_is_named(tmp_path, read):
    root = fill(tmp_path / "set", [f"a/{i}.png" for i in range(20)])
    (root / "a" / "7.png").write_bytes(png(picture(7))[:-40])
    with pytest.raises(UserError, match=r"a/7\.png.* is not a readable image: it is cut short; remove or repair it"):
        read(root, test_fraction=0.0)


def test_nothing_is_passed_over_in_silence(tmp_path, read):
    root = fill(tmp_path / "set", ["a/0.png", "b/1.png"])
    (root / "a" / "film.heic").write_text("")
    with pytest.raises(UserError, match=r"a/film\.heic is not an image of a known kind"):
        read(root)
    assert any("film.heic" in note for note in read(root, accept=("other_files",)).facts.notes)
    (root / "a" / "film.heic").unlink()
    fill(root, ["loose.png"])
    with pytest.raises(UserError, match=r"loose\.png lies beside the class folders"):
        read(root)


def test_sizes_and_kinds_may_differ(tmp_path, read):
    root = fill(tmp_path / "set", ["a/0.png"], size=20)
    Image.new("L", (9, 30), 128).save(root / "a" / "1.jpg")
    Image.new("P", (8, 8)).save(root / "a" / "2.gif")
    assert read(root, test_fraction=0.0).images.shape == (3, 8, 8, 3)


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no images"):
        load({"source": "folder", "path": str(tmp_path / "set")}, "train", 8, 3, None)


def test_paths_that_do_not_serve(tmp_path):
    (tmp_path / "file").write_text("no archive")
    for source, message in (
        ("folder", "is not a folder"),
        ("zip", "not a readable .zip"),
        ("npz", "not a readable .npz"),
    ):
        with pytest.raises(UserError, match="config.public.path=.*does not exist"):
            load({"source": source, "path": str(tmp_path / "missing")}, "train", 8, 3, None, key="public")
        with pytest.raises(UserError, match="config.public.path is empty"):
            load({"source": source}, "train", 8, 3, None, key="public")
        with pytest.raises(UserError, match=message):
            load({"source": source, "path": str(tmp_path / "file")}, "train", 8, 3, None)


def test_pipes_are_refused(tmp_path):
    root = fill(tmp_path / "set", ["a/0.png"])
    os.mkfifo(root / "a" / "1.png")
    with pytest.raises(UserError, match="1.png is not a regular file"):
        load({"source": "folder", "path": str(root)}, "train", 8, 3, None)


def test_linked_folders_are_refused(tmp_path):
    root = fill(tmp_path / "set", ["a/0.png"])
    os.symlink(root, root / "a" / "loop")
    with pytest.raises(UserError, match="is a link to a folder"):
        load({"source": "folder", "path": str(root)}, "train", 8, 3, None)


def load_zip(path):
    return load({"source": "zip", "path": str(path), "test_fraction": 0.0}, "train", 8, 3, None)


@pytest.mark.parametrize("name", ["../a/1.png", "/etc/1.png", "a/../../1.png", "C:/a/1.png"])
def test_zip_paths_that_lead_out(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a/0.png", png(picture(0)))
        archive.writestr(name, png(picture(1)))
    with pytest.raises(UserError, match="leads out of the archive"):
        load_zip(tmp_path / "set.zip")


def test_zip_links(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        entry = zipfile.ZipInfo("a/0.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(UserError, match="symbolic link"):
        load_zip(tmp_path / "set.zip")


def test_zip_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", bytes(10**6))
    with pytest.raises(UserError, match="would unpack to 1,000,000 bytes"):
        load_zip(tmp_path / "set.zip")


def test_damaged_zip(tmp_path):
    path = zipped(fill(tmp_path / "set", ["a/0.png", "a/1.png"]), tmp_path / "set.zip")
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a/0\.png"):
        load_zip(path)
