import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from privimage_jax.data.pixels import to_float
from privimage_jax.errors import UserError
from privimage_jax.generators.edm import EDM, Churn, denoise, make_per_example_loss, noise_levels, sample
from privimage_jax.models.registry import init_denoiser

EDM_ = EDM()
SIGMAS = np.array([0.002, 0.1, 0.5, 2.0, 80.0], np.float32)


class Fixed(nn.Module):
    """F(x) = a + b c_noise; a model without parameters to learn."""

    a: float = 0.0
    b: float = 0.0
    n_classes: int = 10

    def __call__(self, x, c_noise, label):
        return jnp.full_like(x, self.a) + self.b * c_noise[:, None, None, None]


class Gaussian(nn.Module):
    """The ideal denoiser of data N(mean[label], std^2), turned back into the network F of EDM's preconditioning."""

    means: tuple = (-0.3, 0.2, 0.0)  # the last one: no label
    std: float = 0.15
    n_classes: int = 2

    def __call__(self, x, c_noise, label):
        sigma = jnp.exp(4 * c_noise)[:, None, None, None]
        mean = jnp.asarray(self.means)[label][:, None, None, None]
        c_skip, c_out, c_in, _ = EDM_.preconditioning(sigma)
        noisy = x / c_in
        ideal = mean + self.std**2 / (self.std**2 + sigma**2) * (noisy - mean)
        return (ideal - c_skip * noisy) / c_out


def test_network_input_and_target_have_unit_variance():
    rng = np.random.default_rng(0)
    clean = rng.normal(0, EDM_.sigma_data, (len(SIGMAS), 100_000))
    sigma = SIGMAS[:, None].astype(np.float64)
    noisy = clean + sigma * rng.normal(size=clean.shape)
    c_skip, c_out, c_in, c_noise = (np.asarray(c, np.float64)[:, None] for c in EDM_.preconditioning(SIGMAS))
    np.testing.assert_allclose((c_in * noisy).std(1), 1, rtol=0.01)
    np.testing.assert_allclose(((clean - c_skip * noisy) / c_out).std(1), 1, rtol=0.01)
    np.testing.assert_allclose(EDM_.loss_weight(SIGMAS)[:, None] * c_out**2, 1, rtol=1e-5)
    np.testing.assert_allclose(c_noise[:, 0], np.log(SIGMAS) / 4, rtol=1e-5)


def test_denoiser_returns_its_input_as_the_noise_vanishes():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    out = denoise(Fixed(a=1.0), EDM_, {}, x, jnp.full(2, 1e-6), jnp.zeros(2, jnp.int32))
    np.testing.assert_allclose(out, x, atol=1e-5)


def losses(model, image, label, keys, edm=EDM_, params=None, **kwargs):
    settings = {"n_classes": 10, "noise_multiplicity": 4, **kwargs}
    loss = make_per_example_loss(model, edm, **settings)
    return jax.jit(loss)({} if params is None else params, {"image": image, "label": label}, keys)


def test_a_zero_network_has_loss_one_on_data_of_sigma_data():
    keys = jax.random.split(jax.random.key(0), 512)
    image = EDM_.sigma_data * jax.random.normal(jax.random.key(1), (512, 8, 8, 1))
    value = losses(Fixed(), image, jnp.zeros(512, jnp.int32), keys)
    assert value.shape == (512,) and value.dtype == jnp.float32
    assert float(value.mean()) == pytest.approx(1, abs=0.01)


def test_uint8_images_are_mapped_and_floats_are_not():
    keys = jax.random.split(jax.random.key(0), 3)
    image = jax.random.randint(jax.random.key(1), (3, 8, 8, 1), 0, 256).astype(jnp.uint8)
    label = jnp.zeros(3, jnp.int32)
    mapped = to_float(image)
    np.testing.assert_allclose(
        losses(Fixed(), image, label, keys), losses(Fixed(), mapped, label, keys), rtol=1e-5, atol=1e-5
    )


SEEN = []


class Spy(nn.Module):
    """A zero network that appends what it is given to SEEN."""

    n_classes: int = 10

    def __call__(self, x, c_noise, label):
        jax.debug.callback(lambda *inputs: SEEN.append(jax.tree.map(np.asarray, inputs)), x, c_noise, label)
        return jnp.zeros_like(x)


