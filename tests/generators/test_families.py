"""The guide's family of generators goes through the whole pipeline; a wrong one is told in a sentence."""

import json

import jax
import numpy as np
import pytest
from guides import extended
from pipelines import CLASSES, SIDE, run, tiny_config

from privimage_jax import config as configs
from privimage_jax import generators
from privimage_jax.errors import UserError
from privimage_jax.run.code_version import code_version

LINEAR = "linear:LinearDecoder"


@pytest.fixture
def config(tmp_path, monkeypatch):
    config = extended("A family of generators", "linear", tmp_path, monkeypatch)
    config.pretrain.steps, config.finetune.steps, config.clipping.norm = 30, 30, 1.0
    config.privacy.epsilon, config.privacy.accountant = 40.0, "rdp"
    return config


def test_a_family_from_elsewhere_goes_through_the_whole_pipeline(config, tmp_path):
    workdir = run(config, tmp_path / "run")
    with np.load(workdir.release / "synthetic.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    assert images.shape == (config.sample.n, SIDE, SIDE, 1)
    with np.load(config.data.path) as arrays:
        real, of = arrays["train_images"], arrays["train_labels"]
    means = [real[of == label].mean(axis=0) for label in range(CLASSES)]
    apart = np.array([[np.abs(image - mean.astype(int)).mean() for mean in means] for image in images])
    assert np.mean(apart.argmin(axis=1) == labels) > 0.8, "the images show their labels"
    described = json.loads((workdir.release / "generator" / "model.json").read_text())
    assert described["config"]["generator"] == LINEAR and described["config"]["extra.learning_rate"] == 2.0


def test_a_missing_one_is_named_with_its_setting(config, tmp_path):
    config.generator = "nowhere:Decoder"
    with pytest.raises(UserError, match="^config.generator: nowhere:Decoder cannot be loaded"):
        code_version(config)


def test_its_code_is_part_of_a_replays_identity(config, tmp_path, monkeypatch):
    before = code_version(config)
    (tmp_path / "linear_copy.py").write_text("from linear import *\n")
    config.generator = "linear_copy:LinearDecoder"
    assert code_version(config) != before


@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("vae", "config.generator='vae' is not accepted; give diffusion, gan or package.module:Class"),
        ("nowhere:Decoder", "config.generator: nowhere:Decoder cannot be loaded"),
        ("linear:Decoder", "config.generator: linear:Decoder cannot be loaded"),
    ],
)
def test_a_wrong_name_is_told(config, name, culprit):
    config.generator = name
    with pytest.raises(UserError, match=culprit):
        generators.build(configs.check(config), CLASSES)


def test_the_diffusion_keeps_to_the_protocol(tmp_path):
    config = tiny_config(tmp_path)
    generator = generators.build(configs.check(config), CLASSES)
    params = generator.init(jax.random.key(0))
    state = generator.private_state(params, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, generator.merge(state["params"], state["frozen"]), params)
    assert generator.image_shape == (SIDE, SIDE, 1) and generator.sample_flops(params) > 0
