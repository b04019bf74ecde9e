"""`privimage audit`: its bounds lie below the claim for the code as it is, and above it once a fault is planted."""

import json
import stat
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pipelines import tiny_config
from scipy.stats import binom

from privimage_jax import config as configs
from privimage_jax.commands import audit
from privimage_jax.privacy import chacha, clipping, noise, sampling
from privimage_jax.training.mesh import make_mesh

CANARIES, STEPS, BATCH = 500, 10, 500  # of two kinds: a record is drawn in half of the steps
SMALL = {"canaries": CANARIES, "steps": STEPS, "batch_size": BATCH, "guesses": 120}
MODEL = "small_models:SmallDenoiser"
FLAGS = [f"--config.model.name={MODEL}", *(f"--config.audit.{name}={value}" for name, value in SMALL.items())]


@pytest.fixture
def small(tmp_path):
    config = tiny_config(tmp_path)
    config.audit.update(SMALL)
    config.model.name = MODEL
    return config


def one_device():
    return make_mesh(jax.devices()[:1])


def test_the_code_as_it_is_keeps_its_claim(privimage, config, tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "make_mesh", lambda: make_mesh(jax.devices()[:2]))
    workdir = tmp_path / "audit"
    said = privimage("audit", "--config", config, *FLAGS, "--workdir", workdir).succeeds().out
    result = json.loads((workdir / "internal" / "audit.json").read_text())
    assert 0 < result["epsilon_lower_white_box"] < 3 < result["epsilon_lower_most"]
    assert 0 <= result["epsilon_lower_black_box"] < 3
    expected = {"epsilon_claimed": 3, "delta": 1e-5, "confidence": 0.95, "sampling_rate": 0.5, "keys": "fixed seed 7"}
    assert {**SMALL, **expected}.items() - {("batch_size", BATCH)} <= result.items()
    assert "white-box" in said and f"{result['right_guesses_white_box']} of 120" in said
    assert [path.name for path in workdir.iterdir()] == ["internal"]
    assert stat.S_IMODE((workdir / "internal").stat().st_mode) == 0o700
    privimage("audit", "--config", config, *FLAGS, "--workdir", workdir).refuses("audit.json holds the result")
    privimage("run", "--config", config, "--workdir", workdir).refuses(f"{workdir} holds an audit")
    assert not (workdir / "release").exists()


def test_noise_left_out_is_found(small, monkeypatch):
    """Without noise the scores also show what a canary is: its row alone, clipped to C, in the steps that draw it."""
    small.clipping.method, small.finetune.lora_rank = "vmap", 2
    real, scores = noise.gaussian, []
    monkeypatch.setattr(noise, "gaussian", lambda key, t, like, std: real(key, t, like, 0.0))
    attack = audit.attack

    def recorded(config, mesh, included, key):
        scores.append((included[:CANARIES], *attack(config, mesh, included, key)))
        return scores[0][1:]

    monkeypatch.setattr(audit, "attack", recorded)
    assert audit.audit(configs.check(small), one_device())["epsilon_lower_white_box"] > 3
    included, white, black, settings = scores[0]
    draws = white * BATCH / settings.clip_norm
    assert np.all(draws[~included] == 0)
    np.testing.assert_allclose(draws, np.round(draws), atol=0.01 * STEPS)
    assert np.mean(draws[included]) == pytest.approx(STEPS / 2, rel=0.1)
    assert black.shape == (CANARIES,) and np.std(black) > 0


def test_canaries_may_be_people_each_with_several_images(small, monkeypatch):
    """Excluded, all images of one are null; included, a step adds one row of norm C, however many there are."""
    small.privacy.unit, small.audit.steps, small.precision = "person", 4, "float32"
    real = noise.gaussian
    monkeypatch.setattr(noise, "gaussian", lambda key, t, like, std: real(key, t, like, 0.0))
    coins = np.random.default_rng(0).integers(0, 2, 2 * CANARIES).astype(bool)
    key = chacha.key_from_seed("people")
    white, black, settings = audit.attack(configs.check(small), one_device(), coins, key)
    draws = white * BATCH / settings.clip_norm
    assert np.all(draws[~coins[:CANARIES]] == 0)
    members = sum(np.asarray(sampling.membership(key, t, 2 * CANARIES, settings.threshold)) for t in range(4))
    np.testing.assert_allclose(draws, np.where(coins, members, 0)[:CANARIES], atol=0.04)
    assert settings.n == 2 * CANARIES and black.shape == (CANARIES,) and np.isfinite(black).all()


