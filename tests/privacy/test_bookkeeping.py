"""Book-keeping agrees with plain `jax.vmap(jax.grad)` on the zoo and on random and hard modules, and stays bounded."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audits import check_clipping, check_full_precision
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import ReadByParent, Tied

from privimage_jax.generators.edm import EDM, make_per_example_loss
from privimage_jax.models.cnn import CNN
from privimage_jax.models.resnet import ResNet9
from privimage_jax.models.resnext import ResNeXt
from privimage_jax.models.unet import UNet
from privimage_jax.models.wide_resnet import WideResNet
from privimage_jax.privacy import weight_gradients
from privimage_jax.privacy.clipping import clipped_grad, left_to_vmap, per_example_gradients
from privimage_jax.privacy.flat_rules import Batch
from privimage_jax.training import lora
from privimage_jax.training.batches import batch_shapes
from privimage_jax.training.state import flatten_params

M = 3
# At level 0 a program that runs once on three examples compiles in a third of the time.
OPTIONS = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def of_outputs(apply):
    """Per-example loss of a module [B, ...] -> [B, ...], with weights from the keys' bits so that no gradient cancels.

    (Multiples of a large odd number are random enough. jax's generator would be half of a small program.)
    """

    def loss(params, batch, keys):
        out = apply({"params": params}, batch["x"]).astype(jnp.float32).reshape(len(keys), -1)
        places = np.uint32(2_654_435_761) * (2 * jnp.arange(out.shape[1], dtype=jnp.uint32) + 1)
        bits = jax.random.key_data(keys)[:, 1:] * places
        return jnp.sum(jnp.sin(out) * (bits * 2.0**-31 - 1), axis=1)

    return loss


def drawn(shapes, seed=1):
    """Random values of given shapes, none left at zero, where gradients vanish; nothing has to be compiled for them.

    Kernels have the scale of a usual start. Vectors lie around 1: variances among them must be positive.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf):
        values = rng.normal(size=leaf.shape)
        matrix = leaf.ndim > 1
        return (values / np.sqrt(leaf.size / leaf.shape[-1]) if matrix else 1 + 0.1 * values).astype(leaf.dtype)

    return jax.tree.map(draw, shapes)


def initial(module, *inputs):
    """All variables of a module."""
    return drawn(jax.eval_shape(module.init, jax.random.key(0), *inputs))


def initial_denoiser(model, side):
    """The parameters of a denoiser of images of one channel."""
    return initial(model, jnp.zeros((1, side, side, 1)), jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"]


@functools.cache
def per_example(loss):
    """`(params, batch, keys) -> [(losses, gradients)]` by book-keeping and by plain `jax.vmap`."""
    rules = Batch(convolution=weight_gradients.of_platform(jax.default_backend())), None

    def both(params, batch, keys):
        with jax.default_matmul_precision("highest"):
            return [per_example_gradients(loss, params, batch, keys, rule) for rule in rules]

    return jax.jit(both, compiler_options=OPTIONS)


def assert_agrees(loss, params, batch, tolerance=1e-5):
    """Losses and gradients of both methods; the tolerance is relative to the gradients' largest entry.

    (Not to each leaf's: of a key's bias, which the softmax cancels, only rounding is left.)
    """
    both = per_example(loss)(params, batch, jax.random.split(jax.random.key(7), M))
    (losses, got), (wanted_losses, wanted) = jax.device_get(both)
    np.testing.assert_allclose(losses, wanted_losses, rtol=tolerance, atol=tolerance)
    norms, wanted_norms = (
        np.linalg.norm([np.linalg.norm(leaf.reshape(M, -1), axis=1) for leaf in jax.tree.leaves(tree)], axis=0)
        for tree in (got, wanted)
    )
    np.testing.assert_allclose(norms, wanted_norms, rtol=tolerance)
    assert wanted_norms.min() > 0

    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))

    def compare(path, a, b):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, got, wanted)


