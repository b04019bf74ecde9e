"""Stage 4: pre-train the generator on the selected public images. Public data only; no privacy cost."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from privimage_jax.diffusion import make_per_example_loss
from privimage_jax.models import registry
from privimage_jax.models.layers import fast_convolutions
from privimage_jax.privacy import records
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.stage import named
from privimage_jax.stages import generator, selection
from privimage_jax.training import loop, residency
from privimage_jax.training import mesh as meshes
from privimage_jax.training.batches import batch_indices
from privimage_jax.training.checkpoint import Checkpoints, restore_tree, save_tree
from privimage_jax.training.state import init_state, make_update
from privimage_jax.training.writers import headline

STAGE = named("pretrain")


def run(inputs: Inputs) -> None:
    """Writes the averaged parameters to `internal/pretrain/params`; with 0 steps these are the initial ones."""
    config, folder = inputs.config, inputs.folder(STAGE.name)
    n_classes = inputs.sensitive.n_classes
    model = generator.build(config, n_classes)
    params = registry.init_denoiser(model, inputs.key("initial weights"), inputs.sensitive.image_shape)
    optimizer = optax.adam(config.pretrain.learning_rate)
    state = meshes.place(init_state(params, optimizer), meshes.replicated(inputs.mesh))
    if config.pretrain.steps:
        state = _train(inputs, model, optimizer, state, n_classes)
    save_tree(STAGE.artefact(inputs.workdir), jax.device_get(state["ema"]))
    Checkpoints(folder / "checkpoints").clear()


def _train(inputs: Inputs, model, optimizer, state, n_classes):
    config, folder = inputs.config, inputs.folder(STAGE.name)
    section, log = config.pretrain, config.log
    images, labels = selection.load(inputs)
    arguments = {
        "data": residency.place(
            {"image": images, "label": labels}, inputs.mesh, config.public.residency, "config.public.residency"
        ),
        "key": meshes.place(inputs.key("pre-training batches"), meshes.replicated(inputs.mesh)),
    }
    checkpoints = Checkpoints(folder / "checkpoints", log.keep)
    state = checkpoints.restore_latest(state, partial(headline, STAGE.name, "warning")) or state
    draw, grid_key = generator.Sampler(config, model, inputs.mesh), inputs.key("sample grids")
    return loop.train(
        STAGE.name,
        make_step(config, inputs.mesh, model, optimizer, n_classes),
        state,
        arguments,
        int(state["step"]),
        section.steps,
        folder,
        log,
        draw=lambda state: draw.grid(state["ema"], grid_key, n_classes),
    )


def make_step(
    config: ConfigDict, mesh: Mesh, model: nn.Module, optimizer: optax.GradientTransformation, n_classes: int
) -> loop.Step:
    """`step(state, {"data", "key"}, t) -> (state, metrics)`; batch t is a function of (key, t) alone."""
    section = config.pretrain
    per_example_loss = fast_convolutions(platform=meshes.platform(mesh))(
        make_per_example_loss(model, generator.edm(config), n_classes, 1, flip=section.flip, shift=section.shift)
    )
    update = make_update(optimizer, section.ema)

    def step(state, inputs, t):
        rows = batch_indices(inputs["key"], t, records.size(inputs["data"]), section.batch_size)
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(inputs["key"], 1), t), section.batch_size)
        batch = records.batch(inputs["data"], rows, mesh)
        batch, keys = meshes.split_batch(mesh, (batch, keys))
        loss, gradients = jax.value_and_grad(lambda params: jnp.mean(per_example_loss(params, batch, keys)))(
            state["params"]
        )
        return update(state, gradients), {"loss": loss}

    return step


def load(inputs: Inputs) -> Any:
    """The pre-trained parameters.

    Raises:
      UserError: if they are missing, damaged or another model's.
    """
    return restore_tree(STAGE.artefact(inputs.workdir), generator.shapes(inputs))
