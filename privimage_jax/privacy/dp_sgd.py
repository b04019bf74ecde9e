"""One step of DP-SGD (Abadi et al. 2016) on every device: Poisson batch, clipped sum, noise, update.

    g = (sum over drawn records of clip(g_i, C) + sigma C N(0, I)) / B

with the *expected* batch size B, never the drawn one. A record is an image, or a person with all images of one
(`people.py`). Formal guarantee: with respect to zeroing out one record, T steps
under one key are `noise.event(noise_multiplier, DPSGD.sampling_rate, T)`: for the independent noise above, the default,
`events.SampledGaussian`.

The batch, the order of its records and the noise are pure functions of (key, t): the number of devices, the size of the
microbatch and where the records lie (`records`) change the result by the rounding of float32 sums alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from privimage_jax.privacy import clipping, people, records, sampling, summation, weight_gradients
from privimage_jax.privacy.noise import INDEPENDENT, Noise

AXIS = records.AXIS

State = dict[str, Any]
Stats = dict[str, jax.Array]
Step = Callable[[State, Any, jax.Array, jax.Array, jax.Array], tuple[State, Stats]]


@dataclasses.dataclass(frozen=True)
class DPSGD:
    """The public settings of DP-SGD; fixed before the data is touched.

    Attributes:
      n: the true number of records.
      batch_size: the expected batch size B over all devices, at most n, and above 2**16 records at most
        `summation.LARGEST_BATCH`.
      clip_norm: C.
      noise_multiplier: sigma; the noise on the sum has standard deviation sigma * C.
      microbatch: examples whose gradients a device holds at once.
      method: of clipping, see `clipping.clipped_pair`.
      precision: of matrix products, likewise; part of no guarantee.
    """

    n: int
    batch_size: int
    clip_norm: float
    noise_multiplier: float
    microbatch: int
    method: str = "auto"
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.microbatch < 1:
            raise ValueError(f"microbatch must be at least 1; it is {self.microbatch}.")
        if not self.noise_multiplier >= 0:
            raise ValueError(f"noise_multiplier must not be negative; it is {self.noise_multiplier}.")
        if self.batch_size > summation.LARGEST_BATCH and self.n > summation.MOST_TERMS:
            raise ValueError(f"batch_size must be at most {summation.LARGEST_BATCH:,}; it is {self.batch_size:,}.")
        sampling.threshold(self.batch_size, self.n)

    @property
    def threshold(self) -> int:
        """Of a record's random word, see `sampling`."""
        return sampling.threshold(self.batch_size, self.n)

    @property
    def sampling_rate(self) -> float:
        """The exact q, for the accountant."""
        return sampling.sampling_rate(self.threshold)