def images(side, channels):
    return jax.random.randint(jax.random.key(3), (M, side, side, channels), 0, 256).astype(jnp.uint8)


def adapted(params, base):
    """(what is trained, the loss): of every three kernels one by low-rank factors, one in full, and one not at all.

    Of every three other parameters two are trained.
    """
    flat = flatten_params(params)
    kernels = [path for path in sorted(flat) if flat[path].ndim > 1]
    others = [path for path in sorted(flat) if flat[path].ndim == 1]
    factors, frozen = jax.eval_shape(lambda: lora.split(params, "|".join(kernels[::3]), 2, jax.random.key(5)))
    frozen = {path: flat[path] for path in frozen}
    full = {path: frozen.pop(path) for path in [*kernels[1::3], *others[::3], *others[1::3]]}
    assert factors and full and len(frozen) > len(kernels[::3])

    def loss(trained, batch, keys):
        return base(lora.merge(trained["factors"], {**frozen, **trained["full"]}, 3.0), batch, keys)

    return {"factors": drawn(factors), "full": full}, loss


@pytest.mark.parametrize(
    "model",
    [
        CNN(n_classes=4),
        ResNet9(n_classes=4, width=4),
        WideResNet(n_classes=4, depth=10, width=1),
        ResNeXt(n_classes=4, depth=11, groups=2, width=2),
    ],
    ids=lambda model: type(model).__name__,
)
def test_agrees_with_vmap_on_the_zoos_classifiers(model):
    """At inference, where nothing mixes examples; with low-rank factors and frozen parameters among the others."""
    x = random(M, 8, 8, 3)
    variables = initial(model, x)

    def apply(given, x):
        return model.apply({**variables, **given}, x)

    params, loss = adapted(variables["params"], of_outputs(apply))
    assert_agrees(loss, params, {"x": x})


def test_agrees_with_vmap_on_the_denoiser():
    """With attention in the middle, resampling, rematerialised blocks and two draws an example; adapted in part."""
    model = UNet(n_classes=3, channels=1, nf=4, ch_mult=(1, 2), num_blocks=0, remat=True)
    params, loss = adapted(initial_denoiser(model, 8), make_per_example_loss(model, EDM(), 3, 2))
    assert_agrees(loss, params, {"image": images(8, 1), "label": jnp.arange(M)})


class MixesLargeBatches(nn.Module):
    """Centres the images of a batch, but only of one above 8."""

    @nn.compact
    def __call__(self, x, c_noise, label):
        return nn.Dense(1)(x - jnp.mean(x, axis=0) if len(x) > 8 else x)


class LooksAtLater(nn.Module):
    """Every image sees those that come after it in its batch."""

    @nn.compact
    def __call__(self, x, c_noise, label):
        return nn.Dense(1)(jnp.cumsum(x[::-1], axis=0)[::-1])


@pytest.mark.parametrize("model", [MixesLargeBatches(), LooksAtLater()], ids=lambda model: type(model).__name__)
def test_a_model_that_mixes_a_batch_changes_nobody_elses_gradient(model):
    """Each example is differentiated alone, so that the model never sees another, wherever that lies in the batch."""
    n = 12
    batch = {"image": np.asarray(random(n, 4, 4, 1)), "label": np.zeros(n, int)}
    params = initial_denoiser(model, 4)
    moved = batch["image"] + (np.arange(n) == n - 1)[:, None, None, None]
    first = [np.asarray(model.apply({"params": params}, images, 0, 0)[0]) for images in (batch["image"], moved)]
    assert np.abs(first[0] - first[1]).max() > 0.01  # the last image changes the first: it does mix

    loss, keys = make_per_example_loss(model, EDM(), 2, 2), jax.random.split(jax.random.key(1), n)
    rule = Batch(convolution=weight_gradients.by_offsets)
    gradients = jax.jit(lambda batch: per_example_gradients(loss, params, batch, keys, rule)[1])
    before = jax.tree.leaves(gradients(batch))
    for victim in (0, 5, n - 1):
        image = batch["image"].copy()
        image[victim] = -image[victim] + 1
        for old, new in zip(before, jax.tree.leaves(gradients({**batch, "image": image})), strict=True):
            differs = np.abs(np.asarray(old) - np.asarray(new)).reshape(n, -1).max(axis=1) > 0
            assert differs.tolist() == (np.arange(n) == victim).tolist()


