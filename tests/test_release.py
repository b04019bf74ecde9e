"""Nothing sensitive in `release/`: it is a function of the mechanisms' outputs and of public values, and of no more.

Record and replay (after Cebere et al. 2026, arXiv:2602.17454). A run on a data set D is recorded where its
mechanisms take their inputs and give their outputs. Then the pipeline runs on neighbours D', one record of D nulled,
with the same batches and with D's outputs in the mechanisms' place. Had anything else of the data reached the release,
some byte would differ; what goes into a mechanism may differ by its sensitivity.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
from audits import (
    COUNTING,
    HUGE_MARK,
    MEMBERSHIP,
    NAN_MARK,
    NULL_MARK,
    Programs,
    Trace,
    check_blocks_are_used_once,
    check_query_sensitivity,
    check_releases_are_equal,
    check_spent_before_use,
    recorded,
    vector64,
)
from pipelines import SIDE, release_bytes, run, tiny_config, write_npz
from small_models import use_small_gan, use_small_models

from privimage_jax.models import gan
from privimage_jax.privacy import chacha, sampling
from privimage_jax.stages import choose_sampler, query
from privimage_jax.storage.workdir import Workdir

NAMES = ("circle", "square", "triangle")
N, STEPS, BATCH, CLIP_NORM, K1 = 60, 4, 40, 1e-3, 2
# Rows of D: an image of a class with many, one with a gradient of NaN, one far above the clip norm, the only triangle.
COMMON, NAN, HUGE, RARE = 4, 9, 14, 59
CANDIDATES = (0.0, 1.0, 3.0)
MEANS, SUBSET = 3, 50


def make_config(folder):
    config = use_small_models(tiny_config(folder))
    config.data.path = str(folder / "sensitive.npz")
    config.data.class_names = NAMES
    config.query.k1 = K1
    config.class_histogram.enabled, config.class_histogram.noise_multiplier = True, 10.0
    config.sampler_choice.enabled, config.sampler_choice.noise_multiplier = True, 10.0
    config.sampler_choice.candidates = CANDIDATES
    config.warmup.enabled, config.warmup.means, config.warmup.subset_size = True, MEANS, SUBSET
    config.warmup.noise_multiplier, config.warmup.steps = 10.0, 4
    config.finetune.batch_size = BATCH
    config.finetune.steps = STEPS
    config.clipping.norm = CLIP_NORM
    config.finetune.noise_multiplicity = 2  # draws of one image, which share one clipped gradient
    config.privacy.accountant = "rdp"  # the quicker one; which one is asked changes nothing here
    config.log.checkpoint_every = 100
    return config


def make_gan_config(folder):
    """The same with a GAN, whose generator learns beside what DP-SGD trains."""
    config = use_small_gan(make_config(folder))
    config.sampler_choice.enabled = config.warmup.enabled = False
    return config


def image_of(value):
    return np.full((SIDE, SIDE, 1), value, np.uint8)


def sensitive_arrays(folder):
    arrays = dict(np.load(write_npz(folder / "drawn.npz", N, 2, seed=1)))
    arrays["train_images"][NAN], arrays["train_images"][HUGE] = image_of(NAN_MARK), image_of(HUGE_MARK)
    arrays["train_labels"][RARE] = 2
    return arrays


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """D with one record changed: nulled, or replaced by an image, which counts as one struck out and one put in."""

    row: int
    image: np.ndarray | None = None

    @property
    def sensitivities(self) -> int:
        """By how much a mechanism's input may move, in units of its sensitivity."""
        return 1 if self.image is None else 2


