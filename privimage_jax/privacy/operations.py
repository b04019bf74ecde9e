"""Which of jax's primitives a function is made of; and those that keep examples apart by nobody's proof."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

# What `jax.vmap` may hand the whole batch to: code on the host, or of a library, and rules of one's own for a batch.
SEE_THE_BATCH = frozenset({"pure_callback", "io_callback", "ffi_call", "custom_vmap_call"})


def of(function: Callable[..., Any], *arguments: Any) -> set[str]:
    """Names of the primitives in a function's program, those of programs that it calls included.

    Args:
      function: of trees of arrays.
      arguments: arrays or shapes; nothing is computed.
    """
    return set(_primitives(jax.make_jaxpr(function)(*arguments)))


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation.primitive.name
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=_holds_program)
        for program in filter(_holds_program, inner):
            yield from _primitives(program)


def _holds_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
