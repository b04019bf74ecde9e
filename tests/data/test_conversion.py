"""A set that was prepared as tfrecord, and the record files themselves."""

import errno
import json
import os
import re
import shlex
import shutil
import struct
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module
from array_record.python.array_record_data_source import ArrayRecordDataSource
from catalogue import own_sets
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import crc32c, example, framed, picture, record, write_tfds, write_tfrecord

from privimage_jax.data import conversion, load, tfrecord
from privimage_jax.data.prepare import prepare
from privimage_jax.errors import UserError
from privimage_jax.storage.reading import Unreadable

SPLITS = {"train": 30, "test": 4}


@pytest.fixture
def folder(tmp_path):
    return write_tfds(tmp_path / "my sets", SPLITS, file_format="tfrecord")


def read(folder, part="train", **more):
    return load({"path": str(folder), **more}, part, 8, 3, None)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shard(folder, split="train"):
    return folder / f"tiny-{split}.tfrecord-00000-of-00001"


def edit_info(folder, **change):
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def advised(message):
    """The arguments of the command that a message tells to run."""
    return shlex.split(re.search("`privimage (.*?)`", message)[1])


@pytest.mark.parametrize("by_name", [False, True])
def test_what_the_reader_advises_works(folder, privimage, by_name):
    root = str(folder.parents[1])
    asked = {"name": "tiny", "data_dir": root} if by_name else {"path": str(folder)}
    with pytest.raises(UserError, match=f"{folder} is stored as tfrecord; run `privimage prepare '{folder}'`") as told:
        load(asked, "train", 8, 3, None)
    before = contents(folder)
    done = privimage(*advised(str(told.value)))
    assert (done.status, done.out.splitlines()[-1]) == (0, f"prepared {folder}")
    dataset = load(asked, "train", 8, 3, None)
    np.testing.assert_array_equal(dataset.images, [picture(i) for i in range(30)])
    np.testing.assert_array_equal(dataset.labels, np.arange(30) % 3)
    assert load(asked, "test", 8, 3, None).n == 4
    after = contents(folder)
    assert {name for name in before if after[name] != before[name]} == {"dataset_info.json"}
    assert {*after} - {*before} == {f"tiny-{split}.array_record-00000-of-00001" for split in SPLITS}
    assert prepare("tiny", root) == folder and contents(folder) == after  # there is nothing left to do


