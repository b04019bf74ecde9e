"""Wide residual networks (Zagoruyko & Komodakis 2016, arXiv:1605.07146): a downstream classifier of the benchmark.

BatchNorm and dropout are for public or synthetic data while training, as in `models.resnet`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from privimage_jax.models.resnet import batch_norm_layers


class _Block(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice, with dropout between."""

    channels: int
    stride: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv, norm = batch_norm_layers(train, self.dtype)
        strides = (self.stride, self.stride)
        activated = nn.relu(norm(name="norm1")(x))
        h = conv(self.channels, (3, 3), strides=strides, name="conv1")(activated)
        h = nn.relu(norm(name="norm2")(h))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv(self.channels, (3, 3), name="conv2")(h)
        if x.shape != h.shape:
            x = conv(self.channels, (1, 1), strides=strides, name="shortcut")(activated)
        return x + h


class _Trunk(nn.Module):
    depth: int
    width: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv, norm = batch_norm_layers(train, self.dtype)
        x = conv(16, (3, 3), name="stem")(x.astype(self.dtype))
        for stage in range(3):
            for i in range((self.depth - 4) // 6):
                stride = 2 if stage > 0 and i == 0 else 1
                channels = 16 * self.width * 2**stage
                x = _Block(channels, stride, self.dropout, self.dtype, name=f"stage{stage}_{i}")(x, train)
        return nn.relu(norm(name="norm_out")(x)).mean((1, 2)).astype(jnp.float32)


class WideResNet(nn.Module):
    """WRN-`depth`-`width`; 28-10 has 36.5 M parameters for ten classes.

    Attributes:
      n_classes: classes.
      depth: 6 n + 4 layers.
      width: how much wider than the residual network of 16, 32 and 64 channels.
      dropout: share of activations dropped between a block's convolutions while training.
      dtype: "float32" or "bfloat16", of activations; parameters, statistics, features and logits are float32.
    """

    n_classes: int
    depth: int = 28
    width: int = 10
    dropout: float = 0.3
    dtype: str = "float32"

    def setup(self) -> None:
        if (self.depth - 4) % 6:
            raise ValueError(f"depth={self.depth} is not 6 n + 4")
        self.trunk = _Trunk(self.depth, self.width, self.dropout, jnp.dtype(self.dtype))
        self.head = nn.Dense(self.n_classes)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B,H,W,C] float in [-1,1] -> logits [B,n_classes] float32."""
        return self.head(self.features(x, train))

    def features(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B,H,W,C] float in [-1,1] -> pooled activations of the last stage, [B, 64 width] float32."""
        return self.trunk(x, train)
