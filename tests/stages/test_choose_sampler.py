"""The choice of a sampler setting: its sensitivity, its law, and what a run with it releases, spends and refuses."""

import itertools
import json

import numpy as np
import pytest
from audits import check_choice_sensitivity
from pipelines import release_bytes, run, tiny_config, write_npz
from scipy import stats
from small_models import use_small_models

from privimage_jax import config as configs
from privimage_jax import generators
from privimage_jax.configs import base
from privimage_jax.errors import UserError
from privimage_jax.generators import artefact
from privimage_jax.generators.sampler import Sampler
from privimage_jax.privacy import accounting, chacha
from privimage_jax.run import noisy_counts
from privimage_jax.run.inputs import make_inputs
from privimage_jax.run.plan import make_plan
from privimage_jax.stages import choose_sampler

pytestmark = pytest.mark.usefixtures("programs_kept")

N = 60
CANDIDATES = (0.0, 1.0, 3.0)


class Stop(BaseException):
    """A crash."""


def stop(*args):
    raise Stop


def make_config(folder):
    """Every mechanism there is."""
    config = use_small_models(tiny_config(folder))
    config.privacy.accountant = "rdp"
    config.evaluate.enabled = False
    config.class_histogram.enabled = config.sampler_choice.enabled = True
    config.class_histogram.noise_multiplier = 4.0
    config.sampler_choice.noise_multiplier = 6.0
    config.sampler_choice.candidates = CANDIDATES
    return config


def make_public_config(folder):
    """The choice alone, of a generator that has seen no sensitive image."""
    config = make_config(folder)
    config.selection.method = "all"
    config.class_histogram.enabled = config.finetune.enabled = False
    config.pretrain.steps = 2
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the data and a run on it."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(make_config(folder), folder / "run")


@pytest.mark.parametrize("candidates", range(2, 8))
def test_margins_move_by_their_sensitivity_at_most(candidates):
    """Over all ways in which one record can count; the bound is reached."""
    scores = np.arange(candidates) * 3 + 10
    moved = [
        np.linalg.norm(choose_sampler.margins(scores) - choose_sampler.margins(scores - np.array(counts)))
        for counts in itertools.product((0, 1), repeat=candidates)
    ]
    assert max(moved) == pytest.approx(choose_sampler.margin_sensitivity(candidates), rel=1e-12)
    assert moved[-1] == 0  # who is right for every candidate tells nothing
    margins = choose_sampler.margins(scores)
    assert margins.dtype == np.int64 and choose_sampler.pick(margins) == scores.argmax()


@pytest.mark.parametrize("candidates", [2, 5])
def test_striking_out_one_record_moves_the_margins_by_the_sensitivity_at_most(candidates):
    bound = choose_sampler.margin_sensitivity(candidates)
    check_choice_sensitivity(choose_sampler.agreement, choose_sampler.margins, bound, n=30, candidates=candidates)


def test_a_record_agrees_or_not_whatever_the_others_are():
    logits = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    logits[0], logits[8, 1], logits[4, 0] = np.nan, np.nan, np.inf
    labels = np.arange(30) % 4
    alone = [choose_sampler.agreement(logits[[row]], labels[[row]]) for row in range(30)]
    assert set(alone) == {0, 1} and choose_sampler.agreement(logits, labels) == sum(alone)
    assert alone[0] == alone[4] == alone[8] == 0
    assert choose_sampler.agreement(logits[1:4, :1], np.zeros(3, np.int32)) == 3  # one class: nothing to be wrong about


def exact_law(margins, std):
    """The distribution of the place of the first largest of the margins plus rounded Gaussian noise."""
    values = np.arange(min(margins) - int(9 * std) - 2, max(margins) + int(9 * std) + 3)
    upper = stats.norm.cdf((values[:, None] - np.array(margins) + 0.5) / std)
    lower = stats.norm.cdf((values[:, None] - np.array(margins) - 0.5) / std)
    law = []
    for place in range(len(margins)):
        others = [lower[:, j] if j < place else upper[:, j] for j in range(len(margins)) if j != place]
        law.append(np.sum((upper - lower)[:, place] * np.prod(others, axis=0)))
    return np.array(law)


def test_the_law_of_the_choice_is_exact():
    margins, std = choose_sampler.margins(np.array([5, 7, 6])), 3.5
    law = exact_law(margins, std)
    assert law.sum() == pytest.approx(1) and law.min() > 0.05
    drawn = noisy_counts.add_noise("sampler choice", chacha.key_from_seed("law"), np.tile(margins, (20_000, 1)), std)
    seen = np.bincount(drawn.argmax(-1), minlength=3)
    assert stats.chisquare(seen, law * len(drawn)).pvalue > 1e-3


