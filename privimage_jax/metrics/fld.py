"""Feature likelihood divergence: fidelity, diversity and novelty in one number (Jiralerspong et al. 2023,
arXiv:2302.04440).

A mixture of isotropic Gaussians is centred on the synthetic features, its widths are fitted to the *training*
features, and it is scored by the likelihood of the *test* features. Where synthetic images copy training images, the
fitted widths shrink and the test images become unlikely.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from privimage_jax.errors import UserError

EPOCHS = 50
BATCH_SIZE = 10000
LEARNING_RATE = 0.5
LOG_VARIANCE_RANGE = (-40.0, 20.0)
SHRUNK_DISTANCE = 0.9**2  # of the extra component at the mean of the training features, squared


def fld(train: np.ndarray, test: np.ndarray, synthetic: np.ndarray, max_synthetic: int = 10000, seed: int = 0) -> float:
    """`100 / D` times the test features' loss in log-likelihood against a mixture centred on half of the training set.

    About 0 for a perfect model, larger is worse; below 0 if the synthetic set is better than half of the training set.
    Constants and the fitting are those of the authors' package.

    >>> train, test = np.random.default_rng(0).standard_normal((2, 20, 2))
    >>> fld(train, test, train) > 1000  # copies of the training set
    True

    Args:
      train: features of the images that the generator was trained on, `[N, D]`. N times the number of synthetic
        images floats are kept.
      test: of other images of the same law, `[M, D]`; all are scaled by this set's mean and standard deviation.
      synthetic: `[K, D]`.
      max_synthetic: drawn of the synthetic images where there are more.
      seed: of that draw and of the halving.

    Returns:
      The divergence; float32 arithmetic.

    Raises:
      UserError: if a set has fewer than two rows.
      ValueError: if D differs.
    """
    sets = [np.asarray(rows, np.float32) for rows in (train, test, synthetic)]
    if len({rows.shape[1:] for rows in sets}) != 1 or sets[0].ndim != 2:
        raise ValueError(f"features must be [N, D] of one D, not {[rows.shape for rows in sets]}")
    if (fewest := min(len(rows) for rows in sets)) < 2:
        raise UserError(f"FLD needs at least 2 images in each set, not {fewest}: give it more images.")
    mean, std = sets[1].mean(axis=0), sets[1].std(axis=0, ddof=1)
    train, test, synthetic = ((rows - mean) / np.where(std > 0, std, 1) for rows in sets)
    rng = np.random.default_rng(seed)
    synthetic = synthetic[rng.permutation(len(synthetic))[:max_synthetic]]
    halves = train[rng.permutation(len(train))]
    split = min(len(synthetic), len(train) // 2)
    loss = _fitted_loss(synthetic, train, test)
    return 100 * (loss - _fitted_loss(halves[:split], halves[split:], test))


def _fitted_loss(centres: np.ndarray, fit_to: np.ndarray, test: np.ndarray) -> float:
    """Mean negative log-likelihood a dimension of `test` under the mixture on `centres` fitted to `fit_to`."""
    rows, means = jnp.asarray(fit_to), jnp.asarray(centres)
    to_mean = SHRUNK_DISTANCE * _squared_distances(rows, rows.mean(axis=0, keepdims=True))[:, 0]
    log_variances = _fit(_squared_distances(rows, means), to_mean, means.shape[1])
    dim, losses = means.shape[1], []
    for part in np.split(test, range(BATCH_SIZE, len(test), BATCH_SIZE)):
        log_p = _log_components(_squared_distances(jnp.asarray(part), means), log_variances, dim)
        losses.append(-jax.nn.logsumexp(log_p - jnp.log(len(means)), axis=1) / dim)
    return float(jnp.concatenate(losses).mean())


def _fit(distances: jax.Array, to_mean: jax.Array, dim: int) -> jax.Array:
    """Log-variances of the components that maximise the likelihood of the rows, by Adam.

    A further component at the rows' mean, whose width is fitted too and then forgotten, takes those rows that no centre
    is near to.

    Args:
      distances: squared, from each row to each centre, `[N, K]`.
      to_mean: squared, from each row to the rows' mean, `[N]`.
      dim: D.
    """
    optimizer = optax.adam(LEARNING_RATE)
    # The best width of a component that explains its nearest row alone.
    parameters = (jnp.log((distances.min(axis=0) + 1e-3) / dim), jnp.zeros(()))
    opt_state = optimizer.init(parameters)
    for _ in range(EPOCHS):
        for start in range(0, len(distances), BATCH_SIZE):
            rows = slice(start, start + BATCH_SIZE)
            parameters, opt_state = _step(parameters, opt_state, distances[rows], to_mean[rows], dim)
    return parameters[0]


@functools.partial(jax.jit, static_argnames="dim")
def _step(parameters: Any, opt_state: Any, distances: jax.Array, to_mean: jax.Array, dim: int) -> tuple[Any, Any]:
    def loss(parameters: Any) -> jax.Array:
        log_variances, log_variance_at_mean = parameters
        log_p = _log_components(distances, log_variances, dim) - jnp.log(distances.shape[1])
        at_mean = _log_components(to_mean[:, None], log_variance_at_mean, dim)
        return -jax.nn.logsumexp(jnp.concatenate([log_p, at_mean], axis=1), axis=1).mean() / dim

    updates, opt_state = optax.adam(LEARNING_RATE).update(jax.grad(loss)(parameters), opt_state)
    log_variances, log_variance_at_mean = optax.apply_updates(parameters, updates)
    return (jnp.clip(log_variances, *LOG_VARIANCE_RANGE), log_variance_at_mean), opt_state


def _log_components(distances: jax.Array, log_variances: jax.Array, dim: int) -> jax.Array:
    """`log N(x_i | centre_j, variance_j I)` from squared distances."""
    return -0.5 * (distances * jnp.exp(-log_variances) + dim * (log_variances + jnp.log(2 * jnp.pi)))


@jax.jit
def _squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1) - 2 * product, 0)
