"""Files as an attacker makes them: small valid seeds, and ways to spoil them."""

import io
import pathlib
import random
import struct
import zipfile

import numpy as np
from PIL import Image

DICTIONARY = (
    b"\x00" * 8,
    b"\xff" * 8,
    b"\xff\xff\xff\x7f",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"\x93NUMPY",
    b"../",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 30,
    b"null",
    b"true",
    b'""',
    b"[" * 2000,
    b'{"a":' * 2000,
    b"\\ud800",
    b"\xed\xa0\x80",
    b"\x1b[2J",
    b"<script>",
    b"|O",
    b"-1",
    b"\n",
    b"\r\n",
)


def mutated(seed: bytes, chance: random.Random) -> bytes:
    """The bytes with one to four changes: flipped bits, cuts, repeats, splices, numbers and tokens that mean much."""
    content = bytearray(seed)
    for _ in range(chance.randint(1, 4)):
        at, end = sorted(chance.randrange(len(content) + 1) for _ in range(2))
        match chance.randrange(7):
            case 0 if content:
                content[at % len(content)] ^= 1 << chance.randrange(8)
            case 1 if content:
                content[at % len(content)] = chance.randrange(256)
            case 2:
                del content[at : at + chance.choice((1, 4, 64, len(content)))]
            case 3:
                content[at:at] = content[at : min(end, at + 4096)]
            case 4:
                content[at:at] = chance.choice(DICTIONARY)
            case 5:
                token = chance.choice(DICTIONARY)
                content[at : at + len(token)] = token
            case 6:
                number = chance.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, chance.getrandbits(32)))
                content[at : at + 4] = struct.pack(chance.choice("<>") + "L", number)
    return bytes(content)


def picture_bytes(kind: str, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> bytes:
    """A picture file of a format and mode."""
    file = io.BytesIO()
    Image.frombytes("RGB", size, bytes(i * 7 % 256 for i in range(3 * size[0] * size[1]))).convert(mode).save(
        file, kind
    )
    return file.getvalue()


def zip_bytes(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def npy_bytes(header: str, content: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """An .npy file with any header."""
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<L", len(text)) + text + content


def npz_bytes(**arrays: np.ndarray) -> bytes:
    """An .npz file."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def written(path: pathlib.Path, content: bytes) -> pathlib.Path:
    """The path, with this content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
