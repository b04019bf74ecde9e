"""Stage 1: train the query function, a classifier of the public set. Public data only; no privacy cost."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from privimage_jax.errors import UserError
from privimage_jax.models import registry
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.stage import named
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training import classifier, loop, residency
from privimage_jax.training.checkpoint import Checkpoints, restore_tree, save_tree
from privimage_jax.training.mesh import place, replicated
from privimage_jax.training.precision import activations
from privimage_jax.training.writers import headline

STAGE = named("train-query")


def run(inputs: Inputs) -> None:
    """Trains the network, or takes it over from `query_net.workdir`; writes `internal/train-query/network`."""
    folder = inputs.folder(STAGE.name)
    if inputs.config.query_net.workdir:
        save_tree(STAGE.artefact(inputs.workdir), _reused_network(inputs))
        return
    public = inputs.public
    model, how = build(inputs.config, public.n_classes), recipe(inputs.config, public.n)
    state = classifier.init(model, how, inputs.key("query network"), public.image_shape)
    state = place(state, replicated(inputs.mesh))
    checkpoints = Checkpoints(folder / "checkpoints", inputs.config.log.keep)
    state = checkpoints.restore_latest(state, partial(headline, STAGE.name, "warning")) or state
    data = {"image": public.images, "label": public.labels}
    arguments = {
        "data": residency.place(data, inputs.mesh, inputs.config.public.residency, "config.public.residency"),
        "key": place(inputs.key("query batches"), replicated(inputs.mesh)),
    }
    step = classifier.make_step(model, how, inputs.mesh)
    state = loop.train(STAGE.name, step, state, arguments, int(state["step"]), how.steps, folder, inputs.config.log)
    save_tree(STAGE.artefact(inputs.workdir), jax.device_get(state["variables"]))
    checkpoints.clear()


def recipe(config: ConfigDict, n: int) -> classifier.Recipe:
    """How the network is trained on `n` public images."""
    section = config.query_net
    return classifier.Recipe(
        steps=max(1, int(section.epochs * n / section.batch_size)),
        batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        optimizer="sgd",
        momentum=section.momentum,
        weight_decay=section.weight_decay,
        label_smoothing=section.label_smoothing,
        flip=section.flip,
        shift=section.shift,
    )


def build(config: ConfigDict, n_classes: int) -> nn.Module:
    """The query network's module, for so many public classes."""
    arguments = {"dtype": activations(config.precision), **config.query_net.kwargs}
    return registry.build_classifier(config.query_net.model, n_classes, **arguments)


def load(inputs: Inputs) -> tuple[nn.Module, Any]:
    """The trained query network as (module, variables)."""
    module = build(inputs.config, inputs.public.n_classes)
    return module, restore_tree(STAGE.artefact(inputs.workdir), shapes(inputs))


def shapes(inputs: Inputs) -> Any:
    """Shapes and dtypes of the network's variables."""
    model, shape = build(inputs.config, inputs.public.n_classes), inputs.public.image_shape
    return jax.eval_shape(lambda key: registry.init_classifier(model, key, shape), jax.random.key(0))


def _reused_network(inputs: Inputs) -> Any:
    other = Workdir(inputs.config.query_net.workdir)
    other.check()
    mark = other.done_mark(STAGE.name)
    if mark is None:
        raise UserError(
            f"config.query_net.workdir={other.root} holds no trained query network; run `privimage train-query` there "
            "first."
        )
    if mark["fingerprint"] != inputs.fingerprint:
        raise UserError(
            f"the query network in config.query_net.workdir={other.root} was trained with other settings or public "
            "data; use the same query_net and public settings, or leave query_net.workdir empty to train one here."
        )
    return restore_tree(STAGE.artefact(other), shapes(inputs))