def seen_by_network(image, label, keys, **kwargs):
    SEEN.clear()
    jax.block_until_ready(losses(Spy(), image, label, keys, **kwargs))
    jax.effects_barrier()
    assert len(SEEN) == 1, "all draws of all examples are one network batch"
    return SEEN[0]


def test_noise_levels_labels_and_draws():
    n, k = 500, 8
    image = jnp.zeros((n, 4, 4, 1))
    label = jnp.arange(n, dtype=jnp.int32) % 10
    edm = EDM(label_dropout=0.25)
    keys = jax.random.split(jax.random.key(3), n)
    x, c_noise, seen_label = seen_by_network(image, label, keys, edm=edm, noise_multiplicity=k)
    assert x.shape == (n * k, 4, 4, 1)
    dropped = seen_label == 10
    assert dropped.mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(seen_label[~dropped], np.repeat(label, k)[~dropped])
    log_sigma = 4 * c_noise
    assert log_sigma.mean() == pytest.approx(-1.2, abs=0.08) and log_sigma.std() == pytest.approx(1.2, abs=0.06)
    sigma = np.exp(log_sigma)
    noise = x * np.sqrt(sigma**2 + EDM_.sigma_data**2)[:, None, None, None] / sigma[:, None, None, None]
    assert noise.mean() == pytest.approx(0, abs=0.02) and noise.std() == pytest.approx(1, abs=0.02)
    flat = noise.reshape(n * k, -1)
    assert len(np.unique(flat[:, 0])) > 0.99 * n * k  # no two draws share their noise
    assert abs(np.corrcoef(flat[::k, 0], log_sigma[::k])[0, 1]) < 0.15
    assert abs(np.corrcoef(flat[::k, 0], flat[1::k, 0])[0, 1]) < 0.15


