"""What the data are checked for before any stage runs."""

import dataclasses

import jax
import pytest
from layouts import pets, tree
from pipelines import tiny_config

from privimage_jax.configs import base
from privimage_jax.errors import UserError
from privimage_jax.run.inputs import DataSets, make_inputs
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.mesh import make_mesh


@pytest.fixture
def inputs(tmp_path):
    config = tiny_config(tmp_path)
    config.data.cache = config.public.cache = False
    return make_inputs(config, Workdir(tmp_path / "run"), make_mesh(jax.devices()[:1]))


def test_a_declared_number_is_the_true_one(inputs):
    inputs.config.data.n = 59
    with pytest.raises(UserError, match=r"config\.data\.n=59, but the sensitive training part has 60 images"):
        inputs.data.check_counts()
    inputs.config.data.n = 60
    inputs.data.check_counts()


def test_the_held_out_part_has_the_same_classes(inputs):
    inputs.data.check_fit()
    other = dataclasses.replace(inputs.held_out, class_names=("left", "middle", "up"))
    vars(inputs.data)["held_out"] = other
    with pytest.raises(UserError, match="the held-out part of config.data has the classes left, middle, up"):
        inputs.data.check_fit()


def test_unreadable_images_of_all_sets_are_told_at_once(tmp_path):
    config = base.get_config()
    pets(tmp_path / "own", "train", "test")
    pets(tmp_path / "other")
    for section, name in (("data", "own"), ("public", "other")):
        config[section].update({"source": "folder", "path": str(tmp_path / name), "class_names": ("cat", "dog")})
    tree(tmp_path, text={"own/train/cat/0.png": "", "own/test/dog/1.png": "<html>", "other/cat/1.png": "\x89PNG\r\n"})
    with pytest.raises(UserError, match=r"^3 of 11 images are not readable: .*train/cat/0.png is empty") as caught:
        DataSets(config, None).read()
    assert all(name in str(caught.value) for name in ("own/test/dog/1.png is a web page", "other/cat/1.png"))
