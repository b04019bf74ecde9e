"""The smallest models that can go through the pipeline, and a hard case for clipping: they compile in a moment."""

import os

import flax.linen as nn
import jax
import jax.numpy as jnp


class SmallDenoiser(nn.Module):
    """One layer over the pixels, told the noise level and the class."""

    n_classes: int
    channels: int

    @nn.compact
    def __call__(self, x, c_noise, label):
        flat = x.reshape(len(x), -1)
        told = jnp.concatenate([jax.nn.one_hot(label, self.n_classes), c_noise[:, None]], axis=-1)
        return nn.Dense(flat.shape[-1])(jnp.concatenate([flat, told], axis=-1)).reshape(x.shape)


class SmallConvolutions(nn.Module):
    """A denoiser of four convolutions, of which the second and the third have equal shapes."""

    n_classes: int
    channels: int

    @nn.compact
    def __call__(self, x, c_noise, label):
        h = nn.Conv(2, (3, 3))(x) + nn.Embed(self.n_classes + 1, 2)(label)[:, None, None]
        h = nn.Conv(2, (3, 3))(nn.silu(h) + c_noise[:, None, None, None])
        return nn.Conv(self.channels, (1, 1))(nn.Conv(2, (3, 3))(nn.silu(h)))


class SmallClassifier(nn.Module):
    """One hidden layer."""

    n_classes: int

    def setup(self):
        self.hidden = nn.Dense(8)
        self.head = nn.Dense(self.n_classes)

    def features(self, x, train=False):
        return nn.relu(self.hidden(x.reshape(len(x), -1)))

    def __call__(self, x, train=False):
        return self.head(self.features(x, train))


class SocketCounter(SmallClassifier):
    """Notes how many sockets its process has open whenever it is traced, in a file that the environment names."""

    def __call__(self, x, train=False):
        sockets = [name for name in os.listdir("/proc/self/fd") if _links_to_socket(f"/proc/self/fd/{name}")]
        with open(f"{os.environ['SOCKETS']}.{os.getpid()}", "a") as file:
            print("train" if train else "other", len(sockets), file=file)
        return super().__call__(x, train)


def _links_to_socket(path: str) -> bool:
    try:
        return os.readlink(path).startswith("socket:")
    except FileNotFoundError:  # that of listing
        return False


class NearTies(nn.Module):
    """Pairs of classes with the same logit but for the order of a sum, so that rounding alone says which is larger."""

    n_classes: int

    def setup(self):
        self.hidden = nn.Dense(50)
        shape = (50, self.n_classes // 2)
        self.one, self.other = (self.param(name, nn.initializers.normal(), shape) for name in ("one", "other"))

    def features(self, x, train=False):
        return nn.tanh(self.hidden(x.reshape(len(x), -1)))

    def __call__(self, x, train=False):
        hidden = self.features(x)
        weights = [jnp.concatenate(order) for order in ([self.one, self.other], [self.other, self.one])]
        return jnp.concatenate([hidden, hidden], axis=-1) @ jnp.concatenate(weights, axis=1)


def again(weights):
    """The same weights for a further use, which a planted bug overlooks."""
    return weights


class Tied(nn.Module):
    """One embedding used twice: to read tokens and to score them."""

    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(5, 4)
        h = nn.Dense(4)(embed(jnp.abs(x[..., 0] * 10).astype(jnp.int32) % 5))
        return h @ again(embed.embedding).T


class ReadByParent(nn.Module):
    """A layer's kernel that its parent uses as well."""

    @nn.compact
    def __call__(self, x):
        conv = nn.Conv(3, (3, 3), name="conv")
        h = conv(x)
        return h * jnp.sum(again(conv.variables["params"]["kernel"]) ** 2)


class CalledTwice(nn.Module):
    """A convolution of its own output."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], x.shape[-1]))

        def convolved(x, kernel):
            return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        return convolved(nn.silu(convolved(x, kernel)), again(kernel))


def use_small_models(config):
    """Puts these models in a config's place of the zoo's, and returns the config."""
    config.model.name = "small_models:SmallDenoiser"
    config.query_net.model = "small_models:SmallClassifier"
    config.evaluate.classifiers = (config.query_net.model,)
    config.sampler_choice.classifier = "small_models:SmallClassifier"
    for kwargs in (config.model.kwargs, config.query_net.kwargs, config.evaluate.classifier_kwargs):
        with kwargs.unlocked():
            for name in list(kwargs):
                del kwargs[name]
    return config


def use_small_gan(config):
    """Makes a config's family a GAN, as small as can be, and returns the config."""
    config.generator = "gan"
    config.gan.update(noise=4, embedding=2, generator_width=4, discriminator_width=4)
    config.gan.update(batch_size=8, microbatch=4, discriminator_steps=2)
    return config
