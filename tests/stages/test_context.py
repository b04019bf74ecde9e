import jax
import numpy as np
import pytest
from pipelines import tiny_config

from privimage_jax.stages.context import Context
from privimage_jax.training.mesh import make_mesh
from privimage_jax.workdir import Workdir


@pytest.fixture
def context(tmp_path):
    config = tiny_config(tmp_path)
    config.data.cache = config.public.cache = False
    return Context(config, Workdir(tmp_path / "run"), make_mesh(jax.devices()[:1]))


def test_declared_classes_are_not(context, capsys):
    context.config.data.class_names = ("a", "b", "c")
    context.check_data()
    assert "warning" not in capsys.readouterr().out


def test_a_declared_class_without_images_is_told_to_the_operator(context, tmp_path, capsys):
    arrays = dict(np.load(context.config.data.path))
    arrays["train_labels"][:] = 0
    np.savez(tmp_path / "data.npz", **arrays)
    context.config.data.class_names = ("a", "b", "c")
    context.check_data()
    assert "no sensitive image is of class b, c" in capsys.readouterr().out
