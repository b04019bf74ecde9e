"""The logits that mechanisms count: to the bit the same, however many images the others have, and on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import NearTies

from privimage_jax.data import Dataset
from privimage_jax.metrics import features
from privimage_jax.run import counting
from privimage_jax.stages import query
from privimage_jax.training.mesh import make_mesh

SIDE, SEMANTICS = 4, 16


@pytest.fixture(scope="module")
def classify():
    variables = NearTies(SEMANTICS).init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 1)))
    return features.forward(NearTies(SEMANTICS), variables, method="__call__")


def people(images_of):
    """Whose images they are, mixed; and images that follow from the person and the number of it among the own ones."""
    owners = np.random.default_rng(1).permutation(np.repeat(np.arange(len(images_of)), images_of)).astype(np.int32)
    names = np.empty((len(owners), 2), np.int64)
    for row, owner in enumerate(owners):
        names[row] = owner, np.sum(owners[:row] == owner)
    return owners, names


def dataset(owners, names):
    pixels = np.stack([np.random.default_rng(name).integers(0, 256, (SIDE, SIDE, 1), np.uint8) for name in names])
    return Dataset(pixels, np.zeros(len(owners), np.int32), ("a",), "set", owners, unit="person")


def logits_by_name(classify, owners, names, mesh):
    found = {}
    for rows, logits in counting.logits(classify, dataset(owners, names), mesh):
        for row, of_image in zip(rows, logits, strict=True):
            assert found.setdefault(tuple(names[row]), of_image) is of_image, "an image came twice"
    assert len(found) == len(owners)
    return found


@pytest.mark.parametrize("n_devices", [1, 8])
@pytest.mark.parametrize("struck", [2, 9, 40])
def test_one_image_in_the_place_of_several_changes_no_bit_of_the_others(classify, struck, n_devices, monkeypatch):
    """The sets are on both sides of a batch on each device, and of a batch on all."""
    monkeypatch.setattr(counting, "PER_DEVICE", 16)
    mesh = make_mesh(jax.devices()[:n_devices])
    for rest in (6, 15, 120):
        owners, names = people([*[1, 2, 3] * 2, struck, *[1] * rest])
        left = (owners != 6) | (names[:, 1] == 0)
        whole = logits_by_name(classify, owners, names, mesh)
        fewer = logits_by_name(classify, owners[left], names[left], mesh)
        others = [name for name in fewer if name[0] != 6]
        assert len(others) == len(owners) - struck
        np.testing.assert_array_equal([whole[name] for name in others], [fewer[name] for name in others])
        tops = [query.count_semantics(np.stack([which[name] for name in others]), np.zeros(len(others), np.int32), 1, 3)
                for which in (whole, fewer)]  # fmt: skip
        np.testing.assert_array_equal(*tops)


def test_rounding_decides_in_the_network_of_these_tests(classify):
    """Else no count could have moved."""
    logits = np.concatenate([each for _, each in counting.logits(classify, dataset(*people([1] * 50)), make_mesh())])
    one, other = np.split(logits, 2, axis=1)
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert (one > other).any() and (one < other).any()


def test_a_batch_of_another_size_would_turn_ties_over(classify, monkeypatch):
    """So that the first test can fail: for one image on each device XLA has another product of matrices."""
    images, found = dataset(*people([1] * 8)), []
    for size in (1, 16):
        monkeypatch.setattr(counting, "PER_DEVICE", size)
        (rows, logits), *_ = counting.logits(classify, images, make_mesh(jax.devices()[:8]))
        found.append(logits[np.argsort(images.owners[rows])])
    assert (np.argsort(found[0])[:, -3:] != np.argsort(found[1])[:, -3:]).any()


def test_the_compiled_program_knows_neither_the_number_of_images_nor_of_people(classify, monkeypatch):
    shapes, on_batch = set(), features.on_batch

    def noting(classify, batch, mesh):
        shapes.add((batch.shape, batch.sharding.shard_shape(batch.shape), mesh.size))
        return on_batch(classify, batch, mesh)

    monkeypatch.setattr(features, "on_batch", noting)
    for n, n_devices in ((1, 1), (3, 8), (130, 1), (1100, 8)):
        list(counting.logits(classify, dataset(*people([1] * n)), make_mesh(jax.devices()[:n_devices])))
    own = counting.PER_DEVICE
    image = (SIDE, SIDE, 1)
    assert shapes == {((own * d, *image), (own, *image), d) for d in (1, 8)}


def test_the_number_of_devices_changes_no_bit(classify):
    owners, names = people([1, 2, 3] * 50)
    one, eight = (logits_by_name(classify, owners, names, make_mesh(jax.devices()[:d])) for d in (1, 8))
    np.testing.assert_array_equal([one[name] for name in one], [eight[name] for name in one])


@pytest.mark.parametrize("width", [1, 3, 128])
def test_the_place_of_an_image_follows_from_its_own_record_alone(width):
    records, names = people([1, 7, 200, 1, 2])
    table = counting.places(records, width)
    batch, place = np.nonzero(table != counting.EMPTY)
    rows = table[batch, place]
    assert sorted(rows) == list(range(len(records)))
    np.testing.assert_array_equal(place, names[rows].sum(axis=1) % width)


def test_records_that_are_images_stay_in_their_order():
    np.testing.assert_array_equal(counting.places(np.arange(10), 4).ravel()[:10], np.arange(10))