def dp_step(
    per_example_loss: clipping.PerExampleLoss,
    update: Callable[[State, Any], State],
    settings: DPSGD,
    mesh: Mesh | None = None,
    merge: Callable[[Any, Any], Any] | None = None,
    convolution: weight_gradients.Rule | None = None,
    noise: Noise = INDEPENDENT,
) -> Step:
    """One step of DP-SGD as a pure, jit-able function.

    Args:
      per_example_loss: `(params, batch, keys [B]) -> [B]`; must not mix examples (see `objective_check`).
      update: `(state, gradient) -> state`, the optimizer's step.
      settings: public settings.
      mesh: of one axis, "data"; None is all devices.
      merge: `(params, frozen) -> params` of the loss; without it `state["frozen"]` is not used.
      convolution: how book-keeping computes weight gradients of convolutions; None is `weight_gradients.of_platform`.
      noise: what is added to the sum of each step.

    Returns:
      `step(state, data, key, loss_key, t) -> (state, stats)`:

      - state: a dict with "params", what is trained, "frozen", what is not, and "noise", see `with_noise_state`;
      - data: `records.Records` of {"image", "label"}, replicated or sharded, as they were placed; or a tree of arrays
        [n, ...], which every device then holds; or `people.People`, whose records are people;
      - key: ChaCha20 key, uint32 [8], of batches and noise; one mechanism's, never used for the same t on other data;
      - loss_key: a jax.random key for draws that protect nothing; record i at step t gets fold_in(fold_in(., t), i);
      - t: int32 scalar.

      Data and keys are arguments, so that no compiled program holds them. `stats` (scalars: the means loss, norm and
      clipped, the counts nonfinite, drawn and processed) are functions of sensitive data without noise: INTERNAL only,
      never released. `processed` equals `drawn` in every step; the caller may assert it.
    """

    mesh = Mesh(np.array(jax.devices()), (AXIS,)) if mesh is None else mesh
    convolution = convolution or weight_gradients.of_platform(mesh.devices.flat[0].platform)

    def make_gradient(loss: clipping.PerExampleLoss) -> clipping.ClippedPair:
        return clipping.clipped_pair(loss, settings.clip_norm, settings.method, settings.precision, convolution)

    def add_noise(total: Any, noise_state: Any, key: jax.Array, t: jax.Array) -> tuple[Any, Any]:
        return noise.add(total, noise_state, key, t, settings.noise_multiplier * settings.clip_norm)

    make_gradient(per_example_loss)  # a wrong method or clip norm is named now, not at the first step
    noised_sum = sum_over_batch(per_example_loss, make_gradient, add_noise, settings, mesh, merge)

    def step(state: State, data: Any, key: jax.Array, loss_key: jax.Array, t: jax.Array) -> tuple[State, Stats]:
        noise_state = state.get("noise", {})
        if _shapes(noise_state) != _shapes(jax.eval_shape(noise.init, state["params"])):
            raise ValueError('state["noise"] is not what the noise carries; start from with_noise_state(state, noise).')
        params, frozen = state["params"], state.get("frozen", {})
        total, noise_state, stats = noised_sum(params, frozen, noise_state, data, key, loss_key, t)
        new = update(state, jax.tree.map(lambda leaf: leaf / settings.batch_size, total))
        return _with(new, noise_state), stats

    return step


def with_noise_state(state: State, noise: Noise) -> State:
    """The state before the first step, with what the noise carries under "noise"; as it was if that is nothing.

    Args:
      state: a dict with "params".
      noise: as `dp_step` is given it.
    """
    return _with(state, noise.init(state["params"]))


def _with(state: State, noise_state: Any) -> State:
    return {**state, "noise": noise_state} if jax.tree.leaves(noise_state) else state


