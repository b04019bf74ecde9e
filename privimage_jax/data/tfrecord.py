"""Reads TensorFlow's record files without TensorFlow.

A record is its length (eight bytes), the length's checksum, its content and the content's checksum (four bytes each),
all in little-endian order. The checksums are CRC-32C, turned and shifted so that data with checksums in it is told
apart from a record.
"""

import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from privimage_jax.storage.reading import Unreadable, open_regular

_POLYNOMIAL = 0x82F63B78  # of CRC-32C, its bits in reverse
_BLOCK = 4096  # bytes that one look into the tables takes
_FRAME = 16  # bytes of a record besides its content


def records(path: Path) -> Iterator[bytes]:
    """The records of a file, in its order; one is in memory at a time.

    Raises:
      Unreadable: if the file is no such file, was cut off or has changed.
      OSError: as `open` does.
    """
    with open_regular(path) as file:
        left = os.fstat(file.fileno()).st_size
        while left:
            head = file.read(12)
            if len(head) < 12 or struct.unpack("<I", head[8:])[0] != _masked(crc32c(head[:8])):
                raise Unreadable("is no tfrecord file, or was cut off")
            (length,) = struct.unpack("<Q", head[:8])
            if length + _FRAME > left:
                raise Unreadable("was cut off within a record")
            content = file.read(length)
            if file.read(4) != struct.pack("<I", _masked(crc32c(content))):
                raise Unreadable("holds a record that does not fit its checksum")
            left -= length + _FRAME
            yield content


def crc32c(data: bytes) -> int:
    """The CRC-32C of some bytes, from 0 to 2**32 - 1.

    It is linear: a byte contributes a number that depends on it and on how many bytes follow, and all of them are
    combined by exclusive or. What the bytes before a block left is added to the block's first four.
    """
    contributions, rows = _tables()
    state = 0xFFFFFFFF
    for start in range(0, len(data), _BLOCK):
        block = np.frombuffer(data, np.uint8, min(_BLOCK, len(data) - start), start)
        first = min(4, len(block))
        places = rows[_BLOCK - len(block) :] + block
        places[:first] ^= np.frombuffer(struct.pack("<I", state), np.uint8, first)
        left = state >> 8 * len(block) if len(block) < 4 else 0
        state = int(np.bitwise_xor.reduce(contributions.take(places))) ^ left
    return state ^ 0xFFFFFFFF


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """What each byte contributes: uint32 [block * 256], by how many follow, from many to none; and where each such
    number begins: int64 [block].
    """
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    tables = [table]
    while len(tables) < _BLOCK:
        tables.append(table[tables[-1] & 0xFF] ^ (tables[-1] >> 8))
    return np.concatenate(tables[::-1]), np.arange(_BLOCK) * 256


def _masked(checksum: int) -> int:
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
