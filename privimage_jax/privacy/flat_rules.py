"""The rules of `flat_vmap`: how an operation on one example is carried out for all examples of a batch at once.

In one example's trace a value is [d0, ...]. Held for m examples it is either *stacked*, [m, d0, ...], or *merged*, [m
d0, ...]; the two are the same numbers in the same order. A rule takes an equation of the trace and its operands and
returns the results, or None where it does not apply, and then `jax.vmap`'s own rule for the primitive does (`by_vmap`).
At least one of the operands differs between examples: what is the same for all is done once (`once`).

Every rule must be right by itself, for all parameters of its primitive: an operation may act on merged rows only if no
row of its result depends on another row of its operands. `tests/privacy/test_flat_rules.py` compares each with
`jax.vmap` on random parameters and checks that a NaN in one example reaches no other.
"""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from privimage_jax.privacy import weight_gradients


class Batch(NamedTuple):
    """What the rules are told.

    Attributes:
      size: m, the number of examples.
      convolution: how the weight gradient of a convolution is computed, see `weight_gradients`.
      log: counts the primitives that were left to `jax.vmap`.
    """

    size: int = 0
    convolution: weight_gradients.Rule = weight_gradients.by_compiler
    log: "collections.Counter[str] | None" = None


class Shared:
    """A value that is the same for every example: a weight, a constant, or made of such alone."""

    def __init__(self, value: jax.Array, tiled: Callable[[int], jax.Array] | None = None):
        self.value = value
        self._tiled = tiled

    @property
    def shape(self) -> tuple[int, ...]:
        return jnp.shape(self.value)

    def tiled(self, m: int) -> jax.Array:
        """[m d0, ...]: the value of every example."""
        if self._tiled is not None:
            return self._tiled(m)
        leading, *rest = self.shape
        return lax.reshape(jnp.broadcast_to(self.value, (m, leading, *rest)), (m * leading, *rest))


