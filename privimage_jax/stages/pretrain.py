"""Stage 4: pre-train the generator on the selected public images, then on noisy means of sensitive ones, if any.

Noisy means are the output of a mechanism (`stages/warmup.py`): training on them is post-processing. There is no privacy
cost here.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from privimage_jax import generators
from privimage_jax.data.dataset import Subset
from privimage_jax.errors import UserError
from privimage_jax.generators import artefact
from privimage_jax.generators.base import Generator, Params, State
from privimage_jax.generators.sampler import Sampler
from privimage_jax.privacy import records
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.mechanism import is_spent_on
from privimage_jax.run.stage import named
from privimage_jax.settings import families
from privimage_jax.stages import selection, warmup
from privimage_jax.storage.durable import make_dir
from privimage_jax.training import divergence, loop, residency
from privimage_jax.training import mesh as meshes
from privimage_jax.training.batches import batch_indices
from privimage_jax.training.checkpoint import Checkpoints, restore_tree, save_tree
from privimage_jax.training.writers import headline

STAGE = named("pretrain")

MEANS = "means"  # the folder of what is learnt from noisy means
Images = np.ndarray | Subset
COMPARED, PIECE = 64, 16  # images on which the result is compared with the start, and how many at a time


def run(inputs: Inputs) -> None:
    """Writes the averaged parameters to `internal/pretrain/params`; with nothing to learn these are the initial ones.

    Raises:
      UserError: if the loss is not finite or pre-training has diverged, see `check_result`.
    """
    generator = generators.build(inputs.config, inputs.sensitive.n_classes)
    params, folders = jax.device_get(generator.init(inputs.key("initial weights"))), []
    for lesson in lessons(inputs):
        params = _learn(inputs, lesson, params)
        folders.append(lesson.folder)
    save_tree(STAGE.artefact(inputs.workdir), params)
    for folder in folders:
        Checkpoints(folder / "checkpoints").clear()


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A set of images that the generator learns from, none of which costs anything.

    Attributes:
      name: what the progress bar shows.
      batches: the purpose of the key of its batches.
      config: the run's, whose section `pretrain` says how it is learnt.
      rate: the learning rate, as a sentence names it.
      folder: of its metrics and checkpoints.
      images: uint8 [M, H, W, C].
      labels: int32 [M].
    """

    name: str
    batches: str
    config: ConfigDict
    rate: str
    folder: Path
    images: Images
    labels: np.ndarray

    @property
    def remedy(self) -> str:
        """What to do where it goes wrong, as the end of a sentence."""
        return (
            f"give less than {self.rate} and run the same command again: the "
            "stages before keep their results, and fine-tuning has spent nothing"
        )


def lessons(inputs: Inputs) -> Iterator[Lesson]:
    """Public images, then noisy means, each read when its turn comes; none where the config has neither."""
    config, folder = inputs.config, inputs.folder(STAGE.name)
    if config.pretrain.steps:
        names = (STAGE.name, "pre-training batches")
        yield Lesson(*names, config, families.rate(config, "pretrain"), folder, *selection.load(inputs))
    if warmup.STAGE.enabled(config):
        of_means = config.copy_and_resolve_references()
        of_means.pretrain.update(steps=config.warmup.steps, learning_rate=config.warmup.learning_rate)
        make_dir(folder / MEANS, mode=0o700)
        names = (f"{STAGE.name}: {warmup.STAGE.name}", "warm-up batches")
        yield Lesson(*names, of_means, families.rate(config, "warmup"), folder / MEANS, *warmup.load(inputs))


def compiled_loss(generator: Generator) -> jax.stages.Wrapped:
    """The loss that fine-tuning is going to minimise, of each example."""
    return jax.jit(generator.per_example_loss)


def public_loss(generator: Generator, images: Images, labels: Images, mesh: Mesh) -> Callable[[Params], float]:
    """The loss that fine-tuning is going to minimise, as a mean over some of the images; a function of parameters.

    It is compiled once, and images and draws are the same at each call, so that two parameters are compared by nothing
    else.
    """
    rows = np.linspace(0, len(labels) - 1, min(COMPARED, len(labels))).astype(int)
    rows = np.resize(rows, -(-len(rows) // PIECE) * PIECE)  # one shape is compiled, however few images there are
    per_example_loss = compiled_loss(generator)

    def loss(params: Params) -> float:
        losses = []
        for number, piece in enumerate(rows.reshape(-1, PIECE)):
            batch = {"image": np.asarray(images[piece]), "label": np.asarray(labels[piece])}
            keys = jax.random.split(jax.random.fold_in(jax.random.key(0), number), PIECE)
            losses.append(per_example_loss(params, *meshes.place((batch, keys), meshes.replicated(mesh))))
        return float(np.mean(jax.device_get(losses)))

    return loss


def check_result(params: Params, before: float, after: float, lowers_loss: bool, remedy: str) -> None:
    """Refuses parameters that fine-tuning would spend budget on in vain.

    Args:
      params: the result.
      before: `public_loss` at the start.
      after: that of the result.
      lowers_loss: whether the family says that pre-training lowers it, see `Generator`.
      remedy: the end of the sentence.

    Raises:
      UserError: if a parameter or the loss is not finite, or pre-training lowers the loss and it is more than
        `divergence.FACTOR` times that at the start.
    """
    if not divergence.all_finite(jax.device_get(params)):
        raise UserError(f"a parameter of the pre-trained generator is not finite; {remedy}.")
    if divergence.has_diverged(after, before if lowers_loss else math.inf):
        raise UserError(
            f"pre-training has diverged: the loss on its images was {before:.3g} at the start and is {after:.3g}; "
            f"{remedy}."
        )


def _learn(inputs: Inputs, lesson: Lesson, params: Params) -> Params:
    """The averaged parameters, on the host, once a generator with these has learnt the lesson."""
    generator = generators.build(lesson.config, inputs.sensitive.n_classes)
    state = meshes.place(generator.public_state(params), meshes.replicated(inputs.mesh))
    loss = public_loss(generator, lesson.images, lesson.labels, inputs.mesh)
    before = loss(state["ema"])
    state = _train(inputs, lesson, generator, state)
    check_result(state["ema"], before, loss(state["ema"]), getattr(generator, "lowers_loss", False), lesson.remedy)
    return jax.device_get(state["ema"])


def _train(inputs: Inputs, lesson: Lesson, generator: Generator, state: State) -> State:
    config, key = lesson.config, inputs.key(lesson.batches)
    data = {"image": lesson.images, "label": lesson.labels}
    arguments = {
        "data": residency.place(data, inputs.mesh, config.public.residency, "config.public.residency"),
        "key": meshes.place(key, meshes.replicated(inputs.mesh)),
    }
    checkpoints = Checkpoints(lesson.folder / "checkpoints", config.log.keep)
    state = checkpoints.restore_latest(state, partial(headline, STAGE.name, "warning")) or state
    draw, grid_key = Sampler(generator, inputs.mesh), inputs.key("sample grids")
    return loop.train(
        lesson.name,
        make_step(config, inputs.mesh, generator),
        state,
        arguments,
        int(state["step"]),
        config.pretrain.steps,
        lesson.folder,
        config.log,
        draw=lambda state: draw.grid(state["ema"], grid_key, generator.n_classes),
        after=divergence.stop_if_not_finite(lesson.name, lesson.remedy),
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
      UserError: if they are missing, damaged, another model's or not finite.
    """
    path = STAGE.artefact(inputs.workdir)
    params = restore_tree(path, artefact.shapes(generator))
    return divergence.refuse_not_finite(path, params, is_spent_on(inputs, STAGE))
