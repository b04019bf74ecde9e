"""What the data are checked for before any stage runs."""

import dataclasses
import re

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


@pytest.mark.parametrize(
    ("classes", "settings", "culprit"),
    [
        (2, {}, "the classes of the public set look like folders of its parts: 'part 0', 'part 1'"),
        (2, {"selection.method": "random"}, "the classes of the public set look like folders of its parts"),
        (2, {"public.accept": ("part_folders",)}, "the public set has 2 classes for 3 sensitive ones"),
        (2, {"sample.class_weights": (1.0, 2.0)}, "config.sample.class_weights has 2 values for 3 classes"),
        (6, {"query.k1": 7}, "config.query.k1=7 is larger than the 6 public classes"),
        (6, {"selection.k2": 3}, "config.selection.k2=3 semantics for each of 3 classes need 9"),
        (
            2,
            {"selection.method": "unlabelled", "sample.class_weights": (1.0,)},
            "config.sample.class_weights has 1 values",
        ),
    ],
)
def test_what_does_not_fit_the_classes_is_told_as_it_is(inputs, classes, settings, culprit):
    """Classes that are none stand for their number alone, and not once they are accepted."""
    inputs.config.update_from_flattened_dict(settings)
    names = tuple(f"part {i}" for i in range(classes))
    vars(inputs.data)["public"] = dataclasses.replace(
        inputs.public, class_names=names, labels=inputs.public.labels % classes
    )
    with pytest.raises(UserError, match=f"^{re.escape(culprit)}"):
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
