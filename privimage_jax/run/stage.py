"""The stages as records, one row each. All that others know of a stage is derived from its row.

Names of commands, order, fingerprints, the privacy plan, what may spend and be published, and the identity of a replay
come from here; what no row names is refused. A row imports nothing heavy: a stage's own module is loaded when it runs.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax.errors import UserError
from privimage_jax.generators import sections as generator_sections
from privimage_jax.privacy.ledger_lines import is_artefact
from privimage_jax.run.record import Mechanism, Stage, keys, of_generator, value
from privimage_jax.settings import import_strings

__all__ = ["STAGES", "Mechanism", "Stage", "keys", "value"]  # what a stage from elsewhere needs

_IMAGES = ("data.image_size", "data.channels")
MICROBATCHES = ("clipping.microbatch", "gan.microbatch")  # of fine-tuning
_NEUTRAL: Mapping[str, Any] = {  # of settings younger than workdirs that are gone on with: what changes nothing
    "privacy.unit": "image",
    "pretrain.perturbation": 0.0,
    "warmup.enabled": False,
    "evaluate.pretrained": False,
    "finetune.lora_scale": 1.0,
}


def _without_neutral(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without the settings of `_NEUTRAL` that change nothing, so that records from before there were any still hold."""
    neutral = {key for key, value in _NEUTRAL.items() if key in settings and settings[key] == value}
    if "pretrain.perturbation" in neutral:
        neutral.add("pretrain.perturbation_norm")
    return {key: value for key, value in settings.items() if key not in neutral}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first setting that is another now, and what to do; "" where all are equal.

    A value of `_NEUTRAL` is in no record, and what a record lacks had that value.
    """
    left_out = {key: value for key, value in _NEUTRAL.items() if key in now or key in before}
    now, before = left_out | {**now}, left_out | {**before}
    for key in sorted({*now, *before}):
        if key not in before:
            return f"without config.{key}, which is now {now[key]!r}; go on with the version that began it"
        if key not in now:
            return f"with config.{key}={before[key]!r}, which is no setting now; go on with the version that began it"
        if now[key] != before[key]:
            return f"with config.{key}={before[key]!r}, which is now {now[key]!r}; restore that"
    return ""


def _with_budget(*names: str) -> Callable[[ConfigDict], dict[str, Any]]:
    """The settings of these sections and keys, of the budget and of the sensitive data."""
    return lambda config: _without_neutral(configs.section(config, *names, "privacy", "data"))


def _finetune_settings(config: ConfigDict) -> dict[str, Any]:
    """With all that decides how much of the budget the other mechanisms take: sigma2 depends on it.

    Without the microbatches, which change results by rounding only, as the number of devices does: whoever ran out of
    memory may lower it and go on. (Whether the rules for convolutions still keep examples apart is tried again.)
    """
    names = ("precision", "seed", "finetune", "clipping", "privacy", "data", "query", "selection.method")
    settings = {**configs.section(config, *names, *generator_sections(config)), **reserved(config)}
    return _without_neutral({key: value for key, value in settings.items() if key not in MICROBATCHES})


def _selection_settings(config: ConfigDict) -> dict[str, Any]:
    """With how `all` labels images, which had another meaning under the same name at first: none."""
    settings = configs.section(config, "seed", "selection", "public", *_IMAGES, "data.class_names")
    return settings | ({"selection.labels": "folded"} if config.selection.method == "all" else {})


def _sampler_settings(config: ConfigDict) -> dict[str, Any]:
    """Without the setting that is chosen, and without the number of images, which are drawn later."""
    unused = (f"sample.{config.sampler_choice.setting}", "sample.n")
    names = ("precision", "seed", "sampler_choice", "privacy", "data", "sample", *generator_sections(config))
    settings = configs.section(config, *names)
    return _without_neutral({key: value for key, value in settings.items() if key not in unused})


def _evaluation_settings(config: ConfigDict) -> dict[str, Any]:
    """Of the weights of a network from outside the content, not the place."""
    from privimage_jax.metrics import extractors

    weights = extractors.weights_digest(config.evaluate.extractors, config.evaluate.inception_weights)
    return _without_neutral(configs.section(config, "precision", "seed", "evaluate", "data", "query.k1") | weights)


def _pretrain_settings(config: ConfigDict) -> dict[str, Any]:
    """With those of the training on noisy means, where there are any."""
    of_means = ("warmup.enabled", "warmup.steps", "warmup.learning_rate") if config.warmup.enabled else ()
    names = ("precision", "seed", "pretrain", *of_means, *_IMAGES, "data.class_names")
    settings = configs.section(config, *names, *generator_sections(config))
    return _without_neutral({key: value for key, value in settings.items() if key != "gan.finetune_rate"})


def _asks_semantics(config: ConfigDict) -> bool:
    return config.selection.method == "semantic"


def _needs_network(config: ConfigDict) -> bool:
    """The query and the features of the evaluation come from it."""
    return _asks_semantics(config) or config.evaluate.enabled


def shows_neighbours(config: ConfigDict) -> bool:
    """Whether public images may be shown, taught the generator, and there is a network to compare by."""
    return config.report.public_neighbours and config.pretrain.steps > 0 and _needs_network(config)


_BOTH = ("image", "person")
_NOISY_MEANS = Mechanism(
    name="noisy means",
    switch="warmup.enabled",
    noise_multiplier="warmup.noise_multiplier",
    sample_size="warmup.subset_size",
    samples="warmup.means",
    units=_BOTH,
)

STAGES: tuple[Stage, ...] = (
    Stage(
        name="train-query",
        module="privimage_jax.stages.train_query",
        settings=keys("precision", "seed", "query_net", "public", *_IMAGES),
        writes=("internal/train-query/network",),
        notes=("internal/train-query/accuracy.json",),
        notes_public_held_out=True,
        depends_on=("public",),
        enabled=_needs_network,
        memory_settings=("query_net.batch_size",),
        kept=lambda config: not config.query_net.workdir,
    ),
    Stage(
        name="query",
        module="privimage_jax.stages.query",
        settings=_with_budget("precision", "query"),
        reads=lambda config: ("train-query",),
        writes=("internal/query/histogram.json",),
        notes=("internal/query/exact.json",),
        enabled=_asks_semantics,
        mechanism=Mechanism("semantic query", "selection.method", "query.noise_multiplier", "sigma1", units=_BOTH),
    ),
    Stage(
        name="class-histogram",
        module="privimage_jax.stages.class_histogram",
        settings=_with_budget("class_histogram"),
        writes=("release/class_histogram.json",),
        enabled=lambda config: config.class_histogram.enabled,
        mechanism=Mechanism(
            "class histogram", "class_histogram.enabled", "class_histogram.noise_multiplier", units=_BOTH
        ),
    ),
    Stage(
        name="warmup",
        module="privimage_jax.stages.warmup",
        settings=_with_budget("warmup.enabled", "warmup.downscale", *_NOISY_MEANS.costs),
        reads=lambda config: ("class-histogram",),
        writes=("release/warmup.npz",),
        enabled=lambda config: config.warmup.enabled,
        mechanism=_NOISY_MEANS,
    ),
    Stage(
        name="select",
        module="privimage_jax.stages.selection",
        settings=_selection_settings,
        reads=lambda config: ("query",),
        writes=("internal/select/subset.npz", "release/semantics.json"),
        depends_on=("classes", "public"),
        enabled=lambda config: _asks_semantics(config) or config.pretrain.steps > 0,
    ),
    Stage(
        name="pretrain",
        module="privimage_jax.stages.pretrain",
        settings=_pretrain_settings,
        reads=lambda config: ("select", "warmup") if config.pretrain.steps else ("warmup",),
        writes=("internal/pretrain/params",),
        notes=("internal/pretrain/means",),  # curves of the lesson on noisy means
        memory_settings=("pretrain.batch_size", "gan.microbatch"),
        kept=lambda config: config.pretrain.steps > 0,
        unread=("release/semantics.json",),
    ),
    Stage(
        name="finetune",
        module="privimage_jax.stages.finetune",
        settings=_finetune_settings,
        reads=lambda config: ("pretrain",),
        writes=("release/generator",),
        mechanism=Mechanism("DP-SGD fine-tuning", "finetune.enabled", units=_BOTH),
        memory_settings=MICROBATCHES,
    ),
    Stage(
        name="choose-sampler",
        module="privimage_jax.stages.choose_sampler",
        settings=_sampler_settings,
        reads=lambda config: ("finetune", "class-histogram"),
        writes=("release/sampler.json",),
        enabled=lambda config: config.sampler_choice.enabled,
        mechanism=Mechanism("sampler choice", "sampler_choice.enabled", "sampler_choice.noise_multiplier", units=_BOTH),
        memory_settings=("sample.batch_size", "sampler_choice.n"),
    ),
    Stage(
        name="sample",
        module="privimage_jax.stages.sample",
        settings=of_generator("precision", "seed", "sample", *_IMAGES),
        reads=lambda config: ("finetune", "class-histogram", "choose-sampler"),
        writes=("release/synthetic.npz",),
        memory_settings=("sample.batch_size", "sample.n"),
    ),
    Stage(
        name="report",
        module="privimage_jax.stages.report",
        settings=configs.settings_in_use,
        reads=lambda config: (
            *(("train-query",) if shows_neighbours(config) or _asks_semantics(config) else ()),
            *("warmup", "select", "pretrain", "finetune", "choose-sampler", "sample"),
        ),
        writes=("release/report.html",),
    ),
    Stage(
        name="evaluate",
        module="privimage_jax.stages.evaluate",
        settings=_evaluation_settings,
        reads=lambda config: ("train-query", "query", "select", "pretrain", "sample"),
        writes=("internal/evaluation.json", "internal/evaluation.html"),
        depends_on=("classes", "sensitive", "held_out"),
        enabled=lambda config: config.evaluate.enabled,
        follows_precision=False,
        memory_settings=("evaluate.max_images", "evaluate.classifier_batch_size"),
    ),
)


def all_stages(config: ConfigDict) -> tuple[Stage, ...]:
    """The rows of `STAGES`, and those of `config.extra_stages`, each behind the stage that it follows.

    Raises:
      UserError: if one of the latter cannot be loaded, or takes a name, a mechanism or an artefact of another.
    """
    stages = list(STAGES)
    for name in config.extra_stages:
        one = import_strings.load_record(name, "config.extra_stages", Stage)
        names = [stage.name for stage in stages]
        if one.after not in names:
            raise UserError(f"config.extra_stages: {name} follows {one.after!r}; give one of {', '.join(names)}.")
        for what, taken, own in (
            ("name", {*names}, {one.name}),
            ("mechanism", {stage.mechanism.name for stage in stages if stage.mechanism}, mechanism_names(one)),
            ("artefact", {path for stage in stages for path in stage.writes}, {*one.writes}),
        ):
            if twice := sorted(taken & own):
                raise UserError(f"config.extra_stages: {name} has the {what} {twice[0]!r} of another; rename it.")
        if one.mechanism and (wrong := [path for path in one.writes if not is_artefact(path)]):
            raise UserError(f"config.extra_stages: {name} writes {wrong[0]!r}; give a path in release/ or internal/.")
        if one.mechanism and not one.mechanism.noise_multiplier:
            raise UserError(f"config.extra_stages: the mechanism of {name} names no setting for its noise; give one.")
        _check_settings(config, one, name)
        before = stages[: names.index(one.after) + 1]
        if one.published and any(stage.sees_without_noise for stage in before):
            raise UserError(
                f"config.extra_stages: {name} publishes after {one.after}, which looks at sensitive images without "
                "noise: whether the artefact is there would tell of them; let it follow report."
            )
        if one.sees_without_noise and any(stage.published for stage in stages[len(before) :]):
            raise UserError(
                f"config.extra_stages: {name} looks at sensitive images without noise before all is published: whether "
                "the rest is there would tell of them; let it follow evaluate or report."
            )
        stages.insert(len(before), one)
    return tuple(stages)


def mechanism_names(stage: Stage) -> set[str]:
    """The name of the stage's mechanism, if it has one."""
    return {stage.mechanism.name} if stage.mechanism else set()


