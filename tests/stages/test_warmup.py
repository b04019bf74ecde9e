"""Noisy means of random subsets: sensitivity, law, cost, what is made of them, and what a run with them survives."""

import itertools
import json
import math

import dp_accounting
import numpy as np
import pytest
from crashes import WriteLog, problems, rebuild, states
from dp_accounting import rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from kept import keep_programs
from pipelines import CLASSES, SIDE, release_bytes, run, tiny_config
from small_models import use_small_models

from privimage_jax import config as configs
from privimage_jax.configs import base
from privimage_jax.errors import UserError
from privimage_jax.privacy import sampling
from privimage_jax.run import mechanism, noisy_counts
from privimage_jax.run.plan import describe, make_plan
from privimage_jax.stages import pretrain, warmup
from privimage_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("programs_kept")

N, MEANS, SIZE, NOISE = 60, 40, 20, 3.0
RELATION = dp_accounting.NeighboringRelation.REPLACE_SPECIAL


class Stop(BaseException):
    """The run ends here, as by a kill."""


def stop(*args, **more):
    raise Stop


def make_config(folder):
    """DP-FETA without public images: noisy means alone pre-train."""
    config = use_small_models(tiny_config(folder))
    config.privacy.accountant, config.privacy.epsilon = "rdp", 3.0
    config.selection.method, config.pretrain.steps = "random", 0
    config.warmup.enabled, config.warmup.means, config.warmup.subset_size = True, MEANS, SIZE
    config.warmup.noise_multiplier, config.warmup.steps = NOISE, 4
    config.evaluate.enabled = False
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the data and a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(make_config(folder), folder / "run")


def lines_of(workdir):
    return [json.loads(line) for line in workdir.ledger.read_text().splitlines()]


def config_of(side, channels, downscale):
    config = base.get_config()
    config.data.image_size, config.data.channels, config.warmup.downscale = side, channels, downscale
    return config


@st.composite
def sets(draw):
    """Images of any pixels (duplicates and extremes among them), labels, members, and a factor to make them smaller."""
    n, channels, downscale = draw(st.integers(1, 6)), draw(st.sampled_from((1, 3))), draw(st.sampled_from((1, 2, 4)))
    pixels = st.sampled_from((0, 255)) | st.integers(0, 255)
    images = draw(arrays.arrays(np.uint8, (n, 4, 4, channels), elements=pixels, fill=st.sampled_from((0, 255))))
    labels = draw(arrays.arrays(np.int32, n, elements=st.integers(0, 2)))
    return images, labels, draw(arrays.arrays(bool, n)), downscale


@settings(deadline=None)
@given(sets(), st.data())
def test_striking_out_a_record_moves_the_sum_of_its_class_by_the_sensitivity_at_most(given_set, data):
    images, labels, members, downscale = given_set
    row = data.draw(st.integers(0, len(labels) - 1))
    rest = members & (np.arange(len(labels)) != row)
    sums = [warmup.sum_by_class(images, labels, who, 3, downscale) for who in (members, rest)]
    moved = sums[0] - sums[1]
    assert moved.dtype == np.int64 and moved.shape == (3, 4 // downscale, 4 // downscale, images.shape[-1])
    assert np.linalg.norm(moved) <= warmup.sensitivity(config_of(4, images.shape[-1], downscale)) * (1 + 1e-12)
    assert not np.delete(moved, labels[row], axis=0).any()
    assert moved.any() or not members[row] or downscale > 1  # no pixel is at mid-grey; several may add up to it


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("downscale", [1, 2, 4])
def test_the_sensitivity_is_reached(value, downscale):
    """Also by the only image of its class."""
    images = np.full((1, 8, 8, 3), value, np.uint8)
    alone = warmup.sum_by_class(images, np.array([1], np.int32), np.array([True]), 2, downscale)
    assert np.linalg.norm(alone) == pytest.approx(warmup.sensitivity(config_of(8, 3, downscale)), rel=1e-12)


def test_many_images_are_summed_up_in_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (50, 4, 6, 1), np.uint8), rng.integers(0, 3, 50).astype(np.int32)
    members = rng.random(50) < 0.5
    monkeypatch.setattr(warmup, "PIECE", 7)
    sums = warmup.sum_by_class(images, labels, members, 3, 2)
    for label, i, j in itertools.product(range(3), range(2), range(3)):
        block = images[members & (labels == label), 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].astype(int)
        assert sums[label, i, j, 0] == (2 * block - 255).sum()


