"""`privimage audit`: a lower bound on epsilon, measured on the training code itself by one-run auditing.

After Steinke, Nasr and Jagielski (2023, arXiv:2305.08846). Each canary is a record that takes part or not by the toss
of a fair coin; excluded, it is the null record of zero-out adjacency, whose gradient is zero. Fine-tuning runs once,
with noise solved for the *claimed* (epsilon, delta); then the attack guesses, for a number of canaries fixed
beforehand, which way their coins fell. Too many right guesses refute the claim; jax_privacy computes the largest
epsilon that they refute.

There are two kinds of canaries, equally many, and a bound from each:

- *white-box*: the attacker sees the noised gradient of every step. The canary's loss has one more term, a row of an
  `nn.Embed` that no other canary reads, times a factor: its gradient is that row's, `STRENGTH` times the clip norm and
  `STRENGTH` times the denoiser's own gradient. It passes through the real clipping, sampling, summing and noise, and
  its score is the sum of its row over all steps.
- *black-box*: the attacker sees the released parameters alone. The canary is an image like any other, and its score is
  how much training lowered its loss.

Where the unit is a person, a canary is a person with 1 to `IMAGES` images: excluded, all of them are null at once.

The images are noise, so that an audit reads no sensitive data and spends no budget. It releases nothing.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.table import Table

from privimage_jax import config as configs
from privimage_jax import generators
from privimage_jax.errors import UserError
from privimage_jax.generators.base import Generator, PerExampleLoss, State, draws_of
from privimage_jax.privacy import accounting, chacha, clipping, dp_sgd, people, records, sampling
from privimage_jax.settings.units import UNITS, unit
from privimage_jax.stages import finetune
from privimage_jax.storage import durable
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training import loop, memory
from privimage_jax.training.console import make_console
from privimage_jax.training.mesh import make_mesh, place, platform, replicated
from privimage_jax.training.precision import resolve
from privimage_jax.training.writers import progress

STRENGTH = 100  # norm of a white-box canary's gradient before clipping, relative to what it must dominate
IMAGES = 4  # of a canary that is a person: canary i has 1 + i mod IMAGES
LOSS_REPEATS = 8  # evaluations of a black-box canary's loss, whose draws it is averaged over
LOSS_BATCH = 8  # canaries evaluated at once
DECIMALS = 4  # of the bounds, which are rounded down

Result = dict[str, Any]


def run(config: ConfigDict, folder: Workdir, mesh: Mesh | None = None) -> Result:
    """Audits, writes `internal/audit.json`, and prints it.

    Args:
      config: a checked config.
      folder: of this audit alone: new, or left behind by an audit that was interrupted.
      mesh: default: all devices.

    Raises:
      UserError: jax-privacy is missing, the folder holds a run, a sweep or an audit, the guesses could not refute the
        claim even if all were right, or (after everything is written) they do refute it.
    """
    check_guesses(config)
    _take(folder)
    with folder.lock():
        durable.atomic_write_json(folder.audit_config, dict(configs.flatten(config)))
        result = audit(config, make_mesh() if mesh is None else mesh)
        durable.atomic_write_json(folder.audit_json, result)
    show(result)
    bound = max(result["epsilon_lower_white_box"], result["epsilon_lower_black_box"])
    if bound > result["epsilon_claimed"]:
        raise UserError(
            f"the audit refutes epsilon = {result['epsilon_claimed']:g}, which is at least {bound:g} (see "
            f"{folder.audit_json}); release nothing that this code trained, and look for the fault in it."
        )
    return result


def check_guesses(config: ConfigDict) -> None:
    """Refuses an audit that could not refute its claim.

    Raises:
      UserError: jax-privacy is missing, or that many right guesses show no more than the claimed epsilon.
    """
    section = config.audit
    most = lower_bound(section.guesses, section.guesses, section.canaries, section.confidence, section.claimed_delta)
    if most <= section.claimed_epsilon:
        raise UserError(
            f"config.audit.guesses={section.guesses} of {section.canaries} canaries show epsilon {most:g} at most, so "
            f"that they cannot refute config.audit.claimed_epsilon={section.claimed_epsilon:g}; give more of both, or "
            "claim less."
        )


def _take(folder: Workdir) -> None:
    """Makes the folder of an audit: `internal/` alone, which marks it as such."""
    folder.check()
    if (kind := folder.holds()) in ("a run", "a sweep"):
        raise UserError(f"{folder.root} holds {kind}; give the audit a --workdir of its own.")
    if folder.audit_json.exists():
        raise UserError(f"{folder.audit_json} holds the result of an audit; give this one a --workdir of its own.")
    folder.make_internal()


def audit(config: ConfigDict, mesh: Mesh) -> Result:
    """One training run and its two bounds, as one flat mapping; writes nothing.

    Raises:
      UserError: jax-privacy is missing, or the model cannot be built.
    """
    section, private = config.audit, config.privacy.fixed_seed < 0
    config.precision = resolve(config.precision, platform(mesh))
    coins = np.random.default_rng(None if private else [config.privacy.fixed_seed, 1])
    key = chacha.new_key() if private else chacha.key_from_seed(f"{config.privacy.fixed_seed} audit")
    included = coins.integers(0, 2, 2 * section.canaries).astype(bool)
    white, black, settings = attack(config, mesh, included, key)
    result = {
        "epsilon_claimed": section.claimed_epsilon,
        "delta": section.claimed_delta,
        "confidence": section.confidence,
        "unit": config.privacy.unit,
        "canaries": section.canaries,
        "guesses": section.guesses,
        "epsilon_lower_most": _bound(section, section.guesses),
        "accountant": config.privacy.accountant,
        "noise_multiplier": settings.noise_multiplier,
        "clip_norm": settings.clip_norm,
        "clipping_method": settings.method,
        "precision": settings.precision,
        "sampling_rate": settings.sampling_rate,
        "steps": section.steps,
        "keys": "operating system" if private else f"fixed seed {config.privacy.fixed_seed}",
    }
    for name, scores, truth in (
        ("white_box", white, included[: section.canaries]),
        ("black_box", black, included[section.canaries :]),
    ):
        right = right_guesses(scores, truth, section.guesses)
        result[f"right_guesses_{name}"] = right
        result[f"epsilon_lower_{name}"] = _bound(section, right)
    return result


def _bound(section: ConfigDict, right: int) -> float:
    return lower_bound(right, section.guesses, section.canaries, section.confidence, section.claimed_delta)


def right_guesses(scores: np.ndarray, included: np.ndarray, guesses: int) -> int:
    """How many of a fixed number of guesses are right: half "included", for the highest scores, half "excluded".

    Args:
      scores: float [canaries]; higher means rather included.
      included: bool [canaries], the truth.
      guesses: 1 to the number of canaries; the odd one is "included".
    """
    order = np.argsort(scores, kind="stable")
    low, high = order[: guesses // 2], order[len(order) - (guesses + 1) // 2 :]
    return int(np.sum(~included[low]) + np.sum(included[high]))


def lower_bound(right: int, guesses: int, canaries: int, confidence: float, delta: float) -> float:
    """The largest epsilon that the guesses refute at this delta, rounded down; 0 if they refute none.

    Theorem 5.2 of the paper, by jax_privacy. Valid with probability `confidence`, when `guesses` was fixed before the
    scores were seen.

    Args:
      right: right guesses.
      guesses: guesses in all, fewer than canaries.
      canaries: each included by a fair coin, independently.
      confidence: such as 0.95.
      delta: of the claim.

    Raises:
      UserError: jax-privacy is missing.
    """
    try:
        from jax_privacy import auditing
    except ImportError:
        raise UserError(
            "the audit needs jax-privacy, which cannot be imported; install the extra: "
            'pip install --constraint constraints.txt --editable ".[audit]".'
        ) from None
    if not right:
        return 0.0
    # The library guesses "included" alone, for scores from a threshold on. The theorem asks only how many guesses were
    # made and how many are right, so right guesses stand for included canaries, and wrong ones for excluded.
    wrong_or_none = np.repeat([1.0, 0.0], [guesses - right, canaries - guesses])
    scorer = auditing.CanaryScoreAuditor(np.ones(right), wrong_or_none)
    bound = scorer.epsilon_one_run(1 - confidence, delta, threshold_strategy=auditing.Explicit(1.0))
    return math.floor(bound * 10**DECIMALS) / 10**DECIMALS


def attack(
    config: ConfigDict, mesh: Mesh, included: np.ndarray, key: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dp_sgd.DPSGD]:
    """Scores of the white-box and of the black-box canaries, [canaries] each, and the settings of DP-SGD.

    Args:
      config: of the model, the loss, the optimizer, the clipping, and of the audit.
      mesh: devices.
      included: bool [2 * canaries]; the white-box canaries come first.
      key: ChaCha20 key of batches and noise.
    """
    section, n = config.audit, len(included)
    init_key, factor_key, loss_key, score_key = jax.random.split(jax.random.key(config.seed), 4)
    n_classes = len(config.data.class_names) or 10
    generator = generators.build(config, n_classes)
    shape = generator.image_shape
    params = jax.device_get(generator.init(init_key))  # training donates the device's copy
    own = generator.private_state(params, factor_key)

    def merge(trained: dict, frozen: dict) -> dict:
        return {**trained, "generator": generator.merge(trained["generator"], frozen)}

    settings = _settings(config, n, memory.bytes_per_example(generator.per_example_loss, params, shape), mesh.size)
    rows = nn.Embed(section.canaries, 1)
    embedding = jnp.zeros((section.canaries, 1))  # stays: the loss is linear in it
    owners = _owners(config, n)
    images = np.random.default_rng(config.seed).integers(0, 256, (len(owners), *shape), np.uint8)
    data = {
        "image": images,
        "label": np.arange(len(owners), dtype=np.int32) % n_classes,
        "row": owners % section.canaries,
        "factor": np.zeros(len(owners), np.float32),
        "included": included[owners],
    }
    state = _with_rows_beside(own, {"embedding": embedding}, jnp.zeros(section.canaries))
    loss = _with_rows(generator.per_example_loss, rows)
    own_norms = _norms(loss, merge(state["params"], state["frozen"]), data, loss_key, settings)
    data["factor"][owners < section.canaries] = STRENGTH * max(settings.clip_norm, own_norms)

    state = place(state, replicated(mesh))
    keys = place({"key": key, "loss_key": loss_key}, replicated(mesh))
    inputs = {"data": _placed(config, data, owners, draws_of(generator), mesh), **keys}
    state = _train(
        config, dp_sgd.dp_step(loss, _observing_update(generator, mesh), settings, mesh, merge), state, inputs
    )

    repeats = jax.random.split(score_key, LOSS_REPEATS)
    black_box = owners >= section.canaries
    unmarked = {name: data[name][black_box] for name in ("image", "label")}
    released = jax.device_get(generator.released(_generators_own(state)))
    losses = _losses(generator.per_example_loss, unmarked, repeats)
    before, after = losses(params), losses(released)
    own = owners[black_box] - section.canaries
    return np.asarray(state["observed"]), np.bincount(own, before - after) / np.bincount(own), settings


def _owners(config: ConfigDict, n: int) -> np.ndarray:
    """Of which canary each image is, int32 [images] in rising order."""
    images = 1 + np.arange(n) % IMAGES if unit(config).groups_images else 1
    return np.repeat(np.arange(n, dtype=np.int32), images)


def _placed(config: ConfigDict, data: dict, owners: np.ndarray, draws: int, mesh: Mesh) -> people.Data:
    """The canaries, all of them on each device."""
    laid = records.place(data, mesh)
    if not unit(config).groups_images:
        return laid
    return people.People(laid, place(people.order(owners)[1], replicated(mesh)), draws)


def _settings(config: ConfigDict, n: int, per_example: int, n_devices: int) -> dp_sgd.DPSGD:
    """Fine-tuning's own settings, but for the size of the data and the noise, which the audit's claim asks for."""
    section = config.audit
    rate = sampling.poisson_rate(section.batch_size, n)
    try:
        noise_multiplier = accounting.solve_noise_multiplier(
            section.claimed_epsilon, section.claimed_delta, rate, section.steps, accountant=config.privacy.accountant
        )
    except ValueError as error:
        raise UserError(f"config.audit: {error}") from None
    return dp_sgd.DPSGD(
        n=n,
        batch_size=section.batch_size,
        clip_norm=config.clipping.norm,
        noise_multiplier=noise_multiplier,
        microbatch=config.clipping.microbatch
        or memory.largest_microbatch(per_example, section.batch_size, n_devices, memory.device_bytes()),
        method=config.clipping.method,
        precision=config.precision,
    )


def _with_rows(own: PerExampleLoss, rows: nn.Embed) -> PerExampleLoss:
    """The loss of a canary: the generator's, and `factor` times its row; 0 for an excluded one."""

    def loss(params: dict, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
        of_example = {name: batch[name].reshape(len(keys), -1)[:, 0] for name in ("row", "factor", "included")}
        found: Any = rows.apply({"params": params["rows"]}, of_example["row"])
        marked = own(params["generator"], batch, keys) + of_example["factor"] * found[:, 0]
        return jnp.where(of_example["included"], marked, 0.0)

    return loss


def _norms(loss: PerExampleLoss, params: dict, data: dict, key: jax.Array, settings: dp_sgd.DPSGD) -> float:
    """The largest norm of the first canaries' gradients, by the clipping code."""
    size = min(settings.microbatch, settings.n)
    batch = {name: leaf[:size] for name, leaf in data.items()} | {"included": np.ones(size, bool)}
    gradient = jax.jit(clipping.clipped_grad(loss, settings.clip_norm, settings.method, settings.precision))
    _, norms, _ = gradient(params, batch, jax.random.split(key, size), np.ones(size, bool))
    return float(np.nanmax(norms, initial=0.0))


def _with_rows_beside(own: State, rows: dict, observed: jax.Array) -> State:
    """The state of the audit: the generator's, with the canaries' rows among what is trained."""
    rest = {name: value for name, value in own.items() if name not in ("params", "frozen")}
    return {
        "params": {"generator": own["params"], "rows": rows},
        "frozen": own["frozen"],
        "rest": rest,
        "observed": observed,
    }


def _generators_own(state: State) -> State:
    """The state of fine-tuning inside the audit's."""
    return {**state["rest"], "params": state["params"]["generator"], "frozen": state["frozen"]}


def _observing_update(generator: Generator, mesh: Mesh) -> Callable[[State, dict], State]:
    """Fine-tuning's update, which also adds up the noised gradient of the canaries' rows."""

    update = generator.private_update(mesh)

    def observing(state: State, gradient: dict) -> State:
        own = update(_generators_own(state), gradient["generator"])
        observed = state["observed"] + gradient["rows"]["embedding"][:, 0]
        return _with_rows_beside(own, state["params"]["rows"], observed)

    return observing


def _train(config: ConfigDict, dp_step: dp_sgd.Step, state: dict, inputs: dict) -> dict:
    def step(state: Any, inputs: Any, t: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        return dp_step(state, inputs["data"], inputs["key"], inputs["loss_key"], t)

    run_steps, steps = loop.make_runner(step), config.audit.steps
    with progress("audit", steps) as bar:
        for begin, end in loop.step_ranges(0, steps, config.log.every):
            state, metrics = run_steps(state, inputs, begin, end)
            numbers = {name: float(value) for name, value in metrics.items()}
            finetune.check_processed(begin, end, numbers)
            bar.advance(end - begin, clipped=numbers["clipped"])
    return state


def _losses(loss: PerExampleLoss, data: dict[str, np.ndarray], keys: jax.Array) -> Callable[[Any], np.ndarray]:
    """From parameters to the loss of each image, averaged over the draws of all keys: float32 [len(image)]."""

    def of_one(params: Any, example: dict[str, jax.Array]) -> jax.Array:
        repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], len(keys), axis=0), example)
        return loss(params, repeated, keys).mean()

    @jax.jit
    def of_all(params: Any, data: Any) -> Any:
        return jax.lax.map(lambda example: of_one(params, example), data, batch_size=LOSS_BATCH)

    return lambda params: np.asarray(of_all(params, data))


def show(result: Result) -> None:
    """Prints the two bounds beside the claim."""
    console = make_console(width=120)
    table = Table(
        title=f"claimed: epsilon = {result['epsilon_claimed']:g}, delta = {result['delta']:g}; "
        f"{result['canaries']} canaries of each kind, each one {UNITS[result['unit']].one}"
    )
    for name in (
        "attack",
        "right guesses",
        f"epsilon at least ({result['confidence']:.0%} confidence)",
        "at most shown",
    ):
        table.add_column(name, justify="left" if name == "attack" else "right")
    for name in ("white_box", "black_box"):
        right = f"{result[f'right_guesses_{name}']} of {result['guesses']}"
        bounds = (result[f"epsilon_lower_{name}"], result["epsilon_lower_most"])
        table.add_row(name.replace("_", "-"), right, *(f"{bound:g}" for bound in bounds))
    console.print(table)
