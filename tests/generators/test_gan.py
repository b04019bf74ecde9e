"""The second family: its size, its protocol, what its generator learns from, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pipelines import CLASSES, SIDE, tiny_config
from small_models import use_small_gan, use_small_models

from privimage_jax import config as configs
from privimage_jax import generators
from privimage_jax.configs import base
from privimage_jax.errors import UserError
from privimage_jax.models import gan, spectral_norm
from privimage_jax.models.registry import parameter_count
from privimage_jax.privacy import check_objective, clipping, dp_sgd, noise
from privimage_jax.training import memory
from privimage_jax.training.batches import batch_shapes
from privimage_jax.training.mesh import make_mesh, place, replicated

pytestmark = pytest.mark.usefixtures("programs_kept")  # the number of blocks shows in the parameters' shapes

ONE = jax.devices()[:1]
BLOCKS = gan.LEAST_BLOCKS
N, BATCH, CLIP_NORM = 12, 6, 1e-2


@pytest.fixture(scope="module", autouse=True)
def shallow():
    """A discriminator of one block of either kind: a program costs what it has of operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan, "LEAST_BLOCKS", 2)
        yield


@pytest.fixture
def config(tmp_path):
    """The tiny experiment with small networks."""
    return use_small_gan(use_small_models(tiny_config(tmp_path)))


@pytest.fixture(scope="module")
def built():
    """A generator of tiny networks, and its parameters."""
    config = use_small_gan(base.get_config())
    config.data.image_size, config.data.channels, config.finetune.noise_multiplicity = SIDE, 1, 2
    generator = generators.build(config, CLASSES)
    return generator, generator.init(jax.random.key(0))


@pytest.fixture(scope="module")
def update(built):
    """What follows a noised gradient, on one device, compiled for all tests: `(state, gradient) -> state`."""
    return jax.jit(built[0].private_update(make_mesh(ONE)))


@pytest.fixture(scope="module")
def noised(built):
    """The noised gradient of a step, compiled for all tests: `(state, data, key, loss key, t) -> (gradient, stats)`.

    -1 is the label of a null record. The state says how much noise there is: 1 is all, 0 is none.
    """

    def add(total, much, key, t, std):
        return jax.tree.map(jnp.add, total, noise.gaussian(key, t, total, std * much)), much

    def loss(params, batch, keys):
        return jnp.where(batch["label"] < 0, 0.0, built[0].per_example_loss(params, batch, keys))

    scaled = dataclasses.replace(noise.INDEPENDENT, init=lambda params: jnp.zeros(()), add=add)
    settings = dp_sgd.DPSGD(n=N, batch_size=BATCH, clip_norm=CLIP_NORM, noise_multiplier=1.0, microbatch=4)
    step = dp_sgd.dp_step(
        loss, lambda state, mean: {"mean": mean}, settings, make_mesh(ONE), merge=built[0].merge, noise=scaled
    )

    @jax.jit
    def gradient(state, *given):
        new, stats = step(state, *given)
        return new["mean"], stats

    return gradient


def first_state(built, devices=ONE):
    """The state before the first private step, on all devices."""
    generator, params = built
    return place(generator.private_state(params, jax.random.key(1)), replicated(make_mesh(devices)))


def batch_of(n, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, SIDE, SIDE, 1), np.uint8)
    return {"image": images, "label": np.arange(n, dtype=np.int32) % CLASSES}


@pytest.mark.parametrize(("side", "generator", "discriminator"), [(32, 3.84e6, 1.65e6), (28, 3.83e6, 1.65e6)])
def test_the_networks_are_as_large_as_the_published_ones(side, generator, discriminator, monkeypatch):
    """DPImageBench states 3.8 M for the generator; its log for CelebA has a discriminator of 1.65 M."""
    config = base.get_config()
    config.generator, config.data.image_size = "gan", side
    monkeypatch.setattr(gan, "LEAST_BLOCKS", BLOCKS)
    params = jax.eval_shape(generators.build(config, 10).init, jax.random.key(0))
    assert parameter_count(params["generator"]) == pytest.approx(generator, rel=0.01)
    assert parameter_count(params["discriminator"]) == pytest.approx(discriminator, rel=0.01)


def test_spectral_norms_are_one():
    rng = np.random.default_rng(0)
    weights = {"kernel": rng.standard_normal((3, 3, 4, 6), np.float32), "bias": np.ones(6, np.float32)}
    vectors = spectral_norm.first_vectors(weights, jax.random.key(0))
    for _ in range(60):
        normalised, vectors = spectral_norm.normalise(weights, vectors)
    assert np.linalg.norm(normalised["kernel"].reshape(-1, 6), 2) == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(normalised["bias"], weights["bias"])


