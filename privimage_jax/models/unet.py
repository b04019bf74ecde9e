"""The NCSN++/DDPM++ UNet in the shape that DPDM uses for differentially private diffusion.

Song et al. 2021 (arXiv:2011.13456, appendix H) with DPDM's choices (Dockhorn et al. 2023, arXiv:2210.09929): positional
embedding of the noise level, BigGAN residual blocks that also resample (mean pooling down, nearest neighbour up),
residual sums divided by sqrt(2), GroupNorm, no progressive input or output.

The network acts on each example alone: it has GroupNorm, no batch statistics and no dropout. Its parameters belong to
plain ``nn.Conv``, ``nn.Dense``, ``nn.GroupNorm`` and ``nn.Embed`` modules, for which per-example gradients are cheap.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from privimage_jax.errors import UserError

INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def position_embedding(c_noise: jax.Array, width: int) -> jax.Array:
    """Sines and cosines of the noise level, [B] -> [B, width]; frequencies fall geometrically from 1 to 1e-4."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(half) / max(half - 1, 1))
    angles = c_noise[:, None] * frequencies
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, width % 2)))


def halve(x: jax.Array) -> jax.Array:
    """Mean over 2x2 patches; an odd side is rounded up and its last patch is the mean of what is there."""
    if x.shape[1] % 2 or x.shape[2] % 2:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), mode="edge")
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def enlarge(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Nearest neighbour by a factor of 2, cut to ``size`` (the inverse shape of `halve`)."""
    return x.repeat(2, axis=1).repeat(2, axis=2)[:, : size[0], : size[1]]


def to_patches(x: jax.Array, side: int) -> jax.Array:
    """The pixels of each square become the channels of one position: [B,H,W,C] -> [B,H/s,W/s,s*s*C].

    >>> to_patches(jnp.zeros((1, 28, 28, 1)), 2).shape
    (1, 14, 14, 4)
    """
    if side == 1:
        return x
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height // side, side, width // side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return squares.reshape(batch, height // side, width // side, side * side * channels)


def from_patches(x: jax.Array, side: int) -> jax.Array:
    """The inverse of `to_patches`: [B,H,W,s*s*C] -> [B,s*H,s*W,C]."""
    if side == 1:
        return x
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height, width, side, side, channels // side**2).transpose(0, 1, 3, 2, 4, 5)
    return squares.reshape(batch, height * side, width * side, channels // side**2)


def norm_groups(channels: int) -> int:
    """The number of groups of a norm: min(C/4, 32), or the next smaller number that divides C."""
    return max(g for g in range(1, max(min(channels // 4, 32), 1) + 1) if channels % g == 0)


def norm(channels: int, dtype: jnp.dtype, name: str) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=norm_groups(channels), epsilon=1e-6, dtype=dtype, name=name)


def conv(channels: int, size: int, dtype: jnp.dtype, name: str, init: Any = INIT) -> nn.Conv:
    return nn.Conv(channels, (size, size), padding="SAME", dtype=dtype, kernel_init=init, name=name)


class ResidualBlock(nn.Module):
    """BigGAN residual block; the resampling sits between the first activation and the first convolution.

    The embedding enters as a bias before the second norm. The second convolution starts at zero, so that a fresh block
    is its shortcut alone.
    """

    channels: int
    resample: str = ""  # "", "down" or "up"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, size: Any = None) -> jax.Array:
        """x [B,H,W,C], embedding [B,E], ``size``: the side lengths after "up" -> [B,H',W',channels]."""
        h = nn.silu(norm(x.shape[-1], self.dtype, "norm1")(x))
        if self.resample == "down":
            h, x = halve(h), halve(x)
        elif self.resample == "up":
            h, x = enlarge(h, size), enlarge(x, size)
        if self.resample or x.shape[-1] != self.channels:
            x = conv(self.channels, 1, self.dtype, "shortcut")(x)
        h = conv(self.channels, 3, self.dtype, "conv1")(h)
        bias = nn.Dense(self.channels, dtype=self.dtype, kernel_init=INIT, name="embed")(nn.silu(embedding))
        h = nn.silu(norm(self.channels, self.dtype, "norm2")(h + bias[:, None, None, :]))
        h = conv(self.channels, 3, self.dtype, "conv2", nn.initializers.zeros)(h)
        return (x + h) * jnp.asarray(math.sqrt(0.5), x.dtype)


class AttentionBlock(nn.Module):
    """Self-attention over all pixels with one head; weights and softmax in float32."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,H,W,C] -> [B,H,W,C]."""
        batch, height, width, channels = x.shape
        h = norm(channels, self.dtype, "norm")(x).reshape(batch, height * width, channels)
        q, k, v = (nn.Dense(channels, dtype=self.dtype, kernel_init=INIT, name=name)(h) for name in ("q", "k", "v"))
        scores = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32) / math.sqrt(channels)
        h = jnp.einsum("bqk,bkc->bqc", nn.softmax(scores).astype(self.dtype), v)
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(h)
        return (x + h.reshape(x.shape)) * jnp.asarray(math.sqrt(0.5), x.dtype)


