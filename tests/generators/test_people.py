"""Losses of people: each draw has its own image and label; with one image in all it is the loss of that image."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from pipelines import CLASSES, SIDE

from privimage_jax import generators
from privimage_jax.configs import base
from privimage_jax.data.dataset import Dataset
from privimage_jax.generators.base import draws_of
from privimage_jax.privacy import chacha
from privimage_jax.privacy.dp_sgd import DPSGD
from privimage_jax.stages import finetune
from privimage_jax.training import residency
from privimage_jax.training.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("programs_kept")

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


def test_a_step_of_people_computes_what_a_step_of_as_many_images_does():
    """By XLA's count of floating-point operations, of one microbatch; `tests/support/time_people.py` takes the time."""
    generator, mesh = build("diffusion"), make_mesh(jax.devices()[:1])
    settings = DPSGD(n=30, batch_size=10, clip_norm=1.0, noise_multiplier=1.0, microbatch=4)
    step = jax.jit(finetune.make_step(generator, mesh, settings))
    state, counted = generator.private_state(generator.init(jax.random.key(0)), jax.random.key(1)), []
    for unit, owners in (("image", np.arange(30)), ("person", np.repeat(np.arange(30), 5))):
        images, labels = np.zeros((len(owners), SIDE, SIDE, 1), np.uint8), np.zeros(len(owners), np.int32)
        dataset = Dataset(images, labels, ("a", "b", "c"), unit, owners.astype(np.int32), unit=unit)
        data = residency.place_records(dataset, draws_of(generator), mesh, "auto")
        inputs = {"data": data, "key": chacha.key_from_seed("cost"), "loss_key": jax.random.key(2)}
        counted.append(step.lower(state, inputs, np.int32(0)).cost_analysis()["flops"])
    assert counted[0] > 1e5 and counted[1] == pytest.approx(counted[0], rel=0.01)
