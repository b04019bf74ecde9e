"""The convolution has the values and derivatives of XLA's, in every transformation that the program uses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from privimage_jax.models.convolution import convolve, fast_convolutions

HIGHEST = lax.Precision.HIGHEST


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def xla(x, kernel, padding, strides):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=HIGHEST
    )


@pytest.mark.parametrize(
    ("size", "padding"),
    [
        ((3, 3), ((1, 1), (1, 1))),
        ((1, 1), ((0, 0), (0, 0))),
        ((3, 5), ((0, 2), (1, 3))),
        ((2, 4), ((0, 1), (1, 2))),
        ((3, 3), ((0, 0), (0, 0))),
    ],
)
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 3)])
def test_value_and_gradients_equal_xla(size, padding, strides):
    x, kernel = random(3, 7, 6, 2), random(*size, 2, 4, seed=1)
    dy = random(*jax.eval_shape(lambda: xla(x, kernel, padding, strides)).shape, seed=2)

    @jax.jit
    def values_and_gradients(x, kernel, dy):
        value, pullback = jax.vjp(lambda x, k: convolve(x, k, padding, HIGHEST, strides), x, kernel)
        wanted, wanted_pullback = jax.vjp(lambda x, k: xla(x, k, padding, strides), x, kernel)
        return (value, *pullback(dy)), (wanted, *wanted_pullback(dy))

    for got, want in zip(*values_and_gradients(x, kernel, dy), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


class Net(nn.Module):
    """Convolutions of all kinds."""

    @nn.compact
    def __call__(self, x):
        x = nn.silu(nn.Conv(8, (3, 3))(x))
        x = nn.silu(nn.Conv(8, (3, 3), strides=(2, 2))(x))
        x = nn.silu(nn.Conv(8, (3, 3), feature_group_count=4)(x))
        x = nn.silu(nn.Conv(8, (3, 3), kernel_dilation=(2, 2))(x))
        x = nn.silu(nn.Conv(8, (3, 3), padding="CIRCULAR")(x))
        return nn.Conv(4, (2, 3), padding=((1, 0), (0, 1)))(x).mean((1, 2, 3))


def net_losses(params, x, fast):
    """Loss of each example, [B]."""
    with fast_convolutions(fast), jax.default_matmul_precision("highest"):
        return Net().apply(params, x) ** 2


@pytest.fixture(scope="module")
def net():
    return jax.jit(Net().init)(jax.random.key(0), jnp.zeros((1, 8, 8, 2))), random(8, 8, 8, 2, seed=3)


def assert_trees_close(got, want, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want)


def test_interceptor_replaces_every_conv_layer(net):
    params, x = net
    fast = str(jax.make_jaxpr(lambda p: net_losses(p, x, True))(params))
    slow = str(jax.make_jaxpr(lambda p: net_losses(p, x, False))(params))
    assert fast.count("custom_vjp_call") - slow.count("custom_vjp_call") == 6


def test_gradients_of_a_whole_network(net):
    params, x = net
    grads = [jax.jit(jax.grad(lambda p, fast=fast: net_losses(p, x, fast).sum()))(params) for fast in (True, False)]
    assert_trees_close(*grads)


def test_per_example_gradients_under_vmap_scan_and_while_loop(net):
    params, x = net

    def per_example(fast):
        one = jax.grad(lambda p, x: net_losses(p, x[None], fast).sum())

        def body(carry):
            i, total, _ = carry
            grads = jax.vmap(one, (None, 0))(params, lax.dynamic_slice_in_dim(x, 4 * i, 4))
            return i + 1, jax.tree.map(lambda t, g: t + g.sum(0), total, grads), grads

        def run(limit):
            zeros = jax.tree.map(jnp.zeros_like, params)
            last = jax.tree.map(lambda z: jnp.zeros((4, *z.shape)), params)
            return lax.while_loop(lambda carry: carry[0] < limit, body, (0, zeros, last))[1:]

        return jax.jit(run)(2)

    assert_trees_close(per_example(True), per_example(False))

    def step(total, row):
        return jax.tree.map(jnp.add, total, jax.grad(lambda p: net_losses(p, row[None], True).sum())(params)), None

    scanned, _ = jax.jit(lambda: lax.scan(step, jax.tree.map(jnp.zeros_like, params), x))()
    assert_trees_close(scanned, per_example(False)[0])


def test_forward_under_vmap_stays_one_convolution():
    kernel = random(3, 3, 2, 4)
    batched = jax.make_jaxpr(jax.vmap(lambda x: convolve(x, kernel, ((1, 1), (1, 1)))))(random(5, 2, 8, 8, 2))
    text = str(batched)
    assert text.count("conv_general_dilated[") == 1
    assert "f32[10,8,8,4]" in text and "feature_group_count=1" in text


def test_shard_map_sums_the_kernel_gradient_over_devices(net):
    params, x = net
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])

    def grads(fast):
        def local(params, x):
            return jax.grad(lambda p: net_losses(p, x, fast).sum())(params)

        specs = (PartitionSpec(), PartitionSpec("data"))
        return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec()))(params, x)

    assert_trees_close(grads(True), jax.jit(jax.grad(lambda p: net_losses(p, x, False).sum()))(params))


def test_kernel_gradient_accumulates_bfloat16_in_float32():
    x = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    kernel = jnp.zeros((1, 1, 1, 1), jnp.bfloat16)
    grad = jax.grad(lambda k: convolve(x, k, ((0, 0), (0, 0))).astype(jnp.float32).sum())(kernel)
    assert grad.dtype == jnp.bfloat16 and float(grad[0, 0, 0, 0]) == 64 * 64  # a bfloat16 sum would stop at 256


def test_modules_with_a_convolution_of_their_own_keep_it(net):
    def zero(*args, **kwargs):
        return 0 * lax.conv_general_dilated(*args, **kwargs)

    layer, x = nn.Conv(4, (3, 3), conv_general_dilated=zero), net[1]
    params = layer.init(jax.random.key(0), x)
    with fast_convolutions(True):
        assert not layer.apply(params, x).any()
    assert layer.conv_general_dilated is zero
