"""Does clipping keep its bound on this device, and do its two methods agree?"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from privimage_jax.light.problem import CLIP_NORM, Problem, compiled, distance
from privimage_jax.light.rows import Row, check
from privimage_jax.privacy import clipping, sum_check

EXAMPLES = 16
METHODS = ("vmap", "bookkeeping")
# Relative to `vmap` in float32. A gradient passes through some 20 layers, each of which rounds to 24, 11 or 8 bits.
TOLERANCE = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 1e-1}
BOUND = "one example's largest contribution, recomputed in float64, over C"
SUM = "a compensated sum of 4,080 products, off by"  # of itself


def run(problem: Problem) -> Iterator[Row]:
    """Compares each method in each precision with `vmap` in float32, and bounds every single contribution.

    Yields:
      Rows of checks; see `rows.check`.
    """
    calm, hostile = _batches(problem)
    keys, everyone = jax.random.split(jax.random.key(2), EXAMPLES), np.ones(EXAMPLES, bool)
    reference = None
    for precision in clipping.PRECISIONS:
        loss = problem.loss(precision)
        for method in METHODS:
            named = {"precision": precision, "method": method}
            fn = compiled(clipping.clipped_grad(loss, CLIP_NORM, method, precision))
            total, norms, _ = jax.device_get(fn(problem.params, calm, keys, everyone))
            if reference is None:
                reference = total, norms
            else:
                tolerance = TOLERANCE[precision]
                yield check("clipped sum, against vmap in float32", distance(total, reference[0]), tolerance, **named)
                apart = np.max(np.abs(norms / reference[1] - 1))
                yield check("norms of examples, against vmap in float32", apart, tolerance, **named)
            largest = np.max([_largest(fn, problem.params, batch, keys) for batch in (calm, hostile)])  # keeps NaN
            yield check(BOUND, largest / CLIP_NORM, 1.0, **named)
    yield check(SUM, sum_check.error(), sum_check.LIMIT)


def _batches(problem: Problem) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ordinary examples, and the same scaled by 2^-30 to 2^60, where some gradients overflow."""
    batch = problem.images(EXAMPLES)
    images = batch["image"].astype(np.float32) / 127.5 - 1
    scales = np.exp2(np.linspace(-30, 60, EXAMPLES)).astype(np.float32)
    return {**batch, "image": images}, {**batch, "image": images * scales[:, None, None, None]}


def _largest(fn: clipping.ClippedGrad, params: Any, batch: dict[str, Any], keys: jax.Array) -> float:
    """The largest L2 norm of one example's contribution to the sum, in float64 on the host."""
    norms = []
    for i in range(EXAMPLES):
        alone, _, _ = jax.device_get(fn(params, batch, keys, jnp.arange(EXAMPLES) == i))
        norms.append(math.sqrt(sum(float(np.sum(np.float64(leaf) ** 2)) for leaf in jax.tree.leaves(alone))))
    return float(np.max(norms))