def _check_settings(config: ConfigDict, stage: Stage, name: str) -> None:
    """Refuses a mechanism without its settings, with noise that is no positive number, or of another unit."""
    if stage.mechanism is None:
        return
    for key in (stage.mechanism.switch, *stage.mechanism.costs):
        try:
            found = value(config, key)
        except (AttributeError, KeyError, TypeError):
            raise UserError(f"config.{key} is missing, which {name} of config.extra_stages needs; give it.") from None
        whole = key in (stage.mechanism.sample_size, stage.mechanism.samples)
        kinds = (int,) if whole else (int, float)
        if key != stage.mechanism.switch and (type(found) not in kinds or not 0 < found < float("inf")):
            accepted = "a whole number of at least 1" if whole else "a number above 0"
            raise UserError(f"config.{key}={found!r} is not accepted; give {accepted}.")
    unit = config.privacy.unit
    if unit not in stage.mechanism.units and stage.spends(config):
        raise UserError(
            f"config.privacy.unit={unit} is no unit of the mechanism {stage.mechanism.name} of {name}, whose record "
            f"has {', '.join(stage.mechanism.units)}; run without it, or let its sensitivity hold for one {unit}."
        )


def enabled_stages(config: ConfigDict) -> tuple[Stage, ...]:
    """The stages that this config runs, in order."""
    return tuple(stage for stage in all_stages(config) if stage.enabled(config))


