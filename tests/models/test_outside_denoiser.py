"""The guide's denoiser from elsewhere goes through a whole run."""

import json

import numpy as np
import pytest
from guides import extended
from pipelines import SIDE, run

from privimage_jax.run.code_version import code_version
from privimage_jax.run.stage import named

pytestmark = pytest.mark.usefixtures("programs_kept")


def test_it_is_trained_sampled_and_released(tmp_path, monkeypatch):
    config = extended("A denoiser", "patches", tmp_path, monkeypatch)
    config.privacy.accountant, config.evaluate.enabled = "rdp", False
    before = code_version(config, named("finetune"))
    workdir = run(config, tmp_path / "run")
    with np.load(workdir.release / "synthetic.npz") as arrays:
        assert arrays["images"].shape == (config.sample.n, SIDE, SIDE, 1)
    described = json.loads((workdir.release / "generator" / "model.json").read_text())["config"]
    assert (described["model.name"], described["model.kwargs.width"]) == ("patches:Patches", 32)
    (tmp_path / "patches.py").write_text((tmp_path / "patches.py").read_text() + "# changed\n")
    assert code_version(config, named("finetune")) != before
