"""How often the query network is right on public images that taught it nothing. Public data only.

The figure is `internal/train-query/accuracy.json`. A run whose public set holds no images out has none, nor has one of
an earlier version.
"""

import dataclasses
from typing import Any

import flax.linen as nn

from privimage_jax.cluster import processes
from privimage_jax.data import Dataset
from privimage_jax.errors import UserError
from privimage_jax.metrics import top_k
from privimage_jax.metrics.features import extract, forward
from privimage_jax.metrics.top_k import Accuracy
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.stage import named
from privimage_jax.run.trouble import Trouble
from privimage_jax.storage import durable, reading
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.writers import MetricWriter, headline

STAGE = named("train-query")


def keep(inputs: Inputs, model: nn.Module, variables: Any, steps: int) -> None:
    """Measures the network, or takes over what is known of a reused one, and keeps and shows the figure.

    Args:
      model, variables: of the network.
      steps: that it was trained for here; 0 for a network of another run.
    """
    other = inputs.config.query_net.workdir
    found = read(Workdir(other)) if other else None
    found = found or _measure(inputs, model, variables)
    if found is None:
        return
    durable.atomic_write_json(STAGE.note(inputs.workdir), dataclasses.asdict(found))
    if steps:
        # A folder of its own, so that TensorBoard draws it into the chart of training and no row of that is touched.
        with MetricWriter(inputs.folder(STAGE.name) / "metrics" / "held_out") as writer:
            top5 = {} if found.top5 is None else {"top5": found.top5}
            writer.scalars(steps, {"accuracy": found.top1, **top5})
    headline(STAGE.name, "result", str(found))


def read(run: Workdir) -> Accuracy | None:
    """The figure of a run; None where it has none."""
    kept = reading.read_record(STAGE.note(run))
    images, top1, top5 = kept.get("images"), kept.get("top1"), kept.get("top5")
    shares = [top1, *([] if top5 is None else [top5])]
    if type(images) is int and images > 0 and all(type(one) is float and 0 <= one <= 1 for one in shares):
        return Accuracy(images, *shares)
    return None


def _measure(inputs: Inputs, model: nn.Module, variables: Any) -> Accuracy | None:
    """The accuracy on the held-out public images; None, and a warning, where they cannot be had."""
    if inputs.public.n_classes < 2:
        return None  # whoever has no choice is always right
    images = _held_out(inputs)
    # The forward pass runs on all processes together, so none may go on where another has no images.
    read_everywhere = processes.current().min_over_processes("held-out public images", images.n if images else 0)
    if images is None or not read_everywhere:
        return None
    return top_k.measure(extract(forward(model, variables, "__call__"), images.images), images.labels)


def _held_out(inputs: Inputs) -> Dataset | None:
    try:
        images = inputs.public_held_out
        if images.class_names != inputs.public.class_names:
            raise UserError(
                "the held-out part of config.public has other classes than its training part; give another "
                "config.public.test_split."
            )
    except UserError as error:
        Trouble(inputs).tell("accuracy", f"the accuracy of the query network is not measured: {error}")
        return None
    return images
