"""How useful the synthetic set is: classifiers that learn from it, and from real images, tested on held-out real ones.

Not private: what is found here stays in `internal/`, and nothing is chosen by it.
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from privimage_jax.data import Dataset
from privimage_jax.metrics import real_classifier
from privimage_jax.metrics.downstream import Protocol, accuracy, benchmark, check_sets, fit, quick
from privimage_jax.models import registry
from privimage_jax.report.measures import SPREAD
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.made_by import made_by
from privimage_jax.settings.evaluation import short_name
from privimage_jax.storage import fingerprints
from privimage_jax.storage.durable import atomic_write_json
from privimage_jax.storage.reading import read_record
from privimage_jax.training.precision import activations
from privimage_jax.training.writers import progress


def measure(inputs: Inputs, synthetic: Dataset, record: Path) -> dict[str, float]:
    """`accuracy_synthetic` and `accuracy_real`, named by what the classifiers learnt from, and `accuracy_labels`.

    The last is how many synthetic images the classifier that learnt from real ones gives their labels. Where there are
    several classifiers these are the first one's, and each also has its own name at their end. Several seeds give
    their mean, and their sample standard deviation under the name with `_std`.

    Args:
      inputs: its `config.evaluate` names the classifiers; real images are the sensitive training part.
      synthetic: the released set.
      record: a file of every accuracy found so far, so that an interrupted run need not train for it again.
    """
    section = inputs.config.evaluate
    seeds = range(section.classifier_seeds)
    found = read_record(record)
    results: dict[str, float] = {}
    learners = (  # from what, and what it is tested on
        ("synthetic", synthetic, {"synthetic": inputs.held_out}),
        ("real", inputs.sensitive, {"real": inputs.held_out, "labels": synthetic}),
    )
    for name in section.classifiers:
        for kind, train, tests in learners:
            for seed in seeds:
                wanted = {f"{name} {tested} {seed}": test for tested, test in tests.items()}
                if not all(isinstance(found.get(one), float) for one in wanted):
                    model, variables = _trained(inputs, name, seed, train, kind)
                    found |= {one: accuracy(model, variables, test) for one, test in wanted.items()}
                    atomic_write_json(record, found)
            for tested in tests:
                keys = [f"accuracy_{tested}"] * (name == section.classifiers[0])
                keys += [f"accuracy_{tested}_{short_name(name)}"] * (len(section.classifiers) > 1)
                for key in keys:
                    results |= _summary(key, [found[f"{name} {tested} {seed}"] for seed in seeds])
    return results


def describe(results: dict[str, float]) -> str:
    """What `measure` has found, in one line."""
    shown = []
    for key, value in results.items():
        if not key.endswith(SPREAD):
            spread = f" ± {results[key + SPREAD]:.2g}" if key + SPREAD in results else ""
            shown.append(f"{key} {value:.4g}{spread}")
    return "  ".join(shown)


def build_classifier(config: ConfigDict, name: str, n_classes: int) -> nn.Module:
    """The module of one of `config.evaluate.classifiers`."""
    short = short_name(name)
    return registry.build_classifier(
        name,
        n_classes,
        name_key="evaluate.classifiers",
        kwargs_key=f"evaluate.classifier_kwargs.{short}",
        **{"dtype": activations(config.precision), **config.evaluate.classifier_kwargs.get(short, {})},
    )


def _trained(inputs: Inputs, name: str, seed: int, train: Dataset, kind: str) -> tuple[nn.Module, Any]:
    """A classifier and its variables; one that learns from real images is kept, as it is the same for many runs."""
    section, protocol = inputs.config.evaluate, _protocol(inputs.config.evaluate, train.n)
    check_sets(train, inputs.held_out, protocol.held_back)
    model = build_classifier(inputs.config, name, train.n_classes)
    own_seed = (inputs.config.seed + seed) % 2**32
    title = f"evaluate: {short_name(name)} on {kind}"
    if section.classifier_seeds > 1:
        title += f", seed {seed + 1} of {section.classifier_seeds}"

    def make() -> Any:
        with progress(title, protocol.recipe.steps) as bar:
            residency = inputs.config.data.residency
            return fit(model, train, protocol, seed=own_seed, on_steps=bar.advance, residency=residency)

    if kind != "real":
        return model, make()
    kwargs = section.classifier_kwargs.get(short_name(name), {})
    identity = [
        made_by(inputs),
        [name, fingerprints.jsonable(dict(kwargs)), activations(inputs.config.precision)],
        repr(protocol),
        own_seed,
        train.digest(),
    ]
    shapes = registry.classifier_shapes(model, train.image_shape)
    return model, real_classifier.load_or_make(inputs.private_cache, identity, shapes, make)


def _protocol(section: ConfigDict, n: int) -> Protocol:
    """How a classifier is trained on a set of n images."""
    if section.recipe == "quick":
        steps, batch_size = section.classifier_steps, section.classifier_batch_size
        return quick(steps, batch_size, section.classifier_learning_rate, section.classifier_shift)
    return benchmark(n, cifar=section.recipe == "benchmark_cifar")


def _summary(key: str, values: list[float]) -> dict[str, float]:
    spread = {key + SPREAD: float(np.std(values, ddof=1))} if len(values) > 1 else {}
    return {key: float(np.mean(values)), **spread}
