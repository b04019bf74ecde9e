"""What the mechanisms that release noisy whole numbers share: the order of their writes, and the noise.

Each is the Gaussian mechanism on integer counts H: H + round(z) = round(H + z) with z ~ N(0, (sigma * S)^2), S being
the L2 sensitivity of H. Rounding is post-processing, so that the accounting is exact and no low-order bits remain.

Where a record is a person, the counts are whole numbers in units of 2^-BITS and so is their noise (`privacy.people`).
Their sum is rounded once more, to whole numbers: post-processing as well.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from privimage_jax.errors import UserError
from privimage_jax.metrics.features import that_may_mix
from privimage_jax.privacy import noise, people
from privimage_jax.privacy.events import SampledGaussian
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.mechanism import Mechanism
from privimage_jax.run.stage import Stage, mechanism_names, value
from privimage_jax.storage import reading

# Of noise on whole counts. A float64 has 53 bits, so that noise from 2^53 on is even, from 2^54 on a multiple of four:
# the low bits of the counts would be bare. Below this, values of 2^7 standard deviations still have all their bits.
LARGEST_STD = 2.0**45
LARGEST_IN_UNITS = 2.0**58  # whose noise, and counts beside it, stay below 2^63
Digests = dict[str, str]
CountUnderKey = Callable[[np.ndarray], np.ndarray]


def release(
    inputs: Inputs,
    output: Path,
    prepare: Callable[[], tuple[Digests, Callable[[], np.ndarray]]],
    save: Callable[[np.ndarray], None],
) -> None:
    """Spends the share of the budget of a stage's mechanism, once, and saves its output.

    Args:
      inputs: of the stage, whose record names the mechanism and whose plan holds its noise multiplier.
      output: the JSON file that holds the result. Once it is there nothing is computed again: equal noise on counts
        that differ at all would subtract.
      prepare: gives the digests of all that the counts depend on beside the sensitive images, and the function that
        counts (integers, of a shape that does not depend on the data). Where a record is a person, each image adds its
        weight, see `weights`.
      save: writes `output` from the noisy counts, int64.

    Raises:
      UserError: if the budget is spent and the output was lost, the inputs changed since the budget was spent, or the
        output is there and no budget was spent.
    """

    def counted_first() -> tuple[Digests, Callable[[], CountUnderKey]]:
        determinants, count = prepare()

        def before_spending() -> CountUnderKey:
            counts = count()
            return lambda key: counts

        return determinants, before_spending

    _release(inputs, output, counted_first, save)


def release_sampled(
    inputs: Inputs,
    output: Path,
    prepare: Callable[[], tuple[Digests, CountUnderKey]],
    save: Callable[[np.ndarray], None],
) -> None:
    """`release` for counts of Poisson samples of the records, which are drawn under the mechanism's key.

    Args:
      inputs, output, save: as in `release`.
      prepare: likewise, but that the function which counts is given the key, uint32 [8]: it draws sample t as
        `sampling.membership(key, t, n, threshold)` does. It is called once the budget is spent.

    Raises:
      UserError: as in `release`.
    """

    def drawn_later() -> tuple[Digests, Callable[[], CountUnderKey]]:
        determinants, count = prepare()
        return determinants, lambda: count

    _release(inputs, output, drawn_later, save)


def _release(
    inputs: Inputs,
    output: Path,
    prepare: Callable[[], tuple[Digests, Callable[[], CountUnderKey]]],
    save: Callable[[np.ndarray], None],
) -> None:
    """The order of writes: `prepare` gives what is done before budget is spent, and that what is done with the key."""
    mechanism = Mechanism(inputs)
    spent = mechanism.generation >= 0
    if output.exists():
        if not spent:  # never a crash's doing, as the line is on the disk before the output is written
            raise UserError(
                f"{output} is there, but {inputs.workdir.ledger} has no line that pays for the {mechanism.name}: they "
                "are of different moments; restore both from one copy, or start a new workdir."
            )
        mechanism.close()
        return
    determinants, count = prepare()
    mechanism.check_inputs(data=inputs.sensitive.digest(), noise=_noise(inputs, mechanism), **determinants)
    if spent and (mechanism.is_closed or not mechanism.has_key(0)):
        raise UserError(
            f"the {mechanism.name} in {inputs.workdir.root} has spent its budget, but its key or its output was "
            "deleted; start a new workdir."
        )
    unit = 1 if inputs.sensitive.owners is None else 1 << people.BITS
    std = unit * noise_std(inputs, mechanism.stage)
    if is_too_large(std, unit) and (record := mechanism.stage.mechanism):
        raise UserError(f"config.{record.noise_multiplier} is noise that passes whole numbers of 64 bits; give less.")
    count_under = count()
    key = mechanism.key(0)
    if not spent:
        _spend(inputs, mechanism)
    noisy = add_noise(mechanism.name, key, count_under(key), std)
    save(noisy if unit == 1 else people.rounded(noisy))
    mechanism.close()


def is_too_large(std: float, unit: int) -> bool:
    """Whether noise of this standard deviation, on counts in units of 1 / `unit`, leaves low bits of counts bare.

    The units themselves may be finer than the noise: their low bits are rounded away in the end.
    """
    return not (std / unit < LARGEST_STD and std < LARGEST_IN_UNITS)


def weights(inputs: Inputs) -> np.ndarray | None:
    """What each image adds to a count, int64 [N] in units of 2^-BITS, where a record is a person; None where it is 1.

    The images of one person add their mean, see `privacy.people`.
    """
    owners = inputs.sensitive.owners
    return None if owners is None else people.weights(owners)


def _noise(inputs: Inputs, mechanism: Mechanism) -> str:
    """All that decides the noise of the counts, and the samples where there are any."""
    return f"{inputs.plan.reserved[mechanism.name]} {mechanism.stage.sensitivity(inputs.config)!r}"


def _spend(inputs: Inputs, mechanism: Mechanism) -> None:
    """Writes the mechanism's ledger line, which says what the plan has reserved for it."""
    event, record = inputs.plan.reserved[mechanism.name], mechanism.stage.mechanism
    sampled: dict[str, Any] = {}
    if isinstance(event, SampledGaussian) and record is not None:
        sampled = {
            "sampling_rate": event.sampling_rate,
            "steps": [0, event.steps],
            "expected_batch_size": value(inputs.config, record.sample_size),
        }
    mechanism.spend(
        "sampled-gaussian" if sampled else "gaussian",
        noise_multiplier=event.noise_multiplier,
        l2_sensitivity=mechanism.stage.sensitivity(inputs.config),
        key_generation=0,
        **sampled,
    )


