"""Every stage's device program, with inputs that have shapes but no values: what is compiled for a machine to come.

Each is the very function that the stage runs. Its shapes follow from the config and `facts.Facts` alone.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax import generators
from privimage_jax.commands.benchmark.programs import nonprivate_step
from privimage_jax.errors import UserError
from privimage_jax.generators import artefact
from privimage_jax.generators.base import draws_of
from privimage_jax.generators.sampler import Sampler
from privimage_jax.metrics import features
from privimage_jax.models import registry
from privimage_jax.models.convolution import fast_convolutions
from privimage_jax.privacy import clipping, people, records
from privimage_jax.run import counting
from privimage_jax.settings import derived
from privimage_jax.settings.units import unit
from privimage_jax.stages import finetune, pretrain, query, sample, train_query
from privimage_jax.stages.parts.preflight import named_failures
from privimage_jax.targets.facts import Facts, selected
from privimage_jax.targets.machine import Machine
from privimage_jax.training import classifier, loop, residency
from privimage_jax.training import mesh as meshes
from privimage_jax.training.batches import batch_shapes
from privimage_jax.training.precision import resolve

NONPRIVATE = "nonprivate"
METHODS = (NONPRIVATE, *(method for method in clipping.METHODS if method != "auto"))
NAMES = (train_query.STAGE.name, query.STAGE.name, pretrain.STAGE.name, finetune.STAGE.name, sample.STAGE.name)
_COUNTED = 4  # examples whose floating-point operations are counted; a batch has in proportion


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a config on one machine.

    Attributes:
      name: of the stage.
      method: of the clipping; None outside fine-tuning.
      lower: traces it for a mesh.
      flops: counts the floating-point operations of one run of it, over all devices.
      rounds: of its loops, see `hlo.Program.cost`.
      times: how often a whole run of the config starts it.
      precision: of its matrix products.
      asked: the precision that products of float32 values are traced with.
      microbatch: examples whose gradients a device holds at once; None outside fine-tuning.
      batch: the images of one run, over all devices.
      divided: the setting whose images are spread over the devices only if they divide evenly; "" if they always are.
      remedy: what to do where it does not fit.
      settings: what decides the program besides the machine and the code.
    """

    name: str
    lower: Callable[[Mesh], jax.stages.Lowered]
    flops: Callable[[], float]
    rounds: tuple[float, ...]
    times: int
    precision: str
    asked: str
    batch: int
    remedy: str
    settings: dict[str, Any]
    method: str | None = None
    microbatch: int | None = None
    divided: str = ""

    @property
    def title(self) -> str:
        """The name, and the method where there is one."""
        return self.name if self.method is None else f"{self.name} ({self.method})"


def own_method(config: ConfigDict) -> str:
    """The method of clipping that a run of the config takes."""
    return "bookkeeping" if config.clipping.method == "auto" else config.clipping.method


def make(
    config: ConfigDict, facts: Facts, machine: Machine, methods: tuple[str, ...], names: tuple[str, ...] = ()
) -> list[Program]:
    """The programs of a config, in the order of its stages.

    Args:
      config: a checked config.
      facts: of its data sets.
      machine: to compile for; its memory decides the microbatch.
      methods: of `METHODS`, for fine-tuning.
      names: of `NAMES`; () = all that the config runs.

    Raises:
      UserError: an unknown method or name, a model that cannot be built, or one example that does not fit into a
        device's memory.
    """
    if unknown := [method for method in methods if method not in METHODS]:
        raise UserError(f"--methods: {unknown[0]!r} is not known; give some of {', '.join(METHODS)}.")
    config = config.copy_and_resolve_references()
    config.precision = resolve(config.precision, machine.platform)
    runs = {
        train_query.STAGE.name: train_query.STAGE.enabled(config) and not config.query_net.workdir,
        query.STAGE.name: query.STAGE.enabled(config),
        pretrain.STAGE.name: config.pretrain.steps > 0 or config.warmup.enabled,
        finetune.STAGE.name: config.finetune.enabled,
        sample.STAGE.name: True,
    }
    run = [name for name in NAMES if runs[name]]
    if unknown := [name for name in names if name not in run]:
        raise UserError(f"--programs: {unknown[0]!r} is no program of this config; give some of {', '.join(run)}.")
    made = []
    for name in (name for name in run if not names or name in names):
        of_classifier = name in (train_query.STAGE.name, query.STAGE.name)
        model = ("query_net.model", config.query_net.model) if of_classifier else generators.network(config)
        with named_failures(*model):
            if name == finetune.STAGE.name:
                made += [_finetune(config, facts, machine, method) for method in methods]
            else:
                made.append(_MAKERS[name](config, facts, machine))
    return made


