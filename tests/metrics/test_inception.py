from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import RECORDED_PLACES, random_images, random_weights

from privimage_jax.data.pixels import to_float
from privimage_jax.errors import UserError
from privimage_jax.models.inception import InceptionV3, tf1_resize, variables_from_torch

RECORDED = Path(__file__).with_name("inception_features.npz")


@pytest.fixture(scope="module")
def flax_results():
    variables = variables_from_torch(random_weights(), "a test")

    def results(variables, images):
        model, x = InceptionV3(), to_float(images)
        return model.apply(variables, x, method="features"), model.apply(variables, x)

    return [np.asarray(result) for result in jax.jit(results)(variables, random_images())]


def assert_agree(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
    assert np.ptp(expected, axis=0).max() > 100 * 1e-4 * np.abs(expected).max()  # images differ by far more


def test_agrees_with_the_recorded_features_of_a_torch_twin(flax_results):
    """As `python tests/support/torch_inception.py` records them."""
    with np.load(RECORDED, allow_pickle=False) as recorded:
        assert_agree(flax_results[0][:, RECORDED_PLACES], recorded["features"])
        assert_agree(flax_results[1][:, ::8], recorded["logits"])


def test_resizing_reads_pixel_i_at_i_times_the_ratio():
    source = np.random.default_rng(0).normal(size=(1, 5, 7, 2)).astype(np.float32)
    resized = np.asarray(tf1_resize(jnp.asarray(source), 13))
    for i, j in [(0, 0), (3, 9), (12, 12), (6, 5)]:
        y, x = i * 5 / 13, j * 7 / 13
        (top, left), (dy, dx) = (int(y), int(x)), (y % 1, x % 1)
        bottom, right = min(top + 1, 4), min(left + 1, 6)
        upper = source[0, top, left] * (1 - dx) + source[0, top, right] * dx
        lower = source[0, bottom, left] * (1 - dx) + source[0, bottom, right] * dx
        np.testing.assert_allclose(resized[0, i, j], upper * (1 - dy) + lower * dy, atol=1e-5)


def test_an_image_of_the_right_size_stays_as_it_is():
    source = np.random.default_rng(0).normal(size=(1, 9, 9, 1)).astype(np.float32)
    np.testing.assert_allclose(tf1_resize(jnp.asarray(source), 9), source, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights: weights.pop("Mixed_6c.branch7x7_2.bn.running_var"), "lacks Mixed_6c.branch7x7_2.bn"),
        (lambda weights: weights.update({"fc.weight": np.zeros((1000, 2048))}), r"fc.weight with the shape \(1000"),
    ],
)
def test_other_weights_are_named(change, says):
    weights = random_weights()
    change(weights)
    with pytest.raises(UserError, match=says):
        variables_from_torch(weights, "weights.pth")
