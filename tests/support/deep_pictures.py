"""Writes pictures of more than eight bits a value, of kinds that Pillow reads and does not write."""

import struct
import zlib

import numpy as np


def png(values: np.ndarray) -> bytes:
    """A 16-bit PNG of uint16 [H, W, C]: grey, grey and alpha, RGB or RGBA."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", struct.pack(">LLBBBBB", width, height, 16, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in [*parts, (b"IEND", b"")])


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))


def tiff(values: np.ndarray, order: str = "<", deflated: bool = False, planes: bool = False, **tags: int) -> bytes:
    """A TIFF file of numbers [H, W] or [H, W, C], in one strip.

    Args:
      values: int16, uint16 or float32.
      order: of bytes, "<" or ">".
      deflated: whether the strip is.
      planes: whether the header says that each channel lies by itself.
      **tags: more of them, by number: t254=1.
    """
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    strip = values.astype(values.dtype.newbyteorder(order)).tobytes()
    strip = zlib.compress(strip) if deflated else strip
    entries = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8 * values.dtype.itemsize] * channels),
        259: (3, [8 if deflated else 1]),
        262: (3, [2 if channels >= 3 else 1]),
        273: (4, [0]),  # where the strip is, known at the end
        277: (3, [channels]),
        278: (4, [height]),
        279: (4, [len(strip)]),
        284: (3, [2 if planes else 1]),
        339: (3, [{"u": 1, "i": 2, "f": 3}[values.dtype.kind]] * channels),
    }
    entries |= {338: (3, [2])} if channels == 4 else {}
    entries |= {int(name[1:]): (4, [value]) for name, value in tags.items()}
    packed = {
        tag: struct.pack(f"{order}{len(held)}{ {3: 'H', 4: 'L'}[kind] }", *held)
        for tag, (kind, held) in entries.items()
    }
    end = 8 + 2 + 12 * len(entries) + 4
    place = end + sum(len(content) for content in packed.values() if len(content) > 4)
    packed[273] = struct.pack(f"{order}L", place)
    fields, beyond = b"", b""
    for tag in sorted(entries):
        kind, held = entries[tag]
        content = packed[tag]
        if len(content) > 4:
            fields += struct.pack(f"{order}HHLL", tag, kind, len(held), end + len(beyond))
            beyond += content
        else:
            fields += struct.pack(f"{order}HHL", tag, kind, len(held)) + content.ljust(4, b"\0")
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}LH", 8, len(entries))
    return start + fields + bytes(4) + beyond + strip
