import errno
import os
import stat

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from ml_collections import ConfigDict

from privimage_jax.data import cache, load
from privimage_jax.data.loading import choose
from privimage_jax.data.sources.base import Settings
from privimage_jax.errors import UserError


def settings_of(**section):
    return Settings.from_section(section)


def archive(path, n=40, size=8, **extra):
    random = np.random.RandomState(n)
    arrays = {
        "images": random.randint(0, 256, (n, size, size)).astype(np.uint8),
        "labels": np.arange(n) % 4,
        **extra,
    }
    np.savez(path, **arrays)
    return arrays


def section(path, **more):
    return {"source": "npz", "path": str(path), **more}


@settings(max_examples=60, deadline=None)
@given(
    n=strategies.integers(1, 300),
    test=strategies.floats(0, 0.9),
    validation=strategies.floats(0, 0.9),
    seed=strategies.integers(0, 5),
    divided=strategies.booleans(),
    most=strategies.integers(0, 50),
)
def test_parts_never_overlap_and_nothing_is_lost(n, test, validation, seed, divided, most):
    def part(name, **more):
        return set(choose(settings_of(test_fraction=test, seed=seed, **more), n, divided, name).tolist())

    train, held_out = part("train"), part("test")
    if not divided:
        assert train | held_out == set(range(n)) and not train & held_out
    tuned, tuning = part("train", validation_fraction=validation), part("test", validation_fraction=validation)
    if validation:
        assert tuned | tuning == train and not tuned & tuning
        assert divided or not tuning & held_out
    fewer = part("train", max_examples=most)
    assert fewer <= train and len(fewer) == min(most or n, len(train))
    some = set(choose(settings_of(test_fraction=test, seed=seed), n, divided, "test", most).tolist())
    assert some <= held_out and len(some) == min(most or n, len(held_out))


