import numpy as np
import pytest

from privimage_jax.data import load
from privimage_jax.errors import UserError
from privimage_jax.storage import archives

IMAGES = np.random.RandomState(0).randint(0, 256, (6, 8, 8, 3)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def read(path, part="train", arrays=None, **more):
    np.savez_compressed(path / "set.npz", **arrays)
    return load({"source": "npz", "path": str(path / "set.npz"), "test_fraction": 0.0, **more}, part, 8, 3, None)


@pytest.mark.parametrize("labels", [LABELS, LABELS.astype(np.uint8), LABELS[:, None], LABELS.astype(np.int64)])
def test_round_trip(tmp_path, labels):
    dataset = read(tmp_path, arrays={"images": IMAGES, "labels": labels})
    np.testing.assert_array_equal(dataset.images, IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.class_names == ("0", "1", "2")


def test_parts_as_medmnist_names_them(tmp_path):
    arrays = {"train_images": IMAGES[:4], "train_labels": LABELS[:4, None], "test_images": IMAGES[4:]}
    arrays |= {"test_labels": LABELS[4:, None], "val_images": IMAGES[:1], "val_labels": LABELS[:1, None]}
    assert read(tmp_path, arrays=arrays).n == 4
    assert read(tmp_path, "test", arrays=arrays).labels.tolist() == [1, 2]
    assert read(tmp_path, "test", arrays=arrays, test_split="val").n == 1


def test_names_and_unlabelled_sets(tmp_path):
    arrays = {"images": IMAGES, "labels": LABELS, "class_names": np.array(["a", "b", "c"])}
    assert read(tmp_path, arrays=arrays).class_names == ("a", "b", "c")
    assert read(tmp_path, arrays=arrays, class_names=("x", "y", "z")).class_names == ("x", "y", "z")
    unlabelled = read(tmp_path, arrays={"images": IMAGES}, label_key="")
    assert unlabelled.class_names == ("all",) and unlabelled.labels.sum() == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": None}, "has no array 'labels'"),
        ({"images": None}, "has no array 'images'"),
        ({"images": IMAGES / 255}, "'images' as float64; store pixels as uint8"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"shape \[6, 3, 8, 8\]"),
        ({"images": IMAGES[0, 0]}, r"shape \[8, 3\]"),
        ({"images": np.array([IMAGES[0], IMAGES[1][:4]], object)}, "Python objects in images.npy"),
        ({"labels": np.array([0, 1, None], object)}, "Python objects in labels.npy"),
        ({"labels": LABELS + 0.5}, "'labels' as float64; store labels as integers"),
        ({"labels": np.array(list("abcabc"))}, "store labels as integers"),
        ({"labels": LABELS[:5]}, r"6 images and 'labels' of shape \[5\]"),
        ({"labels": LABELS + 2**40}, "the label 1099511627778, which is no class number"),
        ({"labels": LABELS - 1}, "negative label -1 at 0"),
        ({"class_names": np.array(["a", "b"])}, "example 2 of set has label 2, outside the 2 classes"),
        ({"class_names": np.array(["a", "a", "b"], object)}, "Python objects in class_names.npy"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, change, message):
    arrays = {"images": IMAGES, "labels": LABELS} | change
    with pytest.raises(UserError, match=message):
        read(tmp_path, arrays={name: array for name, array in arrays.items() if array is not None})


def test_declared_names_must_fit_the_files_own(tmp_path):
    arrays = {"images": IMAGES, "labels": LABELS, "class_names": np.array(["a", "b", "c"])}
    with pytest.raises(UserError, match="declares 2 classes and the source has 3"):
        read(tmp_path, arrays=arrays, class_names=("a", "b"))
    with pytest.raises(UserError, match="in another order"):
        read(tmp_path, arrays=arrays, class_names=("b", "a", "c"))


def test_bombs_and_damage(tmp_path, monkeypatch):
    arrays = {"images": np.zeros((1000, 32, 32), np.uint8), "labels": np.zeros(1000, int)}
    monkeypatch.setattr(archives, "FREE_BYTES", 1000)
    monkeypatch.setattr(archives, "MAX_RATIO", 2)
    with pytest.raises(UserError, match="would unpack to"):
        read(tmp_path, arrays=arrays)
    monkeypatch.undo()
    read(tmp_path, arrays={"images": IMAGES, "labels": LABELS})
    path = tmp_path / "set.npz"
    content = bytearray(path.read_bytes())
    content[400:430] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged|is not a readable array"):
        load({"source": "npz", "path": str(path)}, "train", 8, 3, None)
