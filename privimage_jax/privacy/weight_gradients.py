"""The weight gradient of a convolution, one per example: rules among which the device chooses.

Differentiation writes it as a convolution of the layer's inputs with the gradients of its outputs, whose "batch" are
the input channels and whose summed "features" are the rows of the example. Both operands differ between examples.

- `by_compiler` asks for a grouped convolution, as `jax.vmap` does. On TPUs that costs about the batch's own gradient.
  XLA's CPU back end computes it without its fast library, tens of times slower, in a loop all the more.
- `by_channels` is the weight gradient of one layer whose channels are cut into a group per example. XLA gives it to the
  kernels that GPUs have for weight gradients; of `by_compiler` it makes a forward convolution with a kernel as large
  as the image. It reads and writes as many bytes.
- `by_offsets` is one matrix product per kernel offset and example, over all its rows and positions. On CPUs it is the
  fastest; on TPUs it was estimated to cost ten times the grouped form.

All give the gradients [m, *kernel] of m examples, from operands with merged rows (see `flat_rules`). `of_platform` has
the rule that is expected to be the fastest; on GPUs it is better to measure, and a table, `by_table`, then says which
rule is for which layer.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Rule = Callable[[jax.Array, jax.Array, int, dict[str, Any]], jax.Array]


def is_one(params: dict[str, Any]) -> bool:
    """Whether a convolution of two values that both differ between examples sums over their rows, as gradients do."""
    numbers = params["dimension_numbers"]
    return (
        numbers.lhs_spec[1] == 0
        and numbers.rhs_spec[1] == 0
        and params["feature_group_count"] == 1
        and all(step == 1 for step in params["lhs_dilation"])
    )


def by_compiler(x: jax.Array, dy: jax.Array, size: int, params: dict[str, Any]) -> jax.Array:
    """One grouped convolution.

    Args:
      x: [m K, *sides, I], inputs of the layer.
      dy: [m K, *sides', O], gradients of its outputs.
      size: m.
      params: of the convolution of one example's x and dy.
    """
    # Else XLA moves what makes x behind the reshape, and computes it there again in a layout that is slow on TPUs.
    x, dy = lax.optimization_barrier((x, dy))
    x, dy = (operand.reshape(size, -1, *operand.shape[1:]) for operand in (x, dy))
    return jax.vmap(lambda x, dy: lax.conv_general_dilated_p.bind(x, dy, **params))(x, dy)


def by_channels(x: jax.Array, dy: jax.Array, size: int, params: dict[str, Any]) -> jax.Array:
    """One convolution whose channels are those of all examples, in a group per example; arguments as above."""
    numbers = params["dimension_numbers"]

    def widened(rows: jax.Array, channel: int) -> jax.Array:
        """[m K, ..., C, ...] as [K, ..., m C, ...]."""
        rows = jnp.moveaxis(rows.reshape(size, -1, *rows.shape[1:]), 0, channel)
        return rows.reshape(*rows.shape[:channel], -1, *rows.shape[channel + 2 :])

    groups, outputs = params["batch_group_count"], numbers.out_spec[1]
    gradient = lax.conv_general_dilated_p.bind(
        widened(x, numbers.lhs_spec[0]),
        widened(dy, numbers.rhs_spec[0]),
        **{**params, "batch_group_count": size * groups},
    )
    shape = gradient.shape
    return jnp.moveaxis(gradient.reshape(*shape[:outputs], size, -1, *shape[outputs + 1 :]), outputs, 0)


def by_offsets(x: jax.Array, dy: jax.Array, size: int, params: dict[str, Any]) -> jax.Array:
    """One product of [m, positions, I] and [m, positions, O] for each place in the kernel; arguments as above."""
    numbers, groups = params["dimension_numbers"], params["batch_group_count"]
    x = jnp.transpose(x, (numbers.lhs_spec[1], *numbers.lhs_spec[2:], numbers.lhs_spec[0]))
    dy = jnp.transpose(dy, (numbers.rhs_spec[1], *numbers.rhs_spec[2:], numbers.rhs_spec[0]))
    steps, dilation = params["window_strides"], params["rhs_dilation"]  # the layer's dilation and strides
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*pair, 0) for pair in params["padding"]), (0, 0, 0)])
    spans = [(side - 1) * apart + 1 for side, apart in zip(dy.shape[1:-1], dilation, strict=True)]
    window = [(side - span) // step + 1 for side, span, step in zip(padded.shape[1:-1], spans, steps, strict=True)]
    rows = dy.reshape(size, -1, groups, dy.shape[-1] // groups)

    def at_offset(place: tuple[int, ...]) -> jax.Array:
        seen = (
            slice(at * step, at * step + span, apart)
            for at, step, span, apart in zip(place, steps, spans, dilation, strict=True)
        )
        inputs = padded[:, *seen].reshape(size, -1, groups, x.shape[-1] // groups)
        product = "mtgi,mtgo->migo" if groups > 1 else "mti,mto->mio"
        inputs, outputs = (inputs, rows) if groups > 1 else (inputs[:, :, 0], rows[:, :, 0])
        return jnp.einsum(
            product, inputs, outputs, precision=params["precision"], preferred_element_type=jnp.float32
        ).reshape(size, x.shape[-1] // groups, dy.shape[-1])

    offsets = jnp.stack([at_offset(place) for place in itertools.product(*map(range, window))], axis=1)
    offsets = offsets.reshape(size, *window, *offsets.shape[2:])
    # From [m, *window, I, O] to the order in which the layer has its kernel.
    order = [0] * (len(window) + 3)
    for source, place in enumerate((*numbers.out_spec[2:], numbers.out_spec[0], numbers.out_spec[1])):
        order[place + 1] = source + 1
    dtype = params["preferred_element_type"] or jnp.result_type(x, dy)
    return jnp.transpose(offsets, order).astype(dtype)


RULES: dict[str, Rule] = {"compiler": by_compiler, "channels": by_channels, "offsets": by_offsets}


def of_platform(platform: str) -> Rule:
    """The rule for devices of a platform: "cpu", "gpu", "cuda", "rocm" or "tpu"."""
    return {"cpu": by_offsets, "tpu": by_compiler}.get(platform, by_channels)


class Layer(NamedTuple):
    """A weight gradient as a rule is asked for it, the arrays by their shapes."""

    x: jax.ShapeDtypeStruct
    dy: jax.ShapeDtypeStruct
    size: int
    params: dict[str, Any]


def name_of(x: Any, dy: Any, size: int, params: dict[str, Any]) -> str:
    """What decides how a layer's weight gradient is computed, as one line: the same in every process.

    Shapes are those of one example, so that another microbatch finds the same layers.
    """
    numbers = params["dimension_numbers"]
    shapes = [f"{operand.dtype} {[operand.shape[0] // size, *operand.shape[1:]]}" for operand in (x, dy)]
    fields = {
        "axes": [list(map(int, spec)) for spec in numbers],
        "strides": [int(step) for step in params["window_strides"]],
        "padding": [list(map(int, pair)) for pair in params["padding"]],
        "dilation": [int(step) for step in params["rhs_dilation"]],
        "groups": int(params["batch_group_count"]),
        "precision": params["precision"],
    }
    return ", ".join([*shapes, *(f"{name} {value}" for name, value in fields.items())])


def noted(layers: dict[str, Layer], rule: Rule) -> Rule:
    """A rule that also notes every layer it is asked for, by its name."""

    def noting(x: jax.Array, dy: jax.Array, size: int, params: dict[str, Any]) -> jax.Array:
        x_shape, dy_shape = (jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in (x, dy))
        layers[name_of(x, dy, size, params)] = Layer(x_shape, dy_shape, size, params)
        return rule(x, dy, size, params)

    return noting


def by_table(table: Mapping[str, str], other: Rule) -> Rule:
    """The rule that a table has for a layer.

    Args:
      table: the name of a layer (`name_of`) -> the name of a rule (in `RULES`).
      other: the rule for layers that are not in the table.
    """

    def chosen(x: jax.Array, dy: jax.Array, size: int, params: dict[str, Any]) -> jax.Array:
        name = table.get(name_of(x, dy, size, params))
        return (other if name is None else RULES[name])(x, dy, size, params)

    return chosen
