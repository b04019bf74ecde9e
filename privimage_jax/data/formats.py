"""Which format a picture file is in, by its first bytes, and what is said of those that are not read.

Pillow's reader is taken by what a file holds and not by its ending. Of the formats that people try, those that are not
read are known by name, so that the error can say what to do.
"""

import io
import struct
from typing import Any

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

_READERS = (  # the commonest first; no others: EPS, say, runs PostScript
    PngImagePlugin.PngImageFile,
    JpegImagePlugin.JpegImageFile,
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
    WebPImagePlugin.WebPImageFile,
    TiffImagePlugin.TiffImageFile,
    PpmImagePlugin.PpmImageFile,
)
_OPENERS: list[Any] = [Image.OPEN[reader.format] for reader in _READERS]  # pairs (open, accepts the first bytes)
_ACCEPT_BYTES = 16

TO_PNG, TO_DEEP_PNG = "convert {them} to PNG", "convert {them} to 16-bit PNG"
_UNPACK = "unpack {them}"
_AS_NPZ = "store images and labels as .npz, or as PNG files"
_FOREIGN = (  # (offset, bytes there, what it is, what to do)
    (128, b"DICM", "is a DICOM file", TO_DEEP_PNG),
    (344, b"n+1\0", "is a NIfTI file", TO_DEEP_PNG),
    (344, b"ni1\0", "is a NIfTI file", TO_DEEP_PNG),
    (4, b"n+2\0\r\n\x1a\n", "is a NIfTI file", TO_DEEP_PNG),
    (4, b"ftypavi", "is an AVIF picture", TO_PNG),
    (4, b"ftyphei", "is a HEIC picture", TO_PNG),
    (4, b"ftyphev", "is a HEIC picture", TO_PNG),
    (4, b"ftypmif1", "is a HEIC or AVIF picture", TO_PNG),
    (4, b"ftypmsf1", "is a HEIC or AVIF picture", TO_PNG),
    (4, b"ftypcrx", "is a camera's raw file", TO_PNG),
    (4, b"ftyp", "is a video", "put {them} elsewhere, or save single pictures as PNG"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "is a JPEG 2000 picture", TO_PNG),
    (0, b"\xff\x4f\xff\x51", "is a JPEG 2000 picture", TO_PNG),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL picture", TO_PNG),
    (0, b"\xff\x0a", "is a JPEG XL picture", TO_PNG),
    (0, b"FUJIFILMCCD-RAW", "is a camera's raw file", TO_PNG),
    (0, b"IIRO", "is a camera's raw file", TO_PNG),
    (0, b"IIRS", "is a camera's raw file", TO_PNG),
    (0, b"IIU\0", "is a camera's raw file", TO_PNG),
    (0, b"8BPS", "is a Photoshop file", TO_PNG),
    (0, b"%PDF", "is a PDF file", TO_PNG),
    (0, b"%!PS", "is a PostScript file", TO_PNG),
    (0, b"\xc5\xd0\xd3\xc6", "is a PostScript file", TO_PNG),
    (0, b"v/1\x01", "is an OpenEXR picture", TO_DEEP_PNG),
    (0, b"SIMPLE  =", "is a FITS file", TO_DEEP_PNG),
    (0, b"\0\0\1\0", "is an icon", TO_PNG),
    (0, b"DDS ", "is a DDS texture", TO_PNG),
    (0, b"\x93NUMPY", "is a NumPy array", _AS_NPZ),
    (0, b"\x89HDF\r\n\x1a\n", "is an HDF5 file", _AS_NPZ),
    (0, b"MATLAB 5.0", "is a MATLAB file", _AS_NPZ),
    (0, b"PK\x03\x04", "is a zip archive", _UNPACK),
    (0, b"\x1f\x8b", "is packed by gzip", _UNPACK),
    (0, b"version https://git-lfs", "is a pointer of Git LFS", "fetch what {them} stand for by `git lfs pull`"),
    (0, b"/annex/objects/", "is a pointer of git-annex", "fetch what {them} stand for by `git annex get`"),
)
_TEXT = bytes({7, 8, 9, 10, 12, 13, 27, *range(0x20, 0x7F), *range(0x80, 0x100)})
_PNG = b"\x89PNG\r\n\x1a\n"
_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_DNG_VERSION, _SUBFILE_TYPE = 50706, 254  # TIFF tags
_PREVIEW = 1  # bit of the latter


def opened(content: bytes) -> ImageFile.ImageFile | None:
    """The picture in one of the known formats, its pixels not decoded yet; None for another format.

    Raises:
      Exception: of almost any type, if the file is damaged.
    """
    prefix = content[:_ACCEPT_BYTES]
    for reader, accepts in _OPENERS:
        if accepts(prefix):
            return reader(io.BytesIO(content), "")
    return None


def foreign(content: bytes) -> tuple[str, str]:
    """Of a file in no known format: what it is, to complete "it …", and what to do."""
    repair = "remove or repair {them}"
    if not content.strip(b"\0"):
        return ("is empty" if not content else "holds nothing but zeros"), repair
    for offset, magic, fault, remedy in _FOREIGN:
        if content.startswith(magic, offset):
            return fault, remedy
    start = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")) or (start.startswith(b"<") and b"<html" in start):
        return "is a web page", "download {them} again"
    if start.startswith(b"<") and b"<svg" in start:
        return "is an SVG drawing", TO_PNG
    if not start.translate(None, _TEXT):
        return "is a text", repair
    return "is of no known format", "remove {them} or convert {them} to PNG"


def is_camera_raw(image: Image.Image) -> bool:
    """Whether a TIFF file is a camera's, whose first picture is a mere preview."""
    tags: Any = getattr(image, "tag_v2", {})
    return _DNG_VERSION in tags or bool(tags.get(_SUBFILE_TYPE, 0) & _PREVIEW)


def is_cut_short(content: bytes, error: Exception) -> bool:
    """Whether what could not be decoded lacks its end, as a download that was broken off."""
    if "truncated" in str(error).lower():
        return True
    if content.startswith(_PNG):
        return b"IEND" not in content
    if content.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in content
    if content.startswith(b"GIF"):
        return not content.endswith(b";")
    if content.startswith(b"RIFF"):
        return len(content) < 8 or struct.unpack_from("<L", content, 4)[0] + 8 > len(content)
    if content.startswith(b"BM"):
        return len(content) < 6 or struct.unpack_from("<L", content, 2)[0] > len(content)
    return False


def without_notes(content: bytes) -> bytes:
    """A PNG file without its texts and colour profile, which say nothing of the pixels and may be of any size.

    Other files are returned as they are.
    """
    if not content.startswith(_PNG):
        return content
    kept, start = [content[:8]], 8
    while start + 8 <= len(content):
        (length,) = struct.unpack_from(">L", content, start)
        end = start + 12 + length
        if content[start + 4 : start + 8] not in _NOTES:
            kept.append(content[start:end])
        start = end
    return b"".join(kept)
