"""Checks a configuration before anything else runs.

Every message about a wrong setting is made here; each names the key, the value, and what is accepted. This file
imports nothing heavy: a wrong value stops the program in its first second.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from privimage_jax.configs import base
from privimage_jax.data.sources import specs
from privimage_jax.errors import UserError
from privimage_jax.settings import derived, evaluation, families, import_strings, methods, units, use
from privimage_jax.settings.evaluation import short_name
from privimage_jax.settings.rules import (
    ABOVE_0,
    AT_LEAST_0,
    DECAY,
    FINITE,
    POSITIVE,
    SEED,
    SHARE,
    Rule,
    check_type,
    one_of,
)

_OF_SETS = ("path", "data_dir", "cache", "residency", "labels", "person", "links", "accept")
PLACES = frozenset(  # what tells where data lie, or what the operator saw in them: never published
    {f"{name}.{key}" for name in ("data", "public") for key in _OF_SETS}
    | {f"public.kwargs.{key}" for key in ("path", "data_dir")}  # of sources from elsewhere
    | {"query_net.workdir", "evaluate.inception_weights", "public_cache", "private_cache"}
)
FREE_SECTIONS = (
    "extra.",
    "data.kwargs.",
    "public.kwargs.",
    "model.kwargs.",
    "query_net.kwargs.",
    "evaluate.classifier_kwargs.",
)


def _is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


RULES: dict[str, Rule] = {
    "method": methods.RULE,
    "generator": (
        lambda v: v in families.FAMILIES or import_strings.is_one(v),
        f"{', '.join(families.FAMILIES)} or package.module:Class",
    ),
    "precision": one_of("auto", "float32", "tf32", "bfloat16"),
    "seed": SEED,
    **{f"data.{key}": rule for key, rule in specs.RULES.items()},
    **{f"public.{key}": rule for key, rule in specs.RULES.items()},
    "data.test_fraction": SHARE,
    "public.test_fraction": SHARE,
    "data.n": AT_LEAST_0,
    "data.image_size": (lambda v: 4 <= v <= 1024, "a whole number from 4 to 1024"),
    "data.channels": (lambda v: v in (1, 3), "1 (grey) or 3 (RGB)"),
    "privacy.epsilon": ABOVE_0,
    "privacy.delta": DECAY,
    "privacy.accountant": one_of("pld", "rdp"),
    "privacy.unit": one_of(*units.UNITS),
    "query_net.epochs": ABOVE_0,
    "query_net.batch_size": POSITIVE,
    "query_net.learning_rate": ABOVE_0,
    "query_net.momentum": DECAY,
    "query_net.weight_decay": AT_LEAST_0,
    "query_net.label_smoothing": DECAY,
    "query_net.shift": AT_LEAST_0,
    "query.k1": POSITIVE,
    "query.noise_multiplier": ABOVE_0,
    "class_histogram.noise_multiplier": ABOVE_0,
    "selection.method": one_of("semantic", "random", "all", "unlabelled", "none"),
    "selection.k2": POSITIVE,
    "selection.ratio": (lambda v: 0 <= v <= 1, "a number in [0, 1]"),
    "selection.assignment": one_of("sequential", "optimal"),
    "selection.seed": SEED,
    "diffusion.p_mean": FINITE,
    "diffusion.p_std": ABOVE_0,
    "diffusion.sigma_data": ABOVE_0,
    "diffusion.sigma_min": ABOVE_0,
    "diffusion.sigma_max": ABOVE_0,
    "diffusion.rho": ABOVE_0,
    "diffusion.label_dropout": DECAY,
    "gan.noise": POSITIVE,
    "gan.embedding": POSITIVE,
    "gan.generator_width": POSITIVE,
    "gan.discriminator_width": POSITIVE,
    "gan.attention": AT_LEAST_0,
    "gan.discriminator_steps": POSITIVE,
    **dict.fromkeys(("gan.pretrain_rate", "gan.finetune_rate", "gan.generator_rate"), ABOVE_0),
    "gan.batch_size": POSITIVE,
    "gan.microbatch": POSITIVE,
    "pretrain.steps": AT_LEAST_0,
    "pretrain.batch_size": POSITIVE,
    "pretrain.learning_rate": ABOVE_0,
    "pretrain.ema": DECAY,
    "pretrain.shift": AT_LEAST_0,
    "pretrain.perturbation": AT_LEAST_0,
    "pretrain.perturbation_norm": one_of("layer", "global"),
    "warmup.means": POSITIVE,
    "warmup.subset_size": POSITIVE,
    "warmup.noise_multiplier": ABOVE_0,
    "warmup.downscale": POSITIVE,
    "warmup.steps": POSITIVE,
    "warmup.learning_rate": ABOVE_0,
    "finetune.batch_size": POSITIVE,
    "finetune.epochs": ABOVE_0,
    "finetune.steps": AT_LEAST_0,
    "finetune.noise_multiplicity": POSITIVE,
    "finetune.learning_rate": ABOVE_0,
    "finetune.ema": DECAY,
    "finetune.shift": AT_LEAST_0,
    "finetune.trainable": (_is_regex, "a regular expression"),
    "finetune.lora_rank": AT_LEAST_0,
    "finetune.lora_scale": ABOVE_0,
    "finetune.block": AT_LEAST_0,
    "clipping.norm": ABOVE_0,
    "clipping.method": one_of("auto", "bookkeeping", "vmap"),
    "clipping.microbatch": AT_LEAST_0,
    "sample.n": POSITIVE,
    "sample.batch_size": POSITIVE,
    "sample.sampler": one_of("ddim", "heun"),
    "sample.steps": (lambda v: v >= 2, "a whole number of at least 2"),
    "sample.guidance": AT_LEAST_0,
    "sample.s_churn": AT_LEAST_0,
    "sample.s_min": AT_LEAST_0,
    "sample.s_max": ABOVE_0,
    "sample.s_noise": ABOVE_0,
    "sample.class_weights": (
        lambda v: all(type(w) in (int, float) and 0 <= w < math.inf for w in v) and (not v or sum(v) > 0),
        "a list with one number of at least 0 per class, not all 0, or ()",
    ),
    "sampler_choice.setting": one_of("guidance", "steps", "s_churn"),
    "sampler_choice.candidates": (
        lambda v: len(v) > 1 and all(type(c) in (int, float) and math.isfinite(c) for c in v) and len(set(v)) == len(v),
        "a list of at least two different numbers",
    ),
    "sampler_choice.n": POSITIVE,
    "sampler_choice.classifier_steps": POSITIVE,
    "sampler_choice.noise_multiplier": ABOVE_0,
    "evaluate.extractors": (
        lambda v: v and all(name in ("query", "inception") or import_strings.is_one(name) for name in v),
        "a list of query, inception or package.module:function",
    ),
    "evaluate.measures": (import_strings.are_all, "a list of package.module:NAME, or ()"),
    "extra_stages": (import_strings.are_all, "a list of package.module:NAME, or ()"),
    "evaluate.max_images": (lambda v: v >= 2, "a whole number of at least 2"),
    "evaluate.neighbours": POSITIVE,
    "evaluate.classifiers": (
        lambda v: v and all(isinstance(name, str) and name for name in v) and len(set(map(short_name, v))) == len(v),
        "a list of one or more models with different names",
    ),
    "evaluate.classifier_seeds": POSITIVE,
    "evaluate.recipe": one_of("quick", "benchmark", "benchmark_cifar"),
    "evaluate.classifier_steps": POSITIVE,
    "evaluate.classifier_batch_size": POSITIVE,
    "evaluate.classifier_learning_rate": ABOVE_0,
    "evaluate.classifier_shift": AT_LEAST_0,
    "audit.claimed_epsilon": ABOVE_0,
    "audit.claimed_delta": SHARE,
    "audit.canaries": POSITIVE,
    "audit.guesses": POSITIVE,
    "audit.confidence": SHARE,
    "audit.batch_size": POSITIVE,
    "audit.steps": POSITIVE,
    "log.every": POSITIVE,
    "log.sample_every": AT_LEAST_0,
    "log.checkpoint_every": POSITIVE,
    "log.keep": POSITIVE,
}


def check(config: ConfigDict) -> ConfigDict:
    """Returns `config` if every key is known, of the right type, and within what it accepts.

    Raises:
      UserError: naming the first wrong key, its value, and what it accepts.
    """
    reference = dict(flatten(base.get_config()))
    given = dict(flatten(config))
    for key, value in given.items():
        _check_known(key, reference)
        _check_storable(key, value)
        if key in reference and not key.startswith(FREE_SECTIONS):
            check_type(f"config.{key}", value, reference[key])
    for key in reference:
        if key not in given and not key.startswith(FREE_SECTIONS):
            raise UserError(f"config.{key} is missing; start your config from configs/base.py.")
    for key, (accepts, accepted) in RULES.items():
        if key in given and not accepts(given[key]):
            raise UserError(f"config.{key}={given[key]!r} is not accepted; give {accepted}.")
    _check_together(config)
    return config


def check_key(key: str) -> None:
    """Checks that "section.key" is a setting (or a whole section) of configs/base.py.

    Raises:
      UserError: naming the key and the closest one that exists.
    """
    _check_known(key, dict(flatten(base.get_config())))


def _check_known(key: str, reference: Mapping[str, Any]) -> None:
    """`check_key`, for the settings of configs/base.py."""
    if key in reference or key.startswith(FREE_SECTIONS):
        return
    inside = [name for name in reference if name.startswith(f"{key}.")]
    if inside:
        raise UserError(f"config.{key} is a section; give one of its settings a value, such as config.{inside[0]}.")
    close = difflib.get_close_matches(key, reference, n=1)
    hint = f" (did you mean config.{close[0]}?)" if close else ""
    raise UserError(f"config.{key} is not a known setting{hint}; see configs/base.py.")


def is_list(key: str) -> bool:
    """Whether "section.key" is a setting of configs/base.py that holds a list."""
    return isinstance(dict(flatten(base.get_config())).get(key), tuple)


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("section.key", value) for every leaf."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def section(config: ConfigDict, *names: str) -> dict[str, Any]:
    """The leaves of some sections as a flat dict: what a stage's fingerprint covers.

    Where things lie is left out: the data's digest says what they are, and a run may move.
    """
    chosen = tuple(f"{name}." for name in names)
    return {key: value for key, value in public_settings(config).items() if key in names or key.startswith(chosen)}


def public_settings(config: ConfigDict) -> dict[str, Any]:
    """Every setting as a flat dict, but places."""
    return {key: value for key, value in flatten(config) if not is_place(key)}


def is_place(key: str) -> bool:
    """Whether a setting tells where data lie, or what the operator saw in them: it is never published.

    All that a sensitive source from elsewhere is given may do so: a folder, a list of patients. The data's digest is
    what tells two such sets apart.
    """
    return key in PLACES or key.startswith("data.kwargs.")


def settings_in_use(config: ConfigDict) -> dict[str, Any]:
    """The public settings of a run, without logging, what the chosen data sources do not read, and what is off."""
    settings = dict(flatten(config))
    return {key: value for key, value in public_settings(config).items() if is_in_use(settings, key)}


def is_in_use(settings: Mapping[str, Any], key: str) -> bool:
    """Whether a run with these settings, "section.key" -> value, may look at one of them; see `settings_in_use`."""
    section, _, name = key.partition(".")
    if section in ("data", "public"):
        read = set(specs.spec_of(settings[f"{section}.source"], f"config.{section}.source").reads)
        if any(name in {*spec.reads} - read for spec in specs.SOURCES.values()):
            return False
    is_read = families.reads(settings["generator"], key) and not use.is_switched_off(settings, key)
    return is_read and not key.startswith(("log.", "audit."))


def _check_storable(key: str, value: Any) -> None:
    """Refuses numbers and texts that arrays, JSON or the report cannot hold; a path may have any bytes."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if type(one) is int and not -(2**63) <= one < 2**63:
            raise UserError(f"config.{key} holds a whole number of more than 64 bits; give a smaller one.")
        if isinstance(one, str) and not is_place(key) and re.search("[\ud800-\udfff]", one):
            raise UserError(f"config.{key} holds bytes that are not UTF-8; give a text.")


