"""Features of all images, in order, whatever the batch size and the number of devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from privimage_jax.metrics.features import extract, forward


class Tiny(nn.Module):
    """Batch-normalised, so that train=True or a foreign row in the batch would show."""

    @nn.compact
    def features(self, x, train=False):
        x = nn.relu(nn.Dense(4)(x.reshape(len(x), -1)))
        return nn.BatchNorm(use_running_average=not train)(x)

    def __call__(self, x, train=False):
        return self.features(x, train)[:, :3]


@pytest.fixture(scope="module")
def network():
    module = Tiny()
    return module, module.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (37, 4, 4, 1), np.uint8)


@pytest.mark.parametrize("batch_size", [1, 10, 16, 37, 1000])
def test_equals_one_plain_call(network, images, batch_size):
    module, variables = network
    expected = module.apply(variables, jnp.asarray(images, jnp.float32) / 127.5 - 1, train=False, method="features")
    features = extract(forward(module, variables), images, batch_size)
    assert features.dtype == np.float32 and features.shape == (37, 4)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


def test_logits(network, images):
    logits = extract(forward(*network, method="__call__"), images)
    np.testing.assert_array_equal(logits, extract(forward(*network), images)[:, :3])


def test_plain_function_and_range():
    corners = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(extract(lambda x: x.reshape(len(x), -1), corners), [[-1], [1]], rtol=1e-6)


def test_reads_memory_mapped_images(tmp_path, images):
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    flat = extract(lambda x: x.reshape(len(x), -1), mapped, 8)
    np.testing.assert_allclose(flat, images.reshape(37, -1) / 127.5 - 1, atol=1e-6)


def test_the_batch_is_split_over_all_devices():
    seen = []

    def spy(x):
        jax.debug.inspect_array_sharding(x, callback=seen.append)
        return x.reshape(len(x), -1)

    extract(spy, np.zeros((16, 2, 2, 1), np.uint8))
    (sharding,) = seen
    assert len(sharding.device_set) == jax.device_count()
    assert sharding.shard_shape((16, 2, 2, 1))[0] == 16 // jax.device_count()


def test_new_parameters_do_not_compile_again(network, images):
    module, variables = network
    traces = []

    class Counting(Tiny):
        def __call__(self, x, train=False):
            traces.append(1)
            return x.reshape(len(x), -1)[:, :1]

    for scale in (1.0, 2.0):
        extract(forward(Counting(), jax.tree.map(lambda p, s=scale: p * s, variables), "__call__"), images)
    assert len(traces) == 1


def test_refuses_floats_and_emptiness():
    for images in (np.zeros((3, 2, 2, 1), np.float32), np.zeros((0, 2, 2, 1), np.uint8), np.zeros((3, 2, 2), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            extract(lambda x: x, images)