class Repeated(nn.Module):
    """A layer called twice, a rematerialised block and a layer outside the zoo's kind."""

    @nn.compact
    def __call__(self, x):
        conv = nn.Conv(x.shape[-1], (3, 3))
        h = conv(nn.silu(conv(x)))
        h = nn.remat(nn.Conv)(2, (2, 2), strides=2)(h)
        return h * self.param("gain", nn.initializers.ones, (2,))


class Scanned(nn.Module):
    """One block per row of stacked parameters."""

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, h, _):
                return nn.silu(nn.LayerNorm()(nn.Conv(h.shape[-1], (3, 3))(h))), None

        blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return blocks()(x, None)[0]


class Attention(nn.Module):
    """Multi-head attention, made of DenseGeneral, beside einsum and normalisation layers."""

    @nn.compact
    def __call__(self, x):
        h = x.reshape(x.shape[0], -1, x.shape[-1])
        h = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)(nn.RMSNorm()(h))
        return nn.Einsum((4, 3), "btc,cd->btd")(nn.DenseGeneral((2, 2))(h).reshape(*h.shape[:2], 4))


@pytest.mark.parametrize(
    "module", [Tied(), ReadByParent(), Repeated(), Scanned(), Attention()], ids=lambda m: type(m).__name__
)
def test_agrees_with_vmap_on_hard_cases(module):
    x = random(M, 6, 6, 2)
    params = initial(module, x)["params"]
    assert_agrees(of_outputs(module.apply), params, {"x": x})


@st.composite
def layers(draw, sides):
    """A random layer over `sides` axes and what makes its fields."""
    groups, bias = draw(st.sampled_from([1, 2])), draw(st.booleans())
    kind = draw(st.sampled_from(["conv", "conv", "conv", "dense", "group norm", "layer norm"]))
    if kind == "dense":
        return lambda: nn.Dense(4, use_bias=bias)
    if kind == "group norm":
        return lambda: nn.GroupNorm(num_groups=2)
    if kind == "layer norm":
        return lambda: nn.LayerNorm()
    window, strides, dilation = (draw(st.tuples(*[st.integers(1, top)] * sides)) for top in (3, 2, 2))
    padding = draw(st.sampled_from(["SAME", "VALID", "CIRCULAR", 1, [(2, 1)] * sides]))
    return lambda: nn.Conv(
        4, window, strides, padding, kernel_dilation=dilation, feature_group_count=groups, use_bias=bias
    )


class Stack(nn.Module):
    makers: tuple

    @nn.compact
    def __call__(self, x):
        for make in self.makers:
            x = nn.tanh(make()(x))
        return x


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_agrees_with_vmap_on_random_modules(data):
    sides = data.draw(st.sampled_from([1, 2, 2, 3]))
    makers = tuple(data.draw(st.lists(layers(sides), min_size=1, max_size=2)))
    x = random(M, *(7, 6, 5)[:sides], 4)
    module = Stack(makers)
    assert_agrees(of_outputs(module.apply), initial(module, x)["params"], {"x": x})


@functools.cache
def denoising(dtype):
    """A denoiser's loss and parameters; the same function each time, so that its plain gradient compiles once."""
    model = UNet(n_classes=2, channels=1, nf=4, ch_mult=(1,), num_blocks=0, dtype=dtype)
    return make_per_example_loss(model, EDM(), 2, 2), initial_denoiser(model, 4)


