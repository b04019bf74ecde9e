"""The training step of classifiers: what is averaged and what decays."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from privimage_jax.training import classifier
from privimage_jax.training.classifier import Recipe
from privimage_jax.training.mesh import make_mesh


class Linear(nn.Module):
    """Logits of the pixels, after batch statistics."""

    n_classes: int = 2

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))
        return nn.Dense(self.n_classes, bias_init=nn.initializers.ones)(x)


def test_averaged_parameters_are_the_result():
    recipe = Recipe(steps=3, batch_size=4, learning_rate=0.1, ema=0.3, drop_every=10)
    images = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 1)).astype(np.uint8)
    data = {"image": images, "label": np.arange(8, dtype=np.int32) % 2}
    inputs = {"data": data, "key": jax.random.key(0)}
    state = classifier.init(Linear(), recipe, jax.random.key(1), (2, 2, 1))
    step = jax.jit(classifier.make_step(Linear(), recipe, make_mesh(jax.devices()[:1])))
    average = state["variables"]["params"]["Dense_0"]["kernel"]
    for t in range(3):
        state, _ = step(state, inputs, t)
        decay = min(0.3, (2 + t) / (11 + t))
        average = decay * average + (1 - decay) * state["variables"]["params"]["Dense_0"]["kernel"]
    result = classifier.result(state)
    np.testing.assert_allclose(result["params"]["Dense_0"]["kernel"], average, rtol=1e-5)
    np.testing.assert_array_equal(
        result["batch_stats"]["BatchNorm_0"]["mean"], state["variables"]["batch_stats"]["BatchNorm_0"]["mean"]
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("decays", ["kernels", "all"])
def test_what_decays(optimizer, decays):
    recipe = Recipe(10, 4, 0.5, optimizer=optimizer, nesterov=False, weight_decay=0.1, decays=decays, drop_every=10)
    params = {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}
    rule = recipe.make_optimizer()
    updates, _ = rule.update(jax.tree.map(jnp.zeros_like, params), rule.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -0.05 if decays == "all" else 0.0, rtol=1e-6)
