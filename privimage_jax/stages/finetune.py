"""Stage 5: fine-tune the generator on the sensitive images with DP-SGD (mechanism 2) and publish it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax import workdir
from privimage_jax.diffusion import PerExampleLoss, batch_shapes, make_per_example_loss
from privimage_jax.errors import UserError
from privimage_jax.privacy import clipping, dp_sgd, weight_gradients
from privimage_jax.run import publication
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.mechanism import Mechanism
from privimage_jax.run.stage import named
from privimage_jax.stages import generator, pretrain
from privimage_jax.training import convolution_choice, loop, lora, memory, residency
from privimage_jax.training.checkpoint import Checkpoints
from privimage_jax.training.mesh import place, platform, replicated
from privimage_jax.training.state import init_state, make_update, merge_params, split_params, tree_digest

STAGE = named("finetune")


def run(inputs: Inputs) -> None:
    """Writes `release/generator/`: the averaged parameters after the last step, and the model's config.

    Raises:
      UserError: if the model mixes the examples of a batch, the inputs changed since budget was spent, or no step
        is left.
    """
    target = STAGE.artefact(inputs.workdir)
    params = pretrain.load(inputs)
    if not inputs.config.finetune.enabled:
        Mechanism(inputs).promise()
        _publish(inputs, params)
        return
    mechanism = Mechanism(inputs)
    if not mechanism.is_closed:
        convolutions = choose_convolutions(inputs, mechanism, params)
        mechanism.fix_inputs(
            data=inputs.sensitive.digest(),
            parameters=tree_digest(params),
            settings=workdir.fingerprint(STAGE.settings(inputs.config)),
            convolutions=workdir.fingerprint(convolutions),
        )
        _publish(inputs, _train(inputs, mechanism, params, convolutions))
        mechanism.close()
    elif not target.exists():
        raise UserError(
            f"the {mechanism.name} in {inputs.workdir.root} has spent its budget, but its output {target} was deleted; "
            "start a new workdir."
        )
    Checkpoints(mechanism.folder / "checkpoints").clear()


def _publish(inputs: Inputs, params: Any) -> None:
    publication.publish(
        inputs, STAGE.artefact(inputs.workdir).name, lambda folder: generator.write(folder, params, describe(inputs))
    )


def describe(inputs: Inputs) -> dict[str, Any]:
    """The public description that goes with the released parameters."""
    names = ("model", "diffusion", "data.image_size", "data.channels")
    return {"class_names": list(inputs.sensitive.class_names), "config": configs.section(inputs.config, *names)}


@dataclasses.dataclass(frozen=True)
class Stretch:
    """The steps that may still be run: [start, stop) under the key of `generation`, reserved up to `reserved`."""

    generation: int
    start: int
    reserved: int
    stop: int


def next_stretch(lines: list[dict[str, Any]], checkpoint: int, steps: int, has_key) -> Stretch:
    """Which steps follow the checkpoint, given this mechanism's ledger lines.

    Steps reserved under a key that is still there are replayed for free. Under a lost key they are spent, and the run
    goes on from its checkpoint with a fresh key for as many steps as the plan has left; likewise if the checkpoint is
    older than the first step of the present key.

    Args:
      lines: the ledger's lines of DP-SGD blocks, oldest first.
      checkpoint: the step of the newest intact checkpoint.
      steps: planned number of steps T.
      has_key: generation -> whether its key is at hand.
    """
    blocks = [(line["key_generation"], *line["steps"]) for line in lines if line["kind"] == "dp-sgd"]
    if not blocks:
        return Stretch(0, checkpoint, checkpoint, steps)
    generation = blocks[-1][0]
    own = [(begin, end) for owner, begin, end in blocks if owner == generation]
    if has_key(generation) and own[0][0] <= checkpoint:
        before = sum(end - begin for owner, begin, end in blocks if owner != generation)
        return Stretch(generation, checkpoint, own[-1][1], own[0][0] + steps - before)
    left = steps - sum(end - begin for _, begin, end in blocks)
    return Stretch(generation + 1, checkpoint, checkpoint, checkpoint + left)


def choose_convolutions(inputs: Inputs, mechanism: Mechanism, params: Any) -> convolution_choice.Choice:
    """Which rule computes the weight gradients of each convolution: on the disk before any budget is spent."""
    config, plan, n_classes = inputs.config, inputs.plan, inputs.sensitive.n_classes

    def find() -> dict[str, weight_gradients.Layer]:
        loss = objective(config, generator.build(config, n_classes), n_classes)
        trainable, frozen, merge = part_params(config, params, inputs.key("low-rank factors"))
        settings = dp_settings(config, plan.n, plan.finetune_noise, inputs.microbatch)

        def merged(trained, batch, keys):
            return loss(merge(trained, frozen), batch, keys)

        return convolution_choice.layers(merged, trainable, inputs.sensitive.image_shape, settings)

    is_spent = mechanism.generation >= 0
    device = inputs.mesh.local_devices[0]
    return convolution_choice.kept(mechanism.folder, is_spent, find, device, platform(inputs.mesh))


def convolution_rule(convolutions: convolution_choice.Choice, mesh: Mesh) -> weight_gradients.Rule:
    """The chosen rule for each layer, and the platform's for all others."""
    return weight_gradients.by_table(convolutions, weight_gradients.of_platform(platform(mesh)))


