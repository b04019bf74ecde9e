"""Which rule computes the weight gradients of each convolution on an accelerator: tried on the device, then kept.

How fast a library's kernels are for a shape is known to nobody who has not tried. So each rule of `weight_gradients` is
timed once for each distinct layer of a step, before any budget is spent: on random values, so that the times say
nothing about the data. Rules agree up to rounding only. A replay has to be the same computation, and so the choice is
kept in a file for as long as the run may be resumed.

A compiler may cut a convolution of groups into one without, times zeros; NaN times zero is NaN. So each program is
given a first example of NaN, and one that lets this reach the other examples is not used. That is also why TPUs try
their rule for each layer, in the microbatch of the run, although no other is as fast there. A run that goes on in
another microbatch, or on another device, has other programs: they are given that example too.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from privimage_jax.cluster import processes
from privimage_jax.errors import UserError
from privimage_jax.privacy import clipping, dp_sgd, weight_gradients
from privimage_jax.privacy.weight_gradients import Layer
from privimage_jax.storage import durable, reading
from privimage_jax.training.batches import batch_shapes

# The rules that a platform tries. On GPUs none is known to be the fastest; where it fails, a TPU takes "offsets".
TRIED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpu", "cuda", "rocm"), tuple(weight_gradients.RULES)),
    "tpu": ("compiler",),
}
FILE = "convolutions.json"

_REPEATS = 5
REPEAT_SECONDS = 0.01  # of one repeat, so that starting the kernels does not count
_CALLS = 100  # in one repeat at most

Choice = dict[str, str]  # the name of a layer -> the name of a rule; {} is the platform's rule for all
Seconds = dict[str, dict[str, float | None]]  # the name of a layer -> the name of a rule -> None if it is not usable


def layers(
    per_example_loss: clipping.PerExampleLoss, params: Any, image_shape: tuple[int, int, int], settings: dp_sgd.DPSGD
) -> dict[str, Layer]:
    """The distinct weight gradients of convolutions in a microbatch, by their names; nothing is computed.

    Args:
      per_example_loss: `(params, batch, keys [m]) -> [m]`.
      params: all that is trained (arrays or shapes).
      image_shape: (H, W, C).
      settings: of the step.
    """
    found: dict[str, Layer] = {}
    if settings.method != "vmap":  # which asks no rule
        rule = weight_gradients.noted(found, weight_gradients.by_compiler)
        gradient = clipping.clipped_grad(
            per_example_loss, settings.clip_norm, settings.method, settings.precision, rule
        )
        batch, keys = batch_shapes(settings.microbatch, image_shape)
        jax.eval_shape(gradient, params, batch, keys, jax.ShapeDtypeStruct((settings.microbatch,), bool))
    return found


def measure(found: Mapping[str, Layer], device: jax.Device, rules: Iterable[str]) -> Seconds:
    """Seconds that one call of these rules takes for each layer on a device; None where it fails or mixes examples.

    Everything is compiled first, several programs at a time, then timed one after the other.
    """
    tasks = list(itertools.product(found, rules))
    with ThreadPoolExecutor() as pool:
        programs = list(pool.map(lambda task: _compiled(found[task[0]], task[1], device), tasks))
    seconds: Seconds = {name: {} for name in found}
    for (name, rule), program in zip(tasks, programs, strict=True):
        seconds[name][rule] = None if program is None else _timed(program, found[name], device)
    return seconds


def fastest(seconds: Seconds) -> Choice:
    """The quickest usable rule of each layer; where all failed, the one that keeps examples apart by its form."""
    choice = {}
    for name, times in seconds.items():
        known = {rule: time for rule, time in times.items() if time is not None}
        choice[name] = min(known, key=known.__getitem__) if known else "offsets"
    return choice


def kept(
    folder: Path, is_spent: bool, find: Callable[[], dict[str, Layer]], device: jax.Device, platform: str | None = None
) -> Choice:
    """The choice of a run, which is on the disk when this returns.

    Until budget is spent nothing relies on a choice, and it is made afresh at every start. Afterwards it is what the
    file says, on whatever device; without a file, none (the mechanism compares it with what it had). Process 0
    measures, and tries the kept rules where they were not tried; the others read what it wrote.

    Args:
      folder: of the stage.
      is_spent: whether a step may have run under the choice.
      find: the layers of the step, see `layers`.
      device: one of this process's own, on which to measure.
      platform: of the devices of the run; None is the device's.

    Raises:
      UserError: if, after budget was spent, the file is damaged, or a rule mixes examples in the present microbatch.
    """
    path = folder / FILE
    if not is_spent:
        rules = TRIED.get(platform or device.platform, ())
        if not rules:
            if path.exists():  # from a start on other devices
                durable.remove(path)
            return {}
        found = find()
        seconds = measure(found, device, rules) if processes.is_first() else {}
        durable.atomic_write_json(path, {**_where(found, device), "seconds": seconds, "rules": fastest(seconds)})
    elif not path.exists():
        return {}
    with reading.user_errors(path, "restore it from a copy, or start a new workdir"):
        record = reading.read_json(path)
        choice = _checked(record)
    if is_spent and processes.is_first():
        _try_again(choice, find(), device, record)
    return choice


def _where(found: Mapping[str, Layer], device: jax.Device) -> dict[str, Any]:
    """What the programs of the layers depend on beside the rules."""
    return {"device": device.device_kind, "microbatch": max((layer.size for layer in found.values()), default=0)}


def _try_again(choice: Choice, found: Mapping[str, Layer], device: jax.Device, record: Mapping[str, Any]) -> None:
    """Tries the rules of a run that has spent, unless the record says that they were tried where they are used now.

    Others cannot take their place: they are part of what the run has spent on.

    Raises:
      UserError: if one fails or lets an example reach another.
    """
    here = _where(found, device)
    if here.items() <= record.items():
        return
    for name in sorted(choice.keys() & found.keys()):
        program = _compiled(found[name], choice[name], device)
        if program is None or not _keeps_apart(program, found[name], device):
            raise UserError(
                f"config.clipping.microbatch={here['microbatch']} on {here['device']} does not keep examples apart by "
                f"the rule {choice[name]!r} for convolutions, under which budget was spent; go on with "
                f"config.clipping.microbatch={record.get('microbatch')} on {record.get('device')}, as the run began."
            )


def of_device(find: Callable[[], dict[str, Layer]], device: jax.Device) -> weight_gradients.Rule:
    """The rule for a step that is not resumed: of each layer the fastest usable one that the platform tries."""
    rules = TRIED.get(device.platform, ())
    choice = fastest(measure(find(), device, rules)) if rules else {}
    return weight_gradients.by_table(choice, weight_gradients.of_platform(device.platform))


def _checked(record: Any) -> Choice:
    rules = record.get("rules") if isinstance(record, dict) else None
    if not isinstance(rules, dict) or not all(rule in list(weight_gradients.RULES) for rule in rules.values()):
        raise reading.Unreadable('has no "rules" that name a known rule for each layer')
    return rules


def _compiled(layer: Layer, rule: str, device: jax.Device) -> Callable[..., jax.Array] | None:
    """The program of a rule for a layer; None if the compiler refuses it."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    args = [jax.ShapeDtypeStruct(operand.shape, operand.dtype, sharding=sharding) for operand in (layer.x, layer.dy)]
    compute: Callable[..., jax.Array] = weight_gradients.RULES[rule]
    function = functools.partial(compute, size=layer.size, params=layer.params)
    # The other processes compile something else meanwhile, and share no autotuning.
    several = processes.current().count > 1
    options: dict[str, str | bool] | None = {"xla_gpu_shard_autotuning": False} if several else None
    try:
        return jax.jit(function).lower(*args).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:
        return None