def _check_together(config: ConfigDict) -> None:
    """What no single key can tell."""
    methods.check(config, base.get_config())
    if config.selection.method == "none" and config.pretrain.steps:
        raise UserError(
            f"config.selection.method=none leaves no public image for config.pretrain.steps={config.pretrain.steps}; "
            "give config.pretrain.steps=0 or another selection."
        )
    for name in ("data", "public"):
        _check_source(name, config[name])
    if config.evaluate.enabled and config.sample.n < 2:
        raise UserError(
            "config.sample.n=1 is too few images to evaluate; give at least 2 or config.evaluate.enabled=False."
        )
    evaluation.check(config.evaluate)
    if config.data.n:
        derived.check_against_n(config, config.data.n)
    derived.check_pretraining(config)
    if config.diffusion.sigma_min >= config.diffusion.sigma_max:
        raise UserError(
            f"config.diffusion.sigma_min={config.diffusion.sigma_min} is not below "
            f"config.diffusion.sigma_max={config.diffusion.sigma_max}; give a smaller one."
        )
    if config.sample.s_min > config.sample.s_max:
        raise UserError(
            f"config.sample.s_min={config.sample.s_min} is above config.sample.s_max={config.sample.s_max}; "
            "give a smaller one."
        )
    families.check(config)
    audit = config.audit
    if audit.guesses >= audit.canaries:
        raise UserError(
            f"config.audit.guesses={audit.guesses} is not below config.audit.canaries={audit.canaries}; give fewer."
        )
    if audit.batch_size > 2 * audit.canaries:
        raise UserError(
            f"config.audit.batch_size={audit.batch_size} is more than the audit's {2 * audit.canaries} records, twice "
            "config.audit.canaries; give at most that."
        )
    if config.sampler_choice.enabled:
        _check_candidates(config)
    weights, names = config.sample.class_weights, config.data.class_names
    if weights and config.class_histogram.enabled:
        raise UserError(
            f"config.sample.class_weights={weights} and config.class_histogram.enabled=True both say how often a class "
            "is drawn; give config.sample.class_weights=() or config.class_histogram.enabled=False."
        )
    if weights and names and len(weights) != len(names):
        raise UserError(
            f"config.sample.class_weights has {len(weights)} values for the {len(names)} classes of "
            "config.data.class_names; give one per class or ()."
        )