def test_the_ledger_says_what_they_cost(finished, privimage):
    """Its line against dp-accounting alone: as many Poisson-sampled Gaussians as there are means of each class."""
    _, workdir = finished
    lines = lines_of(workdir)
    assert lines[0]["mechanisms"] == ["noisy means", "DP-SGD fine-tuning"]
    line, rate = lines[1], (SIZE * 2**32 // N) / 2**32
    assert {name: line[name] for name in ("kind", "mechanism", "noise_multiplier", "sampling_rate", "steps")} == {
        "kind": "sampled-gaussian",
        "mechanism": "noisy means",
        "noise_multiplier": NOISE,
        "sampling_rate": rate,
        "steps": [0, MEANS],
    }
    assert (line["l2_sensitivity"], line["expected_batch_size"]) == (255 * 2 * math.sqrt(SIDE * SIDE), SIZE)
    accountant = rdp.RdpAccountant(neighboring_relation=RELATION)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(NOISE)), MEANS)
    epsilon = accountant.get_epsilon(lines[0]["delta"])
    assert epsilon <= line["epsilon"] <= epsilon + 2e-6 and epsilon > 0.5
    assert 2.97 < lines[-2]["epsilon"] <= 3
    privimage("ledger", workdir.release, "--verify").succeeds()


