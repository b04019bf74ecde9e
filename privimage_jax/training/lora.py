"""Low-rank fine-tuning (LoRA, Hu et al. 2022, arXiv:2106.09685): train W + s A B in place of W.

With DP-SGD this shrinks the noise, whose norm grows with the square root of the number of trained values.
"""

from typing import Any

import jax
import jax.numpy as jnp

from privimage_jax.errors import UserError
from privimage_jax.training.state import merge_params, split_params

A, B = "/lora_a", "/lora_b"


def split(params: Any, trainable: str, rank: int, key: jax.Array) -> tuple[dict, dict]:
    """Parts the model into (factors to train, parameters to keep); `merge` puts them together again.

    A kernel [..., O] counts as a matrix [I, O] with all its other axes as rows. A [I, rank] starts at N(0, 1/I) and B
    [rank, O] at zero, so that training starts from `params`.

    Args:
      params: nested parameters.
      trainable: regular expression of the paths to adapt; of these, arrays with at least two axes are.
      rank: at least 1; factors are no wider than the smaller side of the matrix.
      key: of A's values; public.

    Returns:
      Two flat dicts from path to array.

    Raises:
      UserError: if no kernel is matched.
    """
    chosen, frozen = split_params(params, trainable)
    factors = {}
    for number, (path, kernel) in enumerate(sorted(chosen.items())):
        if kernel.ndim < 2:
            continue
        rows, columns = kernel.size // kernel.shape[-1], kernel.shape[-1]
        width = min(rank, rows, columns)
        factors[path + A] = jax.random.normal(jax.random.fold_in(key, number), (rows, width)) / jnp.sqrt(rows)
        factors[path + B] = jnp.zeros((width, columns))
    if not factors:
        raise UserError(
            f"config.finetune.lora_rank={rank} changes kernels, but config.finetune.trainable={trainable!r} matches "
            "none; give an expression that matches one."
        )
    return factors, {**frozen, **chosen}


def merge(factors: dict, frozen: dict, scale: float) -> dict:
    """The nested parameters W + s A B; the scale s is alpha / r in the paper."""
    adapted = {}
    for path in (name.removesuffix(A) for name in factors if name.endswith(A)):
        change = jnp.matmul(factors[path + A], factors[path + B], precision=jax.lax.Precision.HIGHEST)
        adapted[path] = frozen[path] + scale * change.reshape(frozen[path].shape)
    return merge_params(adapted, frozen)
