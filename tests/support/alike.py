"""Functions that are made anew for each run, and compiled once as long as they are made alike.

Every run makes its own steps, samplers and losses, of equal settings, and jax compiles each again. `keep_programs` lets
those that are alike share a program. It is for tests that change nothing of what is traced: what a function holds is
compared, and what it finds in its module is not.
"""

import contextlib
import dataclasses
import functools
import types
from collections.abc import Hashable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict

from privimage_jax.generators import artefact
from privimage_jax.stages import train_query
from privimage_jax.stages.parts import preflight
from privimage_jax.training import memory

JIT, KEPT = jax.jit, {}
PLAIN = (
    *(type(None), bool, int, float, str, bytes, type, types.BuiltinFunctionType),
    *(np.dtype, Mesh, jax.Device, jax.tree_util.PyTreeDef),
)
OURS = ("privimage_jax.", "pipelines", "small_models", "flax.")  # objects that are what they hold


class _Unlike(Exception):
    """Something that only itself is like."""


NOT_COMPARED = (_Unlike, ValueError, RecursionError, TypeError, AttributeError)  # an empty cell, or what has no parts


def alike(value: Any) -> Hashable:
    """What two values have in common if and only if a program that holds one of them is that of the other.

    Raises:
      _Unlike: for what it does not know how to compare.
    """
    parts: Any
    if isinstance(value, PLAIN):
        parts = value
    elif isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise _Unlike
    elif isinstance(value, np.ndarray | np.generic | jax.Array) and not isinstance(value, jax.core.Tracer):
        found = np.asarray(value)
        parts = (found.shape, found.dtype.str, found.tobytes())
    elif isinstance(value, ConfigDict):
        parts = alike(value.to_dict())
    elif isinstance(value, Mapping):
        parts = tuple((key, alike(each)) for key, each in value.items())
    elif isinstance(value, list | tuple):
        parts = tuple(alike(each) for each in value)
    elif isinstance(value, functools.partial):
        parts = (alike(value.func), alike(value.args), alike(value.keywords))
    elif isinstance(value, types.MethodType):
        parts = (alike(value.__func__), alike(value.__self__))
    elif isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        module = id(value.__globals__)  # which `KEPT` keeps alive
        parts = (value.__code__, module, alike(cells), alike(value.__defaults__), alike(value.__kwdefaults__))
    elif isinstance(value, nn.Module):
        names = [field.name for field in dataclasses.fields(value) if field.name not in ("parent", "name")]
        parts = tuple(alike(getattr(value, name)) for name in names)
    elif type(value).__module__.startswith(OURS):
        parts = alike(vars(value))
    elif isinstance(value, contextlib.ContextDecorator):
        parts = (alike(value.func), alike(value.args), alike(value.kwds))
    elif any(value is each for each in KEPT.values()):
        parts = value
    else:
        raise _Unlike
    return type(value), parts


def jit(function: Any = None, **options: Any) -> Any:
    """`jax.jit`, which gives functions that are alike one program."""
    if function is None:
        return functools.partial(jit, **options)
    try:
        key = alike(function), alike(options)
    except NOT_COMPARED:
        return JIT(function, **options)
    if key not in KEPT:
        KEPT[key] = JIT(function, **options)
    return KEPT[key]


class _Jax:
    """`jax`, whose `eval_shape` traces functions that are alike once, for arguments of the same shapes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(jax, name)

    @staticmethod
    def eval_shape(function: Any, *arguments: Any) -> Any:
        """`jax.eval_shape`."""
        leaves, structure = jax.tree.flatten(arguments)
        try:
            shapes = [(leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) for leaf in leaves]
            key = "shapes", alike(function), structure, tuple(shapes)
        except NOT_COMPARED:
            return jax.eval_shape(function, *arguments)
        if key not in KEPT:
            KEPT[key] = function, jax.eval_shape(function, *arguments)  # the function, as its globals' id is in the key
        return KEPT[key][1]


def keep_programs(patch: pytest.MonkeyPatch) -> None:
    """Lets functions that are alike be traced and compiled once in this process."""
    patch.setattr(jax, "jit", jit)
    for module in (artefact, memory, preflight, train_query):  # which want the shapes alone
        patch.setattr(module, "jax", _Jax())
