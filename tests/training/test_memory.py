"""The automatic microbatch: what fits, what is refused, and that the estimate bounds what the compiler asks for."""

import gc

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privimage_jax.errors import UserError
from privimage_jax.generators.edm import EDM, make_per_example_loss
from privimage_jax.models.unet import UNet
from privimage_jax.privacy.clipping import clipped_grad
from privimage_jax.training import memory
from privimage_jax.training.batches import batch_shapes


@given(st.integers(1, 2**30), st.integers(1, 10**6), st.integers(1, 512), st.integers(2**30, 2**38))
def test_it_fits_is_a_power_of_two_and_keeps_padding_small(per_example, batch_size, devices, available):
    if per_example * 2 > available:
        with pytest.raises(UserError, match="one example needs"):
            memory.largest_microbatch(per_example, batch_size, devices, available)
        return
    m = memory.largest_microbatch(per_example, batch_size, devices, available)
    assert m >= 1 and m & (m - 1) == 0
    assert m * per_example <= available / 2
    assert m == 1 or m * devices * 16 <= batch_size
    assert 2 * m * per_example > available / 2 or 2 * m * devices * 16 > batch_size  # twice as many would not do


def test_an_example_that_does_not_fit_is_refused_by_name():
    with pytest.raises(UserError, match=r"config\.model or config\.finetune\.noise_multiplicity"):
        memory.largest_microbatch(2**31, 64, 1, 2**31)


def test_the_estimate_bounds_the_compiled_programs_memory():
    model = UNet(n_classes=2, channels=1, nf=4, ch_mult=(1,), num_blocks=1)
    given = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), *given)
    params, loss = params["params"], make_per_example_loss(model, EDM(), 2, 2)
    estimate = memory.bytes_per_example(loss, params, (8, 8, 1))

    m = 512  # of so many, what does not grow with them is little
    shapes = *batch_shapes(m, (8, 8, 1)), jax.ShapeDtypeStruct((m,), bool)
    program = jax.jit(clipped_grad(loss, 1.0)).lower(params, *shapes).compile()
    found = program.memory_analysis().temp_size_in_bytes / m
    assert 0.3 * estimate < found < 1.2 * estimate


def test_a_given_microbatch_is_kept_unless_it_cannot_fit():
    assert memory.checked_microbatch(64, 2**20, 2**27) == 64
    with pytest.raises(UserError, match=r"config\.clipping\.microbatch=1024 .*give at most 64, or 0"):
        memory.checked_microbatch(1024, 2**20, 2**27)


def test_a_device_has_memory():
    assert memory.device_bytes() > 2**26


def test_the_estimate_leaves_nothing_behind():
    """A sweep estimates for every run, and jax remembers the structure of what is traced for as long as it can."""

    def traced() -> int:
        gc.collect()
        return sum(type(found).__name__ == "Jaxpr" for found in gc.get_objects())

    def estimate() -> None:
        def loss(params, batch, keys):  # another one each time, as each run has its own
            return jax.vmap(lambda image: jnp.sum(jnp.sin(image * params)))(batch["image"].astype(jnp.float32))

        memory.bytes_per_example(loss, jax.ShapeDtypeStruct((), jnp.float32), (4, 4, 1))

    estimate()
    before = traced()
    for _ in range(4):
        estimate()
    assert traced() == before
