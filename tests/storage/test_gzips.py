"""Packed files: unpacked up to a limit."""

import gzip
import tracemalloc

import pytest

from privimage_jax.errors import UserError
from privimage_jax.storage import gzips, memory, reading


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_both_kinds_of_files(tmp_path, pack):
    path = tmp_path / "file"
    path.write_bytes(pack(b"12345"))
    assert gzips.read_whole(path) == b"12345"
    with gzips.opened(path) as (file, _):
        assert gzips.read_exactly(file, 3) == b"123"
        with pytest.raises(reading.Unreadable, match="is cut short"):
            gzips.read_exactly(file, 3)


def test_what_would_fill_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(gzips, "FREE_BYTES", 1 << 20)
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(bytes(1 << 23)))
    with pytest.raises(reading.Unreadable, match="would unpack to more than"):
        gzips.read_whole(path)


def test_unpacking_stops_before_memory_is_full(tmp_path, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(gzip.compress(bytes(1 << 23)))
    monkeypatch.setattr(memory, "at_hand", lambda: 3 << 19)
    with pytest.raises(UserError, match="large: its content of more than 5,242,880 bytes needs more memory than the "):
        gzips.read_whole(path)


def test_nothing_is_held_twice(tmp_path):
    path, size = tmp_path / "large", 1 << 25
    path.write_bytes(gzip.compress(bytes(size), 1))

    def exactly():
        with gzips.opened(path) as (file, _):
            return gzips.read_exactly(file, size)

    for read in (exactly, lambda: gzips.read_whole(path)):
        tracemalloc.start()
        assert len(read()) == size
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1.5 * size
