"""The smallest family of generators from elsewhere: a linear decoder of noise and label, fitted by DP-SGD."""

import jax
import jax.numpy as jnp
import optax

from privimage_jax.pixels import to_float
from privimage_jax.training.state import init_state, make_update

CODE = 4  # numbers that an image is drawn from


class LinearDecoder:
    """image = tanh(mean[label] + code @ basis), trained towards the images of its label."""

    def __init__(self, config, n_classes):
        shape = config.data
        self.n_classes = n_classes
        self.image_shape = (shape.image_size, shape.image_size, shape.channels)
        self.optimizer = optax.sgd(config.extra.learning_rate)
        self.private_update = make_update(self.optimizer, 0.9)

    def init(self, key):
        side = self.image_shape[0] * self.image_shape[1] * self.image_shape[2]
        basis = 0.1 * jax.random.normal(key, (CODE, side))
        return {"mean": jnp.zeros((self.n_classes + 1, side)), "basis": basis}

    def decode(self, params, keys, labels):
        codes = jax.vmap(lambda key: jax.random.normal(key, (CODE,)))(keys)
        return jnp.tanh(params["mean"][labels] + codes @ params["basis"]).reshape(-1, *self.image_shape)

    def per_example_loss(self, params, batch, keys):
        made = self.decode(params, keys, batch["label"])
        return jnp.mean((made - to_float(batch["image"])) ** 2, axis=(1, 2, 3))

    def public_state(self, params):
        return init_state(params, self.optimizer)

    def public_update(self, mesh):
        def step(state, batch, keys):
            def mean_loss(params):
                return self.per_example_loss(params, batch, keys).mean()

            loss, gradient = jax.value_and_grad(mean_loss)(state["params"])
            return self.private_update(state, gradient), {"loss": loss}

        return step

    def private_state(self, params, key):
        return init_state(params, self.optimizer)

    def merge(self, trained, frozen):
        return trained

    def sample(self, params, keys, labels):
        return self.decode(params, keys, labels)

    def sample_flops(self, params):
        return 2.0 * params["basis"].size
