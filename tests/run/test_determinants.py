"""What of jax's configuration and of the devices is part of a replay's identity."""

import types

import jax
import pytest

from privimage_jax.errors import UserError
from privimage_jax.run import determinants
from privimage_jax.training.mesh import make_mesh

MESH = make_mesh(jax.devices()[:1])
# The audit's four, and some more that change draws or arithmetic.
DECISIVE = {
    "jax_random_seed_offset": 1,
    "jax_threefry_partitionable": False,
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_default_matmul_precision": "bfloat16",
    "jax_numpy_dtype_promotion": "strict",
    "jax_disable_jit": True,
    "jax_a_setting_that_is_not_known_yet": "on",
}
# Where jax runs, what it keeps and what it says.
NEUTRAL = {
    "jax_compilation_cache_dir": "/elsewhere",
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_log_compiles": True,
    "jax_num_cpu_devices": 3,
    "jax_platforms": "cpu",
    "jax_cpu_collectives_implementation": "mpi",
    "jax_traceback_filtering": "off",
}


def with_values(monkeypatch, **changes):
    """What is recorded where jax's configuration has these values."""
    values = jax.config.values | changes
    monkeypatch.setattr(determinants, "jax", types.SimpleNamespace(config=types.SimpleNamespace(values=values)))
    return determinants.of_machine(MESH)


@pytest.mark.parametrize("name", DECISIVE)
def test_what_changes_draws_or_arithmetic_counts(monkeypatch, name):
    before, after = determinants.of_machine(MESH), with_values(monkeypatch, **{name: DECISIVE[name]})
    assert {key for key in {*before, *after} if before.get(key) != after.get(key)} == {name}


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_changes_no_result_does_not(monkeypatch, name):
    assert name in jax.config.values
    assert with_values(monkeypatch, **{name: NEUTRAL[name]}) == determinants.of_machine(MESH)


def test_the_kind_of_devices_counts_and_their_number_does_not():
    def mesh(platform, kind, count):
        device = types.SimpleNamespace(platform=platform, device_kind=kind)
        return types.SimpleNamespace(devices=types.SimpleNamespace(flat=[device] * count))

    of = determinants.of_machine
    assert of(mesh("gpu", "H100", 1)) == of(mesh("gpu", "H100", 8))
    assert len({str(of(mesh(*device, 1))) for device in (("gpu", "H100"), ("gpu", "A100"), ("tpu", "H100"))}) == 3


def test_generators_that_mix_examples_are_refused(monkeypatch):
    """Audit: the model was wrongly said to mix them."""
    determinants.check_generator()
    with_values(monkeypatch, jax_default_prng_impl="rbg")
    with pytest.raises(UserError, match="^JAX_DEFAULT_PRNG_IMPL=rbg draws .*; unset it, or give threefry2x32"):
        determinants.check_generator()
