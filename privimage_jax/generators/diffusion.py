"""Diffusion models as a family of generators: a denoiser of the zoo in the EDM formulation (`generators.edm`)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from privimage_jax.generators.base import Batch, Params, State
from privimage_jax.generators.edm import EDM, Churn, denoise, make_per_example_loss, sample
from privimage_jax.models import registry
from privimage_jax.models.convolution import fast_convolutions
from privimage_jax.training import mesh as meshes
from privimage_jax.training import perturbation
from privimage_jax.training.precision import activations
from privimage_jax.training.state import init_state, make_update
from privimage_jax.training.trainable import merge_trainable, split_trainable


class Diffusion:
    """A conditional denoiser; see `generators.base.Generator`."""

    lowers_loss = True

    def __init__(self, config: ConfigDict, n_classes: int):
        shape = config.data
        self.config = config
        self.n_classes = n_classes
        self.image_shape = (shape.image_size, shape.image_size, shape.channels)
        self.model = registry.build_denoiser(config.model, n_classes, shape.channels, activations(config.precision))
        self.edm = EDM(**config.diffusion.to_dict())
        section = config.finetune
        self.draws = section.noise_multiplicity
        self.per_example_loss = make_per_example_loss(
            self.model, self.edm, n_classes, section.noise_multiplicity, flip=section.flip, shift=section.shift
        )

    def init(self, key: jax.Array) -> Params:
        """Initial parameters."""
        return registry.init_denoiser(self.model, key, self.image_shape)

    def public_state(self, params: Params) -> State:
        """Adam, from the initial parameters."""
        return init_state(params, optax.adam(self.config.pretrain.learning_rate))

    def public_update(self, mesh: Mesh) -> Callable[[State, Batch, jax.Array], tuple[State, dict[str, jax.Array]]]:
        """One step of Adam on the mean denoising loss, one draw for each image, at weights that may be perturbed."""
        section = self.config.pretrain
        update = make_update(optax.adam(section.learning_rate), section.ema)
        per_example_loss = fast_convolutions(platform=meshes.platform(mesh))(
            make_per_example_loss(self.model, self.edm, self.n_classes, 1, flip=section.flip, shift=section.shift)
        )

        def step(state: State, batch: Batch, keys: jax.Array) -> tuple[State, dict[str, jax.Array]]:
            def mean_loss(params: Params) -> jax.Array:
                return jnp.mean(per_example_loss(params, batch, keys))

            gradient = perturbation.value_and_grad(mean_loss, section.perturbation, section.perturbation_norm)
            loss, gradients = gradient(state["params"])
            return update(state, gradients), {"loss": loss}

        return step

    def private_state(self, params: Params, key: jax.Array) -> State:
        """Adam, on the parameters (or low-rank factors) that `config.finetune` trains."""
        section = self.config.finetune
        trained, frozen = split_trainable(section, params, key)
        return init_state(trained, optax.adam(section.learning_rate), frozen)

    def merge(self, trained: Params, frozen: Params) -> Params:
        """The denoiser's parameters."""
        return merge_trainable(self.config.finetune, trained, frozen)

    def private_update(self, mesh: Mesh) -> Callable[[State, Params], State]:
        """One step of Adam and of the moving average."""
        section = self.config.finetune
        return make_update(optax.adam(section.learning_rate), section.ema)

    def released(self, state: State) -> Params:
        """The denoiser's parameters, those that were trained as their moving average."""
        return self.merge(state["ema"], state["frozen"])

    def sample(self, params: Params, keys: jax.Array, labels: jax.Array) -> jax.Array:
        """Images by the sampler of `config.sample`."""
        section = self.config.sample
        return sample(
            self.model,
            self.edm,
            params,
            labels,
            keys,
            self.image_shape,
            sampler=section.sampler,
            steps=section.steps,
            guidance=section.guidance,
            churn=Churn(section.s_churn, section.s_min, section.s_max, section.s_noise),
        )

    def sample_flops(self, params: Params) -> float:
        """Those of one call of the network, counted over 8 images, times the calls of the sampler."""
        section, size = self.config.sample, 8
        calls = section.steps if section.sampler == "ddim" else 2 * section.steps - 1
        calls *= 2 if section.guidance else 1

        def once(params: Params, images: jax.Array, sigma: jax.Array, labels: jax.Array) -> jax.Array:
            return denoise(self.model, self.edm, params, images, sigma, labels)

        images = jax.ShapeDtypeStruct((size, *self.image_shape), jnp.float32)
        sigma, labels = (jax.ShapeDtypeStruct((size,), dtype) for dtype in (jnp.float32, jnp.int32))
        counted = (jax.jit(once).lower(params, images, sigma, labels).cost_analysis() or {})["flops"]
        return float(counted) * calls / size
