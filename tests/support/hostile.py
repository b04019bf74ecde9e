"""Files as an attacker makes them: small valid seeds, and ways to spoil them."""

import gzip
import io
import json
import pathlib
import random
import stat
import struct
import tarfile
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
    b"canary.Feature",
    b"ccanary\nFeature\n(tR.",
    b"__import__('canary')",
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


VALUES = (
    None,
    True,
    0,
    -1,
    2**31,
    2**63 - 1,
    2**63,
    10**15,
    10**300,
    -(10**15),
    0.5,
    1e-300,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "0",
    "1000000000000000",
    "\x00",
    "\x1b[2J",
    "\ud800",
    "../../up",
    "/etc/passwd",
    "{SPLIT:>99999999999}",
    "canary.Feature",
    "a" * 5000,
    [],
    {},
    [[]],
    [[[[[[]]]]]] * 50,
    {"": 0},
    {"type": "canary.Feature", "content": {}},
)


def mutated_json(seed: bytes, chance: random.Random, separators: tuple[str, str] | None = None) -> bytes:
    """A JSON text with changes: to its bytes, or to one of its values."""
    if chance.random() < 0.3:
        return mutated(seed, chance)
    whole = [json.loads(seed)]
    place = whole
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = chance.choice(keys)
        if not (isinstance(place[key], dict | list) and place[key]) or chance.random() < 0.2:
            break
        place = place[key]
    match chance.randrange(4):
        case 0 if len(whole) > 1 or place is not whole:
            del place[key]
        case 1 if isinstance(place[key], int | float):
            place[key] = chance.choice((place[key] + 1, -place[key], place[key] * 10**9, float(place[key])))
        case 2 if isinstance(place[key], list):
            place[key] = place[key] * chance.choice((2, 1000))
        case _:
            place[key] = chance.choice(VALUES)
    return json.dumps(whole[0], separators=separators).encode()


def mutated_zip(seed: bytes, chance: random.Random) -> bytes:
    """A zip file with changes: to its bytes, or to one of its entries under a checksum that fits."""
    if chance.random() < 0.4:
        return mutated(seed, chance)
    with zipfile.ZipFile(io.BytesIO(seed)) as archive:
        entries: dict[str | zipfile.ZipInfo, bytes] = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice(sorted(entries))
    method = zipfile.ZIP_DEFLATED
    match chance.randrange(6):
        case 0:
            content = entries.pop(name)
            entries[chance.choice(("../", "/", "a/../../", "a\\", "a\x00", "\x1b[2J", "d/" * 100)) + name] = content
        case 1:
            del entries[name]
            linked = zipfile.ZipInfo(name)
            linked.external_attr = (stat.S_IFLNK | 0o777) << 16
            entries[linked] = b"/etc/passwd"
        case 2:
            entries[name] = entries[name] + bytes(chance.choice((10**3, 3 * 10**7)))
        case 3:
            method = chance.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED))
        case 4:
            entries[f"{name}{chance.randrange(10)}"] = entries[name]
        case 5:
            entries[name] = mutated(entries[name], chance)
    return zip_bytes(entries, method)


def mutated_tar(seed: bytes, chance: random.Random) -> bytes:
    """A tar file with changes: to its bytes, or to one of its headers under a checksum that fits."""
    if chance.random() < 0.4:
        return mutated(seed, chance)
    content, at, headers = bytearray(seed), 0, []
    while any(content[at : at + 512]):
        headers.append(at)
        at += 512 + -(-int(content[at + 124 : at + 135], 8) // 512) * 512
    at = chance.choice(headers)
    match chance.randrange(5):
        case 0:
            content[at + 156] = chance.choice(b"0123456LKSxgZ")
        case 1:
            size = (b"77777777777\0", b"\x80" + b"\xff" * 11, b"-0000000001\0", b"%011o\0" % chance.getrandbits(20))
            content[at + 124 : at + 136] = chance.choice(size)
        case 2:
            name = chance.choice((b"../a.png", b"/a.png", b"a\x1b[2J.png", b"\xff.png", b"a.cls", b"d/d/a.png", b""))
            content[at : at + 100] = name.ljust(100, b"\0")
        case 3:
            content[at + 345 : at + 500] = b"d/" * 77 + b"\0"
        case _:
            content[at + 512 : at + 512] = chance.choice((b"30 path=../a.png\n", b"9" * 19 + b" path=a\n")) + bytes(512)
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    return bytes(content)


def mutated_gzip(seed: bytes, chance: random.Random) -> bytes:
    """A packed file with changes: to its bytes, or to what it holds."""
    if chance.random() < 0.3:
        return mutated(seed, chance)
    return gzip.compress(mutated(gzip.decompress(seed), chance), 1)


def mutated_lines(seed: bytes, chance: random.Random) -> bytes:
    """A file of JSON lines with changes: to its bytes, to a value of one line, to the lines' number or order."""
    *lines, _ = seed.split(b"\n")
    at = chance.randrange(len(lines))
    match chance.randrange(5):
        case 0:
            return mutated(seed, chance)
        case 1:
            lines[at : at + 1] = chance.choice(([], [lines[at]] * 2, [b""]))
        case 2:
            chance.shuffle(lines)
        case _:
            lines[at] = mutated_json(lines[at], chance, (",", ":")).replace(b"\n", b"")
    return b"".join(line + b"\n" for line in lines)


def spoilt(name: str, seed: bytes, chance: random.Random) -> bytes:
    """The content of a file, changed in a way that its reader does not notice at once: `name` tells its kind."""
    kinds = {"json": mutated_json, "jsonl": mutated_lines, "zip": mutated_zip, "npz": mutated_zip}
    kinds |= {"tar": mutated_tar, "gz": mutated_gzip}
    try:
        return kinds.get(name.rpartition(".")[2], mutated)(seed, chance)
    except Exception:  # it has been spoilt before, and is none of its kind
        return mutated(seed, chance)


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


def tar_bytes(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT, **change) -> bytes:
    """A tar file; `change` sets fields of each member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in change.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


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
