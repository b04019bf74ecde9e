"""Stages from elsewhere, and what their records allow: what no record declares can neither spend nor be published."""

import dataclasses
import json

import pytest
from guides import extended
from pipelines import CLASSES, run, tiny_config

from privimage_jax import config as configs
from privimage_jax.configs import base
from privimage_jax.errors import UserError
from privimage_jax.privacy import accounting, verification
from privimage_jax.privacy.ledger import Ledger
from privimage_jax.run import publication, stage
from privimage_jax.run.inputs import make_inputs
from privimage_jax.run.mechanism import Mechanism
from privimage_jax.run.plan import describe, make_plan
from privimage_jax.run.stage import STAGES, all_stages, named
from privimage_jax.storage.fingerprints import fingerprint, jsonable
from privimage_jax.storage.workdir import Workdir

pytestmark = pytest.mark.usefixtures("programs_kept")

BEFORE_METHODS = {  # digests of the settings of configs/base.py, as the version before there were methods recorded them
    "train-query": "26f7239ef2a975e3",
    "query": "143395f7b7234644",
    "class-histogram": "8ad9e049ea01ab9e",
    "select": "0b285cc10f210e42",
    "pretrain": "916578716143569b",
    "finetune": "4d87e13bb821bf32",
    "choose-sampler": "a3c45d3339e5c3ba",
    "sample": "1752f786d74c8f2c",
    "evaluate": "65c43007149dfab0",
}


@pytest.mark.parametrize("name", BEFORE_METHODS)
def test_records_of_the_version_before_methods_still_hold(name):
    assert fingerprint(named(name).settings(base.get_config())).startswith(BEFORE_METHODS[name])


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("pretrain", "pretrain.perturbation", 0.5),
        ("pretrain", "warmup.enabled", True),
        ("finetune", "warmup.enabled", True),
        ("evaluate", "evaluate.pretrained", True),
    ],
)
def test_what_is_no_longer_neutral_is_recorded(name, key, value):
    config = base.get_config()
    assert key not in named(name).settings(config)
    config.update_from_flattened_dict({key: value})
    assert named(name).settings(config)[key] == value


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The smallest experiment with the guide's mechanism."""
    config = extended("A mechanism", "brightness", tmp_path, monkeypatch)
    config.privacy.accountant, config.privacy.epsilon, config.evaluate.enabled = "rdp", 3.0, False
    return config


def test_a_mechanism_from_elsewhere_is_planned_spent_and_published(config, tmp_path):
    workdir = run(config, tmp_path / "run")
    noisy = json.loads((workdir.release / "brightness.json").read_text())["bright"]
    assert len(noisy) == CLASSES and all(type(each) is int for each in noisy)
    ledger = Ledger.open(workdir.ledger)
    (line,) = (each for each in ledger.entries if each.get("mechanism") == "brightness count" and "epsilon" in each)
    assert (line["noise_multiplier"], line["l2_sensitivity"]) == (5.0, 1.0)
    assert ledger.entries[0]["mechanisms"] == ["semantic query", "brightness count", "DP-SGD fine-tuning"]
    verification.verify(ledger, finished=True)


def test_its_share_is_reserved(config, monkeypatch):
    import brightness

    named_noise = dataclasses.replace(brightness.STAGE.mechanism, symbol="tau")
    monkeypatch.setattr(brightness, "STAGE", dataclasses.replace(brightness.STAGE, mechanism=named_noise))
    paid = make_plan(configs.check(config), 60)
    assert "brightness count: tau = 5" in describe(paid, config)
    config.extra.brightness.enabled = False
    assert make_plan(config, 60).finetune_noise < paid.finetune_noise


def test_samples_of_a_mechanism_from_elsewhere_are_planned(config, monkeypatch):
    """Its settings say how large and how many they are; what is none, or larger than the set, is told."""
    import brightness

    sampled = dataclasses.replace(
        brightness.STAGE.mechanism, sample_size="extra.brightness.size", samples="extra.brightness.samples"
    )
    monkeypatch.setattr(brightness, "STAGE", dataclasses.replace(brightness.STAGE, mechanism=sampled))
    with pytest.raises(UserError, match="config.extra.brightness.size is missing, which brightness:STAGE"):
        make_plan(configs.check(config), 60)
    config.extra.brightness.size, config.extra.brightness.samples = 15, 8
    plan = make_plan(configs.check(config), 60)
    assert plan.reserved["brightness count"] == accounting.SampledGaussian(5.0, 0.25, 8)
    assert set(stage.reserved(config)) >= {"extra.brightness.size", "extra.brightness.samples"}
    for wrong, culprit in ((61, "size=61 is larger than the N=60"), (0, "size=0 is not accepted"), (True, "size=True")):
        with config.ignore_type():
            config.extra.brightness.size = wrong
        with pytest.raises(UserError, match=f"config.extra.brightness.{culprit}"):
            make_plan(config, 60)


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"name": "query"}, "has the name 'query' of another"),
        ({"writes": ("release/synthetic.npz",)}, "has the artefact 'release/synthetic.npz' of another"),
        ({"writes": ("release/../counts.json",)}, "writes 'release/../counts.json'; give a path in"),
        ({"mechanism": named("query").mechanism}, "has the mechanism 'semantic query' of another"),
        ({"after": "nothing"}, "follows 'nothing'; give one of train-query"),
        ({"after": "evaluate"}, "publishes after evaluate, which looks at sensitive images without noise"),
        ({"mechanism": None, "writes": (), "depends_on": ("held_out",)}, "without noise before all is published"),
        ({"mechanism": stage.Mechanism("x", "extra.brightness.enabled")}, "names no setting for its noise"),
        ({"mechanism": stage.Mechanism("x", "extra.on", "extra.noise")}, "config.extra.on is missing"),
    ],
)
def test_a_record_that_does_not_fit_is_told(config, monkeypatch, change, culprit):
    import brightness

    monkeypatch.setattr(brightness, "STAGE", dataclasses.replace(brightness.STAGE, **change))
    with pytest.raises(UserError, match=culprit):
        all_stages(config)