def _check_candidates(config: ConfigDict) -> None:
    """Every candidate must be a value that the sampler's setting itself accepts."""
    section, name = config.sampler_choice, config.sampler_choice.setting
    accepts, accepted = RULES[f"sample.{name}"]
    whole = type(config.sample[name]) is int
    for value in section.candidates:
        if (whole and type(value) is not int) or not accepts(value):
            raise UserError(
                f"config.sampler_choice.candidates has {value!r}, which config.sample.{name} does not take; "
                f"let each be {accepted}."
            )
    if name == "s_churn" and config.sample.sampler != "heun":
        raise UserError(
            f"config.sampler_choice.setting=s_churn has no effect with config.sample.sampler={config.sample.sampler}; "
            "give config.sample.sampler=heun or choose another setting."
        )


def _check_source(name: str, data: ConfigDict) -> None:
    spec = specs.spec_of(data.source, f"config.{name}.source")
    if spec.needs and not any(data.get(key) for key in spec.needs):
        ways = " or ".join(f"config.{name}.{key}" for key in spec.needs)
        raise UserError(f"{ways} is empty; give what config.{name}.source={data.source} reads: {spec.what}.")
    if name == "data" and not spec.declares_classes and not data.class_names:
        raise UserError(
            f"config.data.class_names is empty; declare the classes of a sensitive {data.source} set, also those that "
            "may have no image: the list is public, and must not come from the data."
        )
