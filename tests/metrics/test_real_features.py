import numpy as np
import pytest

from privimage_jax.data.dataset import Dataset
from privimage_jax.metrics.extractors import Extractor
from privimage_jax.metrics.features import Outputs
from privimage_jax.metrics.real_features import load_or_make, measured_rows


def dataset(seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (30, 4, 4, 1), np.uint8)
    return Dataset(images, np.zeros(30, np.int32), ("a",), "set")


def extractor(digest="1", logits=True):
    return Extractor("query", lambda x: Outputs(x[:, 0, :, 0], x[:, 1, :, 0] if logits else None), digest)


@pytest.fixture
def made(tmp_path):
    """`made(...) -> (features, whether they were computed)`."""

    def call(*arguments, n=20):
        counts = []
        return load_or_make(tmp_path, *arguments, n, counts.append), sum(counts) == n

    return call


def test_features_are_computed_once(made, tmp_path):
    first, computed = made(extractor(), dataset())
    images = dataset().images[measured_rows(30, 20)].astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(first.features, images[:, 0, :, 0], atol=1e-6)
    np.testing.assert_allclose(first.mean, images[:, 0, :, 0].mean(0), atol=1e-6)
    np.testing.assert_allclose(first.covariance, np.cov(images[:, 0, :, 0], rowvar=False), atol=1e-6)
    again, computed_again = made(extractor(), dataset())
    assert computed and not computed_again
    for value, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(value, same)
        assert value.dtype == same.dtype


def test_other_images_numbers_or_networks_are_other_features(made):
    assert all(made(*arguments)[1] for arguments in ((extractor(), dataset()), (extractor("2"), dataset())))
    assert made(extractor(), dataset(1))[1]
    assert made(extractor(), dataset(), n=10)[1]
    assert not made(extractor(), dataset(), n=20)[1]


def test_of_a_set_listed_class_by_class_every_class_is_measured(made):
    labels = np.repeat(np.arange(3, dtype=np.int32), 10)
    images = labels.astype(np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    features = made(extractor(), Dataset(images, labels, ("a", "b", "c"), "set"))[0].features
    assert len(np.unique(features[:, 0])) == 3  # the first 20 images would hold none of "c"


def test_each_row_is_measured_once_and_all_where_there_is_room():
    rows = measured_rows(1000, 100)
    assert len(np.unique(rows)) == 100 and (np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < 1000
    assert 300 < rows.mean() < 700
    for n in (30, 31):
        np.testing.assert_array_equal(measured_rows(30, n), np.arange(30))


def test_a_network_without_logits(made):
    assert made(extractor(logits=False), dataset())[0].logits is None
    found, computed = made(extractor(logits=False), dataset())
    assert found.logits is None and not computed


def damage_by_cutting(path):
    path.write_bytes(path.read_bytes()[:-50])


def damage_by_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace(**changes):
    def change(path):
        with np.load(path) as arrays:
            np.savez(path, **{**arrays, **changes})

    return change


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_cutting,
        damage_by_a_bit,
        replace(mean=np.full(4, np.nan)),
        replace(covariance=np.zeros((5, 5))),
        replace(features=np.zeros((19, 4), np.float32)),
        replace(logits=np.zeros((20, 4), np.float64)),
        replace(more=np.zeros(1)),
    ],
    ids=["cut", "bit", "nan", "size", "rows", "dtype", "more"],
)
def test_what_is_damaged_is_made_anew(made, tmp_path, damage):
    first, _ = made(extractor(), dataset())
    (path,) = tmp_path.glob("*.npz")
    damage(path)
    again, computed = made(extractor(), dataset())
    assert computed and np.array_equal(first.features, again.features)
    assert not made(extractor(), dataset())[1]
