"""Residual networks with grouped convolutions (Xie et al. 2017, arXiv:1611.05431) for small images: a downstream
classifier of the field's benchmark.

BatchNorm is for public or synthetic data while training, as in `models.resnet`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from privimage_jax.models.resnet import batch_norm_layers


class _Block(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions."""

    channels: int
    stride: int
    groups: int
    inner: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv, norm = batch_norm_layers(train, self.dtype)
        strides = (self.stride, self.stride)
        h = nn.relu(norm(name="norm1")(conv(self.inner, (1, 1), name="conv1")(x)))
        grouped = conv(self.inner, (3, 3), strides=strides, feature_group_count=self.groups, name="conv2")
        h = nn.relu(norm(name="norm2")(grouped(h)))
        h = norm(name="norm_out")(conv(self.channels, (1, 1), name="conv3")(h))
        if x.shape != h.shape:
            x = norm(name="norm_shortcut")(conv(self.channels, (1, 1), strides=strides, name="shortcut")(x))
        return nn.relu(x + h)


class _Trunk(nn.Module):
    depth: int
    groups: int
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv, norm = batch_norm_layers(train, self.dtype)
        x = nn.relu(norm(name="norm_stem")(conv(64, (3, 3), name="stem")(x.astype(self.dtype))))
        for stage in range(3):
            for i in range((self.depth - 2) // 9):
                stride = 2 if stage > 0 and i == 0 else 1
                inner = self.groups * self.width * 2**stage
                block = _Block(256 * 2**stage, stride, self.groups, inner, self.dtype, name=f"stage{stage}_{i}")
                x = block(x, train)
        return x.mean((1, 2)).astype(jnp.float32)


class ResNeXt(nn.Module):
    """ResNeXt-`depth`, `groups` x `width`d; 29, 8x64d has 34.4 M parameters for ten classes.

    Attributes:
      n_classes: classes.
      depth: 9 n + 2 layers.
      groups: of the 3x3 convolutions.
      width: channels of a group in the first of three stages; each later stage doubles them.
      dtype: "float32" or "bfloat16", of activations; parameters, statistics, features and logits are float32.
    """

    n_classes: int
    depth: int = 29
    groups: int = 8
    width: int = 64
    dtype: str = "float32"

    def setup(self) -> None:
        if (self.depth - 2) % 9:
            raise ValueError(f"depth={self.depth} is not 9 n + 2")
        self.trunk = _Trunk(self.depth, self.groups, self.width, jnp.dtype(self.dtype))
        self.head = nn.Dense(self.n_classes)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B,H,W,C] float in [-1,1] -> logits [B,n_classes] float32."""
        return self.head(self.features(x, train))

    def features(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B,H,W,C] float in [-1,1] -> pooled activations of the last stage, [B,1024] float32."""
        return self.trunk(x, train)