def test_a_set_of_the_catalogue(tmp_path):
    """Of such TFDS has its own builder, which it takes where the set is asked for by name."""
    builder = own_sets.OwnPictures(config="png", data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    folder = Path(builder.data_dir)
    for path in folder.glob("*.array_record*"):
        write_tfrecord(path.with_name(path.name.replace("array_record", "tfrecord")), ArrayRecordDataSource(str(path)))
        path.unlink()
    edit_info(folder, fileFormat="tfrecord")
    asked = {"name": "own_pictures/png", "data_dir": str(tmp_path)}
    with pytest.raises(UserError, match="is stored as tfrecord"):
        load(asked, "train", 8, 3, None)
    for _ in range(2):
        assert prepare("own_pictures/png", str(tmp_path)) == folder
        assert load(asked, "train", 8, 3, None).n == 30
    assert load({"path": str(folder)}, "train", 8, 3, None).digest() == load(asked, "train", 8, 3, None).digest()


def test_a_set_of_before_the_format_was_named(folder):
    info = json.loads((folder / "dataset_info.json").read_text())
    del info["fileFormat"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="is stored as tfrecord; run"):
        read(folder)
    prepare("tiny", str(folder.parents[1]))
    assert read(folder).n == 30


def test_several_shards_one_of_them_empty(folder):
    records = [framed(record(example(i))) for i in range(30)]
    for index, part in enumerate((records[:20], [], records[20:])):
        (folder / f"tiny-train.tfrecord-0000{index}-of-00003").write_bytes(b"".join(part))
    shard(folder).unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["20", "0", "10"]
    edit_info(folder, **info)
    prepare(str(folder))
    np.testing.assert_array_equal(read(folder).images, [picture(i) for i in range(30)])


def test_another_format_is_told_with_the_way_out(folder):
    edit_info(folder, fileFormat="riegeli")
    way = "prepare the set in another folder, as by `privimage prepare tiny --data_dir FOLDER`"
    with pytest.raises(
        UserError, match=f"stored as riegeli, which is not read here; {way}, and set config.data.data_di"
    ):
        read(folder)
    with pytest.raises(UserError, match=f"stored as riegeli, which is not converted; {way}"):
        prepare("tiny", str(folder.parents[1]))


def spoil(folder, case):
    path = shard(folder)
    content = path.read_bytes()
    first = 16 + struct.unpack("<Q", content[:8])[0]
    changed = bytearray(content)
    changed[first // 2] ^= 1
    path.write_bytes(
        {
            "cut": content[:-1],
            "cut between records": content[:first],
            "changed": bytes(changed),
            "foreign": b"\x89PNG" * 9,
            "huge": struct.pack("<Q", 2**63) + content[8:],
        }[case]
    )


@pytest.mark.parametrize(
    "case, message",
    [
        ("cut", "was cut off"),
        ("cut between records", "holds 1 examples, not the 30 that its set announces"),
        ("changed", "holds a record that does not fit its checksum"),
        ("foreign", "is no tfrecord file"),
        ("huge", "is no tfrecord file"),
    ],
)
def test_a_damaged_shard_is_named_and_the_set_stays_as_it_was(folder, case, message):
    spoil(folder, case)
    before = contents(folder)
    with pytest.raises(UserError, match=f"{shard(folder)} {message}.*; delete the set's folder and prepare it again"):
        prepare(str(folder))
    assert contents(folder) == before
    with pytest.raises(UserError, match="is stored as tfrecord"):
        read(folder)


def test_shards_that_are_missing_or_elsewhere(folder, tmp_path):
    path = shard(folder).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{folder} is missing; delete|tfrecord.* is missing; delete"):
        prepare(str(folder))
    shard(folder).symlink_to(path)
    with pytest.raises(UserError, match="is a link that leads out of the folder"):
        prepare(str(folder))
    shard(folder).unlink()
    path.rename(shard(folder))
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["filepathTemplate"] = "{DATASET}-{SPLIT}.tfrecord-{SHARD_X_OF_Y}"
    edit_info(folder, **info)
    before = contents(folder)
    with pytest.raises(UserError, match="names 'tiny-train.tfrecord-00000-of-00001' as a shard of 'train'; delete"):
        prepare(str(folder))
    assert contents(folder) == before


def test_a_disk_without_space_is_told_before_anything_is_written(folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**3, 10**3))
    before = contents(folder)
    with pytest.raises(UserError, match="needs 0.00. GB more to hold the set as array_record too.* 0.000; free some"):
        prepare(str(folder))
    assert contents(folder) == before


def test_a_folder_that_takes_no_file(folder, monkeypatch):
    """As on a read-only disk, where what was begun cannot be removed either."""

    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match="array_record-00000-of-00001 cannot be written .*Read-only.*; see that its"):
        prepare(str(folder))


@pytest.mark.parametrize("where", [(conversion.tfrecord, "records"), (conversion.durable, "atomic_write_bytes")])
def test_interrupted_it_begins_anew(folder, monkeypatch, where):
    class Interrupted(BaseException):
        pass

    def stop(*_, **__):
        raise Interrupted

    with monkeypatch.context() as broken, pytest.raises(Interrupted):
        broken.setattr(*where, stop)
        prepare(str(folder))
    with pytest.raises(UserError, match="is stored as tfrecord"):
        read(folder)
    assert not list(folder.glob(".*"))
    prepare(str(folder))
    assert read(folder).n == 30


def test_checksums_as_published():
    assert tfrecord.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert tfrecord.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert tfrecord.crc32c(bytes([255] * 32)) == 0x62A8AB43


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9000), st.integers(0, 2**32 - 1))
def test_checksums_of_any_length_are_those_of_the_definition(length, seed):
    data = np.random.default_rng(seed).bytes(length)
    assert tfrecord.crc32c(data) == crc32c(data)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=4), st.data())
def test_a_file_is_its_records_and_any_changed_byte_is_noticed(tmp_path_factory, contents, data):
    path = tmp_path_factory.mktemp("records") / "file"
    whole = b"".join(map(framed, contents))
    path.write_bytes(whole)
    assert list(tfrecord.records(path)) == contents
    if whole:
        changed = bytearray(whole)
        changed[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(changed)
        with pytest.raises(Unreadable):
            list(tfrecord.records(path))
