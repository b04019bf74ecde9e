"""Stage 1: train the query function, a classifier of the public set. Public data only; no privacy cost."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax.errors import UserError
from privimage_jax.models import registry
from privimage_jax.stages.context import Context
from privimage_jax.training import classifier, loop, residency
from privimage_jax.training.checkpoint import Checkpoints, restore_tree, save_tree
from privimage_jax.training.mesh import place, replicated
from privimage_jax.training.precision import activations
from privimage_jax.training.writers import headline
from privimage_jax.workdir import Workdir

NAME = "train-query"
OUTPUTS = ("internal/train-query/network",)  # a missing one makes the stage stale


def enabled(config) -> bool:
    """Needed by the query and by the evaluation's features."""
    return config.selection.method == "semantic" or config.evaluate.enabled


def reads(config) -> tuple[str, ...]:
    """The stages whose artefacts this one reads."""
    return ()


def settings(config) -> dict[str, Any]:
    """What of the config decides this stage's result. A reused network has the fingerprint of its own run."""
    return configs.section(config, "precision", "seed", "query_net", "public", "data.image_size", "data.channels")


def run(context: Context) -> None:
    """Trains the network, or takes it over from `query_net.workdir`; writes `internal/train_query/network`."""
    folder = context.folder(NAME)
    if context.config.query_net.workdir:
        save_tree(folder / "network", _reused_network(context))
        return
    public = context.public
    model, how = build(context.config, public.n_classes), recipe(context.config, public.n)
    state = classifier.init(model, how, context.key("query network"), public.image_shape)
    state = place(state, replicated(context.mesh))
    checkpoints = Checkpoints(folder / "checkpoints", context.config.log.keep)
    state = checkpoints.restore_latest(state, partial(headline, NAME, "warning")) or state
    data = {"image": public.images, "label": public.labels}
    inputs = {
        "data": residency.place(data, context.mesh, context.config.public.residency, "config.public.residency"),
        "key": place(context.key("query batches"), replicated(context.mesh)),
    }
    step = classifier.make_step(model, how, context.mesh)
    state = loop.train(NAME, step, state, inputs, int(state["step"]), how.steps, folder, context.config.log)
    save_tree(folder / "network", jax.device_get(state["variables"]))
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


def load(context: Context) -> tuple[nn.Module, Any]:
    """The trained query network as (module, variables)."""
    module = build(context.config, context.public.n_classes)
    return module, restore_tree(context.workdir.internal / NAME / "network", _shapes(context))


def _shapes(context: Context) -> Any:
    """Shapes and dtypes of the network's variables."""
    model, shape = build(context.config, context.public.n_classes), context.public.image_shape
    return jax.eval_shape(lambda key: registry.init_classifier(model, key, shape), jax.random.key(0))


def _reused_network(context: Context) -> Any:
    other = Workdir(context.config.query_net.workdir)
    other.check()
    mark, own = other.done_mark(NAME), context.fingerprints[NAME]
    if mark is None:
        raise UserError(
            f"config.query_net.workdir={other.root} holds no trained query network; run `privimage train-query` there "
            "first."
        )
    if mark["fingerprint"] != own:
        raise UserError(
            f"the query network in config.query_net.workdir={other.root} was trained with other settings or public "
            "data; use the same query_net and public settings, or leave query_net.workdir empty to train one here."
        )
    return restore_tree(other.internal / NAME / "network", _shapes(context))
