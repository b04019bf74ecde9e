"""Inception-v3 as FID uses it: the TensorFlow graph of 2015-12-05, whose features and 1,008 logits the field compares.

It differs from the network of the paper (Szegedy et al. 2016, arXiv:1512.00567) and of model zoos in a few places,
which change FID by whole points and are kept here:

- images are resized to 299 pixels by TensorFlow 1's bilinear rule, which puts the corner of pixel 0 at coordinate 0;
- pixels are shifted by 128 and divided by 128, so that 255 becomes 0.992;
- average pooling inside a block leaves the padding out of its mean;
- the last block pools by the maximum where the one before takes the mean;
- the Inception Score takes the logits without their bias (Salimans et al. 2016, arXiv:1606.03498).

Modules are named as in the PyTorch copy of the graph (pytorch-fid), so that its weights load by name.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from privimage_jax.errors import UserError

SIZE = 299
LOGITS = 1008
FEATURES = 2048


class InceptionV3(nn.Module):
    """A classifier as `models.registry` describes them, for inference; images of any size, grey or RGB."""

    def setup(self) -> None:
        self.trunk = _Trunk()
        self.fc = nn.Dense(LOGITS, use_bias=False)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B,H,W,C] float in [-1,1] -> logits without bias [B,1008] float32."""
        return self.fc(self.features(x, train))

    def features(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B,H,W,C] float in [-1,1] -> features of the last pooling layer [B,2048] float32."""
        x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
        pixels = (x + 1) * 127.5
        return self.trunk((tf1_resize(pixels, SIZE) - 128) / 128)


def tf1_resize(x: jax.Array, size: int) -> jax.Array:
    """Bilinear resizing as `tf.image.resize_bilinear` of TensorFlow 1 did it, without antialiasing.

    Pixel i of the result lies at `i * H / size` of the source, where torch and TensorFlow 2 have
    `(i + 0.5) * H / size - 0.5`.

    Args:
      x: [B,H,W,C].
      size: of both sides of the result.

    Returns:
      [B,size,size,C].
    """
    rows, columns = (jnp.asarray(_resize_matrix(n, size), x.dtype) for n in x.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision=lax.Precision.HIGHEST)


def _resize_matrix(source: int, size: int) -> np.ndarray:
    # TensorFlow computes the coordinates in float32, which decides between two pixels at whole numbers.
    at = np.arange(size, dtype=np.float32) * (np.float32(source) / np.float32(size))
    low = np.minimum(at.astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    share = at - low
    matrix = np.zeros((size, source), np.float64)
    np.add.at(matrix, (np.arange(size), low), 1 - share)
    np.add.at(matrix, (np.arange(size), high), share)
    return matrix


class _Conv(nn.Module):
    """Convolution without bias, the stored normalisation, ReLU. `padding` is on both sides of (height, width)."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = [(side, side) for side in self.padding]
        x = nn.Conv(self.channels, self.kernel, self.stride, padding, use_bias=False, name="conv")(x)
        return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


def _reduce_windows(x: jax.Array, reduce: Callable, stride: int = 1) -> jax.Array:
    """Reduces every 3x3 window. XLA's own operation for it is not vectorised on CPUs and took a tenth of all time."""
    for axis in (1, 2):
        last = x.shape[axis] - 3
        x = functools.reduce(reduce, [lax.slice_in_dim(x, k, k + last + 1, stride, axis) for k in range(3)])
    return x


def _padded(x: jax.Array, value: float) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)


def _mean_pool(x: jax.Array) -> jax.Array:
    inside = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    return _reduce_windows(_padded(x, 0), jnp.add) / _reduce_windows(_padded(inside, 0), jnp.add)


def _max_pool(x: jax.Array) -> jax.Array:
    return _reduce_windows(_padded(x, -jnp.inf), jnp.maximum)


def _halve(x: jax.Array) -> jax.Array:
    return _reduce_windows(x, jnp.maximum, stride=2)