class UNet(nn.Module):
    """Class-conditional UNet for 28x28 and 32x32 images; 1.5 M parameters and up.

    Attributes:
      n_classes: classes; label ``n_classes`` means "no label".
      channels: image channels, in and out.
      nf: base width; level i has ``nf * ch_mult[i]`` channels.
      ch_mult: one entry per level; each level halves the side of the one before.
      num_blocks: residual blocks per level on the way down (one more on the way up).
      attn: side lengths at which the levels attend; the lowest level attends between its middle blocks in any case.
      patch: side of the squares of pixels that enter as one position; the first level's side is the image's divided by
        it. 2 makes a step about four times cheaper, at the cost of fine detail.
      dtype: "float32" or "bfloat16", of activations; parameters are float32.
      remat: recompute each block's activations in the backward pass, for less memory.
    """

    n_classes: int
    channels: int
    nf: int = 32
    ch_mult: Sequence[int] = (2, 4)
    num_blocks: int = 2
    attn: Sequence[int] = ()
    patch: int = 1
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, c_noise: jax.Array, label: jax.Array) -> jax.Array:
        """x [B,H,W,C] float, c_noise [B] float, label [B] int32 in 0..n_classes -> [B,H,W,C] float32."""
        dtype = jnp.dtype(self.dtype)
        self._check_patch(x.shape[1], x.shape[2])
        x = to_patches(x, self.patch)
        block_class = nn.remat(ResidualBlock, static_argnums=(3,)) if self.remat else ResidualBlock
        attention_class = nn.remat(AttentionBlock) if self.remat else AttentionBlock
        self._check_attention(x.shape[1])

        # Names are spelled out: nn.remat would otherwise rename the modules, and with them the parameters.
        def block(h: jax.Array, channels: int, name: str, resample: str = "", size: Any = None) -> jax.Array:
            return block_class(channels, resample, dtype, name=name)(h, embedding, size)

        def attend(h: jax.Array, name: str) -> jax.Array:
            return attention_class(dtype, name=name)(h)

        embedding = position_embedding(c_noise.astype(jnp.float32), self.nf).astype(dtype)
        embed_init = nn.initializers.normal(1.0)
        embedding += nn.Embed(self.n_classes + 1, self.nf, dtype=dtype, embedding_init=embed_init, name="label")(label)
        embedding = nn.Dense(4 * self.nf, dtype=dtype, kernel_init=INIT, name="embed1")(embedding)
        embedding = nn.Dense(4 * self.nf, dtype=dtype, kernel_init=INIT, name="embed2")(nn.silu(embedding))

        h = conv(self.nf, 3, dtype, "conv_in")(x.astype(dtype))
        skips = [h]
        for level, multiplier in enumerate(self.ch_mult):
            if level > 0:
                h = block(h, h.shape[-1], f"down{level}_halve", "down")
                skips.append(h)
            for i in range(self.num_blocks):
                h = block(h, self.nf * multiplier, f"down{level}_{i}")
                if h.shape[1] in self.attn:
                    h = attend(h, f"down{level}_{i}_attention")
                skips.append(h)

        h = block(h, h.shape[-1], "middle0")
        h = attend(h, "middle_attention")
        h = block(h, h.shape[-1], "middle1")

        for level, multiplier in reversed(list(enumerate(self.ch_mult))):
            for i in range(self.num_blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), self.nf * multiplier, f"up{level}_{i}")
            if h.shape[1] in self.attn:
                h = attend(h, f"up{level}_attention")
            if level > 0:
                h = block(h, h.shape[-1], f"up{level}_double", "up", skips[-1].shape[1:3])

        h = nn.silu(norm(h.shape[-1], dtype, "norm_out")(h))
        h = conv(self.channels * self.patch**2, 3, dtype, "conv_out", nn.initializers.zeros)(h)
        return from_patches(h, self.patch).astype(jnp.float32)

    def _check_patch(self, *sides: int) -> None:
        if self.patch < 1 or any(side % self.patch for side in sides):
            raise UserError(
                f"config.model.kwargs.patch={self.patch} does not divide the side of images of {sides[0]}x{sides[1]}; "
                "1 takes pixels one by one."
            )

    def _check_attention(self, side: int) -> None:
        sides = [-(-side // 2**level) for level in range(len(self.ch_mult))]
        for wanted in self.attn:
            if wanted not in sides:
                raise UserError(
                    f"config.model.kwargs.attn: no level of this UNet has side {wanted}; images of side {side} with "
                    f"{len(sides)} levels have {', '.join(map(str, sides))} (() is none outside the middle)."
                )
