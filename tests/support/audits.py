"""What an auditor checks, as few general functions; the ordinary tests and the planted bugs call the same ones.

A `Trace` is what one run did: which blocks of ChaCha20 it drew, which ledger lines it wrote, what went into and came
out of its mechanisms, and which compiled programs it called. `recorded` fills one while a run goes on; given the
trace of another run, it puts that run's outputs in the mechanisms' place, which makes the run a replay.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from privimage_jax import generators
from privimage_jax.metrics import downstream, features
from privimage_jax.models import registry
from privimage_jax.privacy import chacha, clipping, dp_sgd, ledger, noise, people, records
from privimage_jax.run import counting, noisy_counts
from privimage_jax.run.inputs import Inputs
from privimage_jax.stages import class_histogram, query, warmup
from privimage_jax.training import loop
from privimage_jax.training.mesh import make_mesh

# As they are when the tests are collected: what the checks expect must not change with a planted bug.
MEMBERSHIP, NOISE = chacha.DOMAIN_MEMBERSHIP, chacha.DOMAIN_NOISE
ETA = clipping.ETA
# At level 0 a program that runs a few times on a few examples compiles in a third of the time.
# A program with the noise takes half as long again to compile; it is left out where nothing depends on it.
NO_NOISE = noise.Noise(lambda params: {}, lambda total, state, *_: (total, state), None, True)
OPTIONS = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
NULL_MARK, NAN_MARK, HUGE_MARK = 255, 254, 253  # images of this value alone: see `marked_loss`
COUNTING = ("gaussian", "sampled-gaussian")  # the ledger's lines of noisy counts
COORDINATES = ("domain", "step", "leaf", "counter")


@dataclasses.dataclass
class Trace:
    """One run.

    Attributes:
      blocks: uint32 arrays [n, 12], one for each draw: the key's eight words and a block's `COORDINATES`.
      lines: the ledger's lines, each with the number of draws made before it was on the disk.
      counts, noisy: the inputs and outputs of the mechanisms that release noisy counts, by their names.
      gradients: step -> the noised, averaged gradient.
      programs: name, shapes and dtypes, and whole numbers among the arguments, of every call of a compiled program.
    """

    blocks: list[np.ndarray] = dataclasses.field(default_factory=list)
    lines: list[tuple[int, dict[str, Any]]] = dataclasses.field(default_factory=list)
    counts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    noisy: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    gradients: dict[int, Any] = dataclasses.field(default_factory=dict)
    programs: list[tuple] = dataclasses.field(default_factory=list)


class Programs:
    """Programs that runs of one config, one after the other, need not trace and compile again.

    They are told by their names and their turn. All that they close over is that of the first run. So a run that is to
    show that no program holds data must not share them.
    """

    def __init__(self) -> None:
        self.trace, self.replay = Trace(), None  # of the run that goes on
        self._kept: dict[tuple, _Program] = {}
        self._turns: collections.Counter = collections.Counter()

    def begin(self, trace: Trace, replay: Trace | None) -> None:
        """The next run."""
        self.trace, self.replay = trace, replay
        self._turns.clear()

    def outputs(self) -> Trace:
        """Those of the mechanisms that the run goes on with."""
        return self.trace if self.replay is None else self.replay

    def jit(self, compile_program: Callable, fun: Callable, **options: Any) -> "_Program":
        """`jax.jit`, whose calls are noted."""
        name = (fun.__module__, getattr(fun, "__qualname__", ""))
        self._turns[name] += 1
        key = (*name, self._turns[name], repr(options))
        if key not in self._kept:
            self._kept[key] = _Program(compile_program(fun, **options), self)
        return self._kept[key]


@contextlib.contextmanager
def recorded(
    trace: Trace,
    replay: Trace | None = None,
    null: int | np.ndarray | None = None,
    programs: Programs | None = None,
) -> Iterator[None]:
    """Records what runs on one device within the context.

    Args:
      trace: to be filled.
      replay: goes on with this trace's outputs of its mechanisms, not with the run's own.
      null: the row of a record, or those of a person's images, that count in no histogram and no score (nor, where they
        are of NULL_MARK, in the gradients).
      programs: those of earlier runs; by default the run makes its own.
    """
    programs = programs or Programs()
    programs.begin(trace, replay)
    logits_of, count_classes, sum_by_class = counting.logits, class_histogram.count_classes, warmup.sum_by_class
    add_noise, build_generator = noisy_counts.add_noise, generators.build

    def without_null(labels):
        return ~np.isin(np.arange(len(labels)), [] if null is None else null)

    def left(*arrays):
        """Of arrays with a row for each image, the rows that count."""
        return [each if each is None else each[without_null(each)] for each in arrays]

    def counted(*args):
        for rows, logits in logits_of(*args):
            kept = ~np.isin(rows, [] if null is None else null)
            yield rows[kept], logits[kept]

    def exchange_counts(name, key, counts, std):
        line = next(line for _, line in reversed(trace.lines) if line.get("mechanism") == name and "epsilon" in line)
        of_people = any(line.get("unit") == "person" for _, line in trace.lines)  # whose shares are whole numbers
        stated = line["noise_multiplier"] * line["l2_sensitivity"] * (1 << people.BITS if of_people else 1)
        assert np.isclose(std, stated, rtol=1e-12), f"the noise of the {name} has std {std}, but its line says {stated}"
        trace.counts[name], trace.noisy[name] = counts, add_noise(name, key, counts, std)
        return programs.outputs().noisy[name]

    def build(config, n_classes):
        generator = build_generator(config, n_classes)
        private_update = generator.private_update

        def exchange(step, gradient):
            programs.trace.gradients[int(step)] = jax.tree.map(np.array, gradient)
            return jax.tree.map(np.asarray, programs.outputs().gradients[int(step)])

        def exchanging(mesh):
            update = private_update(mesh)
            return lambda state, gradient: update(state, io_callback(exchange, gradient, state["step"], gradient))

        generator.private_update = exchanging
        generator.per_example_loss = marked_loss(generator.per_example_loss)
        return generator

    with pytest.MonkeyPatch.context() as patch, recorded_draws(trace, programs):
        patch.setattr(counting, "logits", counted)
        patch.setattr(
            class_histogram,
            "count_classes",
            lambda labels, n_classes, weights=None: count_classes(*left(labels), n_classes, *left(weights)),
        )
        patch.setattr(
            warmup,
            "sum_by_class",
            lambda images, labels, members, *args: sum_by_class(images, labels, members & without_null(labels), *args),
        )
        patch.setattr(noisy_counts, "add_noise", exchange_counts)
        patch.setattr(generators, "build", build)
        patch.setattr(features, "on_batch", _Program(features.on_batch, programs))
        patch.setattr(jax, "jit", functools.partial(programs.jit, jax.jit))
        patch.setattr(loop, "DISPATCH_SECONDS", 1e6)  # a slow machine must not cut the steps otherwise than a quick one
        downstream.kept_runner.cache_clear()  # a program that an earlier run compiled would note its calls there
        yield
        downstream.kept_runner.cache_clear()


@contextlib.contextmanager
def recorded_draws(trace: Trace, programs: Programs | None = None) -> Iterator[None]:
    """Records the blocks that are drawn on one device and the ledger's lines, in their order."""
    words, append_line = chacha.words, ledger.append_line_durably
    if programs is None:
        programs = Programs()
        programs.begin(trace, None)

    def note_blocks(key, *position):
        columns = [np.asarray(value, np.uint32).ravel() for value in position]
        keys = np.broadcast_to(np.asarray(key, np.uint32), (len(columns[0]), 8))
        programs.trace.blocks.append(np.column_stack([keys, *columns]))

    def noting_words(key, *position):
        position = [jnp.asarray(value, jnp.uint32) for value in position]
        jax.debug.callback(note_blocks, key, *jnp.broadcast_arrays(*position))
        return words(key, *position)

    def noting_append(path, line):
        append_line(path, line)
        jax.effects_barrier()
        trace.lines.append((len(trace.blocks), json.loads(line)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chacha, "words", noting_words)
        patch.setattr(ledger, "append_line_durably", noting_append)
        yield
        jax.effects_barrier()


class _Program:
    """A compiled function that notes its calls, but for those within another that is being traced."""

    def __init__(self, function: Callable, programs: Programs):
        self._function, self._programs = function, programs

    def __call__(self, *args, **kwargs):
        leaves, structure = jax.tree.flatten((args, kwargs))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self._function(*args, **kwargs)
        numbers = [int(leaf) for leaf in leaves if isinstance(leaf, int | np.integer)]
        shapes = [(leaf.shape, str(leaf.dtype)) for leaf in leaves if hasattr(leaf, "dtype")]
        self._programs.trace.programs.append((self._function.__name__, structure.num_leaves, shapes, numbers))
        return self._function(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._function, name)


def marked_loss(per_example_loss: Callable) -> Callable:
    """A loss that marked images make null (no gradient), NaN, or huge."""

    def marked(params, batch, keys):
        image = batch["image"].reshape(len(batch["image"]), -1)  # of a person, all that were drawn
        is_null, is_nan, is_huge = ((image == mark).all(1) for mark in (NULL_MARK, NAN_MARK, HUGE_MARK))
        factor = jnp.where(is_nan, jnp.nan, jnp.where(is_huge, 1e20, 1.0))
        return jnp.where(is_null, 0.0, per_example_loss(params, batch, keys) * factor)

    return marked


def check_blocks_are_used_once(trace: Trace) -> None:
    """No block of the generator, (key, domain, step, leaf, counter), was drawn twice."""
    blocks = np.concatenate(trace.blocks)
    different, times = np.unique(blocks, axis=0, return_counts=True)
    repeated = [dict(zip(COORDINATES, block[8:].tolist(), strict=True)) for block in different[times > 1][:3]]
    assert not repeated, f"{(times > 1).sum()} blocks were drawn more than once, such as {repeated}"


def check_spent_before_use(trace: Trace) -> None:
    """A ledger line was on the disk before the first block that it pays for was drawn."""
    asked = set()  # the keys of histograms, one each
    for number, draw in enumerate(trace.blocks):
        before = [line for place, line in trace.lines if place <= number]
        for *key, domain, step in np.unique(draw[:, :10], axis=0).tolist():
            if domain in (MEMBERSHIP, NOISE):
                blocks = [line["steps"] for line in before if "steps" in line]
                paid = any(start <= step < stop for start, stop in blocks)
            else:
                asked.add(tuple(key))
                paid = len(asked) <= sum(line["kind"] in COUNTING for line in before)
            assert paid, f"draw {number}, of domain {domain} and step {step}, came before its ledger line"


def shared_blocks(one: Trace, other: Trace) -> np.ndarray:
    """The blocks, uint32 [n, 12], that both runs drew."""
    rows = [{block.tobytes() for block in np.concatenate(trace.blocks)} for trace in (one, other)]
    both = sorted(rows[0] & rows[1])
    return np.frombuffer(b"".join(both), np.uint32).reshape(-1, 12)


def check_query_sensitivity(count: Callable, n: int, semantics: int, n_classes: int, k1: int) -> None:
    """Striking any one record out moves the counts, `count(logits, labels, n_classes, k1)`, by sqrt(k1) in L2."""
    logits = np.random.default_rng(0).normal(size=(n, semantics))
    labels = np.arange(n) % n_classes
    labels[0] = n_classes  # the only record of its class
    whole = count(logits, labels, n_classes + 1, k1)
    for row in range(n):
        rest = count(np.delete(logits, row, 0), np.delete(labels, row), n_classes + 1, k1)
        moved = np.linalg.norm(whole - rest)
        assert np.isclose(moved, k1**0.5), f"record {row} moves the counts by {moved}, not sqrt({k1})"


def bright_among_dull(n: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """n images [8, 8, 1] of little contrast but for one; the same with this one black, or a copy; and its row."""
    rng, bright = np.random.default_rng(1), 7
    images = rng.integers(118, 138, (n, 8, 8, 1)).astype(np.uint8)
    images[bright] = rng.integers(0, 256, images.shape[1:])
    for null in (np.zeros_like(images[0]), images[0]):
        neighbour = images.copy()
        neighbour[bright] = null
        yield images, neighbour, bright


def check_counts_of_a_network(module: nn.Module, k1: int, n: int = 40) -> None:
    """What a classifier with at least `k1` classes counts moves by sqrt(k1) if a record is null in its place."""
    variables = registry.init_classifier(module, jax.random.key(0), (8, 8, 1))
    classify, labels = features.forward(module, variables, method="__call__"), (np.arange(n) % 3).astype(np.int32)
    for images, neighbour, row in bright_among_dull(n):
        kept = np.arange(n) != row
        whole = query.count_semantics(features.extract(classify, images), labels, 3, k1)
        rest = query.count_semantics(features.extract(classify, neighbour)[kept], labels[kept], 3, k1)
        moved = np.linalg.norm(whole - rest)
        assert np.isclose(moved, k1**0.5), f"a record moves the counts by {moved}, not sqrt({k1})"


def check_noisy_means(inputs: Inputs) -> None:
    """The stage of noisy means is what its ledger line says: its samples, its sums, its noise and its division.

    Args:
      inputs: of a run with a fixed seed and one grey channel, which has not begun.
    """
    warmup.run(inputs.of(warmup.STAGE))
    line = next(line for line in ledger.Ledger.open(inputs.workdir.ledger).entries if "steps" in line)
    sensitive, downscale = inputs.sensitive, inputs.config.warmup.downscale
    key = chacha.key_from_seed(f"{inputs.config.privacy.fixed_seed} warmup 0")
    limit, pixels = int(line["sampling_rate"] * 2**32), 2 * sensitive.images[..., 0].astype(int) - 255
    side = pixels.shape[1] // downscale
    blocks = pixels.reshape(-1, side, downscale, side, downscale).sum((2, 4))
    sums = np.zeros((line["steps"][1], sensitive.n_classes, side, side, 1), np.int64)
    for t, label in itertools.product(range(len(sums)), range(sensitive.n_classes)):
        sums[t, label, ..., 0] = blocks[
            drawn_by_definition(key, t, sensitive.n, limit) & (sensitive.labels == label)
        ].sum(0)
    white = 255 * downscale**2 * side
    assert line["l2_sensitivity"] == white, f"the sensitivity is {line['l2_sensitivity']}, not {white}"
    with np.load(inputs.workdir.root / warmup.STAGE.writes[0]) as released:
        noisy, images = released["sums"], released["images"]
    added, std = noisy - sums, line["noise_multiplier"] * white
    wanted = noise.rounded_gaussian(key, sums.shape, std)
    assert (added == wanted).all(), f"what is added to the sums is off by {np.abs(added - wanted).max() / std} sigma S"
    expected = np.full(sensitive.n_classes, line["sampling_rate"] * sensitive.n / sensitive.n_classes)
    assert (images == warmup.to_images(noisy, expected, downscale)).all(), "the sums are divided by other sizes"


def check_choice_sensitivity(agreement: Callable, margins: Callable, bound: float, n: int, candidates: int) -> None:
    """Striking any one record out moves the margins of all candidates' scores by at most `bound` in L2.

    Args:
      agreement: from logits [n, classes] and labels [n] to a candidate's score.
      margins: from the scores [candidates] to what gets noise.
      bound: what the ledger calls the L2 sensitivity.
      n: records.
      candidates: how many.
    """
    logits = np.random.default_rng(0).normal(size=(candidates, n, 3))
    labels = np.arange(n) % 2
    labels[0] = 2  # the only record of its class
    logits[:, 0, 2] = np.where(np.arange(candidates) % 2, 9.0, -9.0)  # half of the candidates get it right
    logits[:, 1] = np.nan
    logits[1:, 2, 0] = np.inf

    def margins_of(logits, labels):
        return margins(np.array([agreement(each, labels) for each in logits]))

    rest = [margins_of(np.delete(logits, row, 1), np.delete(labels, row)) for row in range(n)]
    moved = np.linalg.norm(margins_of(logits, labels) - rest, axis=1)
    farthest = f"record {moved.argmax()} moves the margins by {moved.max()}, more than {bound}"
    assert moved.max() <= bound * (1 + 1e-12), farthest
    assert np.isclose(moved[0], bound) and moved[1] == 0


def check_releases_are_equal(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    """Two `release/` folders hold the same files with the same bytes."""
    differing = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    assert not differing, f"the releases differ in {', '.join(differing)}"


def linear_loss(params, batch, keys):
    """Half the squared error of x w + b; the gradient of example i is r_i (x_i, 1) for its residual r_i."""
    residual = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return 0.5 * residual**2


def linear_problem(m: int = 6, d: int = 5, seed: int = 0) -> tuple[dict, dict, jax.Array]:
    """(params, batch, keys) for `linear_loss`."""
    rng = np.random.default_rng(seed)
    params = {"w": rng.normal(size=d).astype(np.float32), "b": np.float32(0.3)}
    batch = {"x": rng.normal(size=(m, d)).astype(np.float32), "y": rng.normal(size=m).astype(np.float32)}
    return params, batch, jax.random.split(jax.random.key(0), m)


def linear_gradients(params: dict, batch: dict) -> np.ndarray:
    """float64 gradients [m, 1 + d] of `linear_loss`, the bias first, as `vector64` orders them."""
    x = np.concatenate([np.ones((len(batch["x"]), 1)), batch["x"]], axis=1).astype(np.float64)
    residual = x @ np.append(params["b"], params["w"]).astype(np.float64) - batch["y"]
    return residual[:, None] * x


def vector64(tree: Any) -> np.ndarray:
    """All values of a tree, float64 [P], in the order of `jax.tree.leaves`."""
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def norm64(tree: Any) -> float:
    """The L2 norm over a tree, in float64."""
    return float(np.linalg.norm(vector64(tree)))


def clip64(gradients: np.ndarray, clip_norm: float) -> np.ndarray:
    """Rows [m, P] clipped by the definition in float64; a row that is not finite is zero."""
    finite = np.isfinite(gradients).all(axis=1, keepdims=True)
    gradients = np.where(finite, gradients, 0.0)
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return gradients * np.minimum(1.0, clip_norm * (1 - ETA) / np.maximum(norms, np.finfo(float).tiny))


def check_clipping(
    loss: clipping.PerExampleLoss,
    params: Any,
    batch: dict[str, Any],
    keys: jax.Array,
    clip_norm: float,
    method: str = "auto",
    tolerance: float = 1e-5,
    precision: str = "float32",
) -> None:
    """The clipped sum of a microbatch has sensitivity `clip_norm`, whichever example is struck out, or is NaN.

    Each example's contribution, recomputed in float64, is at most `clip_norm` long and is what plain `jax.grad` of that
    example alone gives when it is clipped in float64, up to `tolerance` times `clip_norm`. Neighbouring sums differ by
    at most `clip_norm`, up to their rounding. Floating-point leaves of `batch` are made NaN for one example, which must
    then count as zero, drawn or masked. `precision` is that of the products that are clipped, not of what they are
    compared with.
    """
    fn = jax.jit(clipping.clipped_grad(loss, clip_norm, method, precision), compiler_options=OPTIONS)
    everyone = np.ones(len(keys), bool)
    whole = vector64(fn(params, batch, keys, everyone)[0])

    plain = plain_gradient(loss)
    with jax.default_matmul_precision("highest"):
        each = [plain(params, jax.tree.map(lambda leaf, i=i: leaf[i], batch), keys[i]) for i in range(len(keys))]
    wanted = clip64(np.stack([vector64(gradient) for gradient in each]), clip_norm)
    for i in range(len(keys)):
        alone = vector64(fn(params, batch, keys, np.arange(len(keys)) == i)[0])
        length = np.linalg.norm(alone)
        assert length <= clip_norm, f"a clipped gradient has norm {length / clip_norm} C"
        error = np.linalg.norm(alone - wanted[i])
        assert error <= tolerance * clip_norm, f"a clipped gradient is off by {error / clip_norm} C"
        moved = np.linalg.norm(whole - vector64(fn(params, batch, keys, np.arange(len(keys)) != i)[0]))
        assert moved <= clip_norm * (1 + 1e-6), f"striking an example out moves the sum by {moved / clip_norm} C"
    rest = np.arange(len(keys)) != 0
    without = vector64(fn(params, batch, keys, rest)[0])
    poisoned = jax.tree.map(_with_nan_first, batch)
    for mask in (rest, everyone):
        total, norms, _ = fn(params, poisoned, keys, mask)
        same = np.allclose(vector64(total), without, rtol=tolerance, atol=tolerance * clip_norm)
        assert same, f"an example of NaN, {'drawn' if mask[0] else 'masked'}, is not counted as zero"
        assert np.isnan(norms[0]) == mask[0]


@functools.cache
def plain_gradient(loss: clipping.PerExampleLoss) -> Callable:
    """`(params, example, key) -> gradient` of one example, compiled once for all checks of a loss."""

    def loss_of_one(params, example, key):
        return loss(params, jax.tree.map(lambda leaf: leaf[None], example), key[None])[0]

    return jax.jit(jax.grad(loss_of_one), compiler_options=OPTIONS)


def _with_nan_first(leaf: np.ndarray) -> np.ndarray:
    return np.concatenate([np.full_like(leaf[:1], np.nan), leaf[1:]]) if leaf.dtype.kind == "f" else leaf


def check_full_precision(function: Callable, *args: Any) -> int:
    """Every product of float32 values within a function is a full one, also where TF32 or bfloat16 is the default.

    Returns:
      How many products there are.
    """
    products = list(_products(jax.make_jaxpr(function)(*args).jaxpr))
    for equation in products:
        precision = equation.params["precision"]
        full = precision is not None and all(each == jax.lax.Precision.HIGHEST for each in precision)
        assert full, f"a product of float32 values has the precision {precision}: {equation}"
    return len(products)


def _products(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        is_product = equation.primitive.name in ("dot_general", "conv_general_dilated")
        if is_product and all(operand.aval.dtype == jnp.float32 for operand in equation.invars):
            yield equation
        for inner in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _products(inner)


KEY = chacha.key_from_seed(31)
LOSS_KEY = jax.random.key(5)
N, D = 53, 4
SETTINGS = dp_sgd.DPSGD(n=N, batch_size=12, clip_norm=0.5, noise_multiplier=1.5, microbatch=2)
STATE = {"params": {"w": np.linspace(-1, 1, D, dtype=np.float32), "b": np.float32(0.2)}, "frozen": {}}


def shifted_linear_loss(params, batch, keys):
    """`linear_loss` with targets shifted by each example's own draw."""
    return linear_loss(params, {**batch, "y": batch["y"] + jax.vmap(jax.random.normal)(keys)}, keys)


def keep_gradient(state, gradient):
    """An update that keeps the gradient to be looked at."""
    return {**state, "gradient": gradient}


def linear_step(n_devices: int, settings: dp_sgd.DPSGD = SETTINGS) -> dp_sgd.Step:
    """A compiled step of DP-SGD on `shifted_linear_loss`, which puts its gradient into the state."""
    mesh = make_mesh(jax.devices()[:n_devices])
    return jax.jit(dp_sgd.dp_step(shifted_linear_loss, keep_gradient, settings, mesh), compiler_options=OPTIONS)


def members_of(t: int, settings: dp_sgd.DPSGD = SETTINGS) -> np.ndarray:
    """bool [n]: who is in the batch of step t, by the definition."""
    return drawn_by_definition(KEY, t, settings.n, settings.batch_size * 2**32 // settings.n)


def drawn_by_definition(key: np.ndarray, t: int, n: int, limit: int) -> np.ndarray:
    """bool [n]: whose word of step t is below the limit."""
    record = np.arange(n)  # word w of block 128 t + i is that of record 2048 t + 128 w + i
    blocks = np.asarray(chacha.words(key, MEMBERSHIP, t, 0, (record // 2048 * 128 + record % 128).astype(np.uint32)))
    return blocks[record // 128 % 16, record].astype(object) < limit


def noise_of(t: int, tree: Any, key: np.ndarray = KEY) -> np.ndarray:
    """float64 [P]: the standard normal noise of step t, by the definition."""
    parts = []
    for leaf, array in enumerate(jax.tree.leaves(tree)):
        value = np.arange(np.size(array))  # 1024 from a tile of 128 blocks: four cosines of each, then four sines
        block, place = value // 1024 * 128 + value % 128, value // 128 % 8
        words = np.asarray(chacha.words(key, NOISE, t, leaf, block.astype(np.uint32)))
        four = [words[place % 4 * 4 + i, value] for i in range(4)]
        parts.append(np.where(place < 4, *noise.standard_normal(*four, np, np.float64)))
    return np.concatenate(parts)


def check_step(
    step: dp_sgd.Step,
    settings: dp_sgd.DPSGD = SETTINGS,
    steps: tuple[int, ...] = (0, 2),
    place: Callable[[dict], Any] = lambda data: data,
) -> None:
    """A `linear_step` is the definition of DP-SGD in float64: members, clipped sum, noise, the expected batch size.

    One of the members is NaN. These two steps have 11 and 10 members, where 12 are expected. `place` lays the data on
    the devices.
    """
    _, data, _ = linear_problem(N, D)
    for t in steps:
        members = members_of(t, settings)
        given = {**data, "y": data["y"].copy()}
        given["y"][np.flatnonzero(members)[1]] = np.nan
        step_key = jax.random.fold_in(LOSS_KEY, t)
        draws = np.asarray([jax.random.normal(jax.random.fold_in(step_key, i)) for i in range(N)])
        gradients = clip64(linear_gradients(STATE["params"], {**given, "y": given["y"] + draws}), settings.clip_norm)
        noised = settings.noise_multiplier * settings.clip_norm * noise_of(t, STATE["params"])
        state, stats = step(STATE, place(given), KEY, LOSS_KEY, t)
        wanted = (gradients[members].sum(axis=0) + noised) / settings.batch_size
        error = np.abs(vector64(state["gradient"]) - wanted).max()
        assert error <= 2e-5 * settings.clip_norm, f"the gradient of step {t} is off by {error / settings.clip_norm} C"
        counts = tuple(int(stats[name]) for name in ("drawn", "processed", "nonfinite"))
        assert counts == (members.sum(), members.sum(), 1), f"(drawn, processed, nonfinite) = {counts}"


def check_records_are_delivered(counts: tuple[int, ...] = (1, 5, 53), devices: tuple[int, ...] = (1, 2, 8)) -> None:
    """Wherever records lie, every device is given those that it asks for, all their fields, bit for bit."""
    rng = np.random.default_rng(0)
    for n, n_devices, sharded in itertools.product(counts, devices, (False, True)):
        tree = {
            "image": rng.integers(0, 256, (n, 4, 4, 3)).astype(np.uint8),
            "label": rng.integers(-(2**31), 2**31, n).astype(np.int32),
            "included": rng.integers(0, 2, n).astype(bool),
            "bits": rng.integers(0, 2**32, (n, 3)).astype(np.uint32).view(np.float32),  # NaNs of every kind among them
            "half": rng.normal(size=(n, 2)).astype(np.float16),
        }
        mesh = make_mesh(jax.devices()[:n_devices])
        placed = records.place(tree, mesh, sharded)
        fetch = jax.jit(lambda data, ids, mesh=mesh: records.batch(data, ids, mesh), compiler_options=OPTIONS)
        ids = np.concatenate([np.arange(n), rng.integers(0, n, 6)])
        fetched = jax.device_get(fetch(placed, ids.astype(np.int32)))
        for name, values in tree.items():
            same = fetched[name].dtype == values.dtype and fetched[name].tobytes() == values[ids].tobytes()
            where = f"{n_devices} devices, {'sharded' if sharded else 'replicated'}"
            assert same, f"the records asked for and those delivered differ in {name} ({n} records, {where})"


def check_sum_sensitivity(microbatch: int, n_devices: int, n: int = 4096) -> None:
    """The sum of n clipped gradients moves by at most C if one is null, to the last digit that float32 has for it.

    A plain float32 sum of these moves by 1.25 C with a microbatch of 1. What is added to the sum takes its large part
    away, so that the float32 result has no rounding of its own to hide behind.
    """
    settings = dp_sgd.DPSGD(n=n, batch_size=n, clip_norm=1.0, noise_multiplier=0.0, microbatch=microbatch)
    mesh = make_mesh(jax.devices()[:n_devices])
    rounding = 2.0**-13 / microbatch * (1 + 2.0**-10)  # what one microbatch adds is just above half a unit of 2,048
    gradients = np.full((n, 1), rounding, np.float32)
    gradients[:2049] = 1 - 2.0**-13
    taken = np.floor(gradients.sum(dtype=np.float64) - 1)
    away = noise.Noise(lambda params: {}, lambda total, state, *_: (total - np.float32(taken), state), None, True)

    def loss(params, batch, keys):
        return jnp.sum(batch["g"] * params, axis=-1)

    step = jax.jit(dp_sgd.dp_step(loss, keep_gradient, settings, mesh, noise=away), compiler_options=OPTIONS)

    def total(gradients):
        state, _ = step({"params": np.zeros(1, np.float32)}, {"g": gradients}, KEY, LOSS_KEY, 0)
        return float(state["gradient"][0]) * n + taken

    without = gradients.copy()
    without[0] = 0
    for given in (gradients, without):
        error = abs(total(given) - given.sum(dtype=np.float64))
        assert error < 1e-5, f"the sum is off by {error} C"
    moved = total(gradients) - total(without)
    assert moved <= 1, f"a record moves the sum by {moved} C"


def check_devices_agree(devices: tuple[int, ...] = (1, 2, 8), microbatches: tuple[int, ...] = (2, 7)) -> None:
    """A step on any number of devices, in microbatches of any size, is the same up to the rounding of float32 sums."""
    _, data, _ = linear_problem(N, D)
    places = [(count, microbatches[0]) for count in devices] + [(devices[-1], size) for size in microbatches[1:]]
    results = []
    for n_devices, microbatch in places:
        step = linear_step(n_devices, dataclasses.replace(SETTINGS, microbatch=microbatch))
        state, stats = step(STATE, data, KEY, LOSS_KEY, 1)
        results.append(vector64((state["gradient"], stats)))
    for place, result in zip(places, results, strict=True):
        error = np.abs(result - results[0]).max()
        assert error <= 1e-5, f"(devices, microbatch) = {place} differs by {error} from {places[0]}"
