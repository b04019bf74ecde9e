"""Whether a loss keeps the examples of a batch apart: else to clip each one's gradient bounds nobody's influence."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from privimage_jax.privacy import clipping, operations, weight_gradients

SIZE = 4  # examples of the batch that is tried
_LossBeside = Callable[[Any], clipping.PerExampleLoss]  # of the frozen parameters
_close = partial(np.allclose, rtol=1e-5, atol=1e-6)


def check_objective(
    per_example_loss: clipping.PerExampleLoss,
    params: Any,
    example_batch: Any,
    method: str = "auto",
    convolution: weight_gradients.Rule | None = None,
    merge: Callable[[Any, Any], Any] | None = None,
    frozen: Any = None,
) -> None:
    """Checks on random public inputs that the loss of one example does not depend on another.

    Four random examples; then the first is replaced by other values, and by NaN. The losses of the rest must not
    change, their derivatives with respect to the first must be exactly 0, and the clipped sum over all four with the
    NaN example must be finite and equal the sum over the rest.

    Before that the gradient of one example is traced. It must have no operation that `jax.vmap` may hand the whole
    batch to: such code could mix examples on other inputs than these.

    Args:
      per_example_loss: `(params, batch, keys) -> [B]`.
      params: what is trained.
      example_batch: a tree of arrays [B, ...], at least one of them of floats. Floats are replaced by random values in
        [-1, 1), one of them NaN; other values, such as labels, are taken as they are. Must not be sensitive.
      method: of clipping.
      convolution: as `dp_sgd.dp_step` is going to be told, like `merge`.
      merge: `(params, frozen) -> params` of the loss; without it `frozen` is not used.
      frozen: what is not trained.

    Raises:
      ValueError: when examples are mixed (batch statistics, attention over the batch, …) or may be (code on the host),
        or nothing is a float.
    """

    def loss_beside(frozen: Any) -> clipping.PerExampleLoss:
        return lambda params, batch, keys: per_example_loss(merge(params, frozen) if merge else params, batch, keys)

    examples = _Examples(example_batch)
    shape = jax.eval_shape(loss_beside(frozen), params, *examples.batch()).shape
    if shape != (SIZE,):
        _refuse(f"it has shape {shape} for {SIZE} examples")
    _check_operations(loss_beside(frozen), params, *examples.batch())
    # Each program runs a few times on four examples: on a CPU nearly all of its time is LLVM's, spent on optimising it.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    _check_losses(loss_beside, params, frozen, examples, options)
    _check_gradients(loss_beside, params, frozen, examples, options, method, convolution)


class _Examples:
    """Random values for the floats of a batch, and its other leaves: `SIZE` examples, and one to take a place."""

    def __init__(self, batch: Any):
        leaves, self._structure = jax.tree.flatten(batch)
        self._is_float = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]
        if not any(self._is_float):
            raise ValueError("the example batch holds no array of floats, so that nothing can be perturbed; give one.")

        def random(number: int, leaf: Any) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(0), number)
            return jax.random.uniform(key, (SIZE + 1, *jnp.shape(leaf)[1:]), jnp.result_type(leaf), minval=-1.0)

        self._floats = [random(number, leaf) for number, leaf in enumerate(leaves) if self._is_float[number]]
        kept = [leaf for leaf, floating in zip(leaves, self._is_float, strict=True) if not floating]
        self._others = [jnp.resize(leaf, (SIZE + 1, *leaf.shape[1:])) for leaf in kept]
        self._keys = jax.random.split(jax.random.key(1), SIZE + 1)

    def parts(self, first: int = 0, is_nan: bool = False) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
        """Floats, other leaves and keys [SIZE, ...], with the example number `first`, or NaN, in the first place."""
        ids = jnp.arange(SIZE).at[0].set(first)
        floats = [leaf[ids] for leaf in self._floats]
        if is_nan:
            floats = [leaf.at[0].set(jnp.nan) for leaf in floats]
        return floats, [leaf[ids] for leaf in self._others], self._keys[ids]

    def restored(self, floats: Any, others: Any) -> Any:
        """The batch of two of its parts."""
        remaining = {True: iter(floats), False: iter(others)}
        return jax.tree.unflatten(self._structure, [next(remaining[floating]) for floating in self._is_float])

    def batch(self, is_nan: bool = False) -> tuple[Any, jax.Array]:
        """The batch, perhaps with NaN in the first place, and the keys."""
        floats, others, keys = self.parts(is_nan=is_nan)
        return self.restored(floats, others), keys


def _check_operations(loss: clipping.PerExampleLoss, params: Any, batch: Any, keys: jax.Array) -> None:
    gradient = jax.value_and_grad(clipping.loss_of_one(loss))
    row = jax.tree.map(lambda leaf: leaf[0], (batch, keys))
    if found := operations.that_may_mix(gradient, params, row):
        raise ValueError(
            f"the loss uses {found[0]}, which may look at several examples at once, so that clipping each example's "
            "gradient would not bound its influence; use a model made of jax's own operations."
        )


def _check_losses(loss_beside: _LossBeside, params: Any, frozen: Any, examples: _Examples, options: Any) -> None:
    """The losses of the other examples neither change with the first one nor have a derivative with respect to it."""

    def losses_and_influence(
        params: Any, frozen: Any, floats: Any, others: Any, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Losses [4], and the first example's largest derivative of a random combination of the other losses.

        With random weights the derivatives of several losses cancel with probability 0.
        """

        def losses_of(floats: Any) -> jax.Array:
            return loss_beside(frozen)(params, examples.restored(floats, others), keys)

        losses, pull_back = jax.vjp(losses_of, floats)
        weights = jax.random.uniform(jax.random.key(2), (SIZE,), losses.dtype, 1.0, 2.0)
        (derivatives,) = pull_back(jnp.where(_rest(), weights, 0))
        return losses, jnp.max(jnp.stack([jnp.max(jnp.abs(leaf[0])) for leaf in derivatives]))

    probe = partial(jax.jit(losses_and_influence, compiler_options=options), params, frozen)
    expected, influence = probe(*examples.parts())
    if not _close(probe(*examples.parts(SIZE))[0][1:], expected[1:]):
        _refuse("another first example changes the losses of the others")
    if not _close(probe(*examples.parts(is_nan=True))[0][1:], expected[1:]):
        _refuse("a NaN in the first example reaches the losses of the others")
    if influence != 0:
        _refuse("the loss of an example has a derivative with respect to another example")