NEIGHBOURS = {
    "nulled": Neighbour(COMMON),
    "the only image of its class nulled": Neighbour(RARE),
    "a gradient of NaN nulled": Neighbour(NAN),
    "a huge gradient nulled": Neighbour(HUGE),
    "another image": Neighbour(COMMON, np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE, 1) * 4),
}
# Where other pixels, one mark less, or a class without an image would change a program, it must not be that of D's run.
WITH_PROGRAMS_OF_THEIR_OWN = ("the only image of its class nulled", "a gradient of NaN nulled", "another image")


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run left: its trace, its release, and the names of all its files."""

    trace: Trace
    release: dict[str, bytes]
    names: list[str]


def run_on(
    folder,
    public,
    neighbour: Neighbour | None = None,
    replay: Trace | None = None,
    make_config=make_config,
    held_out=None,
    programs: Programs | None = None,
) -> Run:
    arrays, null = sensitive_arrays(folder) | (held_out or {}), None
    if neighbour is not None:
        null = neighbour.row if neighbour.image is None else None
        arrays["train_images"][neighbour.row] = image_of(NULL_MARK) if neighbour.image is None else neighbour.image
        arrays["train_labels"][neighbour.row] = 0 if neighbour.image is None else 1
    np.savez(folder / "sensitive.npz", **arrays)
    config = make_config(folder)
    config.public.path = str(public)
    trace = Trace()
    with recorded(trace, replay, null, programs):
        workdir = run(config, folder / "run")
    paths = (path.relative_to(workdir.root) for path in workdir.root.rglob("*") if path.is_file())
    # Names are random in checkpoints and their parts "d", digests of data in the cache, clock times among the metrics.
    unlike = {"checkpoints", "d", "cache", "metrics"}
    names = sorted(str(path) for path in paths if not unlike & set(path.parts))
    return Run(trace, release_bytes(workdir), names)


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("public") / "public.npz", 60, 6, seed=2)


@pytest.fixture(scope="module")
def programs():
    """Those of the run on D, for the others that need not make their own."""
    return Programs()


@pytest.fixture(scope="module")
def original(public, programs, tmp_path_factory):
    """The run on D."""
    return run_on(tmp_path_factory.mktemp("original"), public, programs=programs)


@pytest.fixture(scope="module", params=NEIGHBOURS, ids=str)
def replayed(request, original, programs, public, tmp_path_factory):
    """A run on a neighbour with the outputs of D: (the neighbour, its run)."""
    neighbour, folder = NEIGHBOURS[request.param], tmp_path_factory.mktemp("neighbour")
    kept = None if request.param in WITH_PROGRAMS_OF_THEIR_OWN else programs
    return neighbour, run_on(folder, public, neighbour, original.trace, programs=kept)


def test_the_release_depends_on_the_mechanisms_outputs_alone(original, replayed):
    check_releases_are_equal(original.release, replayed[1].release)


def test_held_out_images_reach_no_release(original, public, tmp_path):
    """The evaluation alone looks at them. Nothing is replayed: the mechanisms themselves must not notice."""
    arrays = dict(np.load(write_npz(tmp_path / "drawn.npz", N, 2, seed=1)))
    held_out = {"test_images": 255 - arrays["test_images"], "test_labels": 1 - arrays["test_labels"]}
    other = run_on(tmp_path, public, held_out=held_out)
    check_releases_are_equal(original.release, other.release)
    assert other.trace.lines == original.trace.lines


@pytest.fixture(scope="module")
def shallow():
    """A discriminator of one block of either kind: a program costs what it has of operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan, "LEAST_BLOCKS", 2)
        yield


@pytest.fixture(scope="module")
def of_a_gan(public, shallow, tmp_path_factory):
    """The run of a GAN on D, and its folder."""
    folder = tmp_path_factory.mktemp("gan")
    return run_on(folder, public, make_config=make_gan_config), Workdir(folder / "run")


def test_the_whole_pipeline_runs_with_a_gan(of_a_gan):
    workdir = of_a_gan[1]
    with np.load(workdir.release / "synthetic.npz") as arrays:
        assert arrays["images"].shape == (12, SIDE, SIDE, 1)
    assert (workdir.release / "report.html").exists()
    for stage in ("pretrain", "finetune"):
        assert "generator_loss" in (workdir.internal / stage / "metrics" / "metrics.csv").read_text().split("\n")[0]
    shown = (workdir.internal / "evaluation.html").read_text()
    assert shown.count("loss of a GAN") == 4, "captions and descriptions of two curves"
    assert "loss of a GAN" not in (workdir.release / "report.html").read_text()


def test_the_release_of_a_gan_does_too(of_a_gan, public, tmp_path):
    (original, _), neighbour = of_a_gan, NEIGHBOURS["another image"]
    other = run_on(tmp_path, public, neighbour, original.trace, make_gan_config)
    check_releases_are_equal(original.release, other.release)
    ours, others = (vector64([run.trace.gradients[step] for step in range(STEPS)]) for run in (original, other))
    assert np.abs(ours - others).max() > 0, "the image was drawn, and moves the discriminator"


@pytest.mark.parametrize(
    ("name", "sensitivity"),
    [
        ("semantic query", K1**0.5),
        ("class histogram", 1.0),
        ("sampler choice", choose_sampler.margin_sensitivity(len(CANDIDATES))),
    ],
)
def test_counts_move_by_their_sensitivity_at_most(original, replayed, name, sensitivity):
    neighbour, other = replayed
    one, two = original.trace, other.trace
    moved = np.linalg.norm(two.counts[name] - one.counts[name])
    assert moved <= neighbour.sensitivities * sensitivity
    assert moved > 0 or name == "sampler choice"  # a record that is right for every candidate moves no margin
    np.testing.assert_array_equal(two.noisy[name] - two.counts[name], one.noisy[name] - one.counts[name])
    spent = [line["l2_sensitivity"] for _, line in one.lines if line.get("mechanism") == name and "epsilon" in line]
    assert spent == [sensitivity]


