"""What the data are checked for before any stage runs."""

import dataclasses

import jax
import pytest
from pipelines import tiny_config

from privimage_jax.errors import UserError
from privimage_jax.run.inputs import make_inputs
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
        inputs.data.check()
    inputs.config.data.n = 60
    inputs.data.check()


def test_the_held_out_part_has_the_same_classes(inputs):
    inputs.data.check()
    other = dataclasses.replace(inputs.held_out, class_names=("left", "middle", "up"))
    vars(inputs.data)["held_out"] = other
    with pytest.raises(UserError, match="the held-out part of config.data has the classes left, middle, up"):
        inputs.data.check()
