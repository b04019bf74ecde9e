"""The small problem of the checks. Its values are made on the host, so that they are the same on every machine."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from privimage_jax.generators.base import PerExampleLoss
from privimage_jax.generators.edm import EDM, make_per_example_loss
from privimage_jax.models import registry
from privimage_jax.models.unet import UNet
from privimage_jax.training.precision import activations

CLIP_NORM = 1e-3
SMALL = 100_000  # parameters; a larger network would take the compiler most of the time
_DRAWS = 2  # K
_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Problem:
    """A denoiser and random images.

    Attributes:
      model: the denoiser.
      shape: of an image, (H, W, C).
    """

    model: nn.Module
    shape: tuple[int, int, int]

    def loss(self, precision: str) -> PerExampleLoss:
        """The denoising loss of the network computing in `precision`, as far as it lets its activations be chosen."""
        model = self.model
        if hasattr(model, "dtype"):
            model = model.clone(dtype=activations(precision))
        return make_per_example_loss(model, EDM(), model.n_classes, _DRAWS)

    @functools.cached_property
    def params(self) -> dict[str, Any]:
        """Random parameters, float32 on the host. (Fresh ones of a UNet are 0 in the last layers.)"""
        inputs = (jnp.zeros((1, *self.shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), *inputs)["params"]
        rng = np.random.default_rng(0)

        def leaf(path: tuple, like: jax.ShapeDtypeStruct) -> np.ndarray:
            values = rng.standard_normal(like.shape, np.float32)
            if path[-1].key == "scale":
                return 1 + 0.1 * values
            return values / math.sqrt(math.prod(like.shape[:-1])) if len(like.shape) > 1 else 0.1 * values

        return jax.tree_util.tree_map_with_path(leaf, shapes)

    def images(self, n: int) -> dict[str, np.ndarray]:
        """{"image": uint8 [n, H, W, C], "label": int32 [n]}."""
        rng = np.random.default_rng(1)
        labels = np.arange(n, dtype=np.int32) % self.model.n_classes
        return {"image": rng.integers(0, 256, (n, *self.shape), np.uint8), "label": labels}


def of(config: ConfigDict) -> Problem:
    """The config's own network where it is small, else a small UNet with every kind of layer."""
    shape = (config.data.image_size, config.data.image_size, config.data.channels)
    model = registry.build_denoiser(config.model, len(config.data.class_names) or _CLASSES, config.data.channels)
    own = jax.eval_shape(lambda key: registry.init_denoiser(model, key, shape), jax.random.key(0))
    if registry.parameter_count(own) <= SMALL:
        return Problem(model, shape)
    levels, attention = ((1,), (8,)) if jax.default_backend() == "cpu" else ((1, 2), (4,))  # CPUs compile slowly
    unet = UNet(n_classes=_CLASSES, channels=3, nf=16, ch_mult=levels, attn=attention, num_blocks=1)
    return Problem(unet, (8, 8, 3))


def compiled(function: Any) -> Any:
    """`jax.jit` for what runs a few times: on a CPU nearly all of the time would be LLVM's, spent on optimising it."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)


def distance(tree: Any, reference: Any) -> float:
    """|tree - reference| / |reference| in L2 norm over all leaves, in float64 on the host."""
    pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True))
    apart = sum(float(np.sum((np.float64(a) - np.float64(b)) ** 2)) for a, b in pairs)
    return math.sqrt(apart / sum(float(np.sum(np.float64(b) ** 2)) for _, b in pairs))
