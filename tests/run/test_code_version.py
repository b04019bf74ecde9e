"""What a replay's identity covers: the code that determines what each mechanism sees and does."""

import pytest
from pipelines import tiny_config

from privimage_jax import config as configs
from privimage_jax.run import code_version as module
from privimage_jax.run.code_version import ROOT, code_version
from privimage_jax.run.stage import named

CORE = (
    "configs/base.py",
    "config.py",
    "privacy/noise.py",
    "privacy/chacha.py",
    "privacy/accounting.py",
    "privacy/ledger.py",
)
GENERATOR = (
    *("generators/diffusion.py", "generators/edm.py", "data/augment.py", "data/pixels.py", "models/unet.py"),
    *("models/registry.py", "models/convolution.py", "training/state.py", "training/trainable.py", "training/lora.py"),
)
STEP = (
    *("privacy/dp_sgd.py", "privacy/clipping.py", "privacy/flat_rules.py", "privacy/flat_vmap.py"),
    *("privacy/weight_gradients.py", "privacy/sampling.py", "privacy/records.py", "training/loop.py"),
)
COVERED = {
    "query": (*CORE, "run/noisy_counts.py", "stages/query.py", "metrics/features.py", "models/resnet.py"),
    "class-histogram": (*CORE, "run/noisy_counts.py", "stages/class_histogram.py"),
    "warmup": (*CORE, "run/noisy_counts.py", "stages/warmup.py", "privacy/sampling.py", "stages/class_histogram.py"),
    "finetune": (*CORE, *GENERATOR, *STEP, "stages/finetune.py", "training/precision.py", "training/residency.py"),
    "choose-sampler": (*CORE, *GENERATOR, "generators/sampler.py", "metrics/downstream.py", "training/classifier.py"),
}


@pytest.fixture
def config(tmp_path):
    config = tiny_config(tmp_path)
    config.class_histogram.enabled = config.warmup.enabled = config.sampler_choice.enabled = True
    return configs.check(config)


@pytest.mark.parametrize("name", COVERED)
def test_it_covers_what_the_mechanism_runs(config, monkeypatch, name):
    read, with_imports = set(), module.with_imports

    def noted(files):
        found = with_imports(files)
        read.update(str(file.relative_to(ROOT)) for file in found if file.is_relative_to(ROOT))
        read.update(f"configs/{file.name}" for file in found if file.parent == ROOT.parent / "configs")
        return found

    monkeypatch.setattr(module, "with_imports", noted)
    code_version(config, named(name))
    assert sorted({*COVERED[name]} - read) == []
