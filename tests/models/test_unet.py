import jax
import jax.numpy as jnp
import numpy as np
import pytest

from privimage_jax.errors import UserError
from privimage_jax.models.registry import init_denoiser, parameter_count
from privimage_jax.models.unet import UNet, enlarge, from_patches, halve, to_patches

TINY = {"n_classes": 3, "channels": 1, "nf": 8, "ch_mult": (1, 2), "num_blocks": 1}


def shapes(model, side):
    args = (jnp.zeros((1, side, side, model.channels)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    return jax.eval_shape(model.init, jax.random.key(0), *args)["params"]


@pytest.mark.parametrize(
    ("side", "millions", "settings"),
    [
        (32, "3.84", {"channels": 3, "nf": 32, "ch_mult": (2, 4), "attn": (16,)}),
        (28, "1.49", {"channels": 1, "nf": 32, "ch_mult": (2, 2), "attn": (14,)}),
        (32, "78.48", {"channels": 3, "nf": 128, "ch_mult": (1, 2, 2, 4), "attn": (16, 8, 4)}),
    ],
)
def test_parameter_counts_of_the_papers(side, millions, settings):
    params = shapes(UNet(n_classes=10, **settings), side)
    assert f"{parameter_count(params) / 1e6:.2f}" == millions
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def perturbed(params):
    """Parameters with no zeros left, so that every path carries signal."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)


@pytest.fixture(scope="module")
def tiny():
    """(model, compiled function of parameters and inputs, fresh parameters, inputs) with levels of sides 7 and 4."""
    model = UNet(**TINY, attn=(4,))
    x = jax.random.normal(jax.random.key(2), (3, 7, 7, 1))
    run = jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs))
    params = init_denoiser(model, jax.random.key(0), (7, 7, 1))
    return model, run, params, (x, jnp.array([-1.0, 0.0, 1.0]), jnp.array([0, 2, 3]))


def test_starts_at_zero_and_keeps_the_shape(tiny):
    _, run, params, inputs = tiny
    out = run(params, *inputs)
    assert out.shape == (3, 7, 7, 1) and out.dtype == jnp.float32 and not out.any()


def test_each_example_is_on_its_own(tiny):
    _, run, params, inputs = tiny
    params = perturbed(params)
    changed = [value.at[1].set(other) for value, other in zip(inputs, (5.0, -3.0, 0), strict=True)]
    before, after = run(params, *inputs), run(params, *changed)
    np.testing.assert_array_equal(before[::2], after[::2])
    assert abs(before[1] - after[1]).max() > 1e-2


def test_noise_level_and_label_matter(tiny):
    _, run, params, (x, c_noise, label) = tiny
    params = perturbed(params)
    base = run(params, x, c_noise, label)
    assert (abs(base - run(params, x, c_noise + 0.5, label)).max((1, 2, 3)) > 1e-3).all()
    assert (abs(base - run(params, x, c_noise, (label + 1) % 4)).max((1, 2, 3)) > 1e-3).all()


def test_remat_recomputes_with_the_same_parameters():
    model = UNet(**TINY, attn=(4,))
    params = shapes(model, 8)
    assert params == shapes(model.clone(remat=True), 8)

    def backward(model):
        args = (jnp.zeros((1, 8, 8, 1)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
        return str(jax.make_jaxpr(jax.grad(lambda p: model.apply({"params": p}, *args).sum()))(params))

    assert "remat" not in backward(model) and backward(model.clone(remat=True)).count("remat") >= 8


def test_bfloat16_is_close():
    model = UNet(n_classes=3, channels=1, nf=4, ch_mult=(1,), num_blocks=1)
    params = perturbed(init_denoiser(model, jax.random.key(0), (4, 4, 1)))
    inputs = (jax.random.normal(jax.random.key(1), (2, 4, 4, 1)), jnp.zeros(2), jnp.zeros(2, jnp.int32))
    exact, rough = (
        jax.jit(lambda p, model=model: model.apply({"params": p}, *inputs))(params)
        for model in (model, model.clone(dtype="bfloat16"))
    )
    assert rough.dtype == jnp.float32
    assert 0 < abs(exact - rough).max() < 0.1 * abs(exact).max()


def test_resampling_of_odd_sides():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    half = halve(x)
    np.testing.assert_array_equal(half[0, ..., 0], [[2, 3.5], [6.5, 8]])
    np.testing.assert_array_equal(enlarge(half, (3, 3))[0, ..., 0], [[2, 2, 3.5], [2, 2, 3.5], [6.5, 6.5, 8]])


def test_attention_at_a_missing_side_is_refused():
    with pytest.raises(UserError, match=r"config\.model\.kwargs\.attn.*16.*8, 4"):
        init_denoiser(UNet(**TINY, attn=(16,)), jax.random.key(0), (8, 8, 1))


@pytest.mark.parametrize(("side", "channels", "patch"), [(8, 1, 2), (8, 3, 4), (6, 2, 3)])
def test_patches_are_undone(side, channels, patch):
    x = jax.random.normal(jax.random.key(0), (2, side, side, channels))
    squares = to_patches(x, patch)
    assert squares.shape == (2, side // patch, side // patch, channels * patch**2)
    np.testing.assert_array_equal(squares[0, 0, 0].reshape(patch, patch, channels), x[0, :patch, :patch])
    np.testing.assert_array_equal(from_patches(squares, patch), x)


def test_a_patch_makes_the_first_level_smaller():
    model = UNet(**TINY, patch=2)
    params = shapes(model, 8)
    assert params["conv_in"]["kernel"].shape == (3, 3, 4, 8) and params["conv_out"]["kernel"].shape == (3, 3, 8, 4)
    args = (jnp.zeros((2, 8, 8, 1)), jnp.zeros(2), jnp.zeros(2, jnp.int32))
    assert jax.eval_shape(model.apply, {"params": params}, *args).shape == (2, 8, 8, 1)


@pytest.mark.parametrize("patch", [0, -2, 3])
def test_a_patch_that_does_not_divide_the_side_is_refused(patch):
    with pytest.raises(UserError, match=f"patch={patch} does not divide the side of images of 8x8"):
        shapes(UNet(**TINY, patch=patch), 8)