@pytest.mark.parametrize("noise_multiplier", [0.7, 2.0])
def test_the_law_on_neighbours_is_as_close_as_the_accountant_says(noise_multiplier):
    scores, delta = np.array([5, 7, 6, 7]), 0.01
    epsilon = accounting.epsilon([accounting.Gaussian(noise_multiplier)], delta)
    std = noise_multiplier * choose_sampler.margin_sensitivity(4)
    law = exact_law(choose_sampler.margins(scores), std)
    for counts in itertools.product((0, 1), repeat=4):
        other = exact_law(choose_sampler.margins(scores - np.array(counts)), std)
        for one, two in ((law, other), (other, law)):
            assert np.maximum(0, one - np.exp(epsilon) * two).sum() <= delta


def test_the_largest_margin_is_released_used_and_shown(finished):
    folder, workdir = finished
    released = json.loads((workdir.release / "sampler.json").read_text())
    assert released["setting"] == "guidance" and released["candidates"] == list(CANDIDATES)
    assert released["chosen"] == CANDIDATES[np.argmax(released["noisy_margins"])]
    assert released["noise_std"] == 6.0 * choose_sampler.margin_sensitivity(3)
    context = make_inputs(make_config(folder), workdir)
    config = choose_sampler.chosen(context)
    assert config.sample.guidance == released["chosen"]
    synthetic = np.load(workdir.release / "synthetic.npz")
    generator = generators.build(config, 3)
    sampler = Sampler(generator, context.mesh)
    params = artefact.read_params(workdir.release / "generator", artefact.shapes(generator))
    images = sampler.all(params, context.key("synthetic set"), synthetic["labels"], 6, lambda n: None)
    assert np.abs(images.astype(int) - synthetic["images"]).max() <= 1  # on eight devices here, on one there
    page = (workdir.release / "report.html").read_text()
    assert f"<dt>chosen</dt><dd>guidance = {released['chosen']}</dd>" in page
    assert f"<dt>guidance</dt><dd>{released['chosen']}</dd>" in page and "sampler choice" in page


def test_the_ledger_holds_every_mechanism_and_verifies(finished, privimage):
    _, workdir = finished
    lines = [json.loads(line) for line in workdir.ledger.read_text().splitlines()]
    names = ["semantic query", "class histogram", "sampler choice", "DP-SGD fine-tuning"]
    assert lines[0]["mechanisms"] == names
    spending = next(line for line in lines if line.get("mechanism") == "sampler choice")
    assert (spending["noise_multiplier"], spending["l2_sensitivity"]) == (6.0, choose_sampler.margin_sensitivity(3))
    assert 9.9 < spending["epsilon"] <= 10 and lines[-1] == {
        **lines[-1],
        "kind": "closed",
        "mechanism": "sampler choice",
    }
    assert "spent in all" in privimage("ledger", workdir.release, "--verify").succeeds().out


def test_its_share_is_reserved_and_shown(tmp_path, privimage):
    config = make_config(tmp_path)
    paid = make_plan(configs.check(config), N)
    assert accounting.epsilon(paid.events(), paid.delta, "rdp") <= 10
    config.sampler_choice.enabled = False
    assert make_plan(configs.check(config), N).finetune_noise < paid.finetune_noise
    path = tmp_path / "all.py"
    path.write_text(
        "from privimage_jax.configs import base\n"
        "def get_config():\n"
        "    config = base.get_config()\n"
        "    config.privacy.accountant = 'rdp'\n"
        "    config.sampler_choice.enabled = config.class_histogram.enabled = True\n"
        "    return config\n"
    )
    small = ("--config", path, "--config.data.n=45000", "--config.finetune.steps=10")
    out = privimage("budget", *small).succeeds().out
    for row in ("semantic query: sigma1 = 50", "class histogram: noise multiplier = 50", "sampler choice: noise"):
        assert row in out
    keys = (f"config.{name}.noise_multiplier" for name in ("query", "class_histogram", "sampler_choice"))
    privimage("budget", *small, "--config.sampler_choice.noise_multiplier=0.2").refuses(
        "the semantic query and the class histogram and the sampler choice alone cost epsilon",
        f"raise {', '.join(keys)} or",
    )


