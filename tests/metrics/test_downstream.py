"""A classifier learns from one set what another set confirms, the same from the same seed."""

import flax.linen as nn
import jax
import numpy as np
import pytest
import sklearn.datasets

from privimage_jax.data.dataset import Dataset
from privimage_jax.errors import UserError
from privimage_jax.metrics import downstream
from privimage_jax.metrics.downstream import Protocol, benchmark, fit, quick
from privimage_jax.models.registry import build_classifier
from privimage_jax.training.classifier import Recipe
from privimage_jax.training.mesh import make_mesh


@pytest.fixture(autouse=True)
def mesh(monkeypatch, request):
    """One device, as each of several that are simulated takes as long; several for the tests named here."""
    several = request.node.name in ("test_a_model_with_batch_statistics", "test_a_set_smaller_than_the_batch")
    mesh = make_mesh(jax.devices()[: 8 if several else 1])
    monkeypatch.setattr(downstream, "make_mesh", lambda: mesh)


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


def train_and_score(model, train, test, protocol, **how):
    """The accuracy on one set of a classifier that was trained on another."""
    downstream.check_sets(train, test, protocol.held_back)
    return downstream.accuracy(model, fit(model, train, protocol, **how), test)


def test_the_cnn_learns_digits(digits):
    train, test = digits
    model = build_classifier("cnn", 10, width=8)
    assert train_and_score(model, train, test, quick(250, 64, 1e-2)) > 0.9


def test_shuffled_labels_teach_nothing(digits):
    train, test = digits
    shuffled = Dataset(train.images, np.random.default_rng(0).permutation(train.labels), train.class_names, "shuffled")
    model = build_classifier("cnn", 10, width=8)
    assert train_and_score(model, shuffled, test, quick(150, 64, 1e-2)) < 0.3


def test_a_model_with_batch_statistics():
    assert train_and_score(Normalised(2), bars(200, 0), bars(100, 1), quick(80, 32, 2e-2)) > 0.95


def test_the_seed_decides_everything():
    def seen(seed):
        losses = []
        train_and_score(
            Normalised(2),
            bars(60, 0),
            bars(40, 1),
            quick(8, 16),
            seed=seed,
            on_steps=lambda n, **info: losses.append((n, info["loss"])),
        )
        return losses

    first, again, other = seen(0), seen(0), seen(1)
    assert first == again != other
    assert sum(n for n, _ in first) == 8


def test_a_set_smaller_than_the_batch():
    assert 0 <= train_and_score(Normalised(2), bars(10, 0), bars(20, 1), quick(3, 64)) <= 1


def test_sets_that_do_not_fit():
    train = bars(10, 0)
    three = Dataset(train.images, train.labels, ("a", "b", "c"), "three")
    small = Dataset(train.images[:, :4], train.labels, train.class_names, "small")
    empty = Dataset(train.images[:0], train.labels[:0], train.class_names, "empty")
    with pytest.raises(UserError, match="three.*same classes"):
        train_and_score(Normalised(2), train, three, quick())
    with pytest.raises(UserError, match="small.*image shape"):
        train_and_score(Normalised(2), train, small, quick())
    with pytest.raises(UserError, match="empty has no images"):
        train_and_score(Normalised(2), train, empty, quick())
    with pytest.raises(UserError, match=r"bars 0 has 10 image\(s\), of which 10 would only choose"):
        train_and_score(Normalised(2), train, train, Protocol(Recipe(4, 4, 1e-2), held_back=10, candidate_every=2))


def test_the_checkpoint_is_chosen_on_images_of_the_training_set(monkeypatch):
    """The test images are looked at once, by the checkpoint that did best on those held back, the later of equals."""
    seen, found = [], iter([0.5, 0.9, 0.9, 0.4, 0.1])

    def accuracy(model, variables, images):
        seen.append((images, variables["params"]["Dense_0"]["kernel"].copy()))
        return next(found)

    monkeypatch.setattr(downstream, "accuracy", accuracy)
    protocol = Protocol(Recipe(8, 16, 1e-2, ema=0.5), held_back=20, candidate_every=2)
    train, test = bars(60, 0), bars(40, 1)
    assert train_and_score(Normalised(2), train, test, protocol) == 0.1
    *candidates, (scored_on, scored) = seen
    assert scored_on is test and [images.n for images, _ in candidates] == [20] * 4
    np.testing.assert_array_equal(scored, candidates[2][1])
    assert all((scored != candidates[other][1]).any() for other in (0, 1, 3))
    whole = {image.tobytes() for image in train.images}
    assert {image.tobytes() for image in candidates[0][0].images} < whole


def test_what_is_held_back_is_not_trained_on():
    learnt, held_back = downstream.hold_back(bars(60, 0), 20, seed=3)
    rows = [image.tobytes() for part in (learnt, held_back) for image in part.images]
    assert (learnt.n, held_back.n) == (40, 20)
    assert sorted(rows) == sorted(image.tobytes() for image in bars(60, 0).images)
    other = downstream.hold_back(bars(60, 0), 20, seed=4)[1]
    assert {image.tobytes() for image in other.images} != {image.tobytes() for image in held_back.images}


@pytest.mark.parametrize(
    ("cifar", "batch_size", "epochs", "rate", "drop"), [(False, 256, 50, 0.01, 20), (True, 126, 200, 0.1, 60)]
)
def test_the_schedule_of_the_benchmark(cifar, batch_size, epochs, rate, drop):
    protocol = benchmark(60_000, cifar)
    recipe, epoch = protocol.recipe, 55_000 // batch_size
    assert (protocol.held_back, protocol.candidate_every) == (5000, epoch)
    assert (recipe.steps, recipe.batch_size) == (epochs * epoch, batch_size)
    last = drop * epoch
    found = [float(recipe.schedule()(step)) for step in (0, last - 1, last, 2 * last - 1, 2 * last)]
    np.testing.assert_allclose(found, [rate, rate, rate / 5, rate / 5, rate / 25], rtol=1e-5)


def test_the_cnn_learns_digits_as_the_benchmark_does(digits):
    train, test = digits
    few = Dataset(train.images[:300], train.labels[:300], train.class_names, "few")
    model = build_classifier("cnn", 10, width=8)
    assert train_and_score(model, few, test, benchmark(few.n)) > 0.7


def test_the_benchmark_on_a_very_small_set():
    protocol = benchmark(3)
    assert (protocol.held_back, protocol.candidate_every, protocol.recipe.steps) == (1, 1, 50)
