"""A classifier learns from one set what another set confirms, the same from the same seed."""

import flax.linen as nn
import numpy as np
import pytest
import sklearn.datasets

from privimage_jax.data.dataset import Dataset
from privimage_jax.errors import UserError
from privimage_jax.metrics.downstream import train_and_score
from privimage_jax.models.registry import build_classifier


@pytest.fixture(scope="module")
def digits():
    bunch = sklearn.datasets.load_digits()
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    names = tuple("0123456789")

    def part(rows, name):
        return Dataset(images[rows], bunch.target[rows].astype(np.int32), names, name)

    return part(order[:1400], "train"), part(order[1400:], "test")


def bars(n, seed, shift=0):
    """Class 0: a vertical bar, class 1: a horizontal one; `shift` moves them off the middle."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n).astype(np.int32)
    images = rng.integers(0, 60, (n, 8, 8, 1)).astype(np.uint8)
    images[labels == 0, :, 3 + shift] = 255
    images[labels == 1, 3 + shift] = 255
    return Dataset(images, labels, ("vertical", "horizontal"), f"bars {seed}")


class Normalised(nn.Module):
    """A classifier with batch statistics."""

    n_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.n_classes)(x.max((1, 2)))


def test_the_cnn_learns_digits(digits):
    train, test = digits
    model = build_classifier("cnn", 10, width=8)
    assert train_and_score(model, train, test, steps=250, batch_size=64, learning_rate=1e-2) > 0.9


def test_shuffled_labels_teach_nothing(digits):
    train, test = digits
    shuffled = Dataset(train.images, np.random.default_rng(0).permutation(train.labels), train.class_names, "shuffled")
    model = build_classifier("cnn", 10, width=8)
    assert train_and_score(model, shuffled, test, steps=150, batch_size=64, learning_rate=1e-2) < 0.3


def test_a_model_with_batch_statistics():
    assert (
        train_and_score(Normalised(2), bars(200, 0), bars(100, 1), steps=80, batch_size=32, learning_rate=2e-2) > 0.95
    )


def test_the_seed_decides_everything():
    def seen(seed):
        losses = []
        train_and_score(
            Normalised(2),
            bars(60, 0),
            bars(40, 1),
            steps=8,
            batch_size=16,
            seed=seed,
            on_steps=lambda n, **info: losses.append((n, info["loss"])),
        )
        return losses

    first, again, other = seen(0), seen(0), seen(1)
    assert first == again != other
    assert sum(n for n, _ in first) == 8


def test_a_set_smaller_than_the_batch():
    assert 0 <= train_and_score(Normalised(2), bars(10, 0), bars(20, 1), steps=3, batch_size=64) <= 1


def test_sets_that_do_not_fit():
    train = bars(10, 0)
    three = Dataset(train.images, train.labels, ("a", "b", "c"), "three")
    small = Dataset(train.images[:, :4], train.labels, train.class_names, "small")
    empty = Dataset(train.images[:0], train.labels[:0], train.class_names, "empty")
    with pytest.raises(UserError, match="three.*same classes"):
        train_and_score(Normalised(2), train, three)
    with pytest.raises(UserError, match="small.*image shape"):
        train_and_score(Normalised(2), train, small)
    with pytest.raises(UserError, match="empty has no images"):
        train_and_score(Normalised(2), train, empty)