def named(name: str, config: ConfigDict | None = None) -> Stage:
    """The stage of this name; without a config, one of `STAGES`.

    >>> named("finetune").mechanism.name, named("finetune").writes
    ('DP-SGD fine-tuning', ('release/generator',))
    """
    return next(stage for stage in (STAGES if config is None else all_stages(config)) if stage.name == name)


def upstream(config: ConfigDict, stage: Stage) -> tuple[Stage, ...]:
    """A stage and all whose artefacts reach it, of those that the config runs, in order."""
    stages = enabled_stages(config)
    wanted = {stage.name}
    for one in reversed(stages):
        if one.name in wanted:
            wanted |= {*one.reads(config)}
    return tuple(one for one in stages if one.name in wanted)


def shown_mechanisms(config: ConfigDict, stage: Stage) -> list[str]:
    """The mechanisms whose outputs reach the artefacts of a stage, in order."""
    return [one.mechanism.name for one in upstream(config, stage) if one.mechanism and one.spends(config)]


def counting(config: ConfigDict) -> tuple[Mechanism, ...]:
    """The mechanisms that release noisy counts and that the config runs, in order."""
    stages = [stage for stage in all_stages(config) if stage.spends(config)]
    return tuple(stage.mechanism for stage in stages if stage.mechanism and stage.mechanism.noise_multiplier)


def symbol(config: ConfigDict, mechanism: str) -> str:
    """What the privacy plan calls the noise multiplier of a mechanism."""
    return next(one.mechanism.symbol for one in all_stages(config) if one.mechanism and one.mechanism.name == mechanism)


def solved_mechanism() -> Mechanism:
    """The one mechanism whose noise is solved for what the others leave of the budget."""
    return next(stage.mechanism for stage in STAGES if stage.mechanism and not stage.mechanism.noise_multiplier)


def reserved(config: ConfigDict) -> Mapping[str, Any]:
    """The settings that decide how much of the budget is reserved beside the solved mechanism."""
    records = [one.mechanism for one in all_stages(config) if one.mechanism and one.mechanism.noise_multiplier]
    costs = [key for record in counting(config) for key in record.costs]
    return {key: value(config, key) for key in (*(record.switch for record in records), *costs)}