class PerExample:
    """A value that differs between examples; [...] in one example's trace."""

    def __init__(self, size: int, *, stacked: Any = None, merged: Any = None):
        """One of the two is given, as an array or (see `like`) its shape alone."""
        self._size, self._stacked, self._merged = size, stacked, merged

    @property
    def shape(self) -> tuple[int, ...]:
        """In one example's trace."""
        if self._stacked is not None:
            return self._stacked.shape[1:]
        return (self._merged.shape[0] // self._size, *self._merged.shape[1:])

    @property
    def is_merged(self) -> bool:
        return self._merged is not None

    @property
    def stacked(self) -> jax.Array:
        """[m, ...]."""
        if self._stacked is None:
            self._stacked = lax.reshape(self._merged, (self._size, *self.shape))
        return self._stacked

    @property
    def merged(self) -> jax.Array:
        """[m d0, ...]; a scalar has no leading axis to merge."""
        if self._merged is None:
            leading, *rest = self.shape
            self._merged = lax.reshape(self._stacked, (self._size * leading, *rest))
        return self._merged


Value = Shared | PerExample


def per_example(x: Value, size: int) -> PerExample:
    """The same value as one that may differ."""
    if isinstance(x, PerExample):
        return x
    return PerExample(size, stacked=jnp.broadcast_to(x.value, (size, *x.shape)))


def like(shape: tuple[int, ...], size: int) -> PerExample:
    """A value without contents, for its shape alone."""
    return PerExample(size, stacked=jax.ShapeDtypeStruct((size, *shape), jnp.float32))


def once(equation: Any, inputs: list[Shared]) -> list[Shared]:
    """An operation on shared values is done once, for all examples."""
    results = equation.primitive.bind(*(x.value for x in inputs), **equation.params)
    if equation.primitive.multiple_results:
        return [Shared(y) for y in results]
    tiled = None
    if equation.primitive.name == "broadcast_in_dim" and len(inputs) == 1:
        tiled = _tiled_broadcast(inputs[0], equation.params)
    return [Shared(results, tiled)]


def by_vmap(equation: Any, inputs: list[Value], batch: Batch) -> list[PerExample]:
    """`jax.vmap` of one operation."""
    axes = tuple(None if isinstance(x, Shared) else 0 for x in inputs)
    arrays = [x.value if isinstance(x, Shared) else x.stacked for x in inputs]
    results = jax.vmap(lambda *xs: equation.primitive.bind(*xs, **equation.params), axes, axis_size=batch.size)(*arrays)
    if not equation.primitive.multiple_results:
        results = [results]
    return [PerExample(batch.size, stacked=y) for y in results]


def _tiled_broadcast(x: Shared, params: dict) -> Callable[[int], jax.Array] | None:
    """Of a value repeated along its leading axis: repeated m times as often, which the compiler never stores."""
    shape, axes = params["shape"], params["broadcast_dimensions"]
    leads = 0 in axes and (axes[0] != 0 or x.shape[0] != 1)
    if not shape or leads:
        return None
    return lambda m: lax.broadcast_in_dim(x.value, (m * shape[0], *shape[1:]), axes)


def _on_rows(equation: Any, batch: Batch, *rows: jax.Array, **changed: Any) -> PerExample:
    """The operation itself, on merged operands."""
    return PerExample(batch.size, merged=equation.primitive.bind(*rows, **{**equation.params, **changed}))


def _elementwise(equation: Any, inputs: list[Value], batch: Batch) -> PerExample | None:
    shape = equation.outvars[0].aval.shape
    if not shape or any(not x.shape for x in inputs if isinstance(x, PerExample)):
        return None
    if len(shape) == 1 and not any(x.is_merged for x in inputs if isinstance(x, PerExample)):
        return None  # gradients of vectors, stacked by `_reduce`, stay as they are
    return _on_rows(equation, batch, *(_spread(x, shape, batch.size) for x in inputs))


def _spread(x: Value, shape: tuple[int, ...], m: int) -> jax.Array:
    """An operand of an elementwise operation as merged rows; scalars stay scalars, axes of length 1 are repeated."""
    if isinstance(x, Shared):
        if not x.shape:
            return x.value
        if x.shape[0] == shape[0]:
            return x.tiled(m)
        return lax.broadcast_in_dim(x.value, (m * shape[0], *x.shape[1:]), range(len(shape)))
    if x.shape[0] == shape[0]:
        return x.merged
    axes = (0, *range(2, len(shape) + 1))
    repeated = lax.broadcast_in_dim(x.merged, (m, shape[0], *x.shape[1:]), axes)
    return lax.reshape(repeated, (m * shape[0], *x.shape[1:]))


def _reduce(equation: Any, inputs: list[PerExample], batch: Batch) -> PerExample | None:
    """Over the other axes on merged rows first; then, if at all, over the rows of each example."""
    (x,), axes = inputs, equation.params["axes"]
    rest = tuple(axis for axis in axes if axis != 0)
    if not x.shape or not (rest or x.is_merged):
        return None
    y = _on_rows(equation, batch, x.merged, axes=rest) if rest else x
    if 0 not in axes:
        return y
    return PerExample(batch.size, stacked=equation.primitive.bind(y.stacked, **{**equation.params, "axes": (1,)}))


def _broadcast(equation: Any, inputs: list[PerExample], batch: Batch) -> PerExample | None:
    x, shape, axes = inputs[0], equation.params["shape"], equation.params["broadcast_dimensions"]
    if len(inputs) > 1 or not x.shape or axes[0] != 0:
        return None
    if x.shape[0] == shape[0]:
        return _on_rows(equation, batch, x.merged, shape=(batch.size * shape[0], *shape[1:]))
    # One row becomes several.
    axes = (0, *(axis + 1 for axis in axes[1:]))
    return PerExample(batch.size, stacked=lax.broadcast_in_dim(x.merged, (batch.size, *shape), axes))


def _reshape(equation: Any, inputs: list[PerExample], batch: Batch) -> PerExample | None:
    """Numbers keep their order, and each example's lie together: any reshape of one is one of all."""
    x, sizes = inputs[0], equation.params["new_sizes"]
    if len(inputs) > 1 or equation.params["dimensions"] is not None or not sizes or not x.shape:
        return None
    return _on_rows(equation, batch, x.merged, new_sizes=(batch.size * sizes[0], *sizes[1:]))


def _squeeze(equation: Any, inputs: list[PerExample], batch: Batch) -> PerExample | None:
    (x,), gone = inputs, equation.params["dimensions"]
    sizes = [side for axis, side in enumerate(x.shape) if axis not in gone]
    if not sizes:
        return None
    return PerExample(batch.size, merged=lax.reshape(x.merged, (batch.size * sizes[0], *sizes[1:])))


def _transpose(equation: Any, inputs: list[PerExample], batch: Batch) -> PerExample | None:
    order = equation.params["permutation"]
    return _on_rows(equation, batch, inputs[0].merged) if order and order[0] == 0 else None


def _concatenate(equation: Any, inputs: list[Value], batch: Batch) -> PerExample | None:
    if equation.params["dimension"] == 0:
        return None
    rows = (x.merged if isinstance(x, PerExample) else x.tiled(batch.size) for x in inputs)
    return _on_rows(equation, batch, *rows)


def _split(equation: Any, inputs: list[PerExample], batch: Batch) -> list[PerExample] | None:
    if equation.params["axis"] == 0:
        return None
    parts = equation.primitive.bind(inputs[0].merged, **equation.params)
    return [PerExample(batch.size, merged=part) for part in parts]


def _pad(equation: Any, inputs: list[Value], batch: Batch) -> PerExample | None:
    x, value = inputs
    if isinstance(x, Shared) or isinstance(value, PerExample) or not x.shape:
        return None
    if equation.params["padding_config"][0] != (0, 0, 0):
        return None
    return _on_rows(equation, batch, x.merged, value.value)


def _slice(equation: Any, inputs: list[PerExample], batch: Batch) -> PerExample | None:
    (x,), params = inputs, equation.params
    limits, strides = params["limit_indices"], params["strides"]
    if params["start_indices"][0] != 0 or limits[0] != x.shape[0] or (strides and strides[0] != 1):
        return None
    return _on_rows(equation, batch, x.merged, limit_indices=(batch.size * limits[0], *limits[1:]))


def _reverse(equation: Any, inputs: list[PerExample], batch: Batch) -> PerExample | None:
    return None if 0 in equation.params["dimensions"] else _on_rows(equation, batch, inputs[0].merged)


def _product(equation: Any, inputs: list[Value], batch: Batch) -> PerExample | None:
    """`dot_general`: rows times a shared matrix, or products of rows with rows of the same place."""
    x, y = inputs
    (x_contracted, _), (x_batch, y_batch) = equation.params["dimension_numbers"]
    if isinstance(x, Shared):
        return None
    if isinstance(y, Shared):
        return None if 0 in x_contracted or x_batch else _on_rows(equation, batch, x.merged, y.value)
    if x_batch and x_batch[0] == y_batch[0] == 0:
        return _on_rows(equation, batch, x.merged, y.merged)
    return None


def _convolution(equation: Any, inputs: list[Value], batch: Batch) -> PerExample | None:
    """Rows with a shared kernel; or, where both differ, a weight gradient, by the rule that the device wants."""
    x, kernel = inputs
    if isinstance(x, Shared):
        return None
    numbers = equation.params["dimension_numbers"]
    if isinstance(kernel, Shared):
        if numbers.lhs_spec[0] != 0 or numbers.out_spec[0] != 0 or equation.params["batch_group_count"] != 1:
            return None
        return _with_kernel(equation, batch, x.merged, kernel.value)
    if not weight_gradients.is_one(equation.params):
        return None
    gradient = batch.convolution(x.merged, kernel.merged, batch.size, equation.params)
    return PerExample(batch.size, stacked=gradient)


def _with_kernel(equation: Any, batch: Batch, rows: jax.Array, kernel: jax.Array) -> PerExample:
    """A convolution whose kernel lies as [*window, I, O].

    Differentiation leaves the kernel of an input gradient as [*window, O, I] and says so in the dimension numbers. For
    these XLA's CPU back end has no fast code.
    """
    numbers = equation.params["dimension_numbers"]
    outputs, inputs, *window = numbers.rhs_spec
    numbers = numbers._replace(rhs_spec=(kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2)))
    return _on_rows(equation, batch, rows, lax.transpose(kernel, (*window, inputs, outputs)), dimension_numbers=numbers)


def _gather(equation: Any, inputs: list[Value], batch: Batch) -> PerExample | None:
    """Rows of a shared table, as an embedding takes them."""
    table, indices = inputs
    numbers = equation.params["dimension_numbers"]
    if isinstance(table, PerExample) or isinstance(indices, Shared) or len(indices.shape) < 2:
        return None
    if 0 in numbers.offset_dims or numbers.operand_batching_dims or numbers.start_indices_batching_dims:
        return None
    return _on_rows(equation, batch, table.value, indices.merged)


ELEMENTWISE = """
abs add add_any and asin atan atan2 cbrt ceil clamp convert_element_type copy cos cosh digamma div eq erf erf_inv
erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter
not or pcast population_count pow pvary real reduce_precision rem round rsqrt select_n shift_left
shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor
""".split()  # noqa: SIM905
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or")

RULES: dict[str, Callable[[Any, list[Any], Batch], Any]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