def test_the_noise_has_the_size_that_the_ledger_says(finished):
    """What is released less the sums of the samples, which the key of a fixed seed tells."""
    folder, workdir = finished
    line = lines_of(workdir)[1]
    with np.load(workdir.release / "warmup.npz") as released, np.load(folder / "data.npz") as data:
        sums, images, labels = released["sums"], data["train_images"], data["train_labels"].astype(np.int32)
    key = noisy_counts.noise.chacha.key_from_seed("7 warmup 0")
    limit = sampling.threshold(SIZE, N)
    members = [np.asarray(sampling.membership(key, t, N, limit)) for t in range(MEANS)]
    assert sums.shape == (MEANS, CLASSES, SIDE // 2, SIDE // 2, 1) and 10 < np.mean(members) * N < 30
    noise = sums - [warmup.sum_by_class(images, labels, who, CLASSES, 2) for who in members]
    std = line["noise_multiplier"] * line["l2_sensitivity"]
    assert noise.std() == pytest.approx(std, rel=5 / math.sqrt(2 * noise.size))
    assert abs(noise.mean()) < 5 * std / math.sqrt(noise.size)
    apart = noise.reshape(MEANS, -1)
    assert len(np.unique(apart, axis=0)) == MEANS


def test_what_is_released_shows_the_means(finished):
    _, workdir = finished
    with np.load(workdir.release / "warmup.npz") as released:
        images, labels, sums = released["images"], released["labels"], released["sums"]
    assert images.dtype == np.uint8 and images.shape == (MEANS * CLASSES, SIDE, SIDE, 1)
    assert labels.dtype == np.int32 and labels.tolist() == [0, 1, 2] * MEANS
    expected = np.full(CLASSES, (SIZE * 2**32 // N) / 2**32 * N / CLASSES)
    np.testing.assert_array_equal(images, warmup.to_images(sums, expected, 2))
    page = (workdir.release / "report.html").read_text()
    assert "What all images have in common" in page and "noisy mean, class middle, number 1" in page


def test_its_share_is_reserved_and_shown(tmp_path):
    config = configs.check(make_config(tmp_path))
    paid = make_plan(config, N)
    assert f"noisy means: noise multiplier = 3, q = 0.3334, T = {MEANS}" in describe(paid, config)
    config.warmup.enabled = False
    free = make_plan(config, N)
    assert free.mechanisms == ["DP-SGD fine-tuning"] and free.finetune_noise < paid.finetune_noise


def test_a_sum_without_noise_is_the_mean():
    """Bright and dark halves come back, whatever is made smaller; a class that is rarer than expected is greyer."""
    images = np.zeros((8, 8, 8, 1), np.uint8)
    images[:, :, 4:] = 255
    labels, everyone = np.array([0] * 4 + [1] * 2 + [2] * 2, np.int32), np.ones(8, bool)
    for downscale in (1, 2, 4):
        sums = warmup.sum_by_class(images, labels, everyone, 4, downscale)[None]
        one, half, twice, none = warmup.to_images(sums, np.array([4.0, 4.0, 1.0, 9.0]), downscale)
        edge = 4 if downscale == 4 else 2  # columns of pure black, and white: the rest is between the two
        assert (one[:, : edge // 2] == 0).all() and (one[:, -edge // 2 :] == 255).all()
        assert half.min() == 64 and half.max() == 191 and np.array_equal(twice, one) and (none == 128).all()


def test_a_class_without_images_is_noise(finished):
    """Nothing divides by what is not there: pixels are whole numbers, and all of them are in range."""
    rng = np.random.default_rng(0)
    huge = np.rint(1e15 * rng.standard_normal((1, 2, 3, 3, 1))).astype(np.int64)
    images = warmup.to_images(huge, np.array([1e-3, 1.0]), 2)
    assert images.shape == (2, 6, 6, 1) and images.dtype == np.uint8 and images.min() == 0 and images.max() == 255


def test_noisy_counts_of_classes_say_how_large_a_mean_is_expected_to_be(tmp_path, monkeypatch):
    """Both are released, so that nothing else of the classes is looked at; a count below its noise is taken as that."""
    config = make_config(tmp_path)
    config.class_histogram.enabled, config.class_histogram.noise_multiplier = True, 4.0
    seen = []
    monkeypatch.setattr(
        warmup,
        "to_images",
        lambda noisy, expected, s, original=warmup.to_images: seen.append(expected) or original(noisy, expected, s),
    )
    workdir = run(config, tmp_path / "run", "warmup")
    counts = np.array(json.loads((workdir.release / "class_histogram.json").read_text())["counts"])
    np.testing.assert_allclose(seen[0], sampling.poisson_rate(SIZE, N) * np.maximum(counts, 4.0))


def test_every_state_of_a_crash_ends_with_the_same_release(tmp_path, monkeypatch):
    """With real entropy, but a key that is the same each time, so that bytes compare."""
    config = make_config(tmp_path)
    config.privacy.fixed_seed = -1
    monkeypatch.setattr(noisy_counts.noise.chacha, "new_key", lambda: np.arange(8, dtype=np.uint32))
    monkeypatch.setattr(mechanism, "new_name", lambda: "0" * 32)  # keys are derived from it
    keep_programs(monkeypatch)
    log, folder = WriteLog(tmp_path / "run"), tmp_path / "run"
    with log.recording():
        expected = release_bytes(run(config, folder, "warmup"))
    assert set(expected) == {"ledger.jsonl", "warmup.npz"}
    begin = next(place for place, step in enumerate(log.steps) if str(step.path) == "internal/warmup")
    tried = 0
    for count, torn in states(log.steps):
        if count > begin:
            root, tried = tmp_path / f"{count}{torn}", tried + 1
            rebuild(log.steps[:count], root, torn)
            assert not problems(root, folder), (count, torn)
            assert release_bytes(run(config, root, "warmup")) == expected, (count, torn)
            assert not list(root.rglob("*.key"))
    assert tried > 10


def test_a_kill_while_samples_are_summed_up_spends_once(finished, tmp_path):
    """The samples are drawn once the ledger has its line; a replay draws the same."""
    folder, workdir = finished
    calls, original = itertools.count(), warmup.sum_by_class

    def stop_at_the_third(*args):
        if next(calls) == 2:
            raise Stop
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warmup, "sum_by_class", stop_at_the_third)
        with pytest.raises(Stop):
            run(make_config(folder), tmp_path / "run", "warmup")
    assert not (tmp_path / "run" / "release" / "warmup.npz").exists()
    again = run(make_config(folder), tmp_path / "run", "warmup")
    assert [line["kind"] for line in lines_of(again)] == ["open", "sampled-gaussian", "closed"]
    assert release_bytes(again)["warmup.npz"] == release_bytes(workdir)["warmup.npz"]


def test_they_are_never_drawn_again(finished, tmp_path, monkeypatch):
    """Not after a crash between the output and its end, and not where the output was lost."""
    folder, _ = finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noisy_counts.Mechanism, "close", stop)
        with pytest.raises(Stop):
            run(make_config(folder), tmp_path / "run", "warmup")
    path = tmp_path / "run" / "release" / "warmup.npz"
    before = path.read_bytes()
    monkeypatch.setattr(warmup, "sum_by_class", stop)
    run(make_config(folder), tmp_path / "run", "warmup")
    assert path.read_bytes() == before
    path.unlink()
    with pytest.raises(UserError, match="noisy means in .* has spent its budget, but its key or its output"):
        run(make_config(folder), tmp_path / "run", "warmup")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"enabled": False}, "stage warmup, which this config does not run"),
        ({"means": 7}, rf"with config\.warmup\.means={MEANS}, which is now 7"),
        ({"subset_size": 9}, r"with config\.warmup\.subset_size=20, which is now 9"),
        ({"steps": 5}, r"stage finetune, with config\.warmup\.steps=4, which is now 5"),
    ],
)
def test_a_change_after_they_have_spent_is_refused(finished, change, named):
    folder, workdir = finished
    config = make_config(folder)
    config.warmup.update(change)
    before = release_bytes(workdir)
    with pytest.raises(UserError, match=named):
        run(config, workdir.root)
    assert release_bytes(workdir) == before


