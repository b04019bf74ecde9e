"""How many examples' gradients a device may hold at once."""

import os
from collections.abc import Callable
from typing import Any

import jax

from privimage_jax.errors import UserError
from privimage_jax.training.batches import batch_shapes

# Of a device's memory, for one microbatch; the data, the state, the sum (two float32 values for each parameter, and
# three while devices add theirs up) and the compiler's copies have the rest.
_SHARE = 0.5
_PADDING = 16  # a device loops at least this often, as the last microbatch is half empty on average: 3% of the work


def device_bytes() -> int:
    """Memory of one device: what the accelerator reports, or the host's memory divided among its devices."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return int(limit)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def program_bytes(program: jax.stages.Compiled) -> int | None:
    """What a compiled program holds on a device: arguments, outputs and temporary values; None if it does not tell."""
    usage = program.memory_analysis()
    if usage is None:
        return None
    # A donated argument and the output that takes its place are the same memory.
    held = usage.argument_size_in_bytes + usage.output_size_in_bytes - usage.alias_size_in_bytes
    return held + usage.temp_size_in_bytes


def bytes_per_example(per_example_loss: Callable, params: Any, image_shape: tuple[int, ...]) -> int:
    """Memory that one more example in a microbatch takes; found by tracing alone.

    It counts every value that the backward pass keeps, and the example's gradient twice: as it is and clipped. The
    compiler recomputes some of these values, so this is an upper bound (1.4 times what the 3.84 M UNet was measured to
    take).

    Args:
      per_example_loss: `(params, batch, keys [B]) -> [B]`.
      params: nested parameters (arrays or shapes).
      image_shape: (H, W, C) of uint8 images.
    """
    return kept_bytes(per_example_loss, params, lambda size: batch_shapes(size, image_shape)) + 2 * _bytes(params)


def kept_bytes(function: Callable, params: Any, batch_of: Callable[[int], tuple]) -> int:
    """Memory of the values that the backward pass of one more example keeps; found by tracing alone.

    Args:
      function: `(params, *batch) -> arrays`, differentiated with respect to the first.
      params: nested parameters (arrays or shapes).
      batch_of: number of examples -> shapes of the batch.
    """

    def kept(size: int) -> int:
        def pull_back(params: Any, *batch: Any) -> list[jax.Array]:
            # Its values without the function that holds them, which jax would remember for as long as the process is.
            return jax.tree.leaves(jax.vjp(lambda params: function(params, *batch), params)[1])

        return _bytes(jax.eval_shape(pull_back, params, *batch_of(size)))

    return kept(2) - kept(1)


def largest_microbatch(per_example: int, batch_size: int, n_devices: int, memory: int) -> int:
    """The largest power of two that fits and does not waste work on padding.

    Args:
      per_example: bytes, see `bytes_per_example`.
      batch_size: expected, over all devices.
      n_devices: of all processes.
      memory: bytes of one device.

    Raises:
      UserError: if not even one example fits.
    """
    fits = int(_SHARE * memory) // per_example
    if fits < 1:
        raise UserError(
            f"one example needs {per_example / 2**20:,.0f} MiB, but a device has {memory / 2**20:,.0f} MiB, of which "
            f"{_SHARE:.0%} may be used; choose a smaller config.model or config.finetune.noise_multiplicity."
        )
    wanted = max(1, min(fits, batch_size // (_PADDING * n_devices)))
    return 1 << (wanted.bit_length() - 1)


def checked_microbatch(microbatch: int, per_example: int, memory: int) -> int:
    """The given microbatch, unless it cannot fit however much the compiler saves.

    Raises:
      UserError: if a quarter of the estimate exceeds the device's memory.
    """
    check_fits("clipping.microbatch", microbatch, per_example, memory, ", or 0 to have it chosen")
    return microbatch


def check_fits(key: str, number: int, each: int, memory: int, otherwise: str = "") -> None:
    """Refuses a number of examples that cannot fit however much the compiler saves.

    Args:
      key: the setting that holds it.
      number: of examples.
      each: bytes of one, as estimated.
      memory: bytes of one device.
      otherwise: what else can be done, as the end of a sentence.

    Raises:
      UserError: if a quarter of the estimate exceeds the device's memory.
    """
    if number * each // 4 > memory:
        raise UserError(
            f"config.{key}={number} needs about {number * each / 2**30:,.1f} GiB, but a device has "
            f"{memory / 2**30:,.1f} GiB; give at most {max(1, memory // (2 * each))}{otherwise}."
        )


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
