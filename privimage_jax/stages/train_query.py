"""Stage 1: train the query function, a classifier of the public set. Public data only; no privacy cost."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from privimage_jax.data import Dataset
from privimage_jax.data.dataset import Subset
from privimage_jax.errors import UserError
from privimage_jax.metrics.features import extract, forward
from privimage_jax.models import registry
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.mechanism import is_spent_on
from privimage_jax.run.stage import named
from privimage_jax.run.trouble import Trouble
from privimage_jax.stages.parts import query_accuracy
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training import classifier, divergence, loop, residency
from privimage_jax.training.checkpoint import Checkpoints, restore_tree, save_tree
from privimage_jax.training.mesh import place, replicated
from privimage_jax.training.precision import activations
from privimage_jax.training.writers import headline

STAGE = named("train-query")
ASKED = 1024  # public images on which the network is tried


def run(inputs: Inputs) -> None:
    """Trains the network, or takes it over from `query_net.workdir`; writes `internal/train-query/network`.

    Where the public set holds images out, its accuracy on these is kept beside it.

    Raises:
      UserError: if the loss is not finite, or the network is of no use, see `check_result`.
    """
    section = inputs.config.query_net
    if section.workdir:
        variables, remedy = _reused_network(inputs), f"choose another config.query_net.workdir than {section.workdir}"
    else:
        remedy = (
            f"give less than config.query_net.learning_rate={section.learning_rate:g} and run the same command again"
        )
        variables = _train(inputs, remedy)
    model = build(inputs.config, inputs.public.n_classes)
    loss = check_result(model, variables, inputs.public, remedy)
    chance = math.log(inputs.public.n_classes)
    if loss >= chance > 0:
        Trouble(inputs).tell(
            "chance",
            f"the query network has a loss of {loss:.3g} on public images, no better than a guess (ln of "
            f"{inputs.public.n_classes} classes = {chance:.3g}); more config.query_net.epochs may help.",
        )
    steps = 0 if section.workdir else recipe(inputs.config, inputs.public.n).steps
    query_accuracy.keep(inputs, model, variables, steps)
    save_tree(STAGE.artefact(inputs.workdir), variables)
    Checkpoints(inputs.folder(STAGE.name) / "checkpoints").clear()


def check_result(model: nn.Module, variables: Any, public: Dataset, remedy: str) -> float:
    """Refuses a network with which the query would spend budget on answers that mean nothing.

    Args:
      model, variables: of the network.
      public: the images that it was trained on.
      remedy: the end of the sentence.

    Returns:
      Its cross-entropy on some of the public images, as the query is going to use it.

    Raises:
      UserError: if a variable or a logit is not finite, the network answers the same to every image, or its loss is
        more than `divergence.FACTOR` times that of a guess, the logarithm of the number of classes.
    """
    rows = np.unique(np.linspace(0, public.n - 1, min(ASKED, public.n)).astype(np.int64))
    logits = extract(forward(model, variables, "__call__"), Subset(public.images, rows)).astype(np.float64)
    if not divergence.all_finite((variables, logits)):
        raise UserError(f"a variable or an answer of the query network is not finite; {remedy}.")
    largest = logits.max(axis=1)
    exponents = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest
    loss, chance = (
        float(np.mean(exponents - logits[np.arange(len(rows)), public.labels[rows]])),
        math.log(public.n_classes),
    )
    if divergence.has_diverged(loss, chance):
        raise UserError(
            f"the query network has diverged: its loss on public images is {loss:.3g}, and that of a guess "
            f"{chance:.3g} (ln of {public.n_classes} classes); {remedy}."
        )
    if len(rows) > 1 < public.n_classes and np.ptp(logits, axis=0).max() <= 1e-5 * np.abs(logits).max():
        raise UserError(f"the query network gives the same answer to every public image; {remedy}.")
    return loss


def _train(inputs: Inputs, remedy: str) -> Any:
    """The variables of a network that is trained here."""
    folder, public = inputs.folder(STAGE.name), inputs.public
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
    state = loop.train(
        STAGE.name,
        step,
        state,
        arguments,
        int(state["step"]),
        how.steps,
        folder,
        inputs.config.log,
        after=divergence.stop_if_not_finite(STAGE.name, remedy),
    )
    return jax.device_get(state["variables"])


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
    """The trained query network as (module, variables).

    Raises:
      UserError: if it is missing, damaged, another model's or not finite.
    """
    module, path = build(inputs.config, inputs.public.n_classes), STAGE.artefact(inputs.workdir)
    variables = restore_tree(path, shapes(inputs))
    return module, divergence.refuse_not_finite(path, variables, is_spent_on(inputs, STAGE))


def shapes(inputs: Inputs) -> Any:
    """Shapes and dtypes of the network's variables."""
    return registry.classifier_shapes(build(inputs.config, inputs.public.n_classes), inputs.public.image_shape)


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