def _train(inputs: Inputs, mechanism: Mechanism, params: Any, convolutions: convolution_choice.Choice) -> Any:
    config, plan, log = inputs.config, inputs.plan, inputs.config.log
    n_classes = inputs.sensitive.n_classes
    model = generator.build(config, n_classes)
    trainable, frozen, merge = part_params(config, params, inputs.key("low-rank factors"))
    optimizer = optax.adam(config.finetune.learning_rate)
    state = place(init_state(trainable, optimizer, frozen), replicated(inputs.mesh))
    checkpoints = Checkpoints(mechanism.folder / "checkpoints", log.keep)
    state = checkpoints.restore_latest(state, mechanism.warn) or state
    stretch = next_stretch(mechanism.lines, int(state["step"]), plan.steps, mechanism.has_key)
    if stretch.stop == 0:
        raise UserError(
            f"every step of the {mechanism.name} in {inputs.workdir.root} is spent, but its key and its "
            "checkpoints were lost; start a new workdir."
        )
    if stretch.generation > max(mechanism.generation, 0):
        mechanism.warn(
            f"the key of {mechanism.name} was lost; its reserved steps are spent, "
            f"{stretch.stop - stretch.start} are left."
        )
    data = {"image": inputs.sensitive.images, "label": inputs.sensitive.labels}
    keys = {"key": mechanism.key(stretch.generation), "loss_key": inputs.key("diffusion draws")}
    arguments = {
        "data": residency.place(data, inputs.mesh, config.data.residency),
        **place(keys, replicated(inputs.mesh)),
    }
    _check_model(inputs, mechanism, model, n_classes, params, convolutions)
    dp = dp_settings(config, plan.n, plan.finetune_noise, inputs.microbatch)
    draw, grid_key = generator.Sampler(config, model, inputs.mesh), inputs.key("sample grids")
    block = config.finetune.block or -(-plan.steps // 10)
    reserved = stretch.reserved

    def reserve(begin: int, end: int) -> None:
        """Whole blocks are on the disk as spent before their first step is dispatched."""
        nonlocal reserved
        if end > reserved:
            reserve_to = min((begin // block + 1) * block, stretch.stop)
            _reserve(mechanism, plan, config, stretch.generation, reserved, reserve_to)
            reserved = reserve_to

    state = loop.train(
        STAGE.name,
        make_step(config, inputs.mesh, model, optimizer, n_classes, dp, merge, convolutions),
        state,
        arguments,
        stretch.start,
        stretch.stop,
        mechanism.folder,
        log,
        draw=lambda state: draw.grid(merge(state["ema"], state["frozen"]), grid_key, n_classes),
        before=reserve,
        after=check_processed,
        block=block,
    )
    return jax.device_get(merge(state["ema"], state["frozen"]))


def part_params(config, params: Any, key: jax.Array) -> tuple[dict, dict, Callable[[dict, dict], dict]]:
    """What is trained, what is kept, and how the two make the model's parameters."""
    section = config.finetune
    if section.lora_rank:
        return *lora.split(params, section.trainable, section.lora_rank, key), lora.merge
    return *split_params(params, section.trainable), merge_params


def choose_microbatch(config: ConfigDict, model: nn.Module, params: Any, n_devices: int, available: int) -> int:
    """The config's, or what the memory of a device allows.

    Args:
      config: of the run.
      model: the denoiser.
      params: its parameters (arrays or shapes).
      n_devices: of all processes.
      available: memory of one device in bytes.

    Raises:
      UserError: if it cannot fit.
    """
    shape = (config.data.image_size, config.data.image_size, config.data.channels)
    per_example = memory.bytes_per_example(objective(config, model, model.n_classes), params, shape)
    if config.clipping.microbatch:
        return memory.checked_microbatch(config.clipping.microbatch, per_example, available)
    return memory.largest_microbatch(per_example, config.finetune.batch_size, n_devices, available)


def check_processed(begin: int, end: int, metrics: dict[str, float]) -> None:
    """Every drawn record is processed exactly once, over all devices: what the accountant's sampling assumes."""
    if metrics["processed"] != metrics["drawn"]:
        raise RuntimeError(
            f"in the steps [{begin}, {end}) of DP-SGD a mean of {metrics['drawn']:g} records was drawn, but "
            f"{metrics['processed']:g} processed: this is a bug of privimage_jax, and the run is not to be released."
        )


def _reserve(mechanism: Mechanism, plan, config, generation: int, begin: int, end: int) -> None:
    """Writes the steps [begin, end) into the ledger."""
    mechanism.spend(
        "dp-sgd",
        steps=[begin, end],
        sampling_rate=plan.sampling_rate,
        noise_multiplier=plan.finetune_noise,
        clip_norm=config.clipping.norm,
        expected_batch_size=config.finetune.batch_size,
        key_generation=generation,
    )


def objective(config, model, n_classes: int) -> PerExampleLoss:
    """The denoising loss that fine-tuning minimises."""
    section = config.finetune
    return make_per_example_loss(
        model,
        generator.edm(config),
        n_classes,
        section.noise_multiplicity,
        flip=section.flip,
        shift=section.shift,
    )


def _check_model(
    inputs: Inputs,
    mechanism: Mechanism,
    model: nn.Module,
    n_classes: int,
    params: Any,
    convolutions: convolution_choice.Choice,
) -> None:
    """Refuses a model that mixes the examples of a batch, and warns of a slow one."""
    config = inputs.config
    per_example_loss = objective(config, model, n_classes)
    dp_sgd.check_objective(
        per_example_loss,
        params,
        inputs.sensitive.image_shape,
        n_classes,
        f"config.model.name={config.model.name}",
        config.clipping.method,
        convolution_rule(convolutions, inputs.mesh),
    )
    slow = clipping.left_to_vmap(per_example_loss, params, *batch_shapes(1, inputs.sensitive.image_shape))
    if slow and config.clipping.method != "vmap":
        mechanism.warn(
            f"book-keeping has no rule for {', '.join(slow)} of the model; jax.vmap computes their part of the "
            "per-example gradients, which is exact, but may be slow."
        )


def dp_settings(config: ConfigDict, n: int, noise_multiplier: float, microbatch: int) -> dp_sgd.DPSGD:
    """The public settings of the steps on `n` records."""
    return dp_sgd.DPSGD(
        n=n,
        batch_size=config.finetune.batch_size,
        clip_norm=config.clipping.norm,
        noise_multiplier=noise_multiplier,
        microbatch=microbatch,
        method=config.clipping.method,
        precision=config.precision,
    )


def make_step(
    config: ConfigDict,
    mesh: Mesh,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    n_classes: int,
    settings: dp_sgd.DPSGD,
    merge: Callable[[dict, dict], dict],
    convolutions: convolution_choice.Choice | None = None,
) -> loop.Step:
    """`step(state, {"data", "key", "loss_key"}, t) -> (state, stats)`, see `dp_sgd.dp_step`.

    `convolutions` is the choice of rules for weight gradients; without it all have the platform's.
    """
    update = make_update(optimizer, config.finetune.ema)
    rule = convolution_rule(convolutions or {}, mesh)
    dp_step = dp_sgd.dp_step(objective(config, model, n_classes), update, settings, mesh, merge, rule)

    def step(state, inputs, t):
        return dp_step(state, inputs["data"], inputs["key"], inputs["loss_key"], t)

    return step
