"""Writes a small prepared TFDS set, as array_record or tfrecord, without TensorFlow."""

import io
import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2


def picture(index: int, size: int = 8, channels: int = 3) -> np.ndarray:
    """A picture that can be recognised: uint8 [size, size, channels]."""
    pixels = np.random.RandomState(index).randint(0, 256, (size, size, channels))
    return pixels.astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def example(index: int) -> dict[str, bytes | int]:
    """Example i: `picture(i)` of label i % 3, male where i is odd."""
    return {"image": png(picture(index)), "label": index % 3, "attributes/Male": index % 2}


def record(values: dict[str, bytes | int]) -> bytes:
    message = tf_example_pb2.Example()
    for name, value in values.items():
        kind = "bytes_list" if isinstance(value, bytes) else "int64_list"
        getattr(message.features.feature[name], kind).value.append(value)
    return message.SerializeToString()


def write_array_record(path: Path, records: Iterable[bytes]) -> None:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for content in records:
        writer.write(content)
    writer.close()


def crc32c(data: bytes) -> int:
    """By the definition, a bit at a time."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def framed(content: bytes) -> bytes:
    """A record as a tfrecord file has it."""

    def checksum(data: bytes) -> bytes:
        crc = crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)

    length = struct.pack("<Q", len(content))
    return length + checksum(length) + content + checksum(content)


def write_tfrecord(path: Path, records: Iterable[bytes]) -> None:
    path.write_bytes(b"".join(map(framed, records)))


WRITERS = {"array_record": write_array_record, "tfrecord": write_tfrecord}


def write_tfds(
    root: Path,
    splits: dict[str, int],
    example: Callable[[int], dict[str, bytes | int]] = example,
    file_format: str = "array_record",
    tells_people: bool = False,
) -> Path:
    """Prepares the set `tiny` under `root`: of each split so many examples.

    With `tells_people` they have a text "patient" and a whole number "visitor" as well.
    """
    folder = root / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    for split, count in splits.items():
        shard = folder / f"tiny-{split}.{file_format}-00000-of-00001"
        WRITERS[file_format](shard, (record(example(i)) for i in range(count)))
    package = "tensorflow_datasets.core.features."
    shape = {"dimensions": ["8", "8", "3"]}
    scalar = {
        "pythonClassName": f"{package}scalar.Scalar",
        "tensor": {"shape": {}, "dtype": "bool", "encoding": "none"},
    }
    features = {
        "image": {
            "pythonClassName": f"{package}image_feature.Image",
            "image": {"shape": shape, "dtype": "uint8", "encodingFormat": "png"},
        },
        "label": {"pythonClassName": f"{package}class_label_feature.ClassLabel", "classLabel": {"numClasses": "3"}},
        "attributes": {
            "pythonClassName": f"{package}features_dict.FeaturesDict",
            "featuresDict": {"features": {"Male": scalar}},
        },
    }
    if tells_people:
        number = {"shape": {}, "dtype": "int64", "encoding": "none"}
        features["patient"] = {"pythonClassName": f"{package}text_feature.Text", "text": {}}
        features["visitor"] = {"pythonClassName": f"{package}scalar.Scalar", "tensor": number}
    root_feature = {"pythonClassName": f"{package}features_dict.FeaturesDict", "featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(root_feature))
    (folder / "label.labels.txt").write_text("cat\ndog\nfox\n")
    info = {
        "name": "tiny",
        "version": "1.0.0",
        "fileFormat": file_format,
        "moduleName": "tiny",
        "splits": [
            {
                "name": split,
                "shardLengths": [str(count)],
                "numBytes": "1",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, count in splits.items()
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder
