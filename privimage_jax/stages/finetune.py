"""Stage 5: fine-tune the generator on the sensitive images with DP-SGD (mechanism 2) and publish it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax import generators
from privimage_jax.errors import UserError
from privimage_jax.generators import artefact
from privimage_jax.generators.base import Generator, Params, State, draws_of
from privimage_jax.generators.sampler import Sampler
from privimage_jax.privacy import clipping, dp_sgd, objective_check, sum_check, weight_gradients
from privimage_jax.run import publication
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.mechanism import Mechanism
from privimage_jax.run.plan import NOISE
from privimage_jax.run.stage import named
from privimage_jax.run.trouble import Trouble
from privimage_jax.settings import families
from privimage_jax.stages import pretrain
from privimage_jax.storage import fingerprints
from privimage_jax.training import convolution_choice, divergence, loop, memory, residency
from privimage_jax.training.batches import batch_shapes
from privimage_jax.training.checkpoint import Checkpoints
from privimage_jax.training.mesh import place, platform, replicated
from privimage_jax.training.state import tree_digest

STAGE = named("finetune")
FIRST_VALUES = "low-rank factors"  # the purpose of the key of parameters that fine-tuning adds


def run(inputs: Inputs) -> None:
    """Writes `release/generator/`: the averaged parameters after the last step, and the model's config.

    Raises:
      UserError: if the model mixes the examples of a batch, the inputs changed since budget was spent, or no step
        is left.
    """
    target = STAGE.artefact(inputs.workdir)
    generator = generators.build(inputs.config, inputs.sensitive.n_classes)
    params = pretrain.load(inputs, generator)
    mechanism = Mechanism(inputs)
    if not inputs.config.finetune.enabled:
        mechanism.state_terms()
        _publish(inputs, params)
        return
    if not mechanism.is_closed:
        convolutions = choose_convolutions(inputs, mechanism, generator, params)
        mechanism.check_inputs(
            noise=fingerprints.fingerprint(factors(inputs, mechanism.lines)),
            data=inputs.sensitive.digest(),
            parameters=tree_digest(params),
            settings=fingerprints.fingerprint(STAGE.settings(inputs.config)),
            convolutions=fingerprints.fingerprint(convolutions),
        )
        _publish(inputs, _train(inputs, mechanism, generator, params, convolutions))
        mechanism.close()
    elif not target.exists():
        raise UserError(
            f"the {mechanism.name} in {inputs.workdir.root} has spent its budget, but its output {target} was deleted; "
            "start a new workdir."
        )
    Checkpoints(mechanism.folder / "checkpoints").clear()


def _publish(inputs: Inputs, params: Params) -> None:
    name, described = STAGE.artefact(inputs.workdir).name, describe(inputs)
    publication.publish(inputs, name, lambda folder: artefact.write(folder, params, described))


def describe(inputs: Inputs) -> dict[str, Any]:
    """The public description that goes with the released parameters."""
    names = (*generators.sections(inputs.config), "data.image_size", "data.channels")
    return {"class_names": list(inputs.sensitive.class_names), "config": configs.section(inputs.config, *names)}


def factors(inputs: Inputs, lines: list[dict[str, Any]]) -> dict[str, float]:
    """What scales the gradients and the noise of every step, and draws its batch, as a ledger line states it.

    Once there is a line, that line's, also under the fresh key after a lost one. A solution found anew could differ
    where dp-accounting does, and equal noise at two scales subtracts.

    Args:
      inputs: of the stage.
      lines: the ledger's lines of DP-SGD, oldest first.

    Raises:
      UserError: if the settings give another sampling rate than the line's.
    """
    plan, config = inputs.plan, inputs.config
    planned = {
        "sampling_rate": plan.sampling_rate,
        "noise_multiplier": plan.noise_multiplier,
        "clip_norm": config.clipping.norm,
        "expected_batch_size": config.finetune.batch_size,
    }
    stated = next((line for line in reversed(lines) if line["kind"] == "dp-sgd"), planned)
    for name in planned.keys() - {"noise_multiplier"}:  # the settings decide these
        if stated[name] != planned[name]:
            raise UserError(
                f"{inputs.workdir.ledger} states {name} = {stated[name]!r} of DP-SGD, but its steps would run with "
                f"{planned[name]!r}; go on with the version that began the run, or start a new workdir."
            )
    return planned | {"noise_multiplier": stated["noise_multiplier"]}


@dataclasses.dataclass(frozen=True)
class StepRange:
    """The steps that may still be run: [start, stop) under the key of `generation`, reserved up to `reserved`."""

    generation: int
    start: int
    reserved: int
    stop: int


def next_step_range(
    lines: list[dict[str, Any]],
    checkpoint: int,
    steps: int,
    has_key: Callable[[int], bool],
    resumable: bool = NOISE.resumable,
) -> StepRange:
    """Which steps follow the checkpoint, given this mechanism's ledger lines.

    Steps reserved under a key that is still there are replayed for free. Under a lost key they are spent, and the run
    goes on from its checkpoint with a fresh key for as many steps as the plan has left; likewise if the checkpoint is
    older than the first step of the present key. Noise that is not resumable forbids a fresh key.

    Args:
      lines: the ledger's lines of DP-SGD blocks, oldest first.
      checkpoint: the step of the newest intact checkpoint.
      steps: planned number of steps T.
      has_key: generation -> whether its key is at hand.
      resumable: of the noise, see `privacy.noise.Noise`.

    Raises:
      UserError: if the checkpoint is of steps that the ledger never reserved, or the key was lost and the noise is not
        resumable.
    """
    blocks = [(line["key_generation"], *line["steps"]) for line in lines if line["kind"] == "dp-sgd"]
    last = max((end for _, _, end in blocks), default=0)
    if checkpoint > last:
        raise UserError(
            f"the checkpoint of step {checkpoint} is ahead of the ledger, which has reserved the steps before {last}: "
            "one was restored without the other; restore both from one copy, or start a new workdir."
        )
    if not blocks:
        return StepRange(0, checkpoint, checkpoint, steps)
    generation = blocks[-1][0]
    own = [(begin, end) for owner, begin, end in blocks if owner == generation]
    if has_key(generation) and own[0][0] <= checkpoint:
        before = sum(end - begin for owner, begin, end in blocks if owner != generation)
        return StepRange(generation, checkpoint, own[-1][1], own[0][0] + steps - before)
    if not resumable:
        raise UserError(
            "the key of DP-SGD was lost, and its noise cannot go on under a fresh one; start a new workdir."
        )
    left = steps - sum(end - begin for _, begin, end in blocks)
    return StepRange(generation + 1, checkpoint, checkpoint, checkpoint + left)


def choose_convolutions(
    inputs: Inputs, mechanism: Mechanism, generator: Generator, params: Params
) -> convolution_choice.Choice:
    """Which rule computes the weight gradients of each convolution: on the disk before any budget is spent."""
    config, plan = inputs.config, inputs.plan

    def find() -> dict[str, weight_gradients.Layer]:
        state = generator.private_state(params, inputs.key(FIRST_VALUES))
        settings = dp_settings(config, plan.n, plan.noise_multiplier, inputs.microbatch)
        loss = _loss_of_trained(generator, state["frozen"])
        return convolution_choice.layers(loss, state["params"], inputs.sensitive.image_shape, settings)

    is_spent = mechanism.generation >= 0
    device = inputs.mesh.local_devices[0]
    return convolution_choice.kept(mechanism.folder, is_spent, find, device, platform(inputs.mesh))


def _loss_of_trained(generator: Generator, frozen: Params) -> clipping.PerExampleLoss:
    """The loss as fine-tuning differentiates it."""
    return lambda trained, batch, keys: generator.per_example_loss(generator.merge(trained, frozen), batch, keys)


def convolution_rule(convolutions: convolution_choice.Choice, mesh: Mesh) -> weight_gradients.Rule:
    """The chosen rule for each layer, and the platform's for all others."""
    return weight_gradients.by_table(convolutions, weight_gradients.of_platform(platform(mesh)))


