"""The choice of a sampler setting: which of a public list of values it takes, by a look at the sensitive images.

Off by default: a fixed setting costs nothing. `config.sampler_choice.enabled` makes it a mechanism of its own, a noisy
maximum, whose share of the budget is reserved before any other spends.

Each candidate's score is a count: a classifier trained on images drawn with that candidate labels so many sensitive
images rightly, of people in shares of their images. What is drawn and the classifiers come from the released generator
and public seeds, post-processing; only the counting looks at sensitive images.

**Sensitivity.** With m candidates, a null record in place of one takes v in {0, 1}^m from the scores s. What is
released are noisy *margins* u = m s - (s_1 + … + s_m) 1, which hold the same maximum. With k ones in v, u moves by
m v - k 1, of squared L2 norm k (m - k)^2 + (m - k) k^2 = m k (m - k) <= m floor(m/2) ceil(m/2). A record that every
candidate gets right moves no margin, so that this asks for half the noise of the scores themselves (squared norm m, on
margins m^3).
A person takes v in [0, 1]^m, the share of images that each candidate gets right. The norm of a linear map of v is
convex, so that it is largest at a corner of that cube: the same bound.

**Guarantee.** The margins with noise are one Gaussian mechanism, which the accountant composes with the others; the
place of the largest is post-processing.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from privimage_jax import generators
from privimage_jax.data import Dataset
from privimage_jax.generators import artefact
from privimage_jax.generators.sampler import Sampler, make_labels
from privimage_jax.metrics.downstream import fit, quick
from privimage_jax.metrics.features import forward
from privimage_jax.models import registry
from privimage_jax.run import counting, noisy_counts, publication
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.stage import named
from privimage_jax.stages import class_histogram
from privimage_jax.storage import fingerprints
from privimage_jax.training.precision import activations
from privimage_jax.training.state import tree_digest
from privimage_jax.training.writers import progress

STAGE = named("choose-sampler")


def run(inputs: Inputs) -> None:
    """Writes `release/sampler.json`: the candidates, their noisy margins, and the chosen one.

    Raises:
      UserError: if the budget is spent and the output was lost, the inputs changed since the budget was spent, or the
        classifier has operations that may look at several images at once.
    """
    section = inputs.config.sampler_choice

    def prepare() -> tuple[dict[str, str], Callable[[], np.ndarray]]:
        shapes = artefact.shapes(generators.build(inputs.config, inputs.sensitive.n_classes))
        params = artefact.read_params(named("finetune").artefact(inputs.workdir), shapes)
        frequencies = class_histogram.frequencies(inputs)
        determinants = {
            "generator": tree_digest(params),
            "class frequencies": fingerprints.fingerprint(frequencies),
            "settings": fingerprints.fingerprint(STAGE.settings(inputs.config)),
        }
        labels = make_labels(section.n, inputs.sensitive.n_classes, frequencies)
        return determinants, lambda: margins(np.array([score(inputs, params, labels, v) for v in section.candidates]))

    def save(noisy: np.ndarray) -> None:
        described = {
            "setting": section.setting,
            "candidates": list(section.candidates),
            "noisy_margins": noisy.tolist(),
            "noise_std": noisy_counts.noise_std(inputs, STAGE),
            "chosen": section.candidates[pick(noisy)],
        }
        publication.publish_json(inputs, output.name, described)

    output = STAGE.artefact(inputs.workdir)
    noisy_counts.release(inputs, output, prepare, save)


def margins(scores: np.ndarray) -> np.ndarray:
    """m s - (s_1 + … + s_m) of the scores s, int64 [m]: how far each is above their mean, times m."""
    return len(scores) * scores - scores.sum()


def sensitivity(config: ConfigDict) -> float:
    """The L2 sensitivity of the margins of the config's candidates."""
    return margin_sensitivity(len(config.sampler_choice.candidates))


def margin_sensitivity(candidates: int) -> float:
    """The L2 sensitivity of the margins of m candidates: sqrt(m floor(m/2) ceil(m/2))."""
    return (candidates * (candidates // 2) * (-(-candidates // 2))) ** 0.5


def pick(noisy: np.ndarray) -> int:
    """The place of the largest noisy margin, of equal ones the first."""
    return int(noisy.argmax())


def agreement(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> int:
    """How many images have their largest logit at their label: a record adds 0 or 1, whatever the others are.

    An image whose logits are not all finite is taken for wrong.

    Args:
      logits: float32 [N, classes].
      labels: int32 [N].
      weights: int64 [N], what an image adds in place of 1, see `noisy_counts.weights`.
    """
    right = (logits.argmax(-1) == np.asarray(labels)) & np.isfinite(logits).all(-1)
    return int(np.sum(right if weights is None else np.where(right, weights, 0)))


def build_classifier(config: ConfigDict, n_classes: int) -> nn.Module:
    """The module of the classifier, trained afresh for every candidate."""
    key = "sampler_choice.classifier"
    dtype, name = activations(config.precision), config.sampler_choice.classifier
    return registry.build_classifier(name, n_classes, name_key=key, kwargs_key=key, dtype=dtype)


def score(inputs: Inputs, params: Any, labels: np.ndarray, value: Any) -> int:
    """How many sensitive images a classifier of what is drawn with this value labels rightly; of people, in shares.

    Every candidate's images start from the same labels and noise, and its classifier from the same parameters.
    """
    config, sensitive = with_setting(inputs.config, value), inputs.sensitive
    section, name = config.sampler_choice, f"{STAGE.name}: {config.sampler_choice.setting} {value:g}"
    sampler = Sampler(generators.build(config, sensitive.n_classes), inputs.mesh)
    with progress(f"{name}, images", section.n, unit="images") as bar:
        images = sampler.all(params, inputs.key("sets to choose from"), labels, config.sample.batch_size, bar.advance)
    model = build_classifier(config, sensitive.n_classes)
    with progress(f"{name}, classifier", section.classifier_steps) as bar:
        drawn = Dataset(images, labels, sensitive.class_names, name)
        variables = fit(
            model,
            drawn,
            quick(section.classifier_steps),
            seed=config.seed,
            on_steps=bar.advance,
            residency=config.data.residency,
        )
    classify = forward(model, variables, method="__call__")
    noisy_counts.check_images_apart(
        classify, sensitive.image_shape, f"config.sampler_choice.classifier={section.classifier}"
    )
    weights = noisy_counts.weights(inputs)
    return sum(
        agreement(logits, sensitive.labels[rows], None if weights is None else weights[rows])
        for rows, logits in counting.logits(classify, sensitive, inputs.mesh)
    )


def with_setting(config: ConfigDict, value: Any) -> ConfigDict:
    """The config with this value in the place of the sampler's setting."""
    changed = config.copy_and_resolve_references()
    changed.sample[config.sampler_choice.setting] = value
    return changed


def noisy_margins(inputs: Inputs) -> np.ndarray:
    """The released margins, int64 [candidates].

    Raises:
      UserError: if they are missing or damaged.
    """
    shape = (len(inputs.config.sampler_choice.candidates),)
    return noisy_counts.read(STAGE.artefact(inputs.workdir), "noisy_margins", shape)


def chosen(inputs: Inputs) -> ConfigDict:
    """The config with which the synthetic set is drawn: with the choice, where there was one."""
    config = inputs.config
    if not STAGE.enabled(config):
        return config
    return with_setting(config, config.sampler_choice.candidates[pick(noisy_margins(inputs))])
