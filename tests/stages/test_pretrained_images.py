"""What is measured of the generator before fine-tuning: the same images, labels and sampler, other parameters."""

import json
import shutil

import numpy as np
import pytest
from pipelines import run, tiny_config

from privimage_jax import config as configs
from privimage_jax.report import measures
from privimage_jax.run.inputs import make_inputs
from privimage_jax.stages import sample
from privimage_jax.stages.parts import pretrained_images
from privimage_jax.storage.workdir import Workdir

pytestmark = pytest.mark.usefixtures("programs_kept")


def make_config(folder, method="semantic"):
    """Without fine-tuning, so that what is released is what was pre-trained."""
    config = tiny_config(folder)
    config.finetune.enabled = False
    config.selection.method = method
    config.evaluate.pretrained = True
    return config


def inputs_of(config, workdir):
    return make_inputs(configs.check(config), workdir)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A folder with the tiny data, and a run without fine-tuning up to its samples; tests must not change it."""
    folder = tmp_path_factory.mktemp("sampled")
    return folder, run(make_config(folder), folder / "run", "sample")


def test_the_images_are_those_that_the_same_parameters_give(sampled):
    folder, workdir = sampled
    inputs = inputs_of(make_config(folder), workdir)
    images, labels = sample.load(inputs)
    drawn = pretrained_images.draw(inputs, labels)
    np.testing.assert_array_equal(drawn.images, images)
    np.testing.assert_array_equal(drawn.labels, labels)


def test_no_more_are_drawn_than_are_measured(sampled):
    folder, workdir = sampled
    config = make_config(folder)
    config.evaluate.max_images = 4
    inputs = inputs_of(config, workdir)
    images, labels = sample.load(inputs)
    np.testing.assert_array_equal(pretrained_images.draw(inputs, labels).images, images[:4])


def test_the_measures_are_those_of_the_synthetic_set_under_another_name(sampled, tmp_path):
    folder, workdir = sampled
    shutil.copytree(workdir.root, tmp_path / "run")
    config = make_config(folder)
    config.evaluate.extractors = ("query", "pipelines:coarse")
    run(config, tmp_path / "run", "evaluate")
    found = json.loads((tmp_path / "run" / "internal" / "evaluation.json").read_text())
    before = {name.removeprefix(measures.PRETRAINED) for name in found if name.startswith(measures.PRETRAINED)}
    endings = ((), ("query",), ("coarse",))
    names = {"_".join((name, *ending)) for name in pretrained_images.MEASURES for ending in endings}
    assert before == names
    assert {name: found[f"{measures.PRETRAINED}{name}"] for name in before} == {name: found[name] for name in before}
    assert "sigma2_pld" not in found and found["sigma1"] == 5.0
    page = (tmp_path / "run" / "internal" / "evaluation.html").read_text()
    assert "FID (coarse) before fine-tuning" in page and "pre-trained" in page and 'id="query-noise"' in page


@pytest.mark.parametrize(("key", "value"), [("evaluate.pretrained", False), ("pretrain.steps", 0)])
def test_nothing_is_drawn_where_nobody_asks_or_nothing_was_learnt(tmp_path, key, value):
    config = make_config(tmp_path)
    section, name = key.split(".")
    config[section][name] = value
    assert pretrained_images.draw(inputs_of(config, Workdir(tmp_path / "run")), np.zeros(3, np.int32)) is None


def test_a_generator_that_knows_no_label_is_asked_for_none(tmp_path):
    config = make_config(tmp_path, "unlabelled")
    inputs = inputs_of(config, run(config, tmp_path / "run", "pretrain"))
    one, other = (pretrained_images.draw(inputs, np.full(4, label, np.int32)) for label in (0, 2))
    np.testing.assert_array_equal(one.images, other.images)
    assert one.labels.tolist() == [0] * 4


@pytest.mark.parametrize("steps", [0, 6])
def test_a_generator_that_learnt_labels_from_noisy_means_is_asked_for_them(tmp_path, steps):
    config = make_config(tmp_path, "unlabelled" if steps else "none")
    config.pretrain.steps = steps
    config.warmup.enabled, config.warmup.subset_size, config.warmup.steps = True, 30, 4
    inputs = inputs_of(config, run(config, tmp_path / "run", "pretrain"))
    one, other = (pretrained_images.draw(inputs, np.full(4, label, np.int32)) for label in (0, 2))
    assert (one.images != other.images).any()
