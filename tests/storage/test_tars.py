"""Tar files: what Python writes is found where it is, and what is made to harm is refused."""

import io
import tarfile
import tracemalloc

import pytest
from hostile import tar_bytes
from hypothesis import given
from hypothesis import strategies as st

from privimage_jax.storage import reading, tars

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def found(content: bytes) -> dict[str, bytes]:
    return {m.name: content[m.offset : m.offset + m.size] for m in tars.members(io.BytesIO(content))}


NAMES = st.from_regex(r"[a-zé]{1,30}(/[a-zé]{1,60}){0,3}\.(png|cls)", fullmatch=True)


@given(st.dictionaries(NAMES, st.binary(max_size=1100), max_size=4), st.sampled_from(FORMATS))
def test_files_are_found_where_they_are(files, form):
    try:
        content = tar_bytes(files, form)
    except ValueError:  # a name that this form has no room for
        assert form == tarfile.USTAR_FORMAT
        return
    assert found(content) == files


def test_folders_are_passed_over():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        folder = tarfile.TarInfo("cat")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert found(out.getvalue()) == {}


def lying(size: bytes) -> bytes:
    """A tar file whose member names another size, under a checksum that fits."""
    content = bytearray(tar_bytes({"a": b"x"}, tarfile.USTAR_FORMAT))
    content[124:136] = size
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    return bytes(content)


@pytest.mark.parametrize(
    "content, says",
    [
        (tar_bytes({"a": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "holds 'a', a symbolic link"),
        (tar_bytes({"a": b""}, type=tarfile.LNKTYPE, linkname="b"), "holds 'a', a link"),
        (tar_bytes({"a": b""}, type=tarfile.CHRTYPE), "holds 'a', a device"),
        (tar_bytes({"a": b""}, type=tarfile.FIFOTYPE), "holds 'a', a pipe"),
        (tar_bytes({"a": b""}, type=tarfile.GNUTYPE_SPARSE), "holds 'a', a sparse file"),
        (tar_bytes({"a": b""}, pax_headers={"GNU.sparse.major": "1"}), "holds a sparse file"),
        (tar_bytes({"a": b""}, pax_headers={"comment": "x" * (1 << 17)}), "bytes of further headers"),
        (tar_bytes({"../a": b""}), "leads out"),
        (tar_bytes({"/a": b""}), "leads out"),
        (tar_bytes({"C:/a": b""}), "leads out"),
        (tar_bytes({"a/" * 70 + "b": b""}), "more than 64 deep"),
        (tar_bytes({"a": b"1"})[:1024] + tar_bytes({"a": b"2"}), "holds 'a' twice"),
        (tar_bytes({"a": b"1" * 2000})[:1000], "ends within 'a'"),
        (tar_bytes({"a": b"1"})[:300], "is cut short"),
        (tar_bytes({"a": b"1"})[:1024], "is cut short"),
        (b"", "is cut short"),
        (lying(b"\x80" + b"\xff" * 11), "size is no number"),
        (lying(b"77777777777\0"), "ends within 'a'"),
        (lying(b"-0000000001\0"), "size is no number"),
        (b"x" * 1024, "is not a readable .tar file"),
    ],
)
def test_tar_files_made_to_harm(content, says):
    tracemalloc.start()
    with pytest.raises(reading.Unreadable, match=says):
        found(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
