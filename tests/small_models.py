"""The smallest models that can go through the pipeline, and a hard case for clipping: they compile in a moment."""

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


class Tied(nn.Module):
    """One embedding used twice: to read tokens and to score them."""

    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(5, 4)
        h = nn.Dense(4)(embed(jnp.abs(x[..., 0] * 10).astype(jnp.int32) % 5))
        return embed.attend(h)


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