def test_an_image_depends_on_its_own_key_and_label_alone(built):
    generator, params = built
    sample = jax.jit(generator.sample)
    keys, labels = jax.random.split(jax.random.key(1), 5), jnp.array([0, 1, 2, CLASSES, 0])
    together = sample(params, keys, labels)
    alone = sample(params, keys[2:3], labels[2:3])
    assert together.shape == (5, SIDE, SIDE, 1) and np.abs(together).max() <= 1
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-5, atol=1e-6)
    assert np.abs(together[0] - together[4]).max() > 1e-3


def test_book_keeping_agrees_with_vmap_and_examples_do_not_mix(built):
    generator, state = built[0], first_state(built)

    def loss(trained, batch, keys):
        return generator.per_example_loss(generator.merge(trained, state["frozen"]), batch, keys)

    batch, keys, mask = batch_of(3), jax.random.split(jax.random.key(2), 3), np.array([True, True, False])
    flat, reference = (
        jax.jit(clipping.clipped_grad(loss, 1e-2, method))(state["params"], batch, keys, mask)
        for method in ("bookkeeping", "vmap")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), flat, reference)
    check_objective(loss, state["params"], batch | {"image": batch["image"].astype(np.float32)})


def test_one_record_moves_the_sum_by_at_most_the_clip_norm(built, noised):
    """Its real image and the generated ones beside it share one clipped gradient; -1 is the label of a null record."""
    state = first_state(built) | {"noise": jnp.zeros(())}
    key, data, rows = np.arange(8, dtype=np.uint32), batch_of(N), np.arange(N)

    def total(labels):
        mean, stats = noised(state, data | {"label": labels.astype(np.int32)}, key, jax.random.key(3), 0)
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) * BATCH, mean), int(stats["drawn"])

    def distance(one, other):
        return np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)))

    whole, drawn = total(data["label"])
    struck = [distance(whole, total(np.where(rows == row, -1, data["label"]))[0]) for row in rows]
    assert max(struck) <= CLIP_NORM * (1 + 1e-6) and sum(moved > 0 for moved in struck) == drawn
    swapped = [distance(whole, total(np.where(rows == row, CLASSES, data["label"]))[0]) for row in rows]
    assert 0 < max(swapped) <= 2 * CLIP_NORM * (1 + 1e-6), "one contribution is replaced by another"


def test_the_generator_learns_from_the_noised_gradient_alone(built, update, noised):
    """Played again without any image, the recorded noised gradients give the same networks."""
    (generator, params), seen = built, []
    state, key = first_state(built), np.arange(8, dtype=np.uint32)
    for t in range(4):
        seen.append(noised(state | {"noise": jnp.ones(())}, batch_of(N), key, jax.random.key(3), t)[0])
        state = update(state, seen[-1])
    replayed = first_state(built)
    for mean in seen:
        replayed = update(replayed, mean)
    jax.tree.map(np.testing.assert_array_equal, generator.released(state), generator.released(replayed))
    assert int(state["generator"]["step"]) == 2, "every second step is the generator's too"
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state["frozen"]["generator"], params["generator"])
    assert max(jax.tree.leaves(moved)) > 0


def test_the_loss_of_the_generators_last_step_is_shown_until_the_next(built, update):
    """Recomputed from the state at that step: the mean score that the discriminator gives images, negated."""
    generator, params = built
    gradient = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), params["discriminator"])
    before = update(first_state(built), gradient)
    after = update(before, gradient)
    assert float(generator.metrics(before)["generator_loss"]) == 0, "every second step is the generator's"
    key = jax.random.fold_in(jax.random.key(generator.config.seed), before["step"])
    size = generator.config.gan.batch_size
    drawn = jax.random.normal(key, (size, generator.config.gan.noise))
    labels = jax.random.randint(jax.random.fold_in(key, 1), (size,), 0, CLASSES)
    images = jax.jit(generator.generator.apply)({"params": before["frozen"]["generator"]}, drawn, labels)
    scores = jax.jit(generator.discriminator.apply)({"params": after["params"]}, images, labels)
    shown = [float(generator.metrics(state)["generator_loss"]) for state in (after, update(after, gradient))]
    assert shown == pytest.approx([-float(scores.mean())] * 2, rel=1e-3)


