"""The forecast beside the measurement: of the same setting, or a sentence."""

import pytest

from privimage_jax.configs import base
from privimage_jax.errors import UserError
from privimage_jax.light import beside
from privimage_jax.targets import forecast, gpus, topologies, tpus


def measured():
    shared = {"batch_size": 64, "noise_multiplicity": 2, "precision": "tf32", "microbatch": 8, "kind": "benchmark"}
    return [
        {**shared, "method": method, "devices": devices, "seconds_median": seconds, "ratio_to_nonprivate": seconds / 2}
        for devices in (1, 4)
        for method, seconds in (("nonprivate", 2.0), ("bookkeeping", 3.0 / devices), ("sampling", 0.1))
    ]


def test_every_known_device_is_a_target():
    assert beside.target("TPU v5 lite") == "v5e:1x1" and beside.target("NVIDIA H100 80GB HBM3") == "h100:1"
    assert beside.target("cpu") is None
    for name in (*beside.TPU_TARGETS, *(gpu.title for gpu in gpus.GPUS.values())):
        assert topologies.parse(beside.target(name)).devices == 1
    assert {name.partition(":")[0] for name in beside.TPU_TARGETS.values()} == tpus.TPUS.keys()


def test_a_device_without_a_description_gets_a_sentence():
    (row,) = beside.run(base.get_config(), "Abacus", measured())
    assert row["kind"] == "note" and "'Abacus'" in row["text"]


def test_a_compiler_that_is_not_there_gets_a_sentence(monkeypatch):
    def refuse(machine):
        raise UserError("install the extra.")

    monkeypatch.setattr(topologies, "check_installed", refuse)
    (row,) = beside.run(base.get_config(), "NVIDIA L4", measured())
    assert row == {"kind": "note", "text": "There is no forecast: install the extra."}


def test_without_a_measurement_there_is_a_sentence():
    (row,) = beside.run(base.get_config(), "NVIDIA L4", [{"kind": "note", "text": "It does not fit."}])
    assert "nothing was measured" in row["text"]


def test_the_same_setting_is_forecast(monkeypatch):
    def run(config, machine, facts, cache, methods, names):
        assert (config.finetune.batch_size, config.finetune.noise_multiplicity, config.precision) == (64, 2, "tf32")
        assert (config.clipping.microbatch, machine.name, names) == (8, "l4:1", ("finetune",))
        return [{"method": method, "estimated_seconds": 1.0} for method in methods]

    monkeypatch.setattr(topologies, "check_installed", lambda machine: None)
    monkeypatch.setattr(forecast, "run", run)
    config = base.get_config()
    rows = list(beside.run(config, "NVIDIA L4", measured()))
    found = [(row["kind"], row["method"], row["measured_seconds"], row["measured_ratio"]) for row in rows]
    assert found == [("forecast", "nonprivate", 2.0, 1.0), ("forecast", "bookkeeping", 3.0, pytest.approx(1.5))]
    assert config.finetune.batch_size != 64
