"""Every rule of `flat_vmap` against `jax.vmap`, and that none lets an example reach another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from privimage_jax.privacy import flat_rules, weight_gradients
from privimage_jax.privacy.flat_rules import Batch
from privimage_jax.privacy.flat_vmap import flat_vmap

M = 3
RNG = np.random.default_rng(0)
SHARED = {
    "kernel": RNG.normal(size=(2, 3, 4, 2)).astype(np.float32),
    "matrix": RNG.normal(size=(4, 5)).astype(np.float32),
    "image": RNG.normal(size=(2, 5, 6, 4)).astype(np.float32),
    "row": RNG.normal(size=(1, 5, 6, 4)).astype(np.float32),
    "bias": RNG.normal(size=4).astype(np.float32),
}
CONVOLUTION = ("NHWC", "HWIO", "NHWC")


def convolved(x, kernel, **options):
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": CONVOLUTION, **options}
    return lax.conv_general_dilated(x, kernel, **options)


def kernel_gradient(**options):
    """Of a loss that is not linear in the kernel."""

    def of(shared, x):
        def loss(kernel):
            return jnp.sum(jnp.sin(convolved(x, kernel, **options)))

        groups = options.get("feature_group_count", 1)
        return jax.grad(loss)(shared["kernel"][:, :, : 4 // groups])

    return of


# Functions of the shared values and of one example x [2, 5, 6, 4].
FUNCTIONS = {
    "arithmetic of two examples' values": lambda s, x: jnp.sin(x) * x + jnp.maximum(x, 0.3 * x[:1]),
    "arithmetic with a shared value": lambda s, x: x * s["image"] - s["row"] + s["bias"],
    "arithmetic with a scalar of the example": lambda s, x: x * jnp.sum(x) + 2.0,
    "one row repeated": lambda s, x: jnp.repeat(x[:1], 3, axis=0) + jnp.broadcast_to(x[1:], (3, 5, 6, 4)),
    "choice": lambda s, x: jnp.where(x > 0, s["image"], jnp.clip(x, -1.0, 1.0)),
    "vectors": lambda s, x: jnp.sum(x, axis=(0, 1, 2)) * s["bias"] + jnp.max(x, axis=(0, 1, 2)),
    "sums over rows": lambda s, x: jnp.sum(x, axis=0) + jnp.sum(x, axis=(0, 1))[None],
    "sums over other axes": lambda s, x: jnp.sum(x, axis=(1, 2)) + jnp.prod(x, axis=(1, 3))[:, :4],
    "extremes and logic": lambda s, x: (jnp.min(x, 0), jnp.any(x > 1, axis=(0, 2)), jnp.all(x > -9, axis=1)),
    "everything summed": lambda s, x: jnp.sum(x),
    "reshape across rows": lambda s, x: x.reshape(4, 15, 4) + x.reshape(-1)[:4],
    "reshape to fewer axes": lambda s, x: jnp.sin(x.reshape(2, -1)) + jnp.cos(x.reshape(-1)).reshape(2, 120),
    "squeeze": lambda s, x: x[:1, :, :, :1][0, :, :, 0] + x[:, :1].squeeze(1)[0, :5, :1],
    "transpose": lambda s, x: (x.transpose(0, 3, 1, 2), x.transpose(3, 0, 1, 2)),
    "concatenate": lambda s, x: (jnp.concatenate([x, s["image"]], -1), jnp.concatenate([x, s["row"]], 0)),
    "split": lambda s, x: (jnp.split(x, 2, axis=-1), jnp.split(x, 2, axis=0)),
    "pad": lambda s, x: (jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 0))), jnp.pad(x, ((1, 0), (0, 0), (0, 0), (0, 0)))),
    "slice": lambda s, x: (x[:, 1:4, ::2], x[1:], x[::2], x[:1]),
    "reverse": lambda s, x: (x[:, ::-1], x[::-1]),
    "product with a shared matrix": lambda s, x: x @ s["matrix"],
    "product over rows": lambda s, x: jnp.einsum("bhwc,bd->hwcd", x, s["image"][:, 0, 0]),
    "a shared value times an example's": lambda s, x: jnp.einsum("cd,bhwc->bhwd", s["matrix"], x),
    "product of two values of the example": lambda s, x: jnp.einsum("bhwc,bhvc->bhwv", x, jnp.cos(x)),
    "weight gradient of a product": lambda s, x: jax.grad(lambda w: jnp.sum(jnp.sin(x @ w)))(s["matrix"]),
    "convolution": lambda s, x: convolved(x, s["kernel"]),
    "input gradient of a convolution": lambda s, x: jax.grad(lambda x: jnp.sum(jnp.sin(convolved(x, s["kernel"]))))(x),
    "convolution over rows": lambda s, x: lax.conv_general_dilated(
        x, s["kernel"], (1, 1), "SAME", dimension_numbers=("HNWC", "HWIO", "NHWC")
    ),
    "convolution of groups of rows": lambda s, x: convolved(x, s["kernel"], batch_group_count=2),
    "convolution with a kernel of the example": lambda s, x: convolved(
        s["image"], x[:, :2, :4, :2].transpose(0, 1, 2, 3)
    ),
    "weight gradient": kernel_gradient(),
    "weight gradient with strides": kernel_gradient(window_strides=(2, 1), padding=((1, 0), (2, 1))),
    "weight gradient with dilation": kernel_gradient(rhs_dilation=(1, 2), padding="VALID"),
    "weight gradient with groups": kernel_gradient(feature_group_count=2),
    "weight gradient of a transposed convolution": kernel_gradient(lhs_dilation=(2, 1), padding=((1, 1), (1, 1))),
    "rows of a table": lambda s, x: s["matrix"][jnp.argmax(x[:, 0, 0], -1)] + s["matrix"][jnp.argmax(x[0, 0, 0])],
    "gradient of a table": lambda s, x: jax.grad(
        lambda t: jnp.sum(jnp.sin(t[jnp.argmax(x[:, 0, 0], -1)]) * x[0, 0, 0, 0])
    )(s["matrix"]),
    "a program inside": lambda s, x: jax.jit(lambda x: jnp.sum(x @ s["matrix"], axis=0))(x),
    "rematerialised": lambda s, x: jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(x @ s["matrix"]))(x)))(
        x
    ),
    "scan over rows": lambda s, x: lax.scan(lambda c, row: (c + jnp.sum(row), c * row), 0.0, x),
    "scan over shared values": lambda s, x: lax.scan(lambda c, w: (jnp.sin(c * w), jnp.sum(c)), x, s["bias"]),
    "gradient of a scan": lambda s, x: jax.grad(
        lambda w: jnp.sum(lax.scan(lambda c, k: (jnp.sin(c * k), jnp.sum(c * k)), x, w)[0])
    )(s["bias"]),
    "loop and branch": lambda s, x: lax.cond(
        x[0, 0, 0, 0] > 0, jnp.sin, jnp.cos, lax.fori_loop(0, 3, lambda i, c: c * i + x, x)
    ),
    "cumulative": lambda s, x: (jnp.cumsum(x, axis=0), jnp.sort(x, axis=0)),
    "shared alone": lambda s, x: s["image"] @ s["matrix"],
    "integers and bits": lambda s, x: (x * 100).astype(jnp.int32) % 7 << 2,
    "random numbers": lambda s, x: jax.random.normal(
        jax.random.fold_in(jax.random.key(0), (x[0, 0, 0, 0] * 100).astype(int)), (2, 3)
    ),
    "an empty value": lambda s, x: x[:, :0] + s["image"][:, :0],
}


def examples(seed=0):
    return np.random.default_rng(seed).normal(size=(M, 2, 5, 6, 4)).astype(np.float32)


def results(name, rows, rule):
    return jax.tree.leaves(jax.jit(flat_vmap(FUNCTIONS[name], Batch(convolution=rule)))(SHARED, rows))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_agrees_with_vmap(name):
    wanted = jax.tree.leaves(jax.jit(jax.vmap(FUNCTIONS[name], (None, 0)))(SHARED, examples()))
    rules = list(weight_gradients.RULES.values())
    for rule in rules if "weight" in name else rules[-1:]:
        for got, expected in zip(results(name, examples(), rule), wanted, strict=True):
            assert got.dtype == expected.dtype and got.shape == expected.shape
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_example_reaches_another(name):
    """The second example becomes NaN: the results of the others are the same, bit for bit."""
    rows, poisoned = examples(), examples()
    poisoned[1] = np.nan
    # Of the rules for weight gradients the CPU's: XLA for CPUs multiplies other groups' values by zero in the others.
    for before, after in zip(
        *(results(name, each, weight_gradients.by_offsets) for each in (rows, poisoned)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(before)[[0, 2]], np.asarray(after)[[0, 2]])


def test_a_table_has_a_rule_for_each_layer():
    """Two layers by two rules; another size of the batch finds the same layers, and others have the other rule."""
    first, second = (kernel_gradient(window_strides=strides) for strides in ((1, 1), (2, 1)))
    layers, asked = {}, []
    jax.eval_shape(
        flat_vmap(first, Batch(convolution=weight_gradients.noted(layers, weight_gradients.by_offsets))),
        SHARED,
        examples()[:1],
    )
    (name,) = layers

    def other(*args):
        asked.append(args[-1])
        return weight_gradients.by_compiler(*args)

    rule = weight_gradients.by_table({name: "channels"}, other)
    for function, is_other in ((first, False), (second, True)):
        got = jax.jit(flat_vmap(function, Batch(convolution=rule)))(SHARED, examples())
        wanted = jax.jit(jax.vmap(function, (None, 0)))(SHARED, examples())
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
        assert bool(asked) == is_other


def test_every_rule_is_used_above():
    used = set()

    def note(jaxpr):
        for equation in jaxpr.eqns:
            used.add(equation.primitive.name)
            for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    note(inner)

    for function in FUNCTIONS.values():
        note(jax.make_jaxpr(function)(SHARED, examples()[0]).jaxpr)
    assert set(flat_rules.RULES) - set(flat_rules.ELEMENTWISE) <= used


def test_elementwise_primitives_are_elementwise():
    """Those of one float operand; the others have the same rule and a jaxpr of equal shapes by definition."""
    rows = np.abs(examples()) % 0.9
    for name in (
        "exp",
        "log",
        "sin",
        "tanh",
        "logistic",
        "sqrt",
        "rsqrt",
        "erf",
        "floor",
        "sign",
        "abs",
        "neg",
        "log1p",
    ):
        function = getattr(lax, name)
        got = jax.jit(flat_vmap(lambda shared, x, function=function: function(x)))(SHARED, rows)
        np.testing.assert_allclose(got, jax.jit(function)(rows), rtol=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_agrees_with_vmap_on_random_reductions_and_shapes(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    axes = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1))))
    order = tuple(data.draw(st.permutations(range(len(shape)))))
    rows = np.random.default_rng(1).normal(size=(M, *shape)).astype(np.float32)

    def function(shared, x):
        y = jnp.sin(x) * jnp.sum(x, axis=axes, keepdims=True)
        return jnp.max(y, axis=axes), jnp.transpose(y, order), jnp.flip(y, axes), y.reshape(-1)

    got = flat_vmap(function)(SHARED, rows)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        got,
        jax.vmap(function, (None, 0))(SHARED, rows),
    )


def test_kernels_of_input_gradients_lie_as_those_of_layers():
    """XLA's CPU back end is several times slower for a kernel that lies in another order."""

    def input_gradient(shared, x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(convolved(x, shared["kernel"]))))(x)

    traced = jax.make_jaxpr(flat_vmap(input_gradient, Batch()))(SHARED, examples())
    convolutions = [each for each in traced.eqns if each.primitive.name == "conv_general_dilated"]
    assert len(convolutions) == 2
    for each in convolutions:
        assert each.params["dimension_numbers"].rhs_spec == (3, 2, 0, 1)