def test_the_estimate_bounds_the_memory_of_the_private_step(built):
    """That of the images which are made beside the real ones is in it, though no backward pass keeps their making."""
    generator, params = built
    state, m = jax.eval_shape(generator.private_state, params, jax.random.key(0)), 512

    def gradient(trained, frozen, batch, keys, mask):
        def loss(trained, batch, keys):
            return generator.per_example_loss(generator.merge(trained, frozen), batch, keys)

        return clipping.clipped_grad(loss, 1.0)(trained, batch, keys, mask)

    shapes = *batch_shapes(m, generator.image_shape), jax.ShapeDtypeStruct((m,), bool)
    program = jax.jit(gradient).lower(state["params"], state["frozen"], *shapes).compile()
    found = program.memory_analysis().temp_size_in_bytes / m  # of so many, what does not grow with them is little
    estimate = memory.bytes_per_example(generator.per_example_loss, params, generator.image_shape)
    assert 0.3 * estimate < found < 1.2 * estimate


def test_images_of_a_generators_step_that_cannot_fit_are_refused(built):
    generator, params = built
    with pytest.raises(UserError, match=r"config\.gan\.microbatch=4 needs about .* give at most [1-9]"):
        generator.check_memory(params, 2**12)


def test_devices_change_the_generators_step_by_rounding_only(built, update):
    generator, params = built
    gradient = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), params["discriminator"])
    two = jax.devices()[:2]
    on_two, found = jax.jit(generator.private_update(make_mesh(two))), []
    for play, devices in ((update, ONE), (on_two, two)):
        state = first_state(built, devices)
        found.append(jax.device_get(generator.released(play(play(state, gradient), gradient))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *found)


def test_it_learns_where_the_classes_lie():
    """Plain images whose grey level is normal about its class's mean: generated ones come near in mean and spread."""
    config = base.get_config()
    config.data.image_size, config.data.channels, config.generator = 4, 1, "gan"
    config.gan.noise, config.gan.embedding, config.gan.generator_width = 8, 8, 8
    config.gan.discriminator_width, config.gan.batch_size, config.gan.discriminator_steps = 8, 32, 1
    config.gan.generator_rate, config.gan.pretrain_rate = 1.0, 5e-3
    config.pretrain.ema, config.pretrain.flip = 0.9, False
    generator = generators.build(config, 2)
    means, spread, size = np.array([-0.5, 0.5]), 0.1, 32
    update = generator.public_update(make_mesh(ONE))

    @jax.jit
    def train(state, key):
        def body(t, state):
            grey_key, loss_key = jax.random.split(jax.random.fold_in(key, t))
            label = jnp.arange(size, dtype=jnp.int32) % 2
            grey = jnp.asarray(means)[label] + spread * jax.random.normal(grey_key, (size,))
            image = jnp.broadcast_to(grey[:, None, None, None], (size, 4, 4, 1))
            return update(state, {"image": image, "label": label}, jax.random.split(loss_key, size))[0]

        return jax.lax.fori_loop(0, 200, body, state)

    state = train(generator.public_state(generator.init(jax.random.key(0))), jax.random.key(1))
    labels = jnp.repeat(jnp.arange(2), 100)
    images = jax.jit(generator.sample)(state["ema"], jax.random.split(jax.random.key(2), 200), labels)
    for label, mean in enumerate(means):
        own = np.asarray(images)[labels == label]
        assert own.mean() == pytest.approx(mean, abs=0.15)
        assert own.mean(axis=(1, 2, 3)).std() < 0.35


@pytest.mark.parametrize(
    ("key", "value", "culprit"),
    [
        ("sample.guidance", 1.0, "config.sample.guidance=1.0 is of config.generator=diffusion, and gan"),
        (
            "sampler_choice.enabled",
            True,
            "config.sampler_choice.enabled=True is of config.generator=diffusion, and gan",
        ),
        ("finetune.lora_rank", 2, "config.finetune.lora_rank=2 is of config.generator=diffusion, and gan"),
        (
            "finetune.trainable",
            ".*attention.*",
            "config.finetune.trainable='.*attention.*' is of config.generator=diffusion, and gan",
        ),
        ("gan.batch_size", 7, "config.gan.batch_size=7 cannot be cut into pieces of config.gan.microbatch=4"),
        ("gan.noise", 0, "config.gan.noise=0 is not accepted"),
        ("gan.noise", 1, "config.gan.noise=1 "),
    ],
)
def test_settings_that_do_not_fit_are_told(config, key, value, culprit):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=culprit.replace("*", r"\*").replace(".", r"\.")):
        configs.check(config)
