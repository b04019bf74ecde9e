"""Stage 4: pre-train the generator on the selected public images. Public data only; no privacy cost."""

from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from privimage_jax import generators
from privimage_jax.generators import artefact
from privimage_jax.generators.base import Generator, Params, State
from privimage_jax.generators.sampler import Sampler
from privimage_jax.privacy import records
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.stage import named
from privimage_jax.stages import selection
from privimage_jax.training import loop, residency
from privimage_jax.training import mesh as meshes
from privimage_jax.training.batches import batch_indices
from privimage_jax.training.checkpoint import Checkpoints, restore_tree, save_tree
from privimage_jax.training.writers import headline

STAGE = named("pretrain")


def run(inputs: Inputs) -> None:
    """Writes the averaged parameters to `internal/pretrain/params`; with 0 steps these are the initial ones."""
    generator = generators.build(inputs.config, inputs.sensitive.n_classes)
    state = generator.public_state(generator.init(inputs.key("initial weights")))
    state = meshes.place(state, meshes.replicated(inputs.mesh))
    if inputs.config.pretrain.steps:
        state = _train(inputs, generator, state)
    save_tree(STAGE.artefact(inputs.workdir), jax.device_get(state["ema"]))
    Checkpoints(inputs.folder(STAGE.name) / "checkpoints").clear()


def _train(inputs: Inputs, generator: Generator, state: State) -> State:
    config, folder = inputs.config, inputs.folder(STAGE.name)
    images, labels = selection.load(inputs)
    arguments = {
        "data": residency.place(
            {"image": images, "label": labels}, inputs.mesh, config.public.residency, "config.public.residency"
        ),
        "key": meshes.place(inputs.key("pre-training batches"), meshes.replicated(inputs.mesh)),
    }
    checkpoints = Checkpoints(folder / "checkpoints", config.log.keep)
    state = checkpoints.restore_latest(state, partial(headline, STAGE.name, "warning")) or state
    draw, grid_key = Sampler(generator, inputs.mesh), inputs.key("sample grids")
    return loop.train(
        STAGE.name,
        make_step(config, inputs.mesh, generator),
        state,
        arguments,
        int(state["step"]),
        config.pretrain.steps,
        folder,
        config.log,
        draw=lambda state: draw.grid(state["ema"], grid_key, generator.n_classes),
    )


def make_step(config: ConfigDict, mesh: Mesh, generator: Generator) -> loop.Step:
    """`step(state, {"data", "key"}, t) -> (state, metrics)`; batch t is a function of (key, t) alone."""
    size, update = config.pretrain.batch_size, generator.public_update(mesh)

    def step(state: Any, inputs: Any, t: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        rows = batch_indices(inputs["key"], t, records.size(inputs["data"]), size)
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(inputs["key"], 1), t), size)
        batch, keys = meshes.split_batch(mesh, (records.batch(inputs["data"], rows, mesh), keys))
        return update(state, batch, keys)

    return step


def load(inputs: Inputs, generator: Generator) -> Params:
    """The pre-trained parameters.

    Raises:
      UserError: if they are missing, damaged or another model's.
    """
    return restore_tree(STAGE.artefact(inputs.workdir), artefact.shapes(generator))