def _check_gradients(
    loss_beside: _LossBeside,
    params: Any,
    frozen: Any,
    examples: _Examples,
    options: Any,
    method: str,
    convolution: weight_gradients.Rule | None,
) -> None:
    """The clipped sum over all examples, of which one is NaN, is that over the rest."""

    def clipped_sum(params: Any, frozen: Any, batch: Any, keys: jax.Array, mask: jax.Array) -> tuple[Any, Any, Any]:
        """What is frozen is an argument, as in a step: of a constant XLA would compute what follows, slowly."""
        gradient = clipping.clipped_grad(loss_beside(frozen), 1.0, method, convolution=convolution)
        return gradient(params, batch, keys, mask)

    clipped = partial(jax.jit(clipped_sum, compiler_options=options), params, frozen)
    alone, _, _ = clipped(*examples.batch(), _rest())
    together, norms, _ = clipped(*examples.batch(is_nan=True), jnp.ones(SIZE, bool))
    same = jax.tree.map(_close, alone, together)
    if np.isfinite(norms[0]) or not all(jax.tree.leaves(same)):
        _refuse("a NaN in the first example reaches the gradients of the others")


def _rest() -> jax.Array:
    """A mask of all examples but the first."""
    return jnp.arange(SIZE) > 0


def _refuse(problem: str) -> None:
    raise ValueError(
        f"the loss mixes the examples of a batch ({problem}), so that clipping each example's gradient would not "
        "bound its influence; use a model without batch statistics."
    )
