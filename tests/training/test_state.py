import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from privimage_jax.errors import UserError
from privimage_jax.training.state import flatten_params, init_state, make_update, merge_params, split_params

PARAMS = {"a": {"kernel": jnp.ones((2, 3))}, "attention": {"bias": jnp.zeros(2), "kernel": jnp.ones(4)}}


@pytest.mark.parametrize("pattern", ["zzz", "("])
def test_a_pattern_that_is_of_no_use_is_named_as_the_setting(pattern):
    with pytest.raises(UserError, match=r"^config\.finetune\.trainable="):
        split_params(PARAMS, pattern)


def test_split_and_merge_are_inverse():
    trainable, frozen = split_params(PARAMS, "attention/.*")
    assert sorted(trainable) == ["attention/bias", "attention/kernel"]
    assert sorted(frozen) == ["a/kernel"]
    assert jax.tree.structure(merge_params(trainable, frozen)) == jax.tree.structure(PARAMS)


def test_an_expression_that_matches_nothing_is_named():
    with pytest.raises(UserError, match=r"finetune\.trainable='lora.*' matches no parameter.*a/kernel"):
        split_params(PARAMS, "lora.*")


def test_update_by_hand():
    params = flatten_params(PARAMS)
    update = make_update(optax.sgd(0.5), 0.9)
    state = update(init_state(params, optax.sgd(0.5)), jax.tree.map(jnp.ones_like, params))
    np.testing.assert_allclose(state["params"]["a/kernel"], 0.5)
    decay = 2 / 11
    np.testing.assert_allclose(state["ema"]["a/kernel"], decay * 1 + (1 - decay) * 0.5, rtol=1e-6)
    assert int(state["step"]) == 1