UNREAD = {
    "person": ("idx", "array:who"),
    "first_label": ("cifar", 1),
    "labels": ("npz", "none"),
    "links": ("zip", "/store"),
    "intensity": ("glyphs", "0:16"),
    "image_key": ("folder", "scan"),
    "label_key": ("digits", ""),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_a_source_would_pass_over_is_refused(name):
    source, value = UNREAD[name]
    message = f"^config.public.{name}={value!r} means nothing to source={source}, only to .*; leave it at '?[a-z0]*'?.$"
    with pytest.raises(UserError, match=message):
        load({"source": source, name: value}, "train", 8, 1, None, key="public")


def test_what_only_picks_a_set_or_draws_it_may_be_left_over_from_another_source():
    left_over = {"name": "cifar10", "per_class": 3, "style": "print", "split": "2023", "data_dir": "/sets"}
    assert load({"source": "digits", **left_over}, "train", 8, 1, None).n == 1437


def test_the_division_never_changes():
    assert choose(settings_of(), 10, False, "test").tolist() == [2, 8]
    assert choose(settings_of(seed=1), 10, False, "test").tolist() == [2, 9]


def test_some_examples_of_a_part_are_not_those_of_one_class(tmp_path):
    """Nor are they kept under the name of the whole part."""
    images, labels = np.random.default_rng(0).integers(0, 256, (40, 4, 4), np.uint8), np.repeat(np.arange(2), 20)
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    some, whole = (
        load(section(tmp_path / "set.npz", test_fraction=0.9), "test", 4, 1, tmp_path / "cache", most=most)
        for most in (10, 0)
    )
    assert (some.n, whole.n) == (10, 36) and 0 < some.labels.sum() < 10


def test_one_call_one_dataset(tmp_path):
    stored = archive(tmp_path / "set.npz")
    config = ConfigDict(section(tmp_path / "set.npz", test_fraction=0.25, other=3))
    train, test = (load(config, part, 8, 1, tmp_path / "cache") for part in ("train", "test"))
    assert (train.n, test.n, train.name, train.class_names) == (30, 10, "set", ("0", "1", "2", "3"))
    for dataset in (train, test):
        for image, label in zip(dataset.images, dataset.labels, strict=True):
            index = (stored["images"] == image[..., 0]).all((1, 2)).argmax()
            assert stored["labels"][index] == label
    again = load(config, "train", 8, 1, None)
    assert isinstance(train.images, np.memmap) and not isinstance(again.images, np.memmap)
    assert again.digest() == train.digest() != test.digest()


def test_threads_keep_the_order_and_progress_is_told(tmp_path):
    stored = archive(tmp_path / "set.npz", n=700)
    told = []
    config = section(tmp_path / "set.npz", test_fraction=0.0)
    dataset = load(config, "train", 8, 1, None, on_progress=lambda done, total: told.append((done, total)))
    np.testing.assert_array_equal(dataset.images[..., 0], stored["images"])
    assert told == [(128, 700), (256, 700), (384, 700), (512, 700), (640, 700), (700, 700)]


def test_cache_is_used_private_and_renewed(tmp_path, monkeypatch):
    path = tmp_path / "set.npz"
    archive(path)
    config = section(path)
    first = load(config, "train", 8, 1, tmp_path / "cache")
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    calls = []
    original = cache.write_images
    monkeypatch.setattr(cache, "write_images", lambda *arguments: (calls.append(1), original(*arguments)))
    assert load(config, "train", 8, 1, tmp_path / "cache").digest() == first.digest()
    assert not calls
    load(config, "test", 8, 1, tmp_path / "cache")
    load(config, "train", 8, 3, tmp_path / "cache")
    load(config, "train", 4, 1, tmp_path / "cache")
    load({**config, "crop": 6}, "train", 8, 1, tmp_path / "cache")
    assert len(calls) == 4
    archive(path, n=41)
    assert load(config, "train", 8, 1, tmp_path / "cache").n == 32
    assert len(calls) == 5


def test_images_that_were_replaced_at_the_same_size_and_time_are_noticed(tmp_path):
    path = tmp_path / "set.npz"
    archive(path)
    before = load(section(path), "train", 8, 1, tmp_path / "cache")
    status, content = path.stat(), path.read_bytes()
    with np.load(path) as arrays:
        named = dict(arrays)
    np.savez(path, **{name: value[::-1] if value.ndim > 1 else value for name, value in named.items()})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns
    assert path.read_bytes() != content
    assert load(section(path), "train", 8, 1, tmp_path / "cache").digest() != before.digest()


DAMAGES = {
    "cut": lambda folder: os.truncate(folder / "images.npy", 500),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "no labels": lambda folder: (folder / "labels.npy").unlink(),
    "bad meta": lambda folder: (folder / "meta.json").write_text("[]"),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
    "a pipe": lambda folder: ((folder / "labels.npy").unlink(), os.mkfifo(folder / "labels.npy")),
    "an archive": lambda folder: _rewrite(folder / "images.npy", b"PK\x03\x04"),
    "a pickle": lambda folder: _rewrite(folder / "labels.npy", b"\x80\x04N."),
    "labels of no class": lambda folder: np.save(folder / "labels.npy", np.full(32, 4, np.int32)),
    "negative labels": lambda folder: np.save(folder / "labels.npy", np.full(32, -1, np.int32)),
}


def _rewrite(path, beginning):
    path.write_bytes(beginning + path.read_bytes()[len(beginning) :])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    archive(tmp_path / "set.npz")
    config = section(tmp_path / "set.npz")
    first = load(config, "train", 8, 1, tmp_path / "cache").digest()
    (folder,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    DAMAGES[damage](folder)
    assert load(config, "train", 8, 1, tmp_path / "cache").digest() == first


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    archive(tmp_path / "set.npz")

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, content):
            if self.file.tell() > 100:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(content)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    real_open = open

    def open_on_full_disk(path, mode="r", **more):
        file = real_open(path, mode, **more)
        return Full(file) if mode == "wb" and str(path).endswith("images.npy") else file

    monkeypatch.setattr("builtins.open", open_on_full_disk)
    with pytest.raises(UserError, match="the disk is full; free some space"):
        load(section(tmp_path / "set.npz"), "train", 8, 1, tmp_path / "cache")
    assert all(path.suffix == ".lock" for path in (tmp_path / "cache").iterdir())
    monkeypatch.undo()
    assert load(section(tmp_path / "set.npz"), "train", 8, 1, tmp_path / "cache").n == 32


def test_an_error_while_decoding_leaves_nothing(tmp_path):
    archive(tmp_path / "set.npz")
    with pytest.raises(UserError, match="example 0 of set is 8×8 pixels, smaller than config.data.crop=9"):
        load(section(tmp_path / "set.npz", crop=9, test_fraction=0.0), "train", 8, 1, tmp_path / "cache")
    assert all(path.suffix == ".lock" for path in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"source": "hdf5"},
            "config.public.source='hdf5' is not accepted; give one of tfds, folder, zip, npz",
        ),
        ({"test_fraction": 1.0}, "config.public.test_fraction=1.0 is not"),
        ({"validation_fraction": -0.1}, "config.public.validation_fraction=-0.1 is not"),
        ({"crop": -1}, "config.public.crop=-1 is not"),
        ({"seed": 2**32}, "config.public.seed"),
        ({"class_names": ("a", "a")}, "config.public.class_names=\\('a', 'a'\\) is not"),
        ({"test_fraction": 0.0}, "leaves no examples for the test part"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(UserError, match=message):
        load({"source": "digits", **change}, "test", 8, 1, None, key="public")


def test_impossible_shapes_are_named():
    with pytest.raises(UserError, match="config.data.image_size is 0"):
        load({"source": "digits"}, "train", 0, 1, None)
    with pytest.raises(UserError, match="config.data.channels is 2"):
        load({"source": "digits"}, "train", 8, 2, None)


def test_validation_never_opens_the_test_part(tmp_path):
    arrays = archive(tmp_path / "set.npz", test_images=np.zeros((5, 8, 8), np.uint8), test_labels=np.zeros(5, int))
    test = load(section(tmp_path / "set.npz", validation_fraction=0.5), "test", 8, 1, None)
    assert test.n == 20
    assert all((arrays["images"] == image[..., 0]).all((1, 2)).any() for image in test.images)
