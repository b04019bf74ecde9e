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


ONE_HOT = np.eye(3)[LABELS]
SAME = [LABELS.astype(np.uint8), LABELS[:, None], LABELS.astype(np.float32), LABELS.astype(str), ONE_HOT, ONE_HOT == 1]


@pytest.mark.parametrize("labels", [LABELS, *SAME], ids=lambda labels: f"{labels.dtype}{list(labels.shape)}")
def test_round_trip(tmp_path, labels):
    dataset = read(tmp_path, arrays={"images": IMAGES, "labels": labels})
    np.testing.assert_array_equal(dataset.images, IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.facts.labels_from == "the array labels" and dataset.facts.notes == ()


@pytest.mark.parametrize(
    "image, label", [("image", "label"), ("x", "y"), ("X", "Y"), ("X", "y"), ("data", "labels"), ("arr_0", "arr_1")]
)
def test_usual_names(tmp_path, image, label):
    dataset = read(tmp_path, arrays={image: IMAGES, label: LABELS, "mu": np.zeros(3)})
    np.testing.assert_array_equal(dataset.images, IMAGES)
    assert dataset.labels.tolist() == LABELS.tolist() and dataset.facts.labels_from == f"the array {label}"


def test_parts_as_keras_names_them(tmp_path):
    arrays = {"x_train": IMAGES[:4], "y_train": LABELS[:4], "x_test": IMAGES[4:], "y_test": LABELS[4:]}
    arrays |= {"x_mean": IMAGES[0], "x_val": IMAGES[:1], "y_val": LABELS[:1]}
    train, test = read(tmp_path, arrays=arrays), read(tmp_path, "test", arrays=arrays)
    np.testing.assert_array_equal(train.images, IMAGES[:4])
    np.testing.assert_array_equal(test.images, IMAGES[4:])
    assert test.labels.tolist() == [1, 2] and test.facts.labels_from == "the array y_test"
    assert dict(test.facts.parts) == {"train": 4, "test": 2, "val": 1}
    assert test.facts.notes == ("the part val is not read",)


def test_keys_name_the_arrays(tmp_path):
    arrays = {"pics": IMAGES, "age": LABELS, "images": IMAGES[::-1], "labels": LABELS[::-1]}
    dataset = read(tmp_path, arrays=arrays, image_key="pics", label_key="age")
    np.testing.assert_array_equal(dataset.images, IMAGES)
    assert dataset.labels.tolist() == LABELS.tolist()
    assert read(tmp_path, arrays=arrays, label_key="age").labels.tolist() == LABELS.tolist()
    with pytest.raises(UserError, match=r"no array 'pix' \(it has pics, age, .*\); correct config.data.image_key"):
        read(tmp_path, arrays=arrays, image_key="pix")
    with pytest.raises(UserError, match=r"no array 'ages' \(it has pics.*; name the labels by config.data.label_key"):
        read(tmp_path, arrays=arrays, label_key="ages")
    with pytest.raises(UserError, match="has no array 'label'"):
        read(tmp_path, arrays=arrays, image_key="pics")


def test_keys_name_the_arrays_of_parts(tmp_path):
    arrays = {"pics_train": IMAGES[:4], "pics_test": IMAGES[4:], "train-y": LABELS[:4], "test-y": LABELS[4:]}
    keys = {"image_key": "pics_{split}", "label_key": "{split}-y"}
    assert read(tmp_path, arrays=arrays, **keys).n == 4
    assert read(tmp_path, "test", arrays=arrays, **keys).labels.tolist() == [1, 2]


def test_channels_first_and_flat_rows_are_told(tmp_path):
    first = IMAGES.transpose(0, 3, 1, 2)
    dataset = read(tmp_path, arrays={"images": first, "labels": LABELS})
    np.testing.assert_array_equal(dataset.images, IMAGES)
    assert dataset.facts.notes == ("the array images has its channels first, as its shape [6, 3, 8, 8] says",)
    dataset = read(tmp_path, arrays={"data": first.reshape(6, 192), "labels": LABELS})
    np.testing.assert_array_equal(dataset.images, IMAGES)
    assert "flat rows, read as all of red, all of green and all of blue of 8×8 pixels" in dataset.facts.notes[0]
    dataset = read(tmp_path, arrays={"data": IMAGES[..., 0].reshape(6, 64), "labels": LABELS})
    np.testing.assert_array_equal(dataset.images[..., 1], IMAGES[..., 0])
    assert dataset.facts.notes[0].endswith("flat rows, read as grey of 8×8 pixels")


def test_texts_are_names_of_classes(tmp_path):
    texts = np.array(["dog", "cat", "caf\u00e9"])[LABELS]
    dataset = read(tmp_path, arrays={"images": IMAGES, "labels": texts})
    assert dataset.class_names == ("caf\u00e9", "cat", "dog")
    assert dataset.labels.tolist() == [2, 1, 0, 2, 1, 0]
    names = ("bird", "cat", "cafe\u0301", "dog")  # as macOS stores the accent
    dataset = read(tmp_path, arrays={"images": IMAGES, "labels": texts}, class_names=names)
    assert dataset.class_names == names and dataset.labels.tolist() == [3, 1, 2, 3, 1, 2]
    with pytest.raises(UserError, match="'labels' holds 'café', which is not in config.data.class_names"):
        read(tmp_path, arrays={"images": IMAGES, "labels": texts}, class_names=("dog", "cat"))


def test_classes_of_all_parts_make_up_the_list(tmp_path):
    arrays = {"x_train": IMAGES, "y_train": np.array(list("aabbaa")), "x_test": IMAGES, "y_test": ["b", "c"] * 3}
    assert read(tmp_path, arrays=arrays).class_names == ("a", "b", "c")


def test_the_first_label(tmp_path):
    arrays = {"images": IMAGES, "labels": LABELS + 1}
    names = ("a", "b", "c")
    with pytest.raises(UserError, match="numbers its 3 classes from 1 to 3; set config.data.first_label=1"):
        read(tmp_path, arrays=arrays, class_names=names)
    with pytest.raises(UserError, match="none of 0; set config.data.first_label=1"):
        read(tmp_path, arrays=arrays)
    for more in ({"class_names": names}, {}):
        assert read(tmp_path, arrays=arrays, first_label=1, **more).labels.tolist() == LABELS.tolist()
    assert read(tmp_path, arrays=arrays, first_label=1).class_names == ("1", "2", "3")


@pytest.mark.parametrize(
    "images, intensity",
    [
        (IMAGES / 255, "0:1"),
        (IMAGES.astype(np.float32), "0:255"),
        (IMAGES.astype(np.int16) - 1000, "-1000:-745"),
        (IMAGES.astype(np.uint16) * 257, "full"),
    ],
    ids=lambda value: getattr(value, "dtype", value),
)
def test_pixels_of_other_types(tmp_path, images, intensity):
    dataset = read(tmp_path, arrays={"images": images, "labels": LABELS}, intensity=intensity)
    np.testing.assert_array_equal(dataset.images, IMAGES)


def test_people(tmp_path):
    arrays = {"images": IMAGES, "labels": LABELS, "patient": np.array([7, 7, 9, 9, 7, 3])}
    assert read(tmp_path, arrays=arrays, person="array:patient").people.tolist() == [1, 1, 2, 2, 1, 0]
    arrays = {"train_images": IMAGES, "train_labels": LABELS, "train_who": np.array(list("bbabba"))}
    assert read(tmp_path, arrays=arrays, person="array:{split}_who").people.tolist() == [1, 1, 0, 1, 1, 0]
    for person, message in {
        "array:who": r"has no array 'who' \(it has .*\); correct config.data.person",
        "array:train_images": "store one whole number or text an image",
        "column:who": "config.data.person=column:who is nothing that source=npz has; give array:",
    }.items():
        with pytest.raises(UserError, match=message):
            read(tmp_path, arrays=arrays, person=person)


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
        ({"labels": None}, r"has no array 'labels' \(it has images\); name the labels by config.data.label_key"),
        ({"images": None}, r"no array under a usual name such as .* \(it has labels\); name .* config.data.image_key"),
        ({"x": IMAGES}, "has images under several names, images and x .*; choose by config.data.image_key"),
        ({"images": IMAGES / 255}, "'images' is of the type float64; .* config.data.intensity=LOW:HIGH"),
        ({"images": IMAGES.astype(np.int16)}, "'images' is of the type int16; .* config.data.intensity=LOW:HIGH"),
        ({"images": IMAGES.astype(str)}, "'images' is of the type <U3; store pixels as numbers"),
        ({"images": IMAGES[:, :, :, :2]}, r"shape \[6, 8, 8, 2\]"),
        ({"images": IMAGES[:, :2]}, None),  # 2 high, 8 wide
        ({"images": IMAGES.reshape(6, 96, 2)[:, :, 0]}, r"shape \[6, 96\]"),
        ({"images": IMAGES[0, 0]}, r"shape \[8, 3\]"),
        ({"images": np.array(5, np.uint8)}, "'images' is a single number"),
        ({"images": np.array([IMAGES[0], IMAGES[1][:4]], object)}, "Python objects in images.npy"),
        ({"labels": np.array([0, 1, None], object)}, "Python objects in labels.npy"),
        ({"labels": LABELS + 0.5}, "'labels' holds 0.5 at 0, which is no whole number"),
        ({"labels": LABELS * np.nan}, "'labels' holds nan at 0, which is no whole number"),
        ({"labels": LABELS * 1j}, "neither numbers nor text"),
        ({"labels": np.eye(3)[LABELS] * 2}, "not a single 1 in its row 0"),
        ({"labels": np.ones((6, 3), int)}, "not a single 1 in its row 0"),
        ({"labels": np.array([list("ab")] * 6)}, r"'labels' has the shape \[6, 2\] beside 6 images"),
        ({"labels": LABELS[:5]}, r"'labels' has the shape \[5\] beside 6 images"),
        ({"labels": LABELS + 2**40}, "the label 1099511627778 at 2, which is no class number"),
        ({"labels": LABELS - 1}, "negative label -1 at 0"),
        ({"class_names": np.array(["a", "b"])}, "the label 2 at 2, outside the 2 classes"),
        ({"class_names": np.array(["a", "a", "b"], object)}, "Python objects in class_names.npy"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, change, message):
    arrays = {"images": IMAGES, "labels": LABELS} | change
    arrays = {name: array for name, array in arrays.items() if array is not None}
    if message is None:
        assert read(tmp_path, arrays=arrays).n == 6
        return
    with pytest.raises(UserError, match=message):
        read(tmp_path, arrays=arrays)


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
