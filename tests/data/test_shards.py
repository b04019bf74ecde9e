"""Which part a file belongs to."""

import pytest

from privimage_jax.data.sources import shards
from privimage_jax.data.sources.base import Settings
from privimage_jax.errors import UserError


def found(folder, *names, **section):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    settings = Settings.from_section({"path": str(folder), **section})
    return shards.find(settings, (".tar",), ".tar files")


@pytest.mark.parametrize(
    "train, test",
    [
        (["data/train-00000-of-00002.tar", "data/train-00001-of-00002.tar"], "data/test-00000-of-00001.tar"),
        (["train/0000.tar", "train/0001.tar"], "test/0000.tar"),
        (["Training_1.tar", "Training_2.tar"], "Testing_1.tar"),
        (["a/train/x-train-0.tar"], "a/test/x-train-0.tar"),
        (["train.tar"], "test.tar"),
        (["train_000.tar"], "val_000.tar"),
        (["imagenet1k-train-000.tar"], "imagenet1k-validation-00.tar"),
    ],
)
def test_parts_by_name(tmp_path, train, test):
    held = found(tmp_path, *train, test)
    assert held.parts[held.chosen("train")] == [tmp_path / name for name in train]
    assert held.parts[held.chosen("test")] == [tmp_path / test]


def test_no_parts_and_hidden_files(tmp_path):
    held = found(tmp_path, "0001.tar", "0000.TAR", ".cache/x.tar", ".a.tar", "notes.txt", "@eaDir/0000.tar")
    assert held.parts == {"": [tmp_path / "0000.TAR", tmp_path / "0001.tar"]} and held.held_out is None


def test_parts_that_are_not_read_are_told(tmp_path):
    held = found(tmp_path, "train-0.tar", "val-0.tar", "test-0.tar")
    assert held.held_out == "test" and held.notes == ("the part val is not read",)
    assert found(tmp_path, test_split="val").held_out == "val"
    (tmp_path / "test-0.tar").unlink()
    assert found(tmp_path).notes == ("val serves as the part held out, as there is no test",)


def test_what_cannot_be_told(tmp_path):
    with pytest.raises(UserError, match="holds no .tar files; set it to the folder that does"):
        found(tmp_path)
    found(tmp_path, "train-0.tar")
    with pytest.raises(UserError, match="has no part 'big' .it has train.; set config.data.split"):
        found(tmp_path, split="big")
    with pytest.raises(UserError, match="the name of 0.tar tells no part such as train, and"):
        found(tmp_path, "0.tar")


def test_links(tmp_path):
    """As a cache of downloads has them: names that lead to contents elsewhere."""
    elsewhere = tmp_path / "blobs" / "abc"
    elsewhere.parent.mkdir()
    elsewhere.touch()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train-0.tar").symlink_to(elsewhere)
    with pytest.raises(UserError, match="train-0.tar is a link that leads out of the folder; .*config.data.links"):
        found(tmp_path / "set")
    assert found(tmp_path / "set", links=str(tmp_path / "blobs")).training == "train"
