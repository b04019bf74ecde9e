"""Nothing sensitive in `release/`: it is a function of the mechanisms' outputs and of public values, and of no more.

A run on a data set D is recorded where its two mechanisms give their outputs. Then the pipeline runs on neighbours D'
with these outputs in their place: had anything else of the data reached the release, some byte would differ.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable

import jax
import numpy as np
import pytest
from jax.experimental import io_callback
from pipelines import SIDE, release_bytes, run, tiny_config, write_npz
from small_models import use_small_models

from privimage_jax.privacy import chacha, noise, sampling
from privimage_jax.stages import finetune, query

NAMES = ("circle", "square", "triangle")
N, STEPS, BATCH, CLIP_NORM, K1 = 60, 4, 40, 1e-3, 2
NAN_MARK, HUGE_MARK = 255, 254  # images of this value alone have a loss of NaN, or one whose gradient is huge
COMMON, RARE = 4, 59  # rows: an image of a class with many, and the only one of the third class


def make_config(folder):
    config = use_small_models(tiny_config(folder))
    config.data.path = str(folder / "sensitive.npz")
    config.data.class_names = NAMES
    config.query.k1 = K1
    config.finetune.batch_size = BATCH
    config.finetune.steps = STEPS
    config.clipping.norm = CLIP_NORM
    config.finetune.noise_multiplicity = 1
    config.privacy.accountant = "rdp"  # the quicker one; which one is asked changes nothing here
    config.sample.png_folders = True
    config.log.checkpoint_every = 100
    return config


def sensitive_arrays(folder):
    arrays = dict(np.load(write_npz(folder / "drawn.npz", N, 2, seed=1)))
    arrays["train_labels"][RARE] = 2
    return arrays


def image_of(value):
    return np.full((SIDE, SIDE, 1), value, np.uint8)


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """D with one record changed, and by how much a mechanism's input may then move, in units of its sensitivity.

    Replacing a record by another counts twice: one is struck out, another put in.
    """

    row: int
    image: np.ndarray
    label: int
    query_sensitivities: float
    gradient_sensitivities: float


NEIGHBOURS = {
    "another image": Neighbour(COMMON, np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE, 1) * 4, 1, 2, 2),
    "a class without images": Neighbour(RARE, image_of(0), 0, 2, 2),
    "a loss that is no number": Neighbour(COMMON, image_of(NAN_MARK), 0, 2, 1),
    "a huge gradient": Neighbour(COMMON, image_of(HUGE_MARK), 0, 2, 2),
}


class Outputs:
    """What the mechanisms put out: the counts before and after noise, and every step's noised, averaged gradient."""

    def __init__(self):
        self.counts = self.noisy = None
        self.gradients = {}


def marked_loss(make: Callable) -> Callable:
    """`make_per_example_loss` whose losses can be made NaN or huge by marked images."""

    def make_marked(*args, **kwargs):
        per_example_loss = make(*args, **kwargs)

        def marked(params, batch, keys):
            image = batch["image"].reshape(len(batch["image"]), -1)
            factor = jax.numpy.where((image == HUGE_MARK).all(1), 1e20, 1.0)
            return per_example_loss(params, batch, keys) * jax.numpy.where((image == NAN_MARK).all(1), np.nan, factor)

        return marked

    return make_marked


