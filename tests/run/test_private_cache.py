"""A private cache saves work, changes no result, and is its owner's alone."""

import json

import jax
import pytest
from pipelines import run, tiny_config

from privimage_jax import config as configs
from privimage_jax.errors import UserError
from privimage_jax.run import private_cache
from privimage_jax.run.inputs import make_inputs
from privimage_jax.stages.parts import utility
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.mesh import make_mesh


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with data, a config with a private cache, and the results of a first run with it."""
    folder = tmp_path_factory.mktemp("shared")
    config = tiny_config(folder)
    config.privacy.accountant = "rdp"
    config.private_cache = str(folder / "cache")
    return config, folder, results_of(run(config, folder / "first"))


def results_of(done: Workdir) -> dict:
    return json.loads((done.internal / "evaluation.json").read_text())


def trained_on(monkeypatch) -> list[str]:
    """What classifiers learn from, from now on."""
    names, real = [], utility.train_and_score

    def noted(model, train, *args, **kwargs):
        names.append(train.name)
        return real(model, train, *args, **kwargs)

    monkeypatch.setattr(utility, "train_and_score", noted)
    return names


def test_another_run_learns_from_its_own_images_alone(shared, monkeypatch):
    config, folder, first = shared
    names = trained_on(monkeypatch)
    second = run(config, folder / "second")
    assert names == ["synthetic"]
    assert results_of(second)["accuracy_real"] == first["accuracy_real"]
    kinds = {path.name.split("-")[0] for path in (folder / "cache").iterdir()}
    assert {"accuracy", "features"} <= kinds, "decoded images are there where the source is worth it"
    assert [path for path in second.cache.iterdir()] == []
    files = [path for path in (folder / "cache").iterdir() if path.is_file() and path.stat().st_size]
    assert {path.stat().st_mode & 0o077 for path in files} == {0}


def test_other_settings_are_other_entries(shared, monkeypatch, tmp_path):
    config, _, _ = shared
    changed = config.copy_and_resolve_references()
    changed.evaluate.classifier_steps += 1
    names = trained_on(monkeypatch)
    inputs = make_inputs(configs.check(changed), Workdir(tmp_path / "other"), make_mesh(jax.devices()[:1]))
    utility.measure(inputs, inputs.held_out, tmp_path / "accuracies.json")
    assert len(names) == 2


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
