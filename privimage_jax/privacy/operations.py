"""Which operations of a function's program may see several examples, although `jax.vmap` maps it over single ones.

jax's own primitives keep examples apart when they are mapped, but for those in `SEE_THE_BATCH`. Of primitives from
elsewhere nobody knows, and neither of generators of random numbers but threefry: that of "rbg" draws the numbers of all
examples from the first one's key.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import Primitive

# Code on the host, of a library or for the device alone, rules of one's own for a batch, and generators without a key
# for each example.
SEE_THE_BATCH = frozenset(
    {
        *("pure_callback", "io_callback", "ffi_call", "pallas_call"),
        *("custom_vmap_call", "custom_partitioning"),
        *("rng_bit_generator", "rng_uniform"),
    }
)
_GENERATOR = "key<fry>"  # threefry's type of key


def that_may_mix(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """Names of the operations in a function's program, those of programs that it calls included, that may mix examples.

    Args:
      function: of one example, of trees of arrays.
      arguments: arrays or shapes; nothing is computed.
    """
    program = jax.make_jaxpr(function)(*arguments)
    return sorted({name for name, may_mix in _operations(program, _primitives_of_jax()) if may_mix})


def _operations(jaxpr: Any, known: frozenset[Primitive]) -> Iterator[tuple[str, bool]]:
    """The name of each operation, and whether it may mix examples; of primitives that are not `known` it may."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        primitive = equation.primitive
        yield primitive.name, primitive.name in SEE_THE_BATCH or primitive not in known
        for variable in (*equation.invars, *equation.outvars):
            if jax.dtypes.issubdtype(variable.aval.dtype, jax.dtypes.prng_key):
                name = variable.aval.dtype.name
                yield f"a generator of random numbers with keys of the type {name}", name != _GENERATOR
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=_holds_program)
        for program in filter(_holds_program, inner):
            yield from _operations(program, known)


def _holds_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def _primitives_of_jax() -> frozenset[Primitive]:
    """All that jax's modules define, of those that have been imported by now."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "jax"]
    return frozenset(value for module in modules for value in vars(module).values() if isinstance(value, Primitive))