@pytest.mark.parametrize(("before", "now"), [("person", "image"), ("image", "person")])
def test_a_run_that_goes_on_with_another_unit_is_told_both(before, now):
    """The value `image` is in no record, so that those of the time before there was a unit hold."""
    records = {}
    for unit in (before, now):
        config = base.get_config()
        config.privacy.unit = unit
        records[unit] = jsonable(named("finetune").settings(config))
    said = f"with config.privacy.unit={before!r}, which is now {now!r}; restore that"
    assert stage.difference(records[before], records[now]) == said
    assert not stage.difference(records[now], records[now])


def test_all_is_published_before_a_stage_looks_without_noise():
    """Its failure, or how long it takes, would decide whether an artefact is there."""
    looking = [number for number, one in enumerate(STAGES) if one.sees_without_noise]
    assert [STAGES[number].name for number in looking] == ["evaluate"]
    assert not any(one.published for one in STAGES[looking[0] :])


@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("nowhere:STAGE", "cannot be loaded"),
        ("brightness:count", "is of type function"),
        ("brightness", "is not accepted"),
        (7, "is not accepted"),
    ],
)
def test_a_name_that_stands_for_no_record_is_told(config, name, culprit):
    config.extra_stages = (name,)
    with pytest.raises(UserError, match=culprit):
        all_stages(configs.check(config))


@pytest.mark.parametrize("argument", ["path", "cache", "workdir", "data_dir"])
@pytest.mark.parametrize(("name", "section"), [("finetune", "model"), ("train-query", "query_net")])
def test_an_argument_of_a_model_counts_whatever_its_name(tmp_path, name, section, argument):
    """Audit: only of data sources is it a place; their digest says what lies there."""
    config = tiny_config(tmp_path)
    with config[section].kwargs.unlocked():
        config[section].kwargs[argument] = "here"
    assert named(name).settings(config)[f"{section}.kwargs.{argument}"] == "here"


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan"), "much"])
def test_noise_that_is_none_is_told(config, noise):
    with config.ignore_type():
        config.extra.brightness.noise_multiplier = noise
    with pytest.raises(UserError, match="config.extra.brightness.noise_multiplier=.* is not accepted"):
        all_stages(config)


def test_a_mechanism_whose_record_does_not_name_the_unit_is_refused(config):
    """Its sensitivity is that of an image."""
    config.privacy.unit = "person"
    with pytest.raises(UserError, match="unit=person is no unit of the mechanism .*, whose record has image;"):
        all_stages(config)
    config.extra.brightness.enabled = False
    assert all_stages(config)


@pytest.mark.parametrize("name", [one.name for one in STAGES if one.mechanism])
def test_workdirs_of_earlier_versions_go_on_with_the_unit_image(tmp_path, name):
    """Which no setting named: the fingerprint of what spends is the same without it, and another with a person."""
    config = tiny_config(tmp_path)
    assert "privacy.unit" not in named(name).settings(config)
    config.privacy.unit = "person"
    assert named(name).settings(config)["privacy.unit"] == "person"


def inputs_of(config, tmp_path, name):
    inputs = make_inputs(configs.check(config), Workdir(tmp_path / "run"))
    inputs.workdir.create()
    return inputs.of(named(name, config))


@pytest.mark.parametrize("name", [one.name for one in STAGES if one.mechanism is None])
def test_a_stage_without_a_mechanism_cannot_spend(tmp_path, name):
    with pytest.raises(UserError, match=f"the stage {name} declares no mechanism"):
        Mechanism(inputs_of(tiny_config(tmp_path), tmp_path, name))


def test_a_mechanism_that_the_config_does_not_run_cannot_spend(tmp_path):
    config = tiny_config(tmp_path)
    config.privacy.accountant = "rdp"
    mechanism = Mechanism(inputs_of(config, tmp_path, "class-histogram"))
    with pytest.raises(UserError, match="class histogram is not part of the privacy plan"):
        mechanism.spend("gaussian", noise_multiplier=1.0, key_generation=0)
    assert not mechanism.ledger.entries


@pytest.mark.parametrize(("name", "artefact"), [("select", "generator"), ("sample", "sampler.json"), ("report", "x")])
def test_a_stage_publishes_what_its_record_names_alone(tmp_path, name, artefact):
    inputs = inputs_of(tiny_config(tmp_path), tmp_path, name)
    with pytest.raises(UserError, match=f"the stage {name} does not declare '{artefact}'"):
        publication.publish(inputs, artefact, lambda path: pytest.fail("written"))
