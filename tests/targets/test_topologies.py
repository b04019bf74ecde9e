"""Which machines `--target` can mean."""

import importlib.util

import pytest

from privimage_jax.errors import UserError
from privimage_jax.targets import gpus, topologies, tpus

HERE = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not HERE, reason="libtpu is not installed; the extra [targets] has it")


@pytest.mark.parametrize(
    ("text", "platform", "devices"),
    [
        ("v5e:2x4", "tpu", 8),
        ("v5e:1x1", "tpu", 1),
        ("v5e:4x4", "tpu", 16),
        ("v6e:2x2", "tpu", 4),
        ("v5p:2x2x1", "tpu", 4),
        ("h100:8", "gpu", 8),
        ("h200:16", "gpu", 16),
        ("l4", "gpu", 1),
    ],
)
def test_machines_by_name(text, platform, devices):
    machine = topologies.parse(text)
    assert (machine.platform, machine.devices) == (platform, devices)
    assert (machine.clock is None) == (platform == "gpu")
    assert machine.memory > 2**33 and machine.peaks["bfloat16"] > machine.peaks["tf32"] > machine.peaks["float32"]


@pytest.mark.parametrize(
    ("text", "culprits"),
    [
        ("v9:2x2", ["v9:2x2", "v5e:2x4", "v5p:2x2x2", "h100", "l4"]),
        ("", ["is not known"]),
        (":8", ["is not known"]),
        ("v5e", ["v5e", "2x4"]),
        ("v5e:3x3", ["v5e:3x3", "1x1, 2x2, 2x4"]),
        ("v5p:2x4", ["v5p:2x4", "2x2x1"]),
        ("h100:x", ["h100:x", "h100:8"]),
        ("h100:0", ["h100:0", "1 to 8"]),
        ("h100:12", ["h100:12", "a multiple of 8"]),
    ],
)
def test_what_is_no_machine_is_refused_with_those_that_are(text, culprits):
    with pytest.raises(UserError) as refusal:
        topologies.parse(text)
    assert all(culprit in str(refusal.value) for culprit in culprits), refusal.value


def test_a_file_describes_a_gpu(tmp_path):
    file = tmp_path / "mine.txtpb"
    file.write_text(gpus.describe(gpus.GPUS["a100"]))
    mine, named = topologies.parse(f"{file}:4"), topologies.parse("a100:4")
    assert (mine.devices, mine.memory, mine.bandwidth) == (4, named.memory, named.bandwidth)
    assert mine.description == named.description
    for precision, peak in named.peaks.items():  # derived from cores and clock, not from a data sheet
        assert mine.peaks[precision] == pytest.approx(peak, rel=0.01)


def test_a_wrong_description_is_refused(tmp_path):
    file = tmp_path / "mine.txtpb"
    file.write_text("core_count: 10")
    with pytest.raises(UserError, match="says no device_memory_size"):
        topologies.parse(str(file))
    with pytest.raises(UserError, match="cannot be read"):
        topologies.parse(str(tmp_path))


def test_a_compiler_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs libtpu.*\[targets\]"):
        topologies.check_installed(topologies.parse("v5e:2x4"))
    with pytest.raises(UserError, match=r"CUDA plugin.*\[cuda\]"):
        topologies.check_installed(topologies.parse("h100:8"))


@pytest.mark.parametrize(("found", "told"), [([], True), (["/dev/accel0"], False)])
def test_libtpu_is_told_that_there_is_no_tpu_only_where_none_is(monkeypatch, found, told):
    monkeypatch.setattr(topologies.glob, "glob", lambda pattern: found)
    monkeypatch.setattr(topologies.os, "environ", {"TPU_WORKER_HOSTNAMES": "mine"})
    topologies.quieten_libtpu()
    assert ("TPU_SKIP_MDS_QUERY" in topologies.os.environ) == told
    assert topologies.os.environ["TPU_WORKER_HOSTNAMES"] == "mine"


@needs_libtpu
@pytest.mark.parametrize("name", tpus.TPUS)
def test_libtpu_knows_every_shape(name):
    for shape in tpus.TPUS[name].shapes:
        machine = topologies.parse(f"{name}:{shape}")
        devices = topologies.devices(machine)
        assert len(devices) == machine.devices and devices[0].platform == "tpu"
