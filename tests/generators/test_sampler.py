import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import CLASSES, SIDE, tiny_config
from small_models import SmallDenoiser

from privimage_jax import config as configs
from privimage_jax import generators
from privimage_jax.generators.artefact import read_params, write
from privimage_jax.generators.sampler import Sampler, make_labels
from privimage_jax.models.registry import init_denoiser
from privimage_jax.training.mesh import make_mesh

LABELS = np.array([2, 0, 1, 1, 0, 2, 2], np.int32)
KEY = 3


@pytest.fixture(scope="module")
def model():
    return SmallDenoiser(CLASSES, 1)


@pytest.fixture(scope="module")
def params(model):
    return init_denoiser(model, jax.random.key(1), (SIDE, SIDE, 1))


@pytest.fixture(scope="module")
def images(model, params, tmp_path_factory):
    """`images(n_devices, cuts) -> uint8 [7, H, W, 1]`, drawn in batches that end at the cuts."""
    config = tiny_config(tmp_path_factory.mktemp("sampler"))
    config.sample.sampler = "heun"  # draws noise in every step
    config.sample.s_churn = 1.0
    config.sample.guidance = 1.5
    config.model.name = "small_models:SmallDenoiser"
    configs.check(config)

    def draw(n_devices, cuts):
        sampler = Sampler(generators.build(config, CLASSES), make_mesh(jax.devices()[:n_devices]))
        ends = [0, *cuts, len(LABELS)]
        pairs = zip(ends[:-1], ends[1:], strict=True)
        return np.concatenate([sampler(params, jax.random.key(KEY), a, LABELS[a:b]) for a, b in pairs])

    return draw


def test_an_image_depends_on_its_number_alone(images):
    """Not on the batch it is drawn in, nor on the number of devices."""
    whole = images(1, ())
    assert whole.shape == (len(LABELS), SIDE, SIDE, 1) and whole.dtype == np.uint8
    assert len(np.unique(whole.reshape(len(LABELS), -1), axis=0)) == len(LABELS)
    for other in (images(1, (1, 4)), images(2, ()), images(3, (5,))):
        assert np.abs(whole.astype(int) - other).max() <= 1  # rounding to whole grey values


def test_published_parameters_come_back_and_name_no_time(params, tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, params, {"class_names": ["a"]})
    one, two = ((tmp_path / name / "params.npz").read_bytes() for name in ("one", "two"))
    assert one == two
    jax.tree.map(np.testing.assert_array_equal, params, read_params(tmp_path / "one", params))


@given(st.integers(0, 500), st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_labels_have_the_given_proportions(n, weights):
    labels = make_labels(n, len(weights), tuple(weights))
    counts = np.bincount(labels, minlength=len(weights))
    assert labels.dtype == np.int32 and counts.sum() == n
    assert np.all(np.abs(counts - n * np.asarray(weights) / sum(weights)) < 1 + 1e-9)


@given(st.integers(1, 500), st.integers(1, 12))
def test_without_weights_classes_are_equal_and_spread_evenly(n, n_classes):
    """Any first part of the set holds each class equally often, up to rounding."""
    labels = make_labels(n, n_classes)
    for stop in {n, n // 2, n // 3}:
        counts = np.bincount(labels[:stop], minlength=n_classes)
        assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize("weights", [(1.0, 0.0, 3.0), (0, 5, 0)])
def test_a_class_of_weight_0_is_never_made(weights):
    counts = np.bincount(make_labels(100, 3, weights), minlength=3)
    np.testing.assert_array_equal(counts == 0, np.asarray(weights) == 0)