def test_other_data_are_refused_once_they_have_spent(finished, tmp_path):
    config = make_config(tmp_path)
    run(config, tmp_path / "run", "warmup")
    data = dict(np.load(tmp_path / "data.npz"))
    data["train_images"][0] = 255 - data["train_images"][0]
    np.savez(tmp_path / "data.npz", **data)
    with pytest.raises(UserError, match="has spent privacy budget in the stage warmup, with other data"):
        run(config, tmp_path / "run", "warmup")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"downscale": 3}, r"config\.warmup\.downscale=3 does not divide config\.data\.image_size=8"),
        ({"subset_size": 61}, r"config\.warmup\.subset_size=61 is larger than the N=60 sensitive training images"),
        ({"noise_multiplier": 0.1}, r"the noisy means alone costs epsilon .* raise config\.warmup\.noise_multiplier"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_spent(tmp_path, change, named):
    config = make_config(tmp_path)
    config.warmup.update(change)
    with pytest.raises(UserError, match=named):
        run(config, tmp_path / "run", "warmup")
    assert not (tmp_path / "run" / "release" / "ledger.jsonl").exists()


def test_they_teach_the_generator_after_public_images_wherever_a_kill_comes(finished, tmp_path):
    """Two lessons, one after the other; each goes on from its own checkpoints, to the same parameters."""
    folder, _ = finished
    config = make_config(folder)
    config.pretrain.steps, config.finetune.steps, config.finetune.block = 4, 2, 1
    whole = release_bytes(run(config, tmp_path / "whole"))
    save = Checkpoints.save
    for lesson, step in (("pretrain", 2), ("pretrain", 4), ("means", 2), ("means", 4)):
        root = tmp_path / f"{lesson}{step}"

        def stopping(self, at, state, lesson=lesson, step=step):
            save(self, at, state)
            if (self.root.parent.name, at) == (lesson, step):
                raise Stop

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "save", stopping)
            with pytest.raises(Stop):
                run(config, root)
        steps = Checkpoints(root / "internal" / "pretrain" / "checkpoints").steps()
        assert steps[-1] == (step if lesson == "pretrain" else 4)
        again = run(config, root)
        assert release_bytes(again) == whole, (lesson, step)
        assert not list(again.internal.glob("pretrain/**/checkpoints/*"))


def test_both_lessons_change_the_parameters(finished, tmp_path):
    folder, workdir = finished
    config = make_config(folder)
    made = []
    for public, means in ((4, True), (4, False), (0, True), (0, False)):
        config.pretrain.steps, config.warmup.enabled = public, means
        root = tmp_path / f"{public}{means}"
        run(config, root, "pretrain")
        made.append(pretrain.restore_tree(root / "internal" / "pretrain" / "params"))
    kernels = [np.concatenate([np.ravel(leaf) for leaf in tree["Dense_0"].values()]) for tree in made]
    for one, other in itertools.combinations(kernels, 2):
        assert not np.array_equal(one, other)