def _train_query(config: ConfigDict, facts: Facts, machine: Machine) -> Program:
    model, recipe = train_query.build(config, facts.public_classes), train_query.recipe(config, facts.public_n)
    shape, size = _image_shape(config), config.query_net.batch_size
    state = jax.eval_shape(lambda key: classifier.init(model, recipe, key, shape), _key())

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        data = _data(config, "public", facts.public_n, mesh, machine)
        return _lower_loop(classifier.make_step(model, recipe, mesh), state, data, {"key": _key()}, mesh)

    def loss(params: Any, rest: Any, images: jax.Array) -> jax.Array:
        logits, _ = model.apply(
            {**rest, "params": params}, images, train=True, mutable=list(rest), rngs={"dropout": jax.random.key(0)}
        )
        return jnp.sum(jax.nn.log_softmax(logits))

    def flops() -> float:
        variables = dict(state["variables"])
        params, images = variables.pop("params"), _array((_COUNTED, *shape), jnp.float32)
        return _flops(jax.grad(loss), params, variables, images) * size / _COUNTED

    return Program(
        name=train_query.STAGE.name,
        lower=lower,
        flops=flops,
        rounds=(1,),
        times=recipe.steps,
        precision=_precision(config, config.query_net.kwargs),
        asked=config.precision,
        batch=size,
        divided="config.query_net.batch_size",
        remedy=_remedy(config, "public", facts.public_n, machine, "config.query_net.batch_size"),
        settings=_settings(config, facts, "query_net"),
    )


