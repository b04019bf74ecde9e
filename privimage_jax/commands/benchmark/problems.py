"""One setting of the benchmark, as every method gets it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from privimage_jax import generators
from privimage_jax.generators.base import Generator, PerExampleLoss
from privimage_jax.training import memory
from privimage_jax.training.mesh import make_mesh
from privimage_jax.training.precision import activations


@dataclasses.dataclass(frozen=True)
class Problem:
    """One setting, as every method gets it.

    Attributes:
      config: resolved, with this problem's precision and noise multiplicity.
      generator: of that config, all of whose parameters are trained.
      params: what is trained, as `loss` takes it.
      frozen: what the generator holds beside that.
      batch_size: B.
      microbatch: examples that a device handles at once.
    """

    config: ConfigDict
    generator: Generator
    params: Any
    frozen: Any
    batch_size: int
    microbatch: int
    noise_multiplier: float = 1.0

    @functools.cached_property
    def loss(self) -> PerExampleLoss:
        """`(params, batch, keys [B]) -> [B]`."""
        return lambda params, batch, keys: self.generator.per_example_loss(self.merged(params), batch, keys)

    def update(self, devices: int = 1) -> Callable[[dict, Any], dict]:
        """`(state, gradient) -> state`, on the first so many devices."""
        return self.generator.private_update(make_mesh(jax.devices()[:devices]))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.generator.image_shape

    @property
    def noise_multiplicity(self) -> int:
        """K."""
        return self.config.finetune.noise_multiplicity

    @property
    def precision(self) -> str:
        """Of `clipping.PRECISIONS`."""
        return self.config.precision

    @property
    def clip_norm(self) -> float:
        """C."""
        return self.config.clipping.norm

    @property
    def learning_rate(self) -> float:
        """Of the update, which is Adam and a moving average."""
        return self.config.finetune.learning_rate

    @property
    def ema(self) -> float:
        """Decay of that moving average."""
        return self.config.finetune.ema

    def merged(self, params: Any) -> Any:
        """The model's own parameters, from those that are trained."""
        return self.generator.merge(params, self.frozen)

    def state(self) -> dict[str, Any]:
        """The state from which fine-tuning starts."""
        return self.generator.private_state(self.merged(self.params), jax.random.key(0))

    def divisor(self, most: int) -> int:
        """The largest microbatch of at most `most` examples that divides the batch."""
        return max(m for m in range(1, max(1, min(most, self.batch_size)) + 1) if self.batch_size % m == 0)


def build(config: ConfigDict, precision: str, noise_multiplicity: int) -> tuple[ConfigDict, Generator]:
    """The config with these settings, all parameters trained and no augmentation; and its generator.

    A model without a field `dtype` is taken to compute in its parameters' type; in bfloat16 it cannot.
    """
    config = _computing_in(config, precision)
    section = config.finetune
    section.noise_multiplicity, section.trainable, section.lora_rank = noise_multiplicity, ".*", 0
    section.flip, section.shift = False, 0
    if (dtype := activations(precision)) != "float32":
        config.model.kwargs = ConfigDict({**config.model.kwargs, "dtype": dtype})
    return config, generators.build(config, len(config.data.class_names) or 10)


def _computing_in(config: ConfigDict, precision: str) -> ConfigDict:
    """A copy with this precision, which a type of activations among the model's arguments does not override."""
    config = config.copy_and_resolve_references()
    config.precision = precision
    config.model.kwargs = ConfigDict({key: value for key, value in config.model.kwargs.items() if key != "dtype"})
    return config


def make_problem(
    config: ConfigDict, batch_size: int, noise_multiplicity: int, precision: str, params: Any = None
) -> Problem:
    """One setting; `params`, what is trained, are the generator's initial ones by default."""
    config, generator = build(config, precision, noise_multiplicity)
    key = jax.random.key(config.seed)
    state = generator.private_state(generator.init(key), key)
    params = state["params"] if params is None else params
    problem = Problem(config, generator, params, state["frozen"], batch_size, config.clipping.microbatch or batch_size)
    if not config.clipping.microbatch:
        per_example = memory.bytes_per_example(problem.loss, params, generator.image_shape)
        # Small batches go in one piece where that fits.
        most = memory.largest_microbatch(per_example, max(batch_size, 1024), 1, memory.device_bytes())
        problem = dataclasses.replace(problem, microbatch=most)
    return dataclasses.replace(problem, microbatch=min(problem.microbatch, batch_size))


def in_precision(problem: Problem, precision: str) -> Problem:
    """The same problem in another precision; activations change where the model lets them."""
    config = _computing_in(problem.config, precision)
    generator = generators.build(config, problem.generator.n_classes)
    return dataclasses.replace(problem, config=config, generator=generator)


def random_data(problem: Problem, n: int) -> dict[str, np.ndarray]:
    """Images uint8 [n, H, W, C] and labels int32 [n], the same at each call."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, *problem.image_shape), np.uint8)
    return {"image": images, "label": np.arange(n, dtype=np.int32) % problem.generator.n_classes}


def model_flops(problem: Problem) -> float:
    """Floating-point operations of the plain gradient of a whole batch."""
    m = problem.microbatch
    batch = random_data(problem, m)

    def gradient(params: Any, batch: Any, keys: jax.Array) -> Any:
        return jax.grad(lambda params: jnp.sum(problem.loss(params, batch, keys)))(params)

    lowered = jax.jit(gradient).lower(problem.params, batch, jax.random.split(jax.random.key(0), m))
    return (lowered.cost_analysis() or {})["flops"] * problem.batch_size / m
