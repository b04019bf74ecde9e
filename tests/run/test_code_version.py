"""What a replay's identity covers: the code that determines what each mechanism sees and does."""

import pathlib
import sys
from importlib import metadata

import pytest
from pipelines import tiny_config

from privimage_jax import config as configs
from privimage_jax.run import code_version as module
from privimage_jax.run.code_version import code_version
from privimage_jax.run.source_files import ROOT
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


NET = "class Net:\n    pass\n"
LAYOUTS = {  # import string -> the files, of which the last one decides what a network computes
    "mine.net:Net": {"mine/__init__.py": "", "mine/net.py": NET, "mine/parts/found_at_run_time.py": "x = 1\n"},
    "loose:Net": {"loose.py": f"def f():\n    import helper\n{NET}", "helper.py": "x = 1\n"},
    "bare.net:Net": {"bare/net.py": f"from .helper import x\n{NET}", "bare/helper.py": "x = 1\n"},
    "loose:Far": {
        "loose.py": "from mine.net import Net as Far\n",
        "mine/__init__.py": "",
        "mine/net.py": f"from helper import x\n{NET}",
        "helper.py": "x = 1\n",
    },
}


@pytest.fixture
def version_of(config, tmp_path, monkeypatch):
    """The version of fine-tuning's code with a model from elsewhere, as a new process finds it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def version(name):
        for each in list(sys.modules):
            if each.partition(".")[0] in ("mine", "loose", "bare", "helper"):
                monkeypatch.delitem(sys.modules, each)
        config.model.name = name
        return code_version(config, named("finetune"))

    return version


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_files_of_a_model_from_elsewhere_count(version_of, tmp_path, name):
    """Audit: only the file of the import string did."""
    for path, code in LAYOUTS[name].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(code)
    before = version_of(name)
    (tmp_path / pathlib.Path(path).parent / "notes.txt").write_text("no code")
    assert version_of(name) == before
    (tmp_path / path).write_text("x = 2\n")
    assert version_of(name) != before


@pytest.mark.parametrize("library", ["dp-accounting", "scipy", "PyYAML"])
def test_versions_of_libraries_count(version_of, tmp_path, monkeypatch, library):
    """Those that compute or count the budget, and what a model from elsewhere imports."""
    (tmp_path / "loose.py").write_text(f"import yaml\n{NET}")
    before, version = version_of("loose:Net"), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: version(name) + "+" * (name == library))
    monkeypatch.setattr(module, "library_versions", module.library_versions.__wrapped__)
    assert version_of("loose:Net") != before
