"""What is checked before a run spends anything; `privimage inspect` checks the same."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from privimage_jax import data, generators
from privimage_jax.data.sources import specs
from privimage_jax.errors import UserError, one_line
from privimage_jax.generators.diffusion import Diffusion
from privimage_jax.models import registry
from privimage_jax.run.inputs import DataSets
from privimage_jax.run.plan import make_plan
from privimage_jax.run.stage import enabled_stages
from privimage_jax.settings import import_strings, units
from privimage_jax.stages import choose_sampler, evaluate, finetune, train_query, warmup
from privimage_jax.stages.parts import utility
from privimage_jax.training import residency

Attempt = Callable[[Callable[[], Any]], Any]  # calls a check and returns what it does; it may keep its `UserError`


def check_names(config: ConfigDict) -> None:
    """Finds what a config names of generators, models, extractors and measures: reading images may take an hour.

    Raises:
      UserError: naming the setting whose value stands for nothing that can be loaded, or for nobody.
    """
    names = [stage.name for stage in enabled_stages(config)]
    units.check(config, specs.SOURCES)
    for name in ("data", "public"):
        if import_strings.is_one(config[name].source):
            specs.spec_of(config[name].source, f"config.{name}.source").load(
                f"config.{name}.source={config[name].source}"
            )
    if generators.load_family(config) is Diffusion:
        registry.denoiser_class(config.model.name)
    if train_query.STAGE.name in names:
        registry.classifier_class(config.query_net.model, "config.query_net.model")
    if choose_sampler.STAGE.name in names:
        registry.classifier_class(config.sampler_choice.classifier, "config.sampler_choice.classifier")
    if evaluate.STAGE.name in names:
        for name in config.evaluate.classifiers:
            registry.classifier_class(name, "config.evaluate.classifiers")
        evaluate.check_extractors(config, (config.data.image_size, config.data.image_size, config.data.channels))


def check_paths(config: ConfigDict) -> None:
    """Checks that the places of the images are there: reading one set may take an hour before the other's turn.

    Raises:
      UserError: naming the setting.
    """
    data.check_path(config.data, "data")
    if any(stage.sees("public") for stage in enabled_stages(config)):
        data.check_path(config.public, "public")


def check(
    config: ConfigDict,
    sets: DataSets,
    needs_public: bool,
    n_devices: int = 1,
    available: int = sys.maxsize,
    attempt: Attempt = lambda act: act(),
) -> int:
    """Checks what settings, sets and models say of each other, once the sets are read.

    Args:
      config: of the run.
      sets: of the run.
      needs_public: whether the config runs a stage that looks at the public set.
      n_devices: of all processes; where it is not known, one.
      available: memory of one device in bytes; where it is not known, as much as there can be.
      attempt: what is done with each check. The first mistake is raised, unless it keeps mistakes and goes on.

    Returns:
      The microbatch of fine-tuning; 0 where nothing is fine-tuned, and where `attempt` has kept a mistake of a model.

    Raises:
      UserError: naming the setting.
    """
    check_sensitive(config, sets, attempt)
    attempt(lambda: sets.check_fit(needs_public))
    return attempt(lambda: check_models(config, sets, n_devices, available)) or 0


def check_sensitive(config: ConfigDict, sets: DataSets, attempt: Attempt) -> None:
    """The part of `check` that takes the sensitive training images alone: their number, and what the budget allows."""
    attempt(sets.check_counts)
    attempt(lambda: make_plan(config, sets.sensitive.n_records))
    if warmup.STAGE.enabled(config) and sets.sensitive.owners is not None:
        attempt(lambda: warmup.check_range(sets.sensitive.n, config.warmup.downscale))


def check_models(config: ConfigDict, sets: DataSets, n_devices: int, available: int) -> int:
    """Builds every model without computing anything, so that what is wrong with one is told before budget is spent.

    Args:
      config: of the run.
      sets: of the run.
      n_devices: of all processes.
      available: memory of one device in bytes.

    Returns:
      The microbatch of fine-tuning, which the memory of the smallest device allows; 0 where nothing is fine-tuned.

    Raises:
      UserError: naming the setting of the model.
    """
    shape, n_classes = sets.sensitive.image_shape, sets.sensitive.n_classes
    names = [stage.name for stage in enabled_stages(config)]
    key, microbatch = jax.random.key(0), 0
    generator = generators.build(config, n_classes)
    with named_failures(*generators.network(config)):
        params = jax.eval_shape(generator.init, key)
        if finetune.STAGE.name in names:
            microbatch = finetune.choose_microbatch(config, generator, params, n_devices, available)
    if finetune.STAGE.name in names:
        residency.check_fit(sets.sensitive, n_devices, config.data.residency, available)
    jax.eval_shape(generator.private_state, params, key)
    classifiers = []
    if train_query.STAGE.name in names:
        network = train_query.build(config, sets.public.n_classes)
        classifiers.append(("query_net.model", config.query_net.model, network))
    if choose_sampler.STAGE.name in names:
        name = config.sampler_choice.classifier
        classifiers.append(("sampler_choice.classifier", name, choose_sampler.build_classifier(config, n_classes)))
    if evaluate.STAGE.name in names:
        classifiers += [
            ("evaluate.classifiers", name, utility.build_classifier(config, name, n_classes))
            for name in config.evaluate.classifiers
        ]
    for setting, name, classifier in classifiers:
        with named_failures(setting, name):
            jax.eval_shape(lambda key, model=classifier: registry.init_classifier(model, key, shape), key)
    return microbatch


@contextlib.contextmanager
def named_failures(setting: str, name: str) -> Iterator[None]:
    """Turns any failure of a model's own code into a `UserError` that names its setting."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = one_line(str(error))
        raise UserError(
            f"config.{setting}={name} fails with {type(error).__name__}: {reason}; correct the model or its arguments."
        ) from error
