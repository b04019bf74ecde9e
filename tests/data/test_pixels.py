import jax.numpy as jnp
import numpy as np

from privimage_jax.data.pixels import to_float, to_uint8


def test_every_pixel_survives_the_way_there_and_back():
    stored = jnp.arange(256).astype(jnp.uint8)
    mapped = to_float(stored)
    assert mapped.dtype == jnp.float32 and (mapped[0], mapped[-1]) == (-1, 1)
    np.testing.assert_allclose(mapped, np.linspace(-1, 1, 256), atol=1e-6)
    np.testing.assert_array_equal(to_uint8(mapped), stored)


def test_floats_keep_their_values_and_what_lies_outside_is_clipped():
    values = jnp.array([-3.0, -1.0, 0.0, 1.0, 3.0], jnp.bfloat16)
    assert to_float(values).dtype == jnp.float32
    np.testing.assert_array_equal(to_float(values), [-3, -1, 0, 1, 3])
    np.testing.assert_array_equal(to_uint8(to_float(values)), [0, 0, 128, 255, 255])
