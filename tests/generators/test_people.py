"""Losses of people: each draw has its own image and label; with one image in all it is the loss of that image."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from pipelines import CLASSES, SIDE

from privimage_jax import generators
from privimage_jax.configs import base
from privimage_jax.generators.base import draws_of

B, K = 3, 2


def build(family):
    config = base.get_config()
    config.data.image_size, config.data.channels, config.generator = SIDE, 1, family
    config.finetune.noise_multiplicity, config.finetune.flip, config.precision = K, True, "float32"
    config.model.name, config.model.kwargs = "pipelines:Denoiser", ConfigDict()
    config.gan.noise, config.gan.embedding, config.gan.generator_width = 8, 4, 8
    config.gan.discriminator_width, config.gan.batch_size = 8, 8
    return generators.build(config, CLASSES)


@pytest.mark.parametrize("family", ["diffusion", "gan"])
def test_each_draw_has_its_own_image_and_label(family):
    generator = build(family)
    assert draws_of(generator) == K
    params, keys, rng = (
        generator.init(jax.random.key(0)),
        jax.random.split(jax.random.key(1), B),
        np.random.default_rng(0),
    )
    one, other = (
        {"image": rng.integers(0, 256, (B, SIDE, SIDE, 1), np.uint8), "label": rng.integers(0, 3, B)} for _ in "ab"
    )
    loss = jax.jit(generator.per_example_loss)

    def of_draws(*images):
        return loss(params, {name: np.stack([each[name] for each in images], axis=1) for name in one}, keys)

    np.testing.assert_allclose(of_draws(one, one), loss(params, one, keys), rtol=1e-6)
    assert np.abs(of_draws(one, other) - of_draws(other, one)).max() > 1e-6
    both = of_draws(one, one) + of_draws(other, other)
    np.testing.assert_allclose(of_draws(one, other) + of_draws(other, one), both, rtol=1e-5)


def test_a_gan_without_augmentation_takes_one_real_image_of_a_person():
    """As it does of an image: else a step would cost more."""
    config = base.get_config()
    config.data.image_size, config.data.channels, config.generator = SIDE, 1, "gan"
    assert draws_of(generators.build(config, CLASSES)) == 1


def test_a_family_that_says_nothing_takes_one():
    assert draws_of(object()) == 1
