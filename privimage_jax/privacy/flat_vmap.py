"""`jax.vmap` whose batch lies in the leading axis: separate outside, flat inside.

Per-example gradients need each example differentiated alone, which `jax.vmap` gives: examples cannot mix, and a weight
has its whole gradient, however often and wherever it is used. But `jax.vmap` gives every value another axis, [m, K, H,
W, C] for m examples of K noise draws, and compilers for accelerators lay such values out worse than the [m K, H, W, C]
of a step without privacy. `flat_vmap` is the same transformation with the other layout. The function is traced for
*one* example; then each operation of the trace is carried out for all examples by the rule of its primitive
(`flat_rules`):

- where the leading axis passes through (arithmetic, convolutions and products with a shared weight, sums over other
  axes) it acts on the m K rows at once, as in a step without privacy;
- the gradient of a weight, which both operands of a product decide, is one product per example;
- whatever has no rule is left to `jax.vmap`'s own for that primitive: exact, possibly slow.

Each rule is right for every trace, so that examples are separate by construction. No layer has to be known, no use of a
weight can be overlooked, and there is nothing to prove about a model. A model that treats a batch otherwise than its
single examples does not matter, as only one example is ever traced.
"""

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal

from privimage_jax.privacy import flat_rules
from privimage_jax.privacy.flat_rules import Batch, PerExample, Shared, Value

# Primitives that call another program, and the parameter that holds it. Derivatives of their own are past: the trace is
# of a function that is differentiated already.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
# Primitives whose batching by `jax.vmap` may be slow; for all others it is as good as any rule.
_SLOW = ("while", "cond", "conv_general", "custom_", "reduce_window", "cum", "fft", "pure_callback", "triangular")


def flat_vmap(function: Callable[..., Any], batch: Batch | None = None) -> Callable[..., Any]:
    """`jax.vmap(function, in_axes=(None, 0))` in the flat layout.

    Args:
      function: `(shared, row) -> result`, trees of arrays; traced once, for a single row.
      batch: the choices of the device and a log of what was left to `jax.vmap`; its size is set here.

    Returns:
      `fn(shared, rows)`, where each leaf of `rows` is [m, ...]; each leaf of the result is [m, ...].
    """

    def mapped(shared: Any, rows: Any) -> Any:
        size = jax.tree.leaves(rows)[0].shape[0]
        one = jax.tree.map(lambda leaf: leaf[0], rows)  # only its shape and type are used
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(shared, one)
        state = (batch or Batch())._replace(size=size)
        inputs: list[Value] = [Shared(leaf) for leaf in jax.tree.leaves(shared)]
        inputs += [PerExample(size, stacked=leaf) for leaf in jax.tree.leaves(rows)]
        results = [_stacked(value, size) for value in _evaluate(closed.jaxpr, closed.consts, inputs, state)]
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return mapped


def left_to_vmap(function: Callable[..., Any], shared: Any, row: Any) -> list[str]:
    """The primitives of a function, and how often each occurs, that no rule covers and that may be slow.

    What nothing shared reaches is passed over: no gradient of a shared weight passes through it.

    Args:
      function: `(shared, row) -> result`.
      shared, row: arrays or shapes; nothing is computed.

    Returns:
      Such as "while (2)", sorted.
    """
    log: collections.Counter[str] = collections.Counter()
    closed = jax.make_jaxpr(function)(shared, row)
    weights, others = jax.tree.leaves(shared), jax.tree.leaves(row)

    def evaluate(weights: list[jax.Array], rows: list[jax.Array]) -> None:
        inputs: list[Value] = [*map(Shared, weights), *(PerExample(2, stacked=leaf) for leaf in rows)]
        reached = _reached(closed.jaxpr, closed.jaxpr.invars[: len(weights)])
        _evaluate(closed.jaxpr, closed.consts, inputs, Batch(2, log=log), reached)

    jax.eval_shape(evaluate, weights, [jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype) for leaf in others])
    return sorted(f"{name} ({count})" for name, count in log.items() if name.startswith(_SLOW))


def _stacked(value: Value, size: int) -> jax.Array:
    """A result [m, ...], also where it is the same for every example."""
    if isinstance(value, PerExample):
        return value.stacked
    return jnp.broadcast_to(value.value, (size, *value.shape))


