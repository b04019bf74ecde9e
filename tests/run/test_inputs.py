"""What the data are checked for before any stage runs."""

import jax
import numpy as np
import pytest
from pipelines import tiny_config

from privimage_jax.run.inputs import make_inputs
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.mesh import make_mesh


@pytest.fixture
def inputs(tmp_path):
    config = tiny_config(tmp_path)
    config.data.cache = config.public.cache = False
    return make_inputs(config, Workdir(tmp_path / "run"), make_mesh(jax.devices()[:1]))


def test_declared_classes_are_not(inputs, capsys):
    inputs.config.data.class_names = ("a", "b", "c")
    inputs.data.check()
    assert "warning" not in capsys.readouterr().out


def test_a_declared_class_without_images_is_told_to_the_operator(inputs, tmp_path, capsys):
    arrays = dict(np.load(inputs.config.data.path))
    arrays["train_labels"][:] = 0
    np.savez(tmp_path / "data.npz", **arrays)
    inputs.config.data.class_names = ("a", "b", "c")
    inputs.data.check()
    assert "no sensitive image is of class b, c" in capsys.readouterr().out
