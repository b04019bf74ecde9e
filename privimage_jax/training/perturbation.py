"""Gradients at weights that were moved towards more loss: adversarial model perturbation in public pre-training.

Weights at which a small move does little harm bear the noise of DP-SGD better: RPGen (Wang et al., AAAI 2026) perturbs
the model in public pre-training, at no privacy cost. Each step moves the weights w by Delta, along the gradient g of
the batch's loss at w, takes the gradient at w + Delta on the same batch and draws, and updates w with it.

Two sizes of Delta:

- "global": Delta = gamma g / |g|, norms over all weights together. RPGen, equations 3 and 4, asks for the Delta that
  maximises the loss within the ball |Delta| <= gamma; this one does so to first order. The paper climbs by gradient
  ascent of rate 0.4, projected onto the ball, and does not say in how many steps. It has gamma = 0.2 by default and
  finds no gain above 0.5. (Also Zheng et al., CVPR 2021, and, under the name SAM, Foret et al., ICLR 2021.)
- "layer": Delta_l = gamma |w_l| g_l / |g_l| for each array l of weights: relative to what it moves (as Wu et al.,
  NeurIPS 2020, scale adversarial weight perturbation). An array of zeros does not move. It is not RPGen's, and its
  gamma is another number: 0.2 moves every layer by a fifth of its norm.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Loss = Callable[[Any], jax.Array]


def value_and_grad(loss: Loss, gamma: float, norm: str = "layer") -> Callable[[Any], tuple[jax.Array, Any]]:
    """`jax.value_and_grad(loss)`, but for the gradient, which is that at perturbed weights.

    Args:
      loss: `params -> scalar`; the same draws at each call.
      gamma: how far weights are moved, see above; 0 = `jax.value_and_grad` itself.
      norm: "layer" or "global".

    Returns:
      `params -> (loss at params, gradient at params + Delta)`.

    >>> value, gradient = value_and_grad(lambda w: w @ w, gamma=0.5)(jnp.array([3.0, 4.0]))
    >>> value.item(), gradient.tolist()  # the gradient at [4.5, 6.0]
    (25.0, [9.0, 12.0])
    """
    plain = jax.value_and_grad(loss)
    if not gamma:
        return plain

    def perturbed(params: Any) -> tuple[jax.Array, Any]:
        value, ascent = plain(params)
        return value, jax.grad(loss)(optax.apply_updates(params, perturbation(params, ascent, gamma, norm)))

    return perturbed


def perturbation(params: Any, gradient: Any, gamma: float, norm: str) -> Any:
    """Delta, a tree like `params`; zero where a gradient is.

    Args:
      params: tree of float32.
      gradient: of the loss, the same tree.
      gamma, norm: as in `value_and_grad`.
    """
    if norm == "global":
        scale = gamma * _inverse(optax.global_norm(gradient))
        return jax.tree.map(lambda g: scale * g, gradient)
    return jax.tree.map(lambda w, g: gamma * _norm(w) * _inverse(_norm(g)) * g, params, gradient)


def _norm(leaf: jax.Array) -> jax.Array:
    """The L2 norm over all values of an array, of any rank."""
    return jnp.sqrt(jnp.sum(leaf**2))


def _inverse(norm: jax.Array) -> jax.Array:
    """1 / norm; 0 for 0."""
    return jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0)
