"""The class histogram: its sensitivity, its law, what is made of it, and what a run with it spends and refuses."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import CLASSES, release_bytes, run, tiny_config
from scipy import stats
from small_models import use_small_models

from privimage_jax import config as configs
from privimage_jax.configs import base
from privimage_jax.errors import UserError
from privimage_jax.privacy import accounting, chacha
from privimage_jax.run import noisy_counts
from privimage_jax.run.plan import make_plan
from privimage_jax.stages import class_histogram

pytestmark = pytest.mark.usefixtures("programs_kept")


def make_config(folder):
    config = use_small_models(tiny_config(folder))
    config.privacy.accountant = "rdp"
    config.class_histogram.enabled = True
    config.class_histogram.noise_multiplier = 4.0
    config.evaluate.enabled = False
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the data and a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(make_config(folder), folder / "run")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.data())
def test_striking_out_one_record_takes_one_from_one_count(labels, data):
    row = data.draw(st.integers(0, len(labels) - 1))
    labels = np.array(labels, np.int32)
    moved = class_histogram.count_classes(labels, 5) - class_histogram.count_classes(np.delete(labels, row), 5)
    assert moved.dtype == np.int64
    np.testing.assert_array_equal(moved, np.eye(5, dtype=int)[labels[row]])
    assert np.linalg.norm(moved) == class_histogram.sensitivity(base.get_config())


def test_the_noise_has_the_law_of_the_rounded_gaussian():
    counts, std = np.full(20_000, 7), 2.5
    noisy = noisy_counts.add_noise("class histogram", chacha.key_from_seed("law"), counts, std)
    values = np.arange(-9, 10)
    edges = np.concatenate([[-np.inf], values[:-1] + 0.5, [np.inf]])
    expected = np.diff(stats.norm.cdf(edges / std)) * len(counts)
    seen = np.bincount(np.clip(noisy - 7, -9, 9) + 9, minlength=19)
    assert stats.chisquare(seen, expected).pvalue > 1e-3


class Workdir:
    """Of a `Context`, what `frequencies` reads."""

    def __init__(self, root, counts, **settings):
        self.workdir, self.root, self.sensitive, self.n_classes = self, root, self, 3
        self.config = configs.base.get_config()
        self.config.class_histogram.enabled = counts is not None
        self.config.sample.update(settings)
        if counts is not None:
            (root / "release").mkdir()
            (root / "release" / "class_histogram.json").write_text(json.dumps({"counts": counts}))


@pytest.mark.parametrize(
    ("counts", "weights", "expected"),
    [
        (None, (), ()),
        (None, (1, 2), (1, 2)),
        ([5, -3, 2], (), (5.0, 0.0, 2.0)),
        ([-1, 0, -7], (), ()),  # nothing but noise: all classes are equal
    ],
)
def test_what_is_made_of_the_noisy_counts(tmp_path, counts, weights, expected):
    assert class_histogram.frequencies(Workdir(tmp_path, counts, class_weights=weights)) == expected


def test_the_synthetic_set_has_the_released_proportions(finished):
    _, workdir = finished
    released = json.loads((workdir.release / "class_histogram.json").read_text())
    share = np.maximum(released["counts"], 0) / np.maximum(released["counts"], 0).sum()
    made = np.bincount(np.load(workdir.release / "synthetic.npz")["labels"], minlength=CLASSES)
    assert np.abs(made - 12 * share).max() < 1 and released["noise_std"] == 4.0
    assert released["class_names"] == ["left", "middle", "right"]
    assert released["counts"] != [20, 20, 20]


def test_the_ledger_holds_it_and_adds_up(finished, privimage):
    folder, workdir = finished
    lines = [json.loads(line) for line in workdir.ledger.read_text().splitlines()]
    assert lines[0]["mechanisms"] == ["semantic query", "class histogram", "DP-SGD fine-tuning"]
    line = next(line for line in lines if line.get("mechanism") == "class histogram")
    assert (line["kind"], line["noise_multiplier"], line["l2_sensitivity"]) == ("gaussian", 4.0, 1.0)
    events = [accounting.Gaussian(5.0), accounting.Gaussian(4.0)]
    assert line["epsilon"] == accounting.epsilon(events, lines[0]["delta"], "rdp")
    assert 9.9 < lines[-2]["epsilon"] <= 10
    privimage("ledger", workdir.release, "--verify").succeeds()


def test_its_share_is_reserved_before_sigma2_is_solved(tmp_path):
    config = make_config(tmp_path)
    paid = make_plan(configs.check(config), 60)
    assert accounting.epsilon(paid.events(), paid.delta, "rdp") <= 10
    config.class_histogram.enabled = False
    free = make_plan(configs.check(config), 60)
    assert free.mechanisms == ["semantic query", "DP-SGD fine-tuning"] and free.finetune_noise < paid.finetune_noise


def test_it_is_never_counted_again(finished, tmp_path, monkeypatch):
    """Not when it is done, and not when a crash came between its output and its end."""
    folder, _ = finished
    config = make_config(folder)

    class Stop(BaseException):
        pass

    def stop(*args):
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noisy_counts.Mechanism, "close", stop)
        config.selection.method = "all"
        with pytest.raises(Stop):
            run(config, tmp_path / "run", last="class-histogram")
    path = tmp_path / "run" / "release" / "class_histogram.json"
    before = path.read_bytes()
    monkeypatch.setattr(class_histogram, "count_classes", stop)
    workdir = run(config, tmp_path / "run", last="class-histogram")
    assert path.read_bytes() == before
    kinds = [json.loads(line)["kind"] for line in workdir.ledger.read_text().splitlines()]
    assert kinds == ["open", "gaussian", "closed"]
    path.unlink()
    with pytest.raises(UserError, match="class histogram in .* has spent its budget, but its key or its output"):
        run(config, tmp_path / "run", last="class-histogram")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"enabled": False}, "stage class-histogram, which this config does not run"),
        ({"noise_multiplier": 5.0}, r"with config\.class_histogram\.noise_multiplier=4\.0, which is now 5\.0"),
    ],
)
def test_a_change_after_it_has_spent_is_refused(finished, change, named):
    folder, workdir = finished
    config = make_config(folder)
    config.class_histogram.update(change)
    before = release_bytes(workdir)
    with pytest.raises(UserError, match=named):
        run(config, workdir.root)
    assert release_bytes(workdir) == before


def test_it_cannot_join_once_others_have_spent(finished, tmp_path):
    """sigma2 was, or will be, solved without it; the terms of the ledger say so before fine-tuning does."""
    config = make_config(finished[0])
    config.class_histogram.enabled = False
    run(config, tmp_path / "run", last="query")
    config.class_histogram.enabled = True
    with pytest.raises(UserError, match=r"was opened with mechanisms = \['semantic query', 'DP-SGD fine-tuning'\]"):
        run(config, tmp_path / "run")


def test_two_ways_to_say_it_are_refused(tmp_path):
    config = make_config(tmp_path)
    config.sample.class_weights = (1, 2, 3)
    with pytest.raises(UserError, match=r"config\.sample\.class_weights=\(1, 2, 3\) and config\.class_histogram"):
        configs.check(config)