def test_clipping_left_out_is_found(small, monkeypatch):
    real = clipping.clip
    monkeypatch.setattr(clipping, "clip", lambda gradient, mask, clip_norm: real(gradient, mask, jnp.inf))
    assert audit.audit(configs.check(small), one_device())["epsilon_lower_white_box"] > 3


@pytest.mark.parametrize(("right", "guesses"), [(100, 100), (80, 100), (190, 200)])
def test_the_bound_is_the_theorems(right, guesses):
    """At a delta near 0, guesses that are right with probability logistic(bound) are so often right in 5% of runs."""
    bound = audit.lower_bound(right, guesses, 1000, 0.95, 1e-15)
    assert binom.sf(right - 1, guesses, 1 / (1 + np.exp(-bound))) == pytest.approx(0.05, rel=2e-3)
    assert audit.lower_bound(right, guesses, 1000, 0.95, 1e-4) < bound


@pytest.mark.parametrize("right", [0, 50])
def test_guesses_by_chance_show_nothing(right):
    assert audit.lower_bound(right, 100, 1000, 0.95, 1e-5) == 0


def test_the_highest_scores_are_guessed_included_and_the_lowest_excluded():
    scores = np.array([0.5, -3.0, 2.0, 0.1, 9.0, -1.0])
    included = np.array([False, False, True, False, False, True])
    right = [audit.right_guesses(scores, included, guesses) for guesses in range(1, 7)]
    assert right == [0, 1, 2, 2, 2, 3]  # in this order: 9, -3, 2, -1, 0.5, 0.1


def test_a_refuted_claim_is_an_error(privimage, config, tmp_path, monkeypatch):
    workdir = tmp_path / "audit"
    result = {"epsilon_claimed": 3.0, "epsilon_lower_white_box": 1.0, "epsilon_lower_black_box": 3.5}
    monkeypatch.setattr(audit, "audit", lambda *_: result)
    monkeypatch.setattr(audit, "show", lambda _: None)
    refused = privimage("audit", "--config", config, *FLAGS, "--workdir", workdir)
    refused.refuses("refutes epsilon = 3, which is at least 3.5", "internal/audit.json")
    assert json.loads((workdir / "internal" / "audit.json").read_text()) == result


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        (["--config.audit.guesses=500"], ["config.audit.guesses=500 is not below config.audit.canaries=500"]),
        (["--config.audit.batch_size=1001"], ["config.audit.batch_size=1001", "1000 records"]),
        (["--config.audit.claimed_delta=0"], ["config.audit.claimed_delta=0.0", "a number in (0, 1)"]),
        (["--config.audit.confidence=1"], ["config.audit.confidence=1.0", "a number in (0, 1)"]),
        (["--config.audit.steps=0"], ["config.audit.steps=0"]),
        (
            ["--config.audit.claimed_epsilon=10"],
            ["guesses=120 of 500 canaries show epsilon 3.", "config.audit.claimed_epsilon=10"],
        ),
        (["--workdir", ""], ["--workdir is missing"]),
        (["--out=rows.json"], ["'out'"]),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(privimage, config, tmp_path, monkeypatch, arguments, culprits):
    monkeypatch.chdir(tmp_path)
    privimage("audit", "--config", config, *FLAGS, "--workdir=audit", *arguments).refuses(*culprits)
    assert not list(tmp_path.iterdir())


def test_the_workdir_of_a_run_is_refused(privimage, config, tmp_path):
    (tmp_path / "release").mkdir()
    privimage("audit", "--config", config, *FLAGS, "--workdir", tmp_path).refuses(f"{tmp_path} holds a run")
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_a_workdir_that_leads_elsewhere_is_refused(privimage, config, tmp_path):
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "internal").symlink_to(tmp_path)
    refused = privimage("audit", "--config", config, *FLAGS, "--workdir", tmp_path / "audit")
    refused.refuses(f"{tmp_path}/audit/internal is a link")
    assert [path.name for path in tmp_path.iterdir()] == ["audit"]


def test_a_missing_library_says_how_to_install_it(privimage, config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_privacy", None)
    workdir = tmp_path / "audit"
    refused = privimage("audit", "--config", config, *FLAGS, "--workdir", workdir)
    refused.refuses("the audit needs jax-privacy", '".[audit]"')
    assert not workdir.exists()
