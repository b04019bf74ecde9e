"""Packed files: unpacked up to a limit."""

import gzip

import pytest

from privimage_jax.storage import gzips, reading


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