def read(
    path: Path, field: str, shape: tuple[int, ...], remedy: str = "restore it from a copy, or start a new workdir"
) -> np.ndarray:
    """Counts, int64 of this shape, under `field` of a JSON file such as `release` has written; `remedy` if it is none.

    Raises:
      UserError: if they are missing or damaged.
    """
    with reading.user_errors(path, remedy):
        counts = np.asarray(reading.read_json(path)[field])
        if counts.dtype != np.int64 or counts.shape != shape:
            raise reading.Unreadable(f"holds no {' by '.join(map(str, shape))} whole numbers")
    return counts


def add_noise(name: str, key: np.ndarray, counts: np.ndarray, std: float) -> np.ndarray:
    """The mechanism `name` itself: counts int64 [...] plus independent rounded Gaussian noise."""
    return counts + noise.rounded_gaussian(key, counts.shape, std)


def check_images_apart(classify: Callable, image_shape: tuple[int, int, int], setting: str) -> None:
    """Refuses the operations that could still mix images, although the network is given one at a time.

    `features.forward` maps the network over single images by `jax.vmap`. For all other operations that keeps images
    apart, whatever the network is.

    Args:
      classify: the network with its variables, `metrics.features.forward`.
      image_shape: [H, W, C].
      setting: of the config that names the network, with its value.

    Raises:
      UserError: if the network has such an operation.
    """
    if found := that_may_mix(classify, image_shape):
        raise UserError(
            f"{setting} uses {found[0]}, which may look at several images at once, so that one image could change the "
            "counts of others; give a classifier made of jax's own operations."
        )


def noise_std(inputs: Inputs, stage: Stage) -> float:
    """Standard deviation of the noise on every count of a stage: its noise multiplier times its L2 sensitivity."""
    (name,) = mechanism_names(stage)
    return inputs.plan.count_noise[name] * stage.sensitivity(inputs.config)