class _Mixed35(nn.Module):
    """Blocks at 35x35: 1x1, 5x5 and two 3x3 in a row, beside pooling."""

    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = _Conv(64, name="branch1x1")(x)
        five = _Conv(48, name="branch5x5_1")(x)
        five = _Conv(64, (5, 5), padding=(2, 2), name="branch5x5_2")(five)
        three = _Conv(64, name="branch3x3dbl_1")(x)
        three = _Conv(96, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(three)
        three = _Conv(96, (3, 3), padding=(1, 1), name="branch3x3dbl_3")(three)
        pooled = _Conv(self.pooled, name="branch_pool")(_mean_pool(x))
        return jnp.concatenate([one, five, three, pooled], -1)


class _To17(nn.Module):
    """From 35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = _Conv(384, (3, 3), 2, name="branch3x3")(x)
        double = _Conv(64, name="branch3x3dbl_1")(x)
        double = _Conv(96, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(double)
        double = _Conv(96, (3, 3), 2, name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, _halve(x)], -1)


class _Mixed17(nn.Module):
    """Blocks at 17x17: 7x7 convolutions as pairs of 1x7 and 7x1."""

    inner: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner, wide, tall = self.inner, ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        one = _Conv(192, name="branch1x1")(x)
        seven = _Conv(inner, name="branch7x7_1")(x)
        seven = _Conv(inner, *wide, name="branch7x7_2")(seven)
        seven = _Conv(192, *tall, name="branch7x7_3")(seven)
        double = _Conv(inner, name="branch7x7dbl_1")(x)
        double = _Conv(inner, *tall, name="branch7x7dbl_2")(double)
        double = _Conv(inner, *wide, name="branch7x7dbl_3")(double)
        double = _Conv(inner, *tall, name="branch7x7dbl_4")(double)
        double = _Conv(192, *wide, name="branch7x7dbl_5")(double)
        pooled = _Conv(192, name="branch_pool")(_mean_pool(x))
        return jnp.concatenate([one, seven, double, pooled], -1)


class _To8(nn.Module):
    """From 17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = _Conv(192, name="branch3x3_1")(x)
        three = _Conv(320, (3, 3), 2, name="branch3x3_2")(three)
        seven = _Conv(192, name="branch7x7x3_1")(x)
        seven = _Conv(192, (1, 7), padding=(0, 3), name="branch7x7x3_2")(seven)
        seven = _Conv(192, (7, 1), padding=(3, 0), name="branch7x7x3_3")(seven)
        seven = _Conv(192, (3, 3), 2, name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, _halve(x)], -1)


class _Mixed8(nn.Module):
    """Blocks at 8x8: 1x3 and 3x1 side by side. The last block of the graph pools by the maximum."""

    pools_by_maximum: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide, tall = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
        one = _Conv(320, name="branch1x1")(x)
        three = _Conv(384, name="branch3x3_1")(x)
        threes = [_Conv(384, *wide, name="branch3x3_2a")(three), _Conv(384, *tall, name="branch3x3_2b")(three)]
        double = _Conv(448, name="branch3x3dbl_1")(x)
        double = _Conv(384, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(double)
        doubles = [_Conv(384, *wide, name="branch3x3dbl_3a")(double), _Conv(384, *tall, name="branch3x3dbl_3b")(double)]
        pool = _max_pool if self.pools_by_maximum else _mean_pool
        pooled = _Conv(192, name="branch_pool")(pool(x))
        return jnp.concatenate([one, *threes, *doubles, pooled], -1)


class _Trunk(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _Conv(32, (3, 3), 2, name="Conv2d_1a_3x3")(x)
        x = _Conv(32, (3, 3), name="Conv2d_2a_3x3")(x)
        x = _halve(_Conv(64, (3, 3), padding=(1, 1), name="Conv2d_2b_3x3")(x))
        x = _Conv(80, name="Conv2d_3b_1x1")(x)
        x = _halve(_Conv(192, (3, 3), name="Conv2d_4a_3x3")(x))
        for name, pooled in {"5b": 32, "5c": 64, "5d": 64}.items():
            x = _Mixed35(pooled, name=f"Mixed_{name}")(x)
        x = _To17(name="Mixed_6a")(x)
        for name, inner in {"6b": 128, "6c": 160, "6d": 160, "6e": 192}.items():
            x = _Mixed17(inner, name=f"Mixed_{name}")(x)
        x = _To8(name="Mixed_7a")(x)
        for name, pools_by_maximum in {"7b": False, "7c": True}.items():
            x = _Mixed8(pools_by_maximum, name=f"Mixed_{name}")(x)
        return x.mean((1, 2))


def variables_from_torch(weights: Mapping[str, np.ndarray], source: str) -> dict[str, dict]:
    """Flax variables from arrays under the names of pytorch-fid's state dict.

    Args:
      weights: such as `Mixed_5b.branch1x1.conv.weight` -> float32 [out,in,height,width].
      source: where they are from, for the text of errors.

    Returns:
      `{"params": ..., "batch_stats": ...}` for `InceptionV3`.

    Raises:
      UserError: if an array is missing or has another shape.
    """

    def load(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        collection, *names = (key.key for key in path)
        name, axes = _torch_name(collection, [part for part in names if part != "trunk"])
        if name not in weights:
            raise UserError(f"{source} lacks {name}: it does not hold the weights of the FID Inception network.")
        array = np.asarray(weights[name], np.float32)
        if array.ndim != len(axes) or array.transpose(axes).shape != shape.shape:
            raise UserError(
                f"{source} holds {name} with the shape {array.shape}: it is not the FID Inception network of 2015."
            )
        return array.transpose(axes)

    return jax.tree_util.tree_map_with_path(load, shapes())


@functools.cache
def shapes() -> dict[str, dict]:
    """The shapes of the variables; tracing the network takes a second."""
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def _torch_name(collection: str, names: list[str]) -> tuple[str, tuple[int, ...]]:
    """The array's name in PyTorch, and the order that its axes have here."""
    *modules, leaf = names
    if leaf == "kernel":
        return ".".join([*modules, "weight"]), (1, 0) if modules == ["fc"] else (2, 3, 1, 0)
    here = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}[leaf]
    return ".".join([*modules, here]), (0,)
