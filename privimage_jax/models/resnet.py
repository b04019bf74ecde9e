"""Residual networks (He et al. 2016, arXiv:1512.03385) for small images: the query function and its smaller relatives.

The stem is one 3x3 convolution of stride 1 without pooling, as usual for 32x32 images; the stages have strides 1, 2,
2, 2, so that images of 8x8 to 64x64 pixels work. BatchNorm mixes the examples of a batch while training: these
networks are for public or synthetic data only, and see sensitive images in inference mode alone.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def batch_norm_layers(train: bool, dtype: jnp.dtype) -> tuple[partial, partial]:
    """The constructors of every convolution and norm of these networks and their relatives."""
    conv = partial(nn.Conv, use_bias=False, dtype=dtype, kernel_init=CONV_INIT)
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)
    return conv, norm


class _Block(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1 with four times the channels out."""

    channels: int
    stride: int
    bottleneck: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv, norm = batch_norm_layers(train, self.dtype)
        channels, strides = self.channels, (self.stride, self.stride)
        if self.bottleneck:
            out = 4 * channels
            h = nn.relu(norm(name="norm1")(conv(channels, (1, 1), name="conv1")(x)))
            h = nn.relu(norm(name="norm2")(conv(channels, (3, 3), strides=strides, name="conv2")(h)))
            h = conv(out, (1, 1), name="conv3")(h)
        else:
            out = channels
            h = nn.relu(norm(name="norm1")(conv(channels, (3, 3), strides=strides, name="conv1")(x)))
            h = conv(out, (3, 3), name="conv2")(h)
        h = norm(name="norm_out", scale_init=nn.initializers.zeros)(h)  # a fresh block is its shortcut alone
        if x.shape != h.shape:
            x = norm(name="norm_shortcut")(conv(out, (1, 1), strides=strides, name="shortcut")(x))
        return nn.relu(x + h)


class _Trunk(nn.Module):
    blocks: Sequence[int]
    bottleneck: bool
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv, norm = batch_norm_layers(train, self.dtype)
        x = conv(self.width, (3, 3), name="stem")(x.astype(self.dtype))
        x = nn.relu(norm(name="norm_stem")(x))
        for stage, count in enumerate(self.blocks):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                block = _Block(self.width * 2**stage, stride, self.bottleneck, self.dtype, name=f"stage{stage}_{i}")
                x = block(x, train)
        return x.mean((1, 2)).astype(jnp.float32)


class ResNet(nn.Module):
    """A residual network, of four stages unless `blocks` says otherwise.

    Attributes:
      n_classes: classes.
      blocks: residual blocks of each stage.
      bottleneck: three-layer blocks with fourfold output channels.
      width: channels of the first stage; each later stage doubles them.
      dtype: "float32" or "bfloat16", of activations; parameters, statistics, features and logits are float32.
    """

    n_classes: int
    blocks: Sequence[int] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    dtype: str = "float32"

    def setup(self) -> None:
        self.trunk = _Trunk(self.blocks, self.bottleneck, self.width, jnp.dtype(self.dtype))
        self.head = nn.Dense(self.n_classes)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B,H,W,C] float in [-1,1] -> logits [B,n_classes] float32."""
        return self.head(self.features(x, train))

    def features(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B,H,W,C] float in [-1,1] -> pooled activations of the last stage, [B,D] float32."""
        return self.trunk(x, train)


class ResNet9(ResNet):
    """One basic block a stage: nine convolutions."""

    blocks: Sequence[int] = (1, 1, 1, 1)


class ResNet18(ResNet):
    """Two basic blocks a stage."""


class ResNet50(ResNet):
    """3, 4, 6 and 3 bottleneck blocks: the query function of PrivImage."""

    blocks: Sequence[int] = (3, 4, 6, 3)
    bottleneck: bool = True


class ResNet110(ResNet):
    """The residual network for CIFAR-10 of the original paper: three stages of 18 basic blocks, from 16 channels."""

    blocks: Sequence[int] = (18, 18, 18)
    width: int = 16
