import jax
import jax.numpy as jnp
import numpy as np

from privimage_jax.training import lora
from privimage_jax.training.state import flatten_params

PARAMS = {
    "conv": {"kernel": jnp.arange(36.0).reshape(3, 3, 2, 2), "bias": jnp.ones(2)},
    "dense": {"kernel": jnp.ones((5, 4))},
}


def test_training_starts_from_the_parameters():
    factors, frozen = lora.split(PARAMS, ".*", 3, jax.random.key(0))
    assert {path: leaf.shape for path, leaf in factors.items()} == {
        "conv/kernel/lora_a": (18, 2),  # no wider than the smaller side
        "conv/kernel/lora_b": (2, 2),
        "dense/kernel/lora_a": (5, 3),
        "dense/kernel/lora_b": (3, 4),
    }
    jax.tree.map(np.testing.assert_array_equal, lora.merge(factors, frozen, 2.0), PARAMS)


def test_the_product_is_added_so_many_times():
    factors, frozen = lora.split(PARAMS, "dense.*", 1, jax.random.key(0))
    factors = jax.tree.map(jnp.ones_like, factors)
    merged = flatten_params(lora.merge(factors, frozen, 3.0))
    np.testing.assert_array_equal(merged["dense/kernel"], 1 + 3.0)
    np.testing.assert_array_equal(merged["conv/kernel"], PARAMS["conv"]["kernel"])


def test_gradients_reach_the_factors_alone():
    factors, frozen = lora.split(PARAMS, "dense.*", 2, jax.random.key(0))
    gradients = jax.grad(lambda f: lora.merge(f, frozen, 1.0)["dense"]["kernel"].sum())(factors)
    assert float(jnp.abs(gradients["dense/kernel/lora_b"]).max()) > 0