def test_it_is_never_made_again(finished, monkeypatch):
    """A change before it is refused; nothing after it looks at the sensitive images again."""
    folder, workdir = finished
    before = release_bytes(workdir)
    monkeypatch.setattr(choose_sampler, "score", stop)
    workdir.clear_mark("choose-sampler")
    (workdir.release / "synthetic.npz").unlink()
    assert release_bytes(run(make_config(folder), workdir.root)) == before
    for change, named in (
        ({"candidates": (0.0, 1.0)}, r"config\.sampler_choice\.candidates=\[0\.0, 1\.0, 3\.0\]"),
        ({"enabled": False}, r"config\.sampler_choice\.enabled=True, which is now False"),
    ):
        config = make_config(folder)
        config.sampler_choice.update(change)
        with pytest.raises(UserError, match=f"has spent privacy budget .*{named}"):
            run(config, workdir.root)
    assert release_bytes(workdir) == before


def test_a_crash_spends_once_and_changes_nothing(tmp_path, monkeypatch, privimage):
    """Without fine-tuning too: after the ledger's line, and after the artefact."""
    config, after_line, after_artefact = make_public_config(tmp_path), tmp_path / "one", tmp_path / "other"
    for folder, owner, name in (
        (after_line, noisy_counts, "add_noise"),
        (after_artefact, noisy_counts.Mechanism, "close"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, stop)
            with pytest.raises(Stop):
                run(config, folder)
        assert (folder / "release" / "sampler.json").exists() == (folder is after_artefact)
        assert (folder / "release" / "ledger.jsonl").read_text().count('"gaussian"') == 1
    one = run(config, after_line)
    monkeypatch.setattr(choose_sampler, "score", stop)
    other = run(config, after_artefact)
    assert release_bytes(one) == release_bytes(other)
    assert [json.loads(line)["kind"] for line in one.ledger.read_text().splitlines()] == ["open", "gaussian", "closed"]
    privimage("ledger", one.release, "--verify").succeeds()
    (one.release / "sampler.json").unlink()
    with pytest.raises(UserError, match="sampler choice in .* has spent its budget, but its key or its output"):
        run(config, after_line)


def test_one_class_is_enough(tmp_path):
    """Every classifier is right about every image, so that nothing but noise chooses."""
    config = make_public_config(tmp_path)
    config.data.path, config.data.class_names = str(write_npz(tmp_path / "one.npz", N, 1, seed=1)), ("all",)
    workdir = run(config, tmp_path / "run", "choose-sampler")
    key = chacha.key_from_seed("7 choose-sampler 0")
    std = 6.0 * choose_sampler.margin_sensitivity(3)
    noise = noisy_counts.add_noise("sampler choice", key, np.zeros(3, np.int64), std)
    assert json.loads((workdir.release / "sampler.json").read_text())["noisy_margins"] == noise.tolist()


def test_a_classifier_that_may_be_handed_a_batch_is_refused_before_anything_is_spent(tmp_path):
    config = make_public_config(tmp_path)
    config.sampler_choice.classifier = "mixing_networks:OnTheHost"
    named = r"config\.sampler_choice\.classifier=mixing_networks:OnTheHost uses pure_callback"
    with pytest.raises(UserError, match=named):
        run(config, tmp_path / "run", "choose-sampler")
    ledger = (tmp_path / "run" / "release" / "ledger.jsonl").read_text()
    assert [json.loads(line)["kind"] for line in ledger.splitlines()] == ["open"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"candidates": (1.0,)}, r"config\.sampler_choice\.candidates=\(1\.0,\) .* two different numbers"),
        ({"candidates": (1.0, 1.0)}, "two different numbers"),
        ({"candidates": (1.0, "2")}, "two different numbers"),
        ({"candidates": (1.0, -2.0)}, r"candidates has -2\.0, which config\.sample\.guidance does not take"),
        ({"setting": "steps", "candidates": (10, 2.5)}, r"has 2\.5, which config\.sample\.steps"),
        ({"setting": "s_churn"}, r"setting=s_churn has no effect with config\.sample\.sampler=ddim"),
        ({"setting": "sampler"}, "one of guidance, steps, s_churn"),
        ({"noise_multiplier": 0.0}, r"config\.sampler_choice\.noise_multiplier=0\.0"),
        ({"n": 0}, r"config\.sampler_choice\.n=0"),
    ],
)
def test_what_cannot_be_chosen_is_named(changes, named):
    config = base.get_config()
    config.sampler_choice.update({"enabled": True, **changes})
    with pytest.raises(UserError, match=named):
        configs.check(config)


def test_a_choice_that_is_off_is_not_shown():
    config = base.get_config()
    shown = [key for key in configs.settings_in_use(config) if key.startswith("sampler_choice.")]
    config.sampler_choice.enabled = True
    assert shown == ["sampler_choice.enabled"] and "sampler_choice.candidates" in configs.settings_in_use(config)