def _reached(jaxpr: Any, variables: Iterable[Any]) -> set[Any]:
    """All variables of a trace that depend on some of them."""
    found = set(variables)
    for equation in jaxpr.eqns:
        if any(not isinstance(atom, Literal) and atom in found for atom in equation.invars):
            found.update(equation.outvars)
    return found


def _evaluate(jaxpr: Any, consts: Any, inputs: list, batch: Batch, logged: set[Any] | None = None) -> list[Value]:
    """The results of a trace for all examples; with `logged`, the log takes equations of these results alone."""
    values: dict[Any, Value] = {}
    values.update(zip(jaxpr.constvars, map(Shared, consts), strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:
        return Shared(atom.val) if isinstance(atom, Literal) else values[atom]

    silent = batch._replace(log=None)
    for equation in jaxpr.eqns:
        is_logged = logged is None or not logged.isdisjoint(equation.outvars)
        results = _operation(equation, [read(atom) for atom in equation.invars], batch if is_logged else silent)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _operation(equation: Any, inputs: list, batch: Batch) -> Sequence[Value]:
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        inner = params[_CALLS[name]]
        jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
        return _evaluate(jaxpr, consts, inputs, batch)
    if all(isinstance(x, Shared) for x in inputs):
        return flat_rules.once(equation, inputs)
    if name in ("checkpoint", "remat2"):
        if params["differentiated"] and params["prevent_cse"]:
            # What `jax.checkpoint` lowers to: the recomputation is not merged with the forward pass.
            inputs = _rebuilt(inputs, lax.optimization_barrier(_held(inputs)), batch)
        return _evaluate(params["jaxpr"], (), inputs, batch)
    if name == "scan":
        return _scan(equation, inputs, batch)
    rule = flat_rules.RULES.get(name)
    results = None if rule is None else rule(equation, inputs, batch)
    if results is not None:
        return results if isinstance(results, list) else [results]
    if batch.log is not None:
        batch.log[name] += 1
    return flat_rules.by_vmap(equation, inputs, batch)


def _scan(equation: Any, inputs: list, batch: Batch) -> list[Value]:
    """`lax.scan`, whose body is evaluated flat. All its carries are taken to differ between examples."""
    params, size = equation.params, batch.size
    closed, n_consts, n_carry = params["jaxpr"], params["num_consts"], params["num_carry"]
    consts, carry, scanned = inputs[:n_consts], inputs[n_consts : n_consts + n_carry], inputs[n_consts + n_carry :]
    carry = [flat_rules.per_example(x, size) for x in carry]

    def step_rows(x: Value) -> jax.Array:
        """[length, ...] of shared values, [length, m d0, ...] or [length, m] of others."""
        if isinstance(x, Shared):
            return x.value
        steps = jnp.moveaxis(x.stacked, 1, 0)
        return steps if steps.ndim == 2 else steps.reshape(steps.shape[0], -1, *steps.shape[3:])

    def body(held_carry: list[jax.Array], step: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        held = _rebuilt(carry, held_carry, batch) + _rebuilt(kinds, step, batch)
        results = [
            flat_rules.per_example(y, size) for y in _evaluate(closed.jaxpr, closed.consts, consts + held, batch)
        ]
        return _held(results[:n_carry]), _held(results[n_carry:])

    # What one step sees of the scanned values.
    kinds = [x if isinstance(x, Shared) else flat_rules.like(x.shape[1:], size) for x in scanned]
    final, outputs = lax.scan(
        body,
        _held(carry),
        [step_rows(x) for x in scanned],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    shapes = [var.aval.shape for var in equation.outvars[n_carry:]]
    stacked = [jnp.moveaxis(y.reshape(y.shape[0], size, *s[1:]), 0, 1) for y, s in zip(outputs, shapes, strict=True)]
    return [*_rebuilt(carry, final, batch), *(PerExample(size, stacked=y) for y in stacked)]


def _held(values: Sequence[Value]) -> list[jax.Array]:
    """The arrays behind values: merged where there is a leading axis."""
    return [x.value if isinstance(x, Shared) else x.merged if x.shape else x.stacked for x in values]


def _rebuilt(kinds: list, arrays: list[jax.Array], batch: Batch) -> list[Value]:
    """The inverse of `_held`, for values of the kinds that are given."""
    return [
        Shared(array)
        if isinstance(kind, Shared)
        else PerExample(batch.size, merged=array)
        if kind.shape
        else PerExample(batch.size, stacked=array)
        for kind, array in zip(kinds, arrays, strict=True)
    ]