def _shapes(tree: Any) -> Any:
    """Structure, shapes and dtypes of a tree, to be compared."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def sum_over_batch(
    per_example_loss: clipping.PerExampleLoss,
    make_gradient: Callable[[clipping.PerExampleLoss], clipping.ClippedPair],
    add_noise: Callable[[Any, Any, jax.Array, jax.Array], tuple[Any, Any]],
    settings: DPSGD,
    mesh: Mesh,
    merge: Callable[[Any, Any], Any] | None = None,
) -> Callable:
    """The noised sum of gradients over a batch: the data path of every step, private or not.

    `make_gradient` and `add_noise`, `(total, noise state, key, t) -> (noised, noise state)`, are all that makes it
    private. `add_noise` is given zeros, and what it returns is added to the sum, which has more digits than float32.

    Returns:
      `(params, frozen, noise state, data, key, loss_key, t) -> (sum, noise state, stats)` over the batch of step t.
    """
    if mesh.axis_names != (AXIS,):
        raise ValueError(f'the mesh must have the one axis "{AXIS}", not {mesh.axis_names}')
    n, m, n_devices = settings.n, settings.microbatch, mesh.size
    merge = merge or (lambda params, frozen: params)

    def on_device(
        params: Any, frozen: Any, noise_state: Any, data: Any, key: jax.Array, loss_key: jax.Array, t: jax.Array
    ) -> tuple[Any, Any, Stats]:
        cumulative = jnp.cumsum(sampling.membership(key, t, n, settings.threshold), dtype=jnp.int32)
        drawn = cumulative[-1]
        # The largest share: every device goes round as often as any other, as it may have to hand out records.
        trips = (sampling.device_share(drawn, 0, n_devices) + m - 1) // m
        # From here on values differ between devices. Without this cast, check_vma would add up each example's gradient
        # over the devices *before* it is clipped.
        params, frozen, cumulative = varying((params, frozen, cumulative))
        gradient = make_gradient(lambda trained, batch, keys: per_example_loss(merge(trained, frozen), batch, keys))
        step_key = jax.random.fold_in(loss_key, t)
        device = jax.lax.axis_index(AXIS)
        share = sampling.device_share(drawn, device, n_devices)

        def microbatch(i: jax.Array, carry: Any) -> Any:
            place = i * m + jnp.arange(m, dtype=jnp.int32)
            ids = sampling.positions(cumulative, device + n_devices * place)
            keys = jax.vmap(lambda record: jax.random.fold_in(step_key, record))(ids)
            batch, arrived = people.take(data, ids, keys)
            mask = (place < share) & arrived  # a wrong record is not processed, and the count of those tells
            term, norms, losses = gradient(params, batch, keys, mask)
            total, counts = carry
            more = _count(norms, losses, mask, settings.clip_norm)
            return summation.add(total, *term), jax.tree.map(jnp.add, counts, more)

        nothing = _count(jnp.zeros(0), jnp.zeros(0), jnp.zeros(0, bool), settings.clip_norm)
        empty = varying((summation.zero(params), nothing))
        total, counts = jax.lax.fori_loop(0, trips, microbatch, empty)
        parts = summation.parts(total, drawn * settings.clip_norm, n_devices)
        parts, counts = _sum_over_devices((parts, counts))
        # Once, after the sum over devices, and the same on each. The sum is not rounded before the noise is in it.
        added, noise_state = add_noise(summation.zero(params)[0], noise_state, key, t)
        noised, _ = summation.add(summation.joined(parts), added)
        return noised, noise_state, _stats(counts, drawn)

    def noised_sum(
        params: Any, frozen: Any, noise_state: Any, data: Any, key: jax.Array, loss_key: jax.Array, t: jax.Array
    ) -> tuple[Any, Any, Stats]:
        if people.size(data) != n:
            raise ValueError(f"settings.n is {n}, but the data has {people.size(data)} records")
        specs = (P(), P(), P(), people.spec(data), P(), P(), P())
        return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=P())(
            params, frozen, noise_state, data, key, loss_key, t
        )

    return noised_sum


def _sum_over_devices(tree: Any) -> Any:
    """The sum of a tree over the devices, as one message: a collective for each leaf would pay its latency each time.

    Everything travels as float32, which holds counts up to 2**24 exactly.
    """
    vector, restore = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree))
    summed = restore(jax.lax.psum(vector, AXIS))
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), summed, tree)


def varying(tree: Any) -> Any:
    """The same values, marked as different on each device of the mesh."""
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, AXIS, to="varying"), tree)


def _count(norms: jax.Array, losses: jax.Array, mask: jax.Array, clip_norm: float) -> Stats:
    """Sums over a microbatch, to be averaged by `_stats`."""
    finite = mask & jnp.isfinite(norms)
    return {
        "loss": jnp.sum(jnp.where(finite & jnp.isfinite(losses), losses, 0.0)),
        "norm": jnp.sum(jnp.where(finite, norms, 0.0)),
        "clipped": jnp.sum(finite & (norms > clip_norm * (1 - clipping.ETA)), dtype=jnp.int32),
        "nonfinite": jnp.sum(mask & ~finite, dtype=jnp.int32),
        "processed": jnp.sum(mask, dtype=jnp.int32),
    }


def _stats(counts: Stats, drawn: jax.Array) -> Stats:
    used = jnp.maximum(counts["processed"] - counts["nonfinite"], 1)
    means = {name: counts[name] / used for name in ("loss", "norm", "clipped")}
    return {**means, "nonfinite": counts["nonfinite"], "processed": counts["processed"], "drawn": drawn}