def _train(
    inputs: Inputs,
    mechanism: Mechanism,
    generator: Generator,
    params: Params,
    convolutions: convolution_choice.Choice,
) -> Params:
    config, plan, log = inputs.config, inputs.plan, inputs.config.log
    public = generator.private_state(params, inputs.key(FIRST_VALUES))  # as pre-training left it
    state = dp_sgd.with_noise_state(public, NOISE)
    state = place(state, replicated(inputs.mesh))
    checkpoints = Checkpoints(mechanism.folder / "checkpoints", log.keep)
    state = checkpoints.restore_latest(state, mechanism.warn, mechanism.owns) or state
    step_range = next_step_range(mechanism.lines, int(state["step"]), plan.steps, mechanism.has_key)
    if step_range.stop == 0:
        raise UserError(
            f"every step of the {mechanism.name} in {inputs.workdir.root} is spent, but its key and its "
            "checkpoints were lost; start a new workdir."
        )
    if step_range.generation > max(mechanism.generation, 0):
        mechanism.warn(
            f"the key of {mechanism.name} was lost; its reserved steps are spent, "
            f"{step_range.stop - step_range.start} are left."
        )
    keys = {"key": mechanism.key(step_range.generation), "loss_key": inputs.key("diffusion draws")}
    arguments = {
        "data": residency.place_records(inputs.sensitive, draws_of(generator), inputs.mesh, config.data.residency),
        **place(keys, replicated(inputs.mesh)),
    }
    _check_model(inputs, mechanism, generator, public, convolutions)
    fixed = factors(inputs, mechanism.lines)
    dp = dp_settings(config, plan.n, fixed["noise_multiplier"], inputs.microbatch)
    draw, grid_key = Sampler(generator, inputs.mesh), inputs.key("sample grids")
    trouble = Trouble(inputs)

    def tell(kind: str, sentence: str) -> None:
        verdict = "fine-tuning may diverge" if kind == "loss" else "fine-tuning diverges"
        trouble.tell(kind, f"{sentence}: {verdict}; {remedy(config)}.")

    watch = divergence.Watch(mechanism.folder / "metrics" / "metrics.csv", tell)

    def after(begin: int, end: int, metrics: dict[str, float]) -> None:
        check_processed(begin, end, metrics)
        watch(begin, end, metrics)

    block = config.finetune.block or -(-plan.steps // 10)
    reserved = step_range.reserved

    def reserve(begin: int, end: int) -> None:
        """Whole blocks are on the disk as spent before their first step is dispatched."""
        nonlocal reserved
        if end > reserved:
            reserve_to = min((begin // block + 1) * block, step_range.stop)
            mechanism.spend("dp-sgd", steps=[reserved, reserve_to], **fixed, key_generation=step_range.generation)
            reserved = reserve_to

    state = loop.train(
        STAGE.name,
        make_step(generator, inputs.mesh, dp, convolutions),
        state,
        arguments,
        step_range.start,
        step_range.stop,
        mechanism.folder,
        log,
        draw=lambda state: draw.grid(generator.released(state), grid_key, generator.n_classes),
        before=reserve,
        after=after,
        block=block,
        owner=mechanism.owner(step_range.generation),
    )
    trained = jax.device_get(generator.released(state))
    if not divergence.all_finite(trained):
        tell("parameters", "a parameter is not finite")
    return trained


def remedy(config: ConfigDict) -> str:
    """What an operator can do about a fine-tuning that diverges, as the end of a sentence."""
    return (
        "the run goes on, as ending it is your decision (docs/troubleshooting.md says what it costs); next time give "
        f"less than {families.rate(config, STAGE.name)}"
    )


def choose_microbatch(config: ConfigDict, generator: Generator, params: Params, n_devices: int, available: int) -> int:
    """The config's, or what the memory of a device allows.

    Args:
      config: of the run.
      generator: to be fine-tuned.
      params: its parameters (arrays or shapes).
      n_devices: of all processes.
      available: memory of one device in bytes.

    Raises:
      UserError: if it cannot fit.
    """
    if hasattr(generator, "check_memory"):
        generator.check_memory(params, available)
    per_example = memory.bytes_per_example(generator.per_example_loss, params, generator.image_shape)
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


def _check_model(
    inputs: Inputs,
    mechanism: Mechanism,
    generator: Generator,
    public: State,
    convolutions: convolution_choice.Choice,
) -> None:
    """Refuses a model that mixes the examples of a batch, or a device that does not add; warns of a slow model."""
    sum_check.check_sum()
    config, rule = inputs.config, convolution_rule(convolutions, inputs.mesh)
    labels = np.arange(generator.n_classes, dtype=np.int32)
    batch = {"image": np.zeros((len(labels), *generator.image_shape), np.float32), "label": labels}
    if inputs.sensitive.owners is not None and (draws := draws_of(generator)) > 1:
        batch = {name: np.repeat(leaf[:, None], draws, axis=1) for name, leaf in batch.items()}  # as people have them
    trained, frozen = public["params"], public["frozen"]
    try:
        objective_check.check_objective(
            generator.per_example_loss, trained, batch, config.clipping.method, rule, generator.merge, frozen
        )
    except ValueError as error:
        key, name = generators.network(config)
        raise UserError(f"config.{key}={name}: {error}") from None
    loss = _loss_of_trained(generator, frozen)
    slow = clipping.left_to_vmap(loss, trained, *batch_shapes(1, generator.image_shape))
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
    generator: Generator,
    mesh: Mesh,
    settings: dp_sgd.DPSGD,
    convolutions: convolution_choice.Choice | None = None,
) -> loop.Step:
    """`step(state, {"data", "key", "loss_key"}, t) -> (state, stats)`, see `dp_sgd.dp_step`.

    `convolutions` is the choice of rules for weight gradients; without it all have the platform's.
    """
    rule = convolution_rule(convolutions or {}, mesh)
    dp_step = dp_sgd.dp_step(
        generator.per_example_loss, generator.private_update(mesh), settings, mesh, generator.merge, rule, NOISE
    )

    metrics: Callable[[Any], dict[str, jax.Array]] = getattr(generator, "metrics", lambda state: {})

    def step(state: Any, inputs: Any, t: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        state, stats = dp_step(state, inputs["data"], inputs["key"], inputs["loss_key"], t)
        return state, {**stats, **metrics(state)}

    return step
