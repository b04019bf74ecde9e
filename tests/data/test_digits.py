import numpy as np
from sklearn.datasets import load_digits

from privimage_jax.data import load


def test_digits():
    train, test = (load({"source": "digits"}, part, 8, 1, None) for part in ("train", "test"))
    assert (train.n, test.n, train.class_names) == (1437, 360, tuple("0123456789"))
    assert set(np.unique(train.images)) == {round(v * 255 / 16) for v in range(17)}
    ours = np.concatenate([train.images, test.images]).sum((1, 2, 3)).astype(int)
    theirs = np.round(load_digits().images * 255 / 16).sum((1, 2)).astype(int)
    np.testing.assert_array_equal(np.sort(ours), np.sort(theirs))


def test_enlarged_colour_digits_of_a_validation_part():
    section = {"source": "digits", "validation_fraction": 0.1}
    train, validation = (load(section, part, 16, 3, None) for part in ("train", "test"))
    assert train.image_shape == (16, 16, 3) and (train.n, validation.n) == (1293, 144)