def test_every_sum_of_a_subset_moves_by_its_sensitivity_at_most(original, replayed):
    """The record's own class alone, and only where it was drawn."""
    neighbour, other = replayed
    one, two = original.trace, other.trace
    (line,) = (line for _, line in one.lines if line.get("mechanism") == "noisy means" and "epsilon" in line)
    assert line["steps"] == [0, MEANS] and line["l2_sensitivity"] == 255 * 2 * SIDE
    moved = np.linalg.norm((two.counts["noisy means"] - one.counts["noisy means"]).reshape(MEANS, -1), axis=1)
    assert (moved <= neighbour.sensitivities * line["l2_sensitivity"]).all()
    members = drawn(neighbour.row, "warmup", SUBSET)[:MEANS]
    assert members.any() and ((moved > 0) == members).all()
    noise = [trace.noisy["noisy means"] - trace.counts["noisy means"] for trace in (one, two)]
    np.testing.assert_array_equal(*noise)


def test_every_sum_of_gradients_moves_by_the_clip_norm_at_most(original, replayed):
    """The parameters at each step are those of D, and so is the noise: what differs are the clipped sums."""
    neighbour, other = replayed
    members = drawn(neighbour.row)
    assert other.trace.gradients.keys() == original.trace.gradients.keys() == set(range(STEPS)) and members.any()
    for step in range(STEPS):
        difference = vector64(other.trace.gradients[step]) - vector64(original.trace.gradients[step])
        moved = BATCH * np.linalg.norm(difference)
        # Rounding of the noised sum, of values up to ten times the noise's standard deviation.
        assert moved <= CLIP_NORM * (neighbour.sensitivities + 1e-3)
        # Every other gradient here is clipped, so that its norm is the clip norm; that of NaN was zero before.
        assert (moved > 0.1 * CLIP_NORM) == (members[step] and neighbour.row != NAN)


def test_outside_the_mechanisms_nothing_differs(original, replayed):
    """The same programs on the same shapes for the same steps, the same draws, ledger lines and files."""
    one, other = original.trace, replayed[1].trace
    assert len(one.programs) > 20 and other.programs == one.programs
    np.testing.assert_array_equal(np.concatenate(other.blocks), np.concatenate(one.blocks))
    assert other.lines == one.lines
    assert replayed[1].names == original.names
    exchanged = [(trace.counts, trace.noisy, trace.gradients) for trace in (one, other)]
    assert len({str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), each)) for each in exchanged}) == 1


def test_no_block_is_drawn_twice_nor_before_it_is_paid_for(original):
    check_blocks_are_used_once(original.trace)
    check_spent_before_use(original.trace)


def test_striking_one_record_out_moves_the_counts_by_the_sensitivity():
    check_query_sensitivity(query.count_semantics, N, semantics=6, n_classes=3, k1=K1)


def test_without_those_outputs_the_release_would_differ(original, programs, public, tmp_path):
    other = run_on(tmp_path, public, NEIGHBOURS["another image"], programs=programs)
    with pytest.raises(
        AssertionError, match=r"params.npz, ledger.jsonl, report.html, (sampler.json, )?semantics.json, synthetic"
    ):
        check_releases_are_equal(original.release, other.release)


def drawn(row, stage="finetune", size=BATCH):
    """In which steps a record is a member of the batch, under the key of the fixed seed."""
    key = chacha.key_from_seed(f"7 {stage} 0")
    threshold = sampling.threshold(size, N)
    return np.array([bool(sampling.membership(key, step, N, threshold)[row]) for step in range(STEPS)])


def test_the_ledger_covers_every_mechanism(original):
    """What was recorded is what the ledger says was spent: one line for each histogram, as many steps as gradients."""
    lines = [json.loads(line) for line in original.release["ledger.jsonl"].splitlines()]
    assert lines == [line for _, line in original.trace.lines]
    steps = [range(*line["steps"]) for line in lines if line["kind"] == "dp-sgd"]
    asked = [line["mechanism"] for line in lines if line["kind"] in COUNTING]
    names = ["semantic query", "class histogram", "noisy means", "sampler choice"]
    assert sorted(asked) == sorted(original.trace.counts) == sorted(names)
    assert sorted(step for block in steps for step in block) == sorted(original.trace.gradients)
    blocks = np.concatenate(original.trace.blocks)
    for key, steps in (("7 finetune 0", set(original.trace.gradients)), ("7 warmup 0", set(range(MEANS)))):
        own = blocks[(blocks[:, :8] == chacha.key_from_seed(key)).all(axis=1)]
        assert set(own[own[:, 8] == MEMBERSHIP, 9].tolist()) == steps
