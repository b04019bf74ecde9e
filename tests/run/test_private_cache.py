"""A private cache saves work, changes no result, and is its owner's alone."""

import dataclasses

import jax
import pytest
from pipelines import tiny_config

from privimage_jax import config as configs
from privimage_jax.errors import UserError
from privimage_jax.run import private_cache
from privimage_jax.run.inputs import make_inputs
from privimage_jax.stages.parts import utility
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("programs_kept")


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A config with a private cache, `measure(config, run)`, and what classifiers have learnt from."""
    config, learnt_from, fit = tiny_config(tmp_path), [], utility.fit
    config.private_cache = str(tmp_path / "cache")

    def noted(model, train, *args, **kwargs):
        learnt_from.append(train.name)
        return fit(model, train, *args, **kwargs)

    def measure(config, run):
        inputs = make_inputs(configs.check(config), Workdir(tmp_path / run), make_mesh(jax.devices()[:1]))
        inputs.workdir.create()
        private_cache.check(inputs.config, inputs.workdir)
        synthetic = dataclasses.replace(inputs.held_out, name="synthetic")
        return utility.measure(inputs, synthetic, inputs.workdir.internal / "accuracies.json")

    monkeypatch.setattr(utility, "fit", noted)
    return config, measure, learnt_from


def test_another_run_learns_from_its_own_images_alone(shared, tmp_path):
    config, measure, learnt_from = shared
    first = measure(config, "first")
    real = learnt_from[1]
    second = measure(config, "second")
    assert learnt_from == ["synthetic", real, "synthetic"] and second == first
    assert {path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()} == {"npz", "classifier"}
    assert list((tmp_path / "second" / "internal" / "cache").iterdir()) == []
    (entry,) = (tmp_path / "cache").glob("classifier-*.npz")
    assert entry.stat().st_mode & 0o077 == 0


def test_other_settings_are_other_entries(shared):
    config, measure, learnt_from = shared
    measure(config, "first")
    config.evaluate.classifier_steps += 1
    measure(config, "other")
    assert len(learnt_from) == 4


def test_a_folder_that_others_may_read_is_refused(tmp_path):
    config = tiny_config(tmp_path)
    config.private_cache = str(tmp_path / "open")
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(UserError, match="config.private_cache=.*open may be read by others.*chmod 700"):
        private_cache.check(config, Workdir(tmp_path / "run"))


def test_a_folder_in_a_release_is_refused(tmp_path):
    config = tiny_config(tmp_path)
    config.private_cache = str(tmp_path / "run" / "release" / "cache")
    with pytest.raises(UserError, match="config.private_cache=.*lies in a release"):
        private_cache.check(config, Workdir(tmp_path / "run"))


@pytest.mark.parametrize(("private", "public"), [("a", "a"), ("a", "a/b"), ("a/b", "a")])
def test_what_sees_real_images_stays_apart_from_the_public_cache(tmp_path, private, public):
    config = tiny_config(tmp_path)
    config.private_cache, config.public_cache = str(tmp_path / private), str(tmp_path / public)
    with pytest.raises(UserError, match="config.private_cache=.* and config.public_cache=.*; .* give two folders"):
        private_cache.check(config, Workdir(tmp_path / "run"))


def test_its_place_is_never_published():
    assert "private_cache" in configs.PLACES
