"""The training state, a plain dict `{params, frozen, ema, opt_state, step}`, and its one update rule."""

import hashlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from privimage_jax.errors import UserError

State = dict[str, Any]


def init_state(params: Any, optimizer: optax.GradientTransformation, frozen: Any = None) -> State:
    """A state at step 0 whose averaged parameters start from `params`.

    `frozen` holds parameters that no gradient reaches; they are part of the model all the same.
    """
    return {
        "params": params,
        "frozen": {} if frozen is None else frozen,
        "ema": jax.tree.map(jnp.array, params),  # a copy: donated buffers must not be shared
        "opt_state": optimizer.init(params),
        "step": jnp.zeros((), jnp.int32),
    }


def make_update(optimizer: optax.GradientTransformation, ema_decay: float) -> Callable[[State, Any], State]:
    """`update(state, gradients) -> state`: one optimizer step and one step of the moving average."""

    def update(state: State, gradients: Any) -> State:
        updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        step = state["step"] + 1
        ema = ema_update(state["ema"], params, step, ema_decay)
        return {**state, "params": params, "ema": ema, "opt_state": opt_state, "step": step}

    return update


def ema_update(average: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """The moving average of parameters after `step` steps, the last of which led to `params`.

    It is d * average + (1 - d) * params with d = min(decay, (1 + step) / (10 + step)), so that a short run is not
    dominated by its first parameters.
    """
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: d * old + (1.0 - d) * new, average, params)


def split_params(params: dict, trainable: str) -> tuple[dict, dict]:
    """Parts `params` into (trainable, frozen) by a regular expression on the path, such as "level_0/conv/kernel".

    Both parts are flat dicts from path to array; `merge_params` puts them together again.

    Raises:
      UserError: if the expression is invalid or matches no parameter.
    """
    try:
        pattern = re.compile(trainable)
    except re.error as error:
        raise UserError(f"config.finetune.trainable={trainable!r} is not a regular expression: {error}.") from None
    flat = flatten_params(params)
    chosen = {path: leaf for path, leaf in flat.items() if pattern.fullmatch(path)}
    if not chosen:
        some = ", ".join(list(flat)[:3])
        raise UserError(f"config.finetune.trainable={trainable!r} matches no parameter; they are named like {some}.")
    return chosen, {path: leaf for path, leaf in flat.items() if path not in chosen}


def merge_params(trainable: dict, frozen: dict) -> dict:
    """The nested parameters that `split_params` parted."""
    nested: dict = {}
    for path, leaf in sorted({**frozen, **trainable}.items()):
        node = nested
        *parents, name = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return nested


def flatten_params(params: dict) -> dict:
    """Nested parameters as a flat dict from "a/b/kernel" to the array."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def tree_digest(tree: Any) -> str:
    """SHA-256 over the paths, shapes, dtypes and bytes of a pytree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
