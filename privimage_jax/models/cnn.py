"""A small classifier for images of 8x8 to 32x32 pixels: the downstream task, and a query function for tiny machines."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class _Trunk(nn.Module):
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(self.dtype)
        for stage, channels in enumerate((self.width, 2 * self.width)):
            for i in range(2):
                x = nn.Conv(channels, (3, 3), use_bias=False, dtype=self.dtype, name=f"conv{stage}_{i}")(x)
                x = nn.GroupNorm(num_groups=None, group_size=4, dtype=self.dtype, name=f"norm{stage}_{i}")(x)
                x = nn.relu(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        return x.mean((1, 2)).astype(jnp.float32)


class CNN(nn.Module):
    """Two stages of two 3x3 convolutions with GroupNorm, each followed by a 2x2 maximum; then the mean over positions.

    Attributes:
      n_classes: classes.
      width: channels of the first stage, a multiple of 4; the second has twice as many.
      dtype: "float32" or "bfloat16", of activations; parameters, features and logits are float32.
    """

    n_classes: int
    width: int = 32
    dtype: str = "float32"

    def setup(self) -> None:
        self.trunk = _Trunk(self.width, jnp.dtype(self.dtype))
        self.head = nn.Dense(self.n_classes)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B,H,W,C] float in [-1,1] -> logits [B,n_classes] float32."""
        return self.head(self.features(x, train))

    def features(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B,H,W,C] float in [-1,1] -> what the last layer sees, [B, 2 width] float32."""
        return self.trunk(x)
