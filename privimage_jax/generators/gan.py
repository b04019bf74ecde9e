"""Generative adversarial networks as a family of generators: PrivImage+G, and DPGAN without pre-training.

Only the discriminator sees images: its gradient is what DP-SGD clips and noises, and a real image and the generated one
beside it share one clipped gradient (Xie et al. 2018, arXiv:1802.06739). The generator learns from the discriminator
alone. Hinge losses, Adam without first moment and several steps of the discriminator for each of the generator's are
those of BigGAN and of DPImageBench's DPGAN (see `models.gan`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from privimage_jax.data.augment import augment
from privimage_jax.data.pixels import to_float
from privimage_jax.generators.base import Batch, Params, PerExampleLoss, State
from privimage_jax.generators.edm import each_draw
from privimage_jax.models import spectral_norm
from privimage_jax.models.convolution import fast_convolutions
from privimage_jax.models.gan import Discriminator, Generator
from privimage_jax.models.registry import fast_key
from privimage_jax.training import memory
from privimage_jax.training import mesh as meshes
from privimage_jax.training.precision import activations
from privimage_jax.training.state import ema_update

BETA1 = 0.0  # of Adam
ITERATIONS = 10  # of the power method at the start, from random vectors

Update = Callable[[State, Params, jax.Array], State]


class GAN:
    """A conditional generator and its discriminator; see `generators.base.Generator`.

    Parameters are {"discriminator", "generator"}, the latter after spectral normalisation. A state of either training
    has the discriminator under "params" and, beside what every state has, "generator": the weights before normalisation
    and what their optimizer carries. Its average holds the last discriminator and the averaged generator.
    """

    def __init__(self, config: ConfigDict, n_classes: int):
        side, channels = config.data.image_size, config.data.channels
        section, dtype = config.gan, activations(config.precision)
        self.config = config
        self.n_classes = n_classes
        self.image_shape = (side, side, channels)
        self.generator = Generator(
            n_classes,
            side,
            channels,
            width=section.generator_width,
            embedding=section.embedding,
            attention=section.attention,
            dtype=dtype,
        )
        self.discriminator = Discriminator(n_classes, width=section.discriminator_width, dtype=dtype)
        self.draws = _views(config.finetune, config.finetune.noise_multiplicity)
        self.per_example_loss = self._loss(config.finetune, config.finetune.noise_multiplicity)

    def init(self, key: jax.Array) -> Params:
        """Initial parameters of both networks."""
        noise, label = jnp.zeros((1, self.config.gan.noise)), jnp.zeros(1, jnp.int32)
        keys = [fast_key(key) for key in jax.random.split(key)]
        weights = jax.jit(self.generator.init)(keys[0], noise, label)["params"]
        judge = jax.jit(self.discriminator.init)(keys[1], jnp.zeros((1, *self.image_shape)), label)["params"]
        return {"discriminator": judge, "generator": _converged(weights)[0]}

    def public_state(self, params: Params) -> State:
        """From the initial parameters."""
        return self._state(params, self.config.gan.pretrain_rate)

    def public_update(self, mesh: Mesh) -> Callable[[State, Batch, jax.Array], tuple[State, dict[str, jax.Array]]]:
        """A step of the discriminator on public images, and every so often one of the generator."""
        section = self.config.pretrain
        per_example_loss = fast_convolutions(platform=meshes.platform(mesh))(self._loss(section, 1))
        update = self._update(self.config.gan.pretrain_rate, section.ema, mesh)

        def step(state: State, batch: Batch, keys: jax.Array) -> tuple[State, dict[str, jax.Array]]:
            def mean_loss(trained: Params) -> jax.Array:
                return jnp.mean(per_example_loss(self.merge(trained, state["frozen"]), batch, keys))

            loss, gradients = jax.value_and_grad(mean_loss)(state["params"])
            labels = jnp.resize(batch["label"], self.config.gan.batch_size)
            state = update(state, gradients, labels)
            return state, {"loss": loss, **self.metrics(state)}

        return step

    def private_state(self, params: Params, key: jax.Array) -> State:
        """From the pre-trained parameters; only the discriminator is under "params"."""
        return self._state(params, self.config.gan.finetune_rate)

    def merge(self, trained: Params, frozen: Params) -> Params:
        """Both networks' parameters."""
        return {"discriminator": trained, **frozen}

    def private_update(self, mesh: Mesh) -> Callable[[State, Params], State]:
        """A step of the discriminator by its noised gradient, and every so often one of the generator."""
        update = self._update(self.config.gan.finetune_rate, self.config.finetune.ema, mesh)

        def with_labels(state: State, gradient: Params) -> State:
            key = jax.random.fold_in(self._key(state["step"]), 1)
            labels = jax.random.randint(key, (self.config.gan.batch_size,), 0, self.n_classes)
            return update(state, gradient, labels)

        return with_labels

    def metrics(self, state: State) -> dict[str, jax.Array]:
        """The generator's loss at its last step, 0 before the first: of generated images and the discriminator alone.

        In fine-tuning it is post-processing of noised gradients, as all of the generator is.
        """
        return {"generator_loss": state["generator"]["loss"]}

    def released(self, state: State) -> Params:
        """The last discriminator and the averaged generator."""
        return state["ema"]

    def sample(self, params: Params, keys: jax.Array, labels: jax.Array) -> jax.Array:
        """One pass of the generator for each image."""
        return self._generate(params["generator"], self._noise(keys), labels)

    def sample_flops(self, params: Params) -> float:
        """Those of one pass of the generator, counted over 8 images."""
        size = 8
        lowered = jax.jit(self._generate).lower(params["generator"], *self._made_of(size))
        return float((lowered.cost_analysis() or {})["flops"]) / size

    def check_memory(self, params: Params, available: int) -> None:
        """Refuses a piece of the generator's step that cannot fit into the memory of a device.

        Raises:
          UserError: naming config.gan.microbatch.
        """

        def scores(weights: Params, judge: Params, noise: jax.Array, labels: jax.Array) -> jax.Array:
            return self._judge(judge, self._generate(weights, noise, labels), labels)

        def made_of(size: int) -> tuple:
            return params["discriminator"], *self._made_of(size)

        each = memory.kept_bytes(scores, params["generator"], made_of)
        number = min(self.config.gan.microbatch, self.config.gan.batch_size)
        memory.check_fits("gan.microbatch", number, each, available)

    def _made_of(self, size: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Shapes of what so many images are made from: noise and labels."""
        noise = jax.ShapeDtypeStruct((size, self.config.gan.noise), jnp.float32)
        return noise, jax.ShapeDtypeStruct((size,), jnp.int32)

    def _noise(self, keys: jax.Array) -> jax.Array:
        """What images are made from, float32 [B, Z], one key [B] each."""
        return jax.vmap(lambda key: jax.random.normal(key, (self.config.gan.noise,)))(keys)

    def _generate(self, weights: Params, noise: jax.Array, labels: jax.Array) -> jax.Array:
        images: Any = self.generator.apply({"params": weights}, noise, labels)
        return images

    def _judge(self, weights: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
        scores: Any = self.discriminator.apply({"params": weights}, images, labels)
        return scores

    def _loss(self, section: ConfigDict, multiplicity: int) -> PerExampleLoss:
        """The discriminator's hinge loss of each image and of K generated ones with its label, all under its key.

        An example may have an image of its own for each view, [B, views, H, W, C], and labels [B, views].
        """
        flip, shift, views = section.flip, section.shift, _views(section, multiplicity)

        def loss(params: Params, batch: Batch, keys: jax.Array) -> jax.Array:
            draws = jax.vmap(lambda key: jax.random.split(key, (multiplicity, 2)))(keys)
            given = each_draw(batch["label"], batch["label"], views)
            noise, labels = self._noise(draws[:, :, 0].reshape(-1)), jnp.repeat(given, multiplicity // views)
            fake = jax.lax.stop_gradient(self._generate(params["generator"], noise, labels))
            real = each_draw(to_float(batch["image"]), batch["label"], views)
            real = augment(real, draws[:, :views, 1].reshape(-1), flip, shift)

            both = jnp.concatenate([real.astype(fake.dtype), fake])
            scores = self._judge(params["discriminator"], both, jnp.concatenate([given, labels]))
            of_real, of_fake = scores[: len(real)].reshape(-1, views), scores[len(real) :].reshape(-1, multiplicity)
            return jnp.mean(jax.nn.relu(1 - of_real), axis=1) + jnp.mean(jax.nn.relu(1 + of_fake), axis=1)

        return loss

    def _state(self, params: Params, rate: float) -> State:
        weights, vectors = _converged(params["generator"])
        judge = params["discriminator"]
        return {
            "params": judge,
            "frozen": {"generator": weights},
            "ema": _copy({"discriminator": judge, "generator": weights}),  # donated buffers must not be shared
            "opt_state": _adam(rate).init(judge),
            "step": jnp.zeros((), jnp.int32),
            "generator": {
                "weights": _copy(params["generator"]),
                "vectors": vectors,
                "opt_state": self._generator_adam(rate).init(weights),
                "step": jnp.zeros((), jnp.int32),
                "loss": jnp.zeros(()),
            },
        }

    def _update(self, rate: float, decay: float, mesh: Mesh) -> Update:
        """`(state, gradient, labels) -> state`: what follows the discriminator's gradient; sees no image."""
        adam, every = _adam(rate), self.config.gan.discriminator_steps
        generator_step = self._generator_step(rate, decay, mesh)

        def update(state: State, gradient: Params, labels: jax.Array) -> State:
            updates, opt_state = adam.update(gradient, state["opt_state"], state["params"])
            judge, step = optax.apply_updates(state["params"], updates), state["step"] + 1
            own = (state["generator"], state["frozen"]["generator"], state["ema"]["generator"])
            key = self._key(state["step"])
            own, weights, average = jax.lax.cond(
                step % every == 0, lambda own: generator_step(own, judge, labels, key), lambda own: own, own
            )
            return {
                **state,
                "params": judge,
                "frozen": {"generator": weights},
                "ema": {"discriminator": judge, "generator": average},
                "opt_state": opt_state,
                "step": step,
                "generator": own,
            }

        return update

    def _generator_step(self, rate: float, decay: float, mesh: Mesh) -> Callable:
        """A step of the generator against a discriminator: `((own, weights, average), judge, labels, key) -> (…)`."""
        adam, pieces = self._generator_adam(rate), self._pieces(mesh)

        @fast_convolutions(platform=meshes.platform(mesh))
        def piece_loss(
            weights: Params, vectors: Params, judge: Params, noise: jax.Array, labels: jax.Array
        ) -> jax.Array:
            noise, labels = meshes.split_batch(mesh, (noise, labels))
            images = self._generate(spectral_norm.normalise(weights, vectors)[0], noise, labels)
            return -jnp.mean(self._judge(judge, images, labels)) / pieces

        def step(own: tuple, judge: Params, labels: jax.Array, key: jax.Array) -> tuple:
            state, _, average = own
            noise = jax.random.normal(key, (len(labels), self.config.gan.noise))
            loss_and_gradient = jax.value_and_grad(piece_loss)

            def add(total: tuple, piece: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
                one = loss_and_gradient(state["weights"], state["vectors"], judge, *piece)
                return jax.tree.map(jnp.add, total, one), None

            parts = jax.tree.map(lambda leaf: leaf.reshape(pieces, -1, *leaf.shape[1:]), (noise, labels))
            nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state["weights"]))
            (loss, gradient), _ = jax.lax.scan(add, nothing, parts)
            updates, opt_state = adam.update(gradient, state["opt_state"], state["weights"])
            weights = optax.apply_updates(state["weights"], updates)
            normalised, vectors = spectral_norm.normalise(weights, state["vectors"])
            count = state["step"] + 1
            average = ema_update(average, normalised, count, decay)
            after = {"weights": weights, "vectors": vectors, "opt_state": opt_state, "step": count, "loss": loss}
            return after, normalised, average

        return step

    def _generator_adam(self, rate: float) -> optax.GradientTransformation:
        """For the discriminator's learning rate."""
        return _adam(self.config.gan.generator_rate * rate)

    def _pieces(self, mesh: Mesh) -> int:
        """Into how many pieces a batch of generated images is cut, all of one size."""
        size, most = self.config.gan.batch_size, self.config.gan.microbatch * mesh.size
        return next(pieces for pieces in range(1, size + 1) if size % pieces == 0 and size // pieces <= most)

    def _key(self, step: jax.Array) -> jax.Array:
        """Public, of the generator's draws at a step."""
        return jax.random.fold_in(jax.random.key(self.config.seed), step)


def _views(section: ConfigDict, multiplicity: int) -> int:
    """Of a real image, in a loss: K, or 1 without augmentation, where all would be the same."""
    return multiplicity if section.flip or section.shift else 1


@jax.jit
def _converged(weights: Params) -> tuple[Params, Params]:
    """Weights after spectral normalisation, and vectors at which the power method has converged."""
    vectors = spectral_norm.first_vectors(weights, jax.random.key(0))
    vectors = jax.lax.fori_loop(0, ITERATIONS, lambda _, found: spectral_norm.normalise(weights, found)[1], vectors)
    return spectral_norm.normalise(weights, vectors)


def _adam(learning_rate: float) -> optax.GradientTransformation:
    return optax.adam(learning_rate, b1=BETA1)


def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.array, tree)