def test_every_draw_is_flipped_and_shifted_on_its_own():
    n = 400
    image = jnp.zeros((n, 7, 7, 1)).at[:, 3, 1].set(1e4)  # a point that noise cannot hide
    keys = jax.random.split(jax.random.key(0), n)
    x, _, _ = seen_by_network(
        image, jnp.zeros(n, jnp.int32), keys, noise_multiplicity=2, flip=True, shift=1, edm=EDM(p_std=0.1)
    )
    places = np.argmax(x.reshape(n, 2, -1), axis=-1)
    np.testing.assert_array_equal(np.unique(places // 7), [2, 3, 4])
    np.testing.assert_array_equal(np.unique(places % 7), [0, 1, 2, 4, 5, 6])
    assert (places % 7 < 3).mean() == pytest.approx(0.5, abs=0.1)
    assert (places[:, 0] != places[:, 1]).mean() > 0.8


class Small(nn.Module):
    n_classes: int
    channels: int

    @nn.compact
    def __call__(self, x, c_noise, label):
        condition = nn.Embed(self.n_classes + 1, 4)(label) + c_noise[:, None]
        h = nn.GroupNorm(num_groups=2)(nn.Conv(4, (3, 3))(x) + condition[:, None, None])
        return nn.Conv(self.channels, (3, 3))(nn.silu(h))


def test_an_examples_loss_depends_on_that_example_and_its_key_alone():
    model = Small(2, 1)
    params = init_denoiser(model, jax.random.key(0), (8, 8, 1))
    image = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
    label = jnp.array([0, 1, 1])
    keys = jax.random.split(jax.random.key(2), 3)
    loss = make_per_example_loss(model, EDM_, 2, 2, flip=True, shift=1)
    run = jax.jit(lambda image, label, keys: loss(params, {"image": image, "label": label}, keys))

    whole = run(image, label, keys)
    np.testing.assert_array_equal(whole, run(image, label, keys))
    for changed in [
        run(image.at[1].add(0.3), label, keys),
        run(image, label.at[1].set(0), keys),
        run(image, label, keys.at[1].set(jax.random.key(99))),
    ]:
        np.testing.assert_array_equal(changed[::2], whole[::2])
        assert changed[1] != whole[1]
    order = jnp.array([2, 0, 1])  # the place in the batch does not matter
    np.testing.assert_allclose(run(image[order], label[order], keys[order]), whole[order], rtol=1e-4)
    # As clipping calls it: one example at a time under vmap.
    single = jax.vmap(lambda x, y, k: loss(params, {"image": x[None], "label": y[None]}, k[None])[0])
    np.testing.assert_allclose(jax.jit(single)(image, label, keys), whole, rtol=1e-4)


def test_noise_levels_are_those_of_the_paper():
    levels = noise_levels(EDM_, 18)
    assert levels[0] == pytest.approx(80) and levels[-2] == pytest.approx(0.002) and levels[-1] == 0
    np.testing.assert_allclose(np.diff(levels[:-1] ** (1 / 7)), np.diff(levels[:2] ** (1 / 7))[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "std_error"),
    [
        ({"sampler": "ddim", "steps": 200}, 0.03),  # Euler: first order
        ({"sampler": "heun", "steps": 40}, 0.02),
        ({"sampler": "heun", "steps": 250, "churn": Churn(s_churn=40, s_noise=1.0)}, 0.03),
    ],
)
def test_samplers_reach_a_gaussian_law(settings, std_error):
    model = Gaussian()
    labels = jnp.arange(400, dtype=jnp.int32) % 2
    keys = jax.random.split(jax.random.key(0), 400)
    draw = jax.jit(lambda labels, keys: sample(model, EDM_, {}, labels, keys, (6, 6, 1), **settings))
    images = np.asarray(draw(labels, keys))
    for label, mean in enumerate(model.means[:2]):
        of_class = images[label::2]
        assert of_class.mean() == pytest.approx(mean, abs=0.01)
        assert of_class.std() == pytest.approx(model.std, rel=std_error)
        np.testing.assert_allclose(of_class.std(0), model.std, rtol=0.25)  # pixels are independent of each other
    assert abs(images.min()) <= 1 and images.max() <= 1 and images.dtype == np.float32
    np.testing.assert_array_equal(images, draw(labels, keys))
    # An image depends on its own label and key only, wherever it stands.
    np.testing.assert_allclose(draw(labels[::-1], keys[::-1])[::-1], images, atol=1e-5)


def test_orders_of_accuracy():
    """Twice the steps halve the error of Euler and quarter that of Heun, against the exact end of the ODE's path."""
    model, keys, labels = Gaussian(), jax.random.split(jax.random.key(0), 4), jnp.zeros(4, jnp.int32)
    start = 80.0 * jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[0], (4, 4, 1)))(keys)
    exact = model.means[0] + (start - model.means[0]) * model.std / np.hypot(model.std, 80.0)

    def error(sampler, steps):
        images = sample(model, EDM_, {}, labels, keys, (4, 4, 1), sampler=sampler, steps=steps)
        return float(abs(images - exact).max())

    assert error("ddim", 40) / error("ddim", 80) == pytest.approx(2, rel=0.2)
    assert error("heun", 40) / error("heun", 80) == pytest.approx(4, rel=0.25)


def test_guidance_extrapolates_from_no_label():
    model = Gaussian()
    labels, keys = jnp.zeros(200, jnp.int32), jax.random.split(jax.random.key(0), 200)
    images = sample(model, EDM_, {}, labels, keys, (6, 6, 1), sampler="heun", steps=30, guidance=1.0)
    # For equal covariances the guided denoiser is that of the mean none + (1 + g)(label - none) = -0.6.
    assert float(images.mean()) == pytest.approx(-0.6, abs=0.01)


def test_guidance_zero_costs_one_network_call_a_level():
    labels, keys = jnp.zeros(2, jnp.int32), jax.random.split(jax.random.key(0), 2)
    for guidance, rows in [(0.0, 2), (1.0, 4)]:
        SEEN.clear()
        sample(Spy(), EDM_, {}, labels, keys, (4, 4, 1), sampler="heun", steps=3, guidance=guidance)
        jax.effects_barrier()
        assert [len(x) for x, _, _ in SEEN] == [rows] * 5  # 2 * 3 - 1 evaluations


def test_unknown_samplers_are_refused():
    with pytest.raises(UserError, match=r"sample\.sampler.*'ddim' or 'heun'"):
        sample(Fixed(), EDM_, {}, jnp.zeros(1, jnp.int32), jax.random.split(jax.random.key(0), 1), (4, 4, 1), "euler")