@pytest.mark.parametrize("method", ["bookkeeping", "vmap"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_denoisers_gradients_are_clipped_each_by_itself(method, dtype):
    """Activations and products in one precision."""
    loss, params = denoising(dtype)
    batch = {"image": np.asarray(random(M, 4, 4, 1)), "label": np.arange(M) % 2}
    tolerance = 1e-4 if dtype == "float32" else 0.1  # half precision rounds differently in another program
    keys = jax.random.split(jax.random.key(7), M)
    check_clipping(loss, params, batch, keys, 1e-3, method, tolerance, precision=dtype)


@pytest.mark.parametrize("method", ["bookkeeping", "vmap"])
def test_every_product_of_the_denoiser_is_a_full_one(method):
    """Forward and backward, also where the default is TF32 (recent GPUs) or bfloat16 passes (TPUs)."""
    model = UNet(n_classes=2, channels=1, nf=4, ch_mult=(1, 2), attn=(4,), num_blocks=0)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    )
    batch, keys = batch_shapes(M, (4, 4, 1))
    fn = clipped_grad(make_per_example_loss(model, EDM(), 2, 2), 1.0, method)
    assert check_full_precision(fn, shapes["params"], batch, keys, jax.ShapeDtypeStruct((M,), bool)) > 50


class Looping(nn.Module):
    """A loop whose number of rounds depends on the example."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(2)(x)
        rounds = jnp.sum(x[0, 0, 0] > 0)
        return jax.lax.cond(rounds > 0, jnp.sin, jnp.cos, h)


def test_operations_without_a_rule_are_named():
    x, keys = random(M, 6, 6, 2), jax.random.split(jax.random.key(0), M)
    for module in (Repeated(), Scanned(), Attention()):
        params = initial(module, x)["params"]
        assert left_to_vmap(of_outputs(module.apply), params, {"x": x}, keys) == []
    params = initial(Looping(), x)["params"]
    assert left_to_vmap(of_outputs(Looping().apply), params, {"x": x}, keys) == ["cond (2)"]
    model = UNet(n_classes=2, channels=1, nf=4, ch_mult=(1, 2), num_blocks=0)
    shapes = jax.eval_shape(model.init, keys[0], jnp.zeros((1, 8, 8, 1)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    batch = {"image": images(8, 1), "label": jnp.arange(M) % 2}
    assert left_to_vmap(make_per_example_loss(model, EDM(), 2, 1), shapes["params"], batch, keys) == []


def test_an_operation_that_no_trained_weight_reaches_is_not_named():
    """As of a GAN's generator, whose images are given to the discriminator that is trained; but those of both are."""
    x, keys = random(M, 6, 6, 2), jax.random.split(jax.random.key(0), M)
    dense = nn.Dense(2)
    params = initial(dense, x)["params"]

    def pooled(h):
        return nn.max_pool(h, (2, 2), (2, 2))

    def before(params, x):
        return dense.apply(params, jax.lax.stop_gradient(pooled(x)))

    def behind(params, x):
        return pooled(dense.apply(params, pooled(x)))

    assert left_to_vmap(of_outputs(before), params, {"x": x}, keys) == []
    assert left_to_vmap(of_outputs(behind), params, {"x": x}, keys) == ["reduce_window_max (1)"]


def test_the_platform_decides_on_weight_gradients():
    """On CPUs no grouped convolution, which `vmap` makes and which is slow there; on TPUs and GPUs one."""
    module, x = nn.Conv(4, (3, 3)), random(M, 6, 6, 2)
    params, keys = initial(module, x)["params"], jax.random.split(jax.random.key(0), M)

    def is_grouped(method, platform):
        fn = clipped_grad(of_outputs(module.apply), 1.0, method, convolution=weight_gradients.of_platform(platform))
        text = str(jax.make_jaxpr(fn)(params, {"x": x}, keys, jnp.ones(M, bool)))
        return f"feature_group_count={M}" in text or f"batch_group_count={M}" in text

    assert is_grouped("vmap", "cpu") and is_grouped("bookkeeping", "tpu") and is_grouped("bookkeeping", "cuda")
    assert not is_grouped("bookkeeping", "cpu")
