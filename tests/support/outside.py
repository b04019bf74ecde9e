"""Modules from outside the package, for import strings."""

import flax.linen as nn


class Bare(nn.Module):
    """A module without the fields that a denoiser must have."""

    def __call__(self, x, c_noise, label):
        return x


class Stateful(nn.Module):
    n_classes: int
    channels: int

    @nn.compact
    def __call__(self, x, c_noise, label):
        return nn.BatchNorm(use_running_average=False)(x)


class Doubled(nn.Module):
    n_classes: int
    channels: int

    def setup(self):
        self.layer = nn.Conv(2 * self.channels, (3, 3))

    def __call__(self, x, c_noise, label):
        return self.layer(x)


NOT_A_CLASS = 3