def _timed(program: Callable[..., jax.Array], layer: Layer, device: jax.Device) -> float | None:
    """The median of several repeats, each of many calls; None if the program fails or mixes examples."""
    x, dy = _random_values(layer, device)

    def run(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls - 1):
            program(x, dy)
        jax.block_until_ready(program(x, dy))
        return (time.perf_counter() - start) / calls

    try:
        if not _is_separate(program, x, dy, layer.size):
            return None
        calls = max(1, min(_CALLS, int(REPEAT_SECONDS / run(1))))
        return statistics.median(run(calls) for _ in range(_REPEATS))
    except jax.errors.JaxRuntimeError:
        return None


def _keeps_apart(program: Callable[..., jax.Array], layer: Layer, device: jax.Device) -> bool:
    """Whether the program runs, and mixes no examples."""
    try:
        return _is_separate(program, *_random_values(layer, device), layer.size)
    except jax.errors.JaxRuntimeError:
        return False


def _random_values(layer: Layer, device: jax.Device) -> tuple[jax.Array, jax.Array]:
    """What a layer's rule is given, x and dy; they say nothing about the data."""
    x, dy = (
        jax.device_put(jax.random.normal(jax.random.key(seed), like.shape, jnp.float32).astype(like.dtype), device)
        for seed, like in enumerate((layer.x, layer.dy))
    )
    return x, dy


def _is_separate(program: Callable[..., jax.Array], x: jax.Array, dy: jax.Array, size: int) -> bool:
    """Whether the gradients of all other examples stay finite when the first one's values are NaN."""
    rows = x.shape[0] // size
    gradients = program(x.at[:rows].set(jnp.nan), dy.at[:rows].set(jnp.nan))
    return bool(jnp.isfinite(gradients[1:]).all())
