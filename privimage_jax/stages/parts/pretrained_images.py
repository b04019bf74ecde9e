"""What the generator drew before fine-tuning, for the evaluation: how far public images alone have brought it."""

import jax
import numpy as np

from privimage_jax import generators
from privimage_jax.data import Dataset
from privimage_jax.generators.sampler import Sampler
from privimage_jax.privacy.clipping import PRECISIONS
from privimage_jax.run.inputs import Inputs
from privimage_jax.stages import choose_sampler, pretrain, selection
from privimage_jax.training.writers import progress

MEASURES = ("fid", "precision", "recall")  # the others take longer, FLD ten times as long as all these


def draw(inputs: Inputs, labels: np.ndarray) -> Dataset | None:
    """As many images as are evaluated, of the pre-trained parameters; None where nobody asks or none were trained.

    Image i has the label, the key and the sampler of the released image i, so that fine-tuning alone tells them apart.

    Args:
      labels: int32 [N], those of the synthetic set.
    """
    config = inputs.config
    if not (config.evaluate.pretrained and (config.pretrain.steps or config.warmup.enabled)):
        return None
    labels, n_classes = labels[: config.evaluate.max_images], inputs.sensitive.n_classes
    generator = generators.build(choose_sampler.chosen(inputs), n_classes)
    asked = labels if _knows_labels(inputs) else np.full_like(labels, n_classes)  # "no label" is all it knows
    params, key = pretrain.load(inputs, generator), inputs.key("synthetic set")
    # The evaluation computes in full precision, and so slower than images are made.
    with (
        jax.default_matmul_precision(PRECISIONS[config.precision]),
        progress("evaluate: images before fine-tuning", len(labels), unit="images") as bar,
    ):
        images = Sampler(generator, inputs.mesh).all(params, key, asked, config.sample.batch_size, bar.advance)
    return Dataset(images, labels, inputs.sensitive.class_names, "pre-trained")


def _knows_labels(inputs: Inputs) -> bool:
    """Whether anything that taught the generator had labels: noisy means always have, public images may."""
    if inputs.config.warmup.enabled:
        return True
    _, taught = selection.load_rows(inputs)
    return bool((taught != inputs.sensitive.n_classes).any())
