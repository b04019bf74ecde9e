import jax
import jax.numpy as jnp
import numpy as np
import pytest

from privimage_jax.models.registry import build_classifier, init_classifier, parameter_count


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet50", 23.52),
        ("resnet18", 11.17),
        ("resnet9", 4.90),
        ("resnet110", 1.734),
        ("cnn", 0.0664),
        ("wide_resnet", 36.48),
        ("resnext", 34.43),
    ],
)
def test_parameter_counts(name, millions):
    model = build_classifier(name, 10)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert parameter_count(shapes["params"]) / 1e6 == pytest.approx(millions, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "side", "channels", "kwargs"),
    [
        ("cnn", 8, 1, {"width": 4}),
        ("resnet9", 8, 3, {"width": 2}),
        ("wide_resnet", 8, 1, {"depth": 10, "width": 1}),
        ("resnext", 8, 1, {"depth": 11, "groups": 2, "width": 2}),
    ],
)
def test_logits_features_and_state(name, side, channels, kwargs):
    model = build_classifier(name, 5, **kwargs)
    variables = init_classifier(model, jax.random.key(0), (side, side, channels))
    x = jax.random.normal(jax.random.key(1), (4, side, side, channels))

    def apply(variables, x):
        rngs = {"dropout": jax.random.key(2)}
        _, state = model.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)
        return model.apply(variables, x), model.apply(variables, x, method="features"), state

    logits, features, state = jax.jit(apply)(variables, x)
    assert logits.shape == (4, 5) and logits.dtype == features.dtype == jnp.float32
    head = variables["params"]["head"]
    np.testing.assert_allclose(logits, features @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-5)

    has_state = "batch_stats" in variables
    assert has_state == (name != "cnn")
    if has_state:
        old, new = jax.tree.leaves(variables["batch_stats"])[0], jax.tree.leaves(state["batch_stats"])[0]
        assert (old != new).any()


@pytest.mark.parametrize("name", ["resnet9", "resnet18", "resnet50", "cnn", "wide_resnet", "resnext"])
@pytest.mark.parametrize(("side", "channels"), [(8, 1), (28, 1), (64, 3)])
def test_shapes_from_8_to_64_pixels(name, side, channels):
    model = build_classifier(name, 7)
    out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, side, side, channels)))
    assert out.shape == (2, 7)