def _query(config: ConfigDict, facts: Facts, machine: Machine) -> Program:
    model, shape = train_query.build(config, facts.public_classes), _image_shape(config)
    variables = jax.eval_shape(lambda key: registry.init_classifier(model, key, shape), _key())
    size = counting.PER_DEVICE * machine.devices

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        classify = features.forward(model, _placed(variables, meshes.replicated(mesh)), method="__call__")
        images = _placed(_array((size, *shape), jnp.uint8), meshes.batch_sharded(mesh))
        return features.on_batch.lower(classify, images, mesh=mesh)

    def flops() -> float:
        images = _array((_COUNTED, *shape), jnp.float32)
        counted = _flops(lambda variables, images: model.apply(variables, images, train=False), variables, images)
        return counted * size / _COUNTED

    return Program(
        name=query.STAGE.name,
        lower=lower,
        flops=flops,
        rounds=(),
        times=-(-facts.n // size),
        precision=_precision(config, config.query_net.kwargs),
        asked=config.precision,
        batch=size,
        remedy="choose a smaller config.query_net.model",
        settings=_settings(config, facts, "query_net"),
    )


def _pretrain(config: ConfigDict, facts: Facts, machine: Machine) -> Program:
    generator = generators.build(config, facts.n_classes)
    size, images = config.pretrain.batch_size, selected(config, facts)
    state = jax.eval_shape(lambda key: generator.public_state(generator.init(key)), _key())

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        step = pretrain.make_step(config, mesh, generator)
        data = _data(config, "public", images, mesh, machine)
        return _lower_loop(step, state, data, {"key": _key()}, mesh)

    def flops() -> float:
        # Of one draw for each image, as pre-training has it.
        once = config.copy_and_resolve_references()
        once.finetune.noise_multiplicity = 1
        loss = generators.build(once, facts.n_classes).per_example_loss
        gradient = jax.grad(lambda params, batch, keys: jnp.sum(loss(params, batch, keys)))
        shapes = batch_shapes(_COUNTED, generator.image_shape)
        return _flops(gradient, artefact.shapes(generator), *shapes) * size / _COUNTED

    return Program(
        name=pretrain.STAGE.name,
        lower=lower,
        flops=flops,
        rounds=(1,),
        times=config.pretrain.steps + config.warmup.steps * config.warmup.enabled,
        precision=_precision(config, config.model.kwargs),
        asked=config.precision,
        batch=size,
        divided="config.pretrain.batch_size",
        remedy=_remedy(config, "public", images, machine, "config.pretrain.batch_size"),
        settings=_settings(config, facts, "pretrain", "warmup", *generators.sections(config), "selection"),
    )


def _finetune(config: ConfigDict, facts: Facts, machine: Machine, method: str) -> Program:
    generator, size = generators.build(config, facts.n_classes), config.finetune.batch_size
    params = artefact.shapes(generator)
    microbatch = finetune.choose_microbatch(config, generator, params, machine.devices, machine.memory)
    # The noise multiplier is one constant of the program, and makes no difference to its cost.
    settings = finetune.dp_settings(config, facts.n, 1.0, microbatch)
    settings = dataclasses.replace(settings, method="auto" if method == NONPRIVATE else method)
    state = jax.eval_shape(generator.private_state, params, _key())

    people_are_records = unit(config).groups_images

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        if method == NONPRIVATE:
            plain = fast_convolutions(platform=machine.platform)(generator.per_example_loss)
            nonprivate = nonprivate_step(plain, generator.private_update(mesh), settings, mesh, generator.merge)

            def plain_step(state: Any, inputs: Any, t: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
                return nonprivate(state, inputs["data"], inputs["key"], inputs["loss_key"], t)

            step: loop.Step = plain_step
        else:
            step = finetune.make_step(generator, mesh, settings)
        images = residency.capacity(facts.n) if people_are_records else facts.n
        data: Any = _data(config, "data", images, mesh, machine)
        if people_are_records:  # how many images there are is not known; at least one a person
            first = _placed(_array((facts.n + 1,), jnp.int32), meshes.replicated(mesh))
            data = people.People(data, first, draws_of(generator))
        return _lower_loop(step, state, data, {"key": _array((8,), jnp.uint32), "loss_key": _key()}, mesh)

    def flops() -> float:
        def total(trained: Any, frozen: Any, batch: Any, keys: jax.Array) -> jax.Array:
            return jnp.sum(generator.per_example_loss(generator.merge(trained, frozen), batch, keys))

        shapes = batch_shapes(_COUNTED, generator.image_shape)
        return _flops(jax.grad(total), state["params"], state["frozen"], *shapes) * size / _COUNTED

    return Program(
        name=finetune.STAGE.name,
        method=method,
        lower=lower,
        flops=flops,
        # A device's last microbatch is half empty on average.
        rounds=(1, max(1.0, size / machine.devices / microbatch + 0.5)),
        times=derived.finetune_steps(config, facts.n),
        precision=_precision(config, config.model.kwargs),
        asked=config.precision,
        microbatch=microbatch,
        batch=size,
        remedy=_remedy(config, "data", facts.n, machine, "config.clipping.microbatch"),
        settings=_settings(config, facts, "finetune", "clipping", "privacy.unit", *generators.sections(config))
        | {"method": method, "microbatch": microbatch},
    )


def _sample(config: ConfigDict, facts: Facts, machine: Machine) -> Program:
    generator, section = generators.build(config, facts.n_classes), config.sample
    params, size = artefact.shapes(generator), -(-section.batch_size // machine.devices) * machine.devices

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        everywhere, split = meshes.replicated(mesh), meshes.batch_sharded(mesh)
        numbers, labels = (_placed(_array((size,), dtype), split) for dtype in (jnp.uint32, jnp.int32))
        sampler = Sampler(generator, mesh)
        return sampler.program.lower(_placed(params, everywhere), _placed(_key(), everywhere), numbers, labels)

    def flops() -> float:
        return generator.sample_flops(params) * size

    return Program(
        name=sample.STAGE.name,
        lower=lower,
        flops=flops,
        rounds=(),
        times=-(-section.n // section.batch_size),
        precision=_precision(config, config.model.kwargs),
        asked=config.precision,
        batch=size,
        remedy="give a smaller config.sample.batch_size",
        settings=_settings(config, facts, "sample", *generators.sections(config)),
    )


def _lower_loop(step: loop.Step, state: Any, data: Any, keys: dict[str, Any], mesh: Mesh) -> jax.stages.Lowered:
    everywhere, number = meshes.replicated(mesh), _array((), jnp.int32)
    state, keys, number = (_placed(tree, everywhere) for tree in (state, keys, number))
    return loop.compiled(step).lower(state, {"data": data, **keys}, number, number)


def _flops(function: Callable, *shapes: Any) -> float:
    """XLA's count for a function without loops, whose body it would count once whatever its number of rounds."""
    return float((jax.jit(function).lower(*shapes).cost_analysis() or {})["flops"])


def _image_shape(config: ConfigDict) -> tuple[int, int, int]:
    return config.data.image_size, config.data.image_size, config.data.channels


def _data(config: ConfigDict, section: str, n: int, mesh: Mesh, machine: Machine) -> records.Records:
    """The n images of a set and their labels as the run would lay them on the devices."""
    tree = {"image": _array((n, *_image_shape(config)), jnp.uint8), "label": _array((n,), jnp.int32)}
    setting = config[section].residency
    if section == "data" and config.privacy.unit == "person":
        setting = residency.of_people(setting)
    return residency.shapes(tree, mesh, setting, machine.memory, f"config.{section}.residency")


def _array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _precision(config: ConfigDict, kwargs: ConfigDict) -> str:
    """Of the matrix products: those of bfloat16 activations are bfloat16, others as the config says."""
    return "bfloat16" if kwargs.get("dtype") == "bfloat16" else config.precision


def _remedy(config: ConfigDict, section: str, images: int, machine: Machine, batch: str) -> str:
    """What makes a program smaller: its batch, or, where the images of a set are most of it, less of these."""
    whole, half = images * math.prod(_image_shape(config)), machine.memory / 2
    if whole / machine.devices >= half:
        return "use more devices, or fewer images"
    if whole >= half and config[section].residency == "replicated":
        return f"give config.{section}.residency=auto"
    return f"give a smaller {batch}"


def _settings(config: ConfigDict, facts: Facts, *sections: str) -> dict[str, Any]:
    shared = ("data.image_size", "data.channels", "data.residency", "public.residency", "precision")
    own = configs.section(config, *sections, *shared)
    return own | dataclasses.asdict(facts)


_MAKERS = {
    train_query.STAGE.name: _train_query,
    query.STAGE.name: _query,
    pretrain.STAGE.name: _pretrain,
    sample.STAGE.name: _sample,
}
