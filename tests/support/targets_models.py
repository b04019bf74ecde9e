"""Networks for the tests of targets: one with an operation that only CPUs and GPUs have, and two for TPUs."""

import flax.linen as nn
import jax.numpy as jnp
from small_models import SmallClassifier


class Eigenvalues(SmallClassifier):
    """Looks at the eigenvalues of an image as a matrix."""

    def features(self, x, train=False):
        return super().features(jnp.linalg.eigvals(x[..., 0]).real)


class GroupNormResNet(nn.Module):
    """A residual network of two blocks that looks at each image alone, in training too."""

    n_classes: int
    dtype: str = "float32"

    def setup(self):
        self.convolutions = [nn.Conv(16, (3, 3), dtype=self.dtype) for _ in range(5)]
        self.norms = [nn.GroupNorm(4, dtype=self.dtype) for _ in range(4)]
        self.head = nn.Dense(self.n_classes)

    def features(self, x, train=False):
        stem, *convolutions = self.convolutions
        h = stem(x)
        for block in range(2):
            inner = h
            for i in (2 * block, 2 * block + 1):
                inner = convolutions[i](nn.relu(self.norms[i](inner)))
            h = h + inner
        return h.mean((1, 2)).astype(jnp.float32)

    def __call__(self, x, train=False):
        return self.head(self.features(x, train))


class Convolutions(nn.Module):
    """A denoiser of three convolutions and one each of the other layers of a UNet without attention."""

    n_classes: int
    channels: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, c_noise, label):
        told = nn.Dense(16)(c_noise[:, None]) + nn.Embed(self.n_classes + 1, 16)(label)
        h = self.conv(16)(x) + told[:, None, None]
        h = self.conv(16)(nn.silu(nn.GroupNorm(2, dtype=self.dtype)(h)))
        return self.conv(self.channels)(nn.silu(h)).astype(jnp.float32)

    def conv(self, channels):
        return nn.Conv(channels, (3, 3), dtype=self.dtype)
