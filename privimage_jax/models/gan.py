"""A conditional generator and its discriminator: BigGAN's residual networks as DPImageBench's DPGAN has them.

Brock et al. 2019 (arXiv:1809.11096) in the small shape of Gong et al. 2025 (DPImageBench, arXiv:2503.14681): all blocks
of one width, noise in chunks that each block gets beside a shared embedding of the label, self-attention (Zhang et al.
2019, arXiv:1805.08318), a discriminator without batch statistics that sums over pixels and judges the label by
projection (Miyato & Koyama 2018, arXiv:1802.05637).

The generator's norms are of groups of channels too, where the original has batch norm: an image is a function of its
own noise and label alone. `models.spectral_norm` bounds the generator's weights.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from privimage_jax.models.unet import conv, enlarge, halve, norm, norm_groups
from privimage_jax.settings.gan import sides

JUDGED = 8  # side, at most, of the discriminator's last image
LEAST_BLOCKS = 4  # of the discriminator


class ConditionalNorm(nn.Module):
    """Group norm whose scale and shift are linear in a condition."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """x [B,H,W,C], condition [B,E] -> [B,H,W,C]."""
        channels = x.shape[-1]
        groups = norm_groups(channels)
        x = nn.GroupNorm(groups, epsilon=1e-6, use_bias=False, use_scale=False, dtype=self.dtype, name="norm")(x)
        scale, shift = (
            nn.Dense(channels, use_bias=False, dtype=self.dtype, name=name)(condition)[:, None, None]
            for name in ("scale", "shift")
        )
        return x * (1 + scale) + shift


class UpBlock(nn.Module):
    """Doubles the side of its images."""

    width: int
    side: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """x [B,H,H,C], condition [B,E] -> [B,side,side,width]."""
        size = (self.side, self.side)
        h = nn.relu(ConditionalNorm(self.dtype, name="norm1")(x, condition))
        h = conv(self.width, 3, self.dtype, "conv1")(enlarge(h, size))
        h = nn.relu(ConditionalNorm(self.dtype, name="norm2")(h, condition))
        h = conv(self.width, 3, self.dtype, "conv2")(h)
        return h + conv(self.width, 1, self.dtype, "shortcut")(enlarge(x, size))


class Attention(nn.Module):
    """Self-attention whose keys and values are pooled over 2x2 pixels; it starts as the identity."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,H,W,C] -> [B,H,W,C]."""
        batch, height, width, channels = x.shape

        def project(size: int, name: str, h: jax.Array) -> jax.Array:
            return nn.Dense(size, use_bias=False, dtype=self.dtype, name=name)(h)

        def pooled(h: jax.Array) -> jax.Array:
            h = nn.max_pool(h, (2, 2), (2, 2), padding="SAME")
            return h.reshape(batch, -1, h.shape[-1])

        query = project(max(channels // 8, 1), "query", x).reshape(batch, height * width, -1)
        key = pooled(project(max(channels // 8, 1), "key", x))
        value = pooled(project(max(channels // 2, 1), "value", x))
        weights = nn.softmax(jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=jnp.float32))
        seen = project(channels, "out", jnp.einsum("bqk,bkc->bqc", weights.astype(self.dtype), value))
        strength = self.param("strength", nn.initializers.zeros, ())
        return x + strength.astype(self.dtype) * seen.reshape(x.shape)


class Generator(nn.Module):
    """Noise and a label to an image.

    Attributes:
      n_classes: classes; label ``n_classes`` means "no label".
      side: of the images, in pixels.
      channels: of the images.
      width: channels of every block.
      embedding: numbers in the embedding of the label, which all blocks share.
      attention: the block after which there is self-attention, from 1; none if there is no such block.
      dtype: "float32" or "bfloat16", of activations; parameters are float32.
    """

    n_classes: int
    side: int
    channels: int
    width: int = 240
    embedding: int = 128
    attention: int = 2
    dtype: str = "float32"

    @nn.compact
    def __call__(self, noise: jax.Array, label: jax.Array) -> jax.Array:
        """noise [B,Z] float32, label [B] int32 in 0..n_classes -> [B,side,side,channels] float32 in [-1, 1]."""
        dtype = jnp.dtype(self.dtype)
        first, *others = sides(self.side)
        chunks = jnp.array_split(noise.astype(dtype), 1 + len(others), axis=-1)
        shared = nn.Embed(self.n_classes + 1, self.embedding, dtype=dtype, name="label")(label)

        h = nn.Dense(first**2 * self.width, dtype=dtype, name="first")(chunks[0])
        h = h.reshape(-1, first, first, self.width)
        for number, side in enumerate(others, 1):
            condition = jnp.concatenate([shared, chunks[number]], axis=-1)
            h = UpBlock(self.width, side, dtype, name=f"up{number}")(h, condition)
            if number == self.attention:
                h = Attention(dtype, name="attention")(h)
        h = nn.relu(norm(self.width, dtype, "norm_out")(h))
        return jnp.tanh(conv(self.channels, 3, dtype, "conv_out")(h).astype(jnp.float32))


class DownBlock(nn.Module):
    """A residual block of the discriminator; `down` halves the side. The first one does without norms."""

    width: int
    down: bool
    first: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,H,W,C] -> [B,H',W',width]."""

        def active(h: jax.Array, name: str) -> jax.Array:
            return nn.relu(h if self.first else norm(h.shape[-1], self.dtype, name)(h))

        h = x if self.first else active(x, "norm1")
        h = active(conv(self.width, 3, self.dtype, "conv1")(h), "norm2")
        h = conv(self.width, 3, self.dtype, "conv2")(h)
        if self.down:
            h, x = halve(h), halve(x)
        if self.down or x.shape[-1] != self.width:
            x = conv(self.width, 1, self.dtype, "shortcut")(x)
        return h + x


class Discriminator(nn.Module):
    """How real an image looks, of its label; it acts on each example alone.

    Attributes:
      n_classes: classes; label ``n_classes`` means "no label".
      width: channels of every block.
      dtype: as of `Generator`.
    """

    n_classes: int
    width: int = 160
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array) -> jax.Array:
        """x [B,H,W,C] float in [-1, 1], label [B] int32 in 0..n_classes -> [B] float32; above 0 is real."""
        dtype = jnp.dtype(self.dtype)
        halvings = max(1, math.ceil(math.log2(max(x.shape[1:3]) / JUDGED)))
        h = x.astype(dtype)
        for number in range(max(LEAST_BLOCKS, halvings)):
            h = DownBlock(self.width, number < halvings, number == 0, dtype, name=f"down{number}")(h)
        h = jnp.sum(nn.relu(h).astype(jnp.float32), axis=(1, 2))
        projection = nn.Embed(self.n_classes + 1, self.width, name="label")(label)
        return nn.Dense(1, name="judge")(h)[:, 0] + jnp.sum(projection * h, axis=-1)
