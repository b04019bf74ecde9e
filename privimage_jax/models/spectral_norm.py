"""Spectral normalisation (Miyato et al. 2018, arXiv:1802.05957): weights divided by their largest singular value.

It acts on a tree of parameters, so that modules stay as they are. `flax.linen.SpectralNorm` keeps its vectors under
names that no nested tree of ours can hold.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_TINY = 1e-12


def is_normalised(leaf: jax.Array) -> bool:
    """Whether a parameter has a largest singular value: kernels and embeddings do, biases and scales do not."""
    return leaf.ndim >= 2


def first_vectors(params: Any, key: jax.Array) -> Any:
    """Where the power iterations start: a random unit vector [outputs] for each normalised leaf, [1] for others."""
    leaves, structure = jax.tree.flatten(params)
    sizes = [leaf.shape[-1] if is_normalised(leaf) else 0 for leaf in leaves]
    drawn = jax.random.normal(key, (sum(sizes),))  # at once: on CPUs, each draw takes 0.2 s to compile
    vectors = [_unit(part) if len(part) else jnp.zeros((1,)) for part in jnp.split(drawn, np.cumsum(sizes)[:-1])]
    return jax.tree.unflatten(structure, vectors)


def normalise(params: Any, vectors: Any) -> tuple[Any, Any]:
    """The weights that the network is applied with, and vectors after one more power iteration.

    Gradients pass through the division, not through the iteration, as in the paper.

    Args:
      params: a tree of float32 arrays; the last axis of a kernel is that of its outputs.
      vectors: a tree like it, of `first_vectors` or of an earlier call.

    Returns:
      (normalised params, vectors), trees like the arguments.
    """
    leaves, structure = jax.tree.flatten(params)
    pairs = [_normalise_leaf(*pair) for pair in zip(leaves, jax.tree.leaves(vectors), strict=True)]
    normalised, iterated = zip(*pairs, strict=True)
    return jax.tree.unflatten(structure, normalised), jax.tree.unflatten(structure, iterated)


def _normalise_leaf(leaf: jax.Array, vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    if not is_normalised(leaf):
        return leaf, vector
    matrix = leaf.reshape(-1, leaf.shape[-1])
    fixed = jax.lax.stop_gradient(matrix)
    left = _unit(fixed @ vector)
    right = _unit(left @ fixed)
    return leaf / jnp.maximum(left @ matrix @ right, _TINY), right


def _unit(vector: jax.Array) -> jax.Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), _TINY)