@contextlib.contextmanager
def observed(own: Outputs, substitute: Outputs | None = None):
    """Records a run's mechanisms in `own`; with `substitute` the run goes on with those outputs, not its own."""
    real = query.count_semantics, noise.rounded_gaussian, finetune.make_update, finetune.make_per_example_loss

    def count_semantics(*args):
        own.counts = real[0](*args)
        return own.counts

    def rounded_gaussian(*args):
        own.noisy = own.counts + real[1](*args)
        return (own.noisy if substitute is None else substitute.noisy) - own.counts

    def make_update(*args):
        update = real[2](*args)

        def exchange(step, gradient):
            own.gradients[int(step)] = jax.tree.map(np.array, gradient)
            return jax.tree.map(np.asarray, (own if substitute is None else substitute).gradients[int(step)])

        return lambda state, gradient: update(state, io_callback(exchange, gradient, state["step"], gradient))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query, "count_semantics", count_semantics)
        patch.setattr(noise, "rounded_gaussian", rounded_gaussian)
        patch.setattr(finetune, "make_update", make_update)
        patch.setattr(finetune, "make_per_example_loss", marked_loss(real[3]))
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The run on D: its folder, outputs and release."""
    folder = tmp_path_factory.mktemp("original")
    np.savez(folder / "sensitive.npz", **sensitive_arrays(folder))
    outputs = Outputs()
    with observed(outputs):
        workdir = run(make_config(folder), folder / "run")
    return folder, outputs, release_bytes(workdir)


def run_on(neighbour: Neighbour, original, folder, substitute: bool):
    arrays = sensitive_arrays(folder)
    arrays["train_images"][neighbour.row] = neighbour.image
    arrays["train_labels"][neighbour.row] = neighbour.label
    np.savez(folder / "sensitive.npz", **arrays)
    config = make_config(folder)
    config.public.path = make_config(original[0]).public.path
    own = Outputs()
    with observed(own, original[1] if substitute else None):
        return own, release_bytes(run(config, folder / "run"))


@pytest.fixture(scope="module", params=NEIGHBOURS, ids=str)
def replayed(request, original, tmp_path_factory):
    """A run on a neighbour with the outputs of D: (the neighbour, its own outputs, its release)."""
    neighbour = NEIGHBOURS[request.param]
    return neighbour, *run_on(neighbour, original, tmp_path_factory.mktemp("neighbour"), substitute=True)


def test_the_release_depends_on_the_mechanisms_outputs_alone(original, replayed):
    _, _, release = replayed
    assert release.keys() == original[2].keys()
    assert [name for name in release if release[name] != original[2][name]] == []


def test_the_query_moves_by_its_sensitivity_at_most(original, replayed):
    neighbour, own, _ = replayed
    moved = np.linalg.norm(own.counts - original[1].counts)
    assert 0 < moved <= neighbour.query_sensitivities * K1**0.5
    np.testing.assert_array_equal(own.noisy - own.counts, original[1].noisy - original[1].counts)  # equal noise


def test_every_sum_of_gradients_moves_by_the_clip_norm_at_most(original, replayed):
    """The parameters at each step are those of D, and so is the noise: what differs are the clipped sums."""
    neighbour, own, _ = replayed
    members = drawn(neighbour.row)
    assert own.gradients.keys() == original[1].gradients.keys() == set(range(STEPS)) and members.any()
    for step in range(STEPS):
        pairs = zip(*(jax.tree.leaves(outputs.gradients[step]) for outputs in (own, original[1])), strict=True)
        moved = BATCH * np.linalg.norm(np.concatenate([np.ravel(one - other) for one, other in pairs]))
        # Rounding of the noised sum, of values up to ten times the noise's standard deviation.
        assert moved <= CLIP_NORM * (neighbour.gradient_sensitivities + 1e-3)
        assert (moved > 0.1 * CLIP_NORM) == members[step]  # every gradient here is clipped: its norm is the clip norm


def test_striking_one_record_out_moves_the_counts_by_the_sensitivity():
    logits = np.random.default_rng(0).normal(size=(N, 6))
    labels = np.arange(N) % 3
    whole = query.count_semantics(logits, labels, 3, K1)
    for row in range(N):
        rest = query.count_semantics(np.delete(logits, row, 0), np.delete(labels, row), 3, K1)
        assert np.linalg.norm(whole - rest) == pytest.approx(K1**0.5)


def test_without_those_outputs_the_release_would_differ(original, tmp_path):
    _, release = run_on(NEIGHBOURS["another image"], original, tmp_path, substitute=False)
    differing = {name for name in release if release[name] != original[2][name]}
    assert {"semantics.json", "generator/params.npz", "synthetic.npz", "report.html"} <= differing


def drawn(row):
    """In which steps a record is a member of the batch, under the key of the fixed seed."""
    key = chacha.key_from_seed("7 finetune 0")
    threshold = sampling.threshold(BATCH, N)
    return np.array([bool(sampling.membership(key, step, N, threshold)[row]) for step in range(STEPS)])


def test_the_ledger_covers_both_mechanisms(original):
    """What was recorded is what the ledger says was spent: one query, and as many steps as gradients."""
    lines = [json.loads(line) for line in original[2]["ledger.jsonl"].splitlines()]
    steps = [range(*line["steps"]) for line in lines if line["kind"] == "dp-sgd"]
    assert [line["kind"] for line in lines].count("gaussian") == 1
    assert sorted(step for block in steps for step in block) == sorted(original[1].gradients)
