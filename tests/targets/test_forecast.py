"""`privimage forecast` as a user calls it."""

import importlib.util
import json

import pytest
from small_models import use_small_gan

from privimage_jax.cli import devices
from privimage_jax.configs import base
from privimage_jax.models import gan
from privimage_jax.targets import cost, forecast, topologies
from privimage_jax.targets.cache import Cache, default_folder
from privimage_jax.targets.facts import Facts

KEYS = {
    "target": str,
    "program": str,
    "devices": int,
    "precision": str,
    "fits": bool,
    "peak_bytes": int,
    "collectives": int,
    "model_flops": float,
    "bytes_moved": float,
    "kernels": float,
    "estimated_seconds": float,
}
PUBLIC = ("--config.data.n=60", "--public_n=60", "--public_classes=6")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed; the extra [targets] has it"
)
needs_cuda = pytest.mark.skipif(
    not topologies.cuda_plugins(), reason="jax's CUDA plugin is not installed; the extra [cuda] has it"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@needs_libtpu
def test_every_program_of_the_smallest_config_is_forecast_for_a_tpu(privimage, config, tmp_path):
    out = tmp_path / "rows.json"
    small = ("--config.model.name=small_models:SmallDenoiser", "--config.query_net.model=small_models:SmallClassifier")
    call = ("forecast", "--config", config, *PUBLIC, *small, "--target=v5e:2x4", "--out", out, "--price=1.2")
    said = privimage(*call, "--methods=vmap,nonprivate").succeeds().out
    rows = json.loads(out.read_text())
    assert [(row["program"], row["method"]) for row in rows] == [
        ("train-query", None),
        ("query", None),
        ("pretrain", None),
        ("finetune", "nonprivate"),
        ("finetune", "vmap"),
        ("sample", None),
    ]
    for row in rows:
        assert all(type(row[key]) is kind for key, kind in KEYS.items()), row
        assert row["target"] == "v5e:2x4" and row["devices"] == 8 and row["fits"]
        assert row["estimated_seconds"] == pytest.approx(row["estimated_cycles"] / 1.5e9)
        assert row["microbatch"] == (8 if row["program"] == "finetune" else None)
    plain, private = rows[3:5]
    assert plain["ratio_to_nonprivate"] == 1 and private["ratio_to_nonprivate"] > 1
    assert private["collectives"] == 1
    assert "estimates of the compiler, not measurements" in said
    assert "Estimated for the whole config" in said and "at 1.2 per device-hour" in said
    assert said.count("compiled in") == 6

    again = privimage(*call, "--methods=vmap,nonprivate").succeeds().out
    assert again.count("compiled before") == 6 and json.loads(out.read_text()) == rows
    other = privimage(*call, "--programs=sample", "--config.sample.steps=4").succeeds().out
    assert other.count("compiled in") == 1 and len(json.loads(out.read_text())) == 1


@needs_libtpu
def test_a_unet_compiles_for_a_tpu(tmp_path):
    config = base.get_config()
    config.data.image_size, config.data.channels = 8, 1
    config.model.kwargs.update({"nf": 8, "ch_mult": (1,), "attn": (), "num_blocks": 1})
    machine, cache = topologies.parse("v5e:2x4"), Cache(tmp_path)
    [row] = forecast.run(config, machine, Facts(1000, 3, 1000, 10), cache, names=("sample",))
    assert row["fits"] and row["collectives"] == 1 and row["estimated_cycles"] > 1e6  # 50 evaluations


@needs_libtpu
def test_the_private_step_of_a_gan_is_forecast_for_a_tpu(tmp_path, monkeypatch):
    monkeypatch.setattr(gan, "LEAST_BLOCKS", 2)
    config = use_small_gan(base.get_config())
    config.data.image_size, config.data.channels = 8, 1
    config.gan.attention, config.gan.batch_size = 0, 16
    config.pretrain.batch_size = config.finetune.batch_size = 16
    config.finetune.noise_multiplicity, config.clipping.microbatch = 1, 2
    machine, cache = topologies.parse("v5e:2x2"), Cache(tmp_path)
    [row] = forecast.run(config, machine, Facts(1000, 3, 1000, 10), cache, names=("finetune",))
    assert row["fits"] and row["estimated_cycles"] > 0 and row["model_flops"] > 0
    assert row["collectives"] == 3, "of the noised sum, and of the gradient and the loss of the generator"


@needs_cuda
def test_a_program_compiles_for_a_gpu_that_is_not_here(privimage, config, tmp_path):
    out = tmp_path / "rows.json"
    given = (*PUBLIC, "--target=h100:8", "--programs=finetune", "--methods=nonprivate,vmap")
    said = privimage("forecast", "--config", config, *given, "--out", out).succeeds().out
    plain, private = json.loads(out.read_text())
    assert private["collectives"] == 1 and private["estimated_cycles"] is None
    assert private["estimated_seconds"] >= private["bytes_moved"] / 3.352e12 and private["ratio_to_nonprivate"] > 1
    assert "s (at least)" in said


@needs_libtpu
def test_a_config_that_does_not_fit_is_refused_after_its_rows(privimage, config, tmp_path):
    out = tmp_path / "rows.json"
    call = ("forecast", "--config", config, "--target=v5e:1x1", "--out", out)
    refused = privimage(*call, *PUBLIC, "--programs=sample", "--config.sample.batch_size=200000000")
    refused.refuses("sample does not fit on v5e:1x1", "GB more than the 16.9 GB", "give a smaller config.sample.batch")
    [row] = json.loads(out.read_text())
    assert row["fits"] is False
    given = ("--config.data.n=60", "--public_n=500000000", "--public_classes=6", "--programs=train-query")
    privimage(*call, *given).refuses("train-query for v5e:1x1", "GiB of images on each device", "use more devices")


@needs_libtpu
def test_an_operation_that_a_tpu_does_not_have_is_named(privimage, config):
    given = (*PUBLIC, "--target=v5e:1x1", "--programs=query", "--config.query_net.model=targets_models:Eigenvalues")
    refused = privimage("forecast", "--config", config, *given)
    refused.refuses("query cannot be compiled for v5e:1x1", "the operation eig")


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        ([], ["--target is missing"]),
        (["--target=v9:2x2"], ["--target=v9:2x2", "v5e:2x4", "h100"]),
        (["--target=v5e:2x3"], ["--target=v5e:2x3", "2x4"]),
        (["--target=v5e:2x4", "--price=free"], ["--price=free"]),
        (["--target=v5e:2x4", "--price=-1"], ["--price=-1"]),
        (["--target=v5e:2x4", "--public_n=many"], ["--public_n=many"]),
        (["--target=v5e:2x4", "--out=nowhere/rows.json"], ["--out=nowhere/rows.json"]),
        (["--target=v5e:2x4", "--workdir=w"], ["'workdir'"]),
    ],
)
def test_bad_input_is_refused_before_jax_is_set_up(privimage, config, tmp_path, monkeypatch, arguments, culprits):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "start", lambda *_: pytest.fail("too late"))
    privimage("forecast", "--config", config, *arguments).refuses(*culprits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        (["--config.data.n=0"], ["config.data.n is 0"]),
        (["--public_n=0"], ["--public_n=0"]),
        (["--methods=ghost"], ["--methods: 'ghost'", "nonprivate, bookkeeping, vmap"]),
        (["--programs=ghost"], ["--programs: 'ghost'", "train-query, query, pretrain, finetune, sample"]),
    ],
)
def test_bad_input_is_refused_before_anything_compiles(privimage, config, monkeypatch, arguments, culprits):
    monkeypatch.setattr(topologies, "check_installed", lambda machine: None)
    monkeypatch.setattr(topologies, "devices", lambda machine: pytest.fail("too late"))
    privimage("forecast", "--config", config, "--target=v5e:2x4", *PUBLIC, *arguments).refuses(*culprits)


def test_a_missing_compiler_says_what_to_install(privimage, config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    call = ("forecast", "--config", config, *PUBLIC)
    privimage(*call, "--target=v5e:2x4").refuses("needs libtpu", "[targets]")
    privimage(*call, "--target=h100:8").refuses("needs jax's CUDA plugin", "[cuda]")


def row(**changes):
    found = {
        "target": "h100:8",
        "program": "finetune",
        "method": "bookkeeping",
        "devices": 8,
        "fits": True,
        "peak_bytes": 10**9,
        "memory_bytes": 2 * 10**9,
        "total_seconds": 3600.0,
        "lower_bound": True,
        "remedy": "give a smaller config.clipping.microbatch",
    }
    return {**found, **changes}


def test_the_summary_counts_the_configs_own_method():
    rows = [row(method="nonprivate", total_seconds=9.0), row(method="vmap"), row(total_seconds=7200.0)]
    rows.append(row(program="sample", method=None, total_seconds=60.0))
    said = forecast.summary(rows, "bookkeeping", price=2.0)
    assert "finetune 2.0 h, sample 60 s; in all at least 2.0 h on 8 device(s), 16.13 device-hours" in said
    assert "at least 32.27 at 2 per device-hour" in said
    assert "finetune 60.0 min" in forecast.summary(rows[:2], "bookkeeping")  # a private one, where its own is missing
    assert "in all unknown" in forecast.summary([row(total_seconds=None)], "vmap")


def test_what_does_not_fit_says_by_how_much():
    forecast.check_fits([row()])
    with pytest.raises(
        forecast.UserError, match=r"needs 3\.0 GB, 1\.0 GB more than the 2\.0 GB .*clipping\.microbatch"
    ):
        forecast.check_fits([row(), row(fits=False, peak_bytes=3 * 10**9)])
    with pytest.raises(forecast.UserError, match=r"more than the 2\.0 GB of a device"):
        forecast.check_fits([row(fits=False, peak_bytes=None)])


def test_a_batch_that_does_not_divide_is_told(config, tmp_path, monkeypatch):
    from pipelines import tiny_config

    monkeypatch.setattr(topologies, "check_installed", lambda machine: None)
    monkeypatch.setattr(topologies, "devices", lambda machine: [None])
    found = cost.Estimate(1, False, 1, 1.0, 1.0, 1.0, None, None, 1.0, 1.0)
    monkeypatch.setattr(forecast, "estimate", lambda *_: found)
    tiny, facts = tiny_config(tmp_path), Facts(60, 3, 60, 6)
    machine = topologies.parse("v5e:4x4")
    [told] = forecast.run(tiny, machine, facts, Cache(tmp_path), names=("pretrain",))
    assert "config.pretrain.batch_size=8 does not divide over 16 devices" in told["note"]
    tiny.pretrain.batch_size = 32
    [told] = forecast.run(tiny, machine, facts, Cache(tmp_path), names=("pretrain",))
    assert told["note"] is None


def test_the_cache_lies_where_the_user_has_caches(monkeypatch, tmp_path):
    assert default_folder().parts[-2:] == ("privimage", "forecast")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "privimage" / "forecast"


def test_a_damaged_record_is_no_record(tmp_path, monkeypatch):
    from pipelines import tiny_config

    from privimage_jax.targets import programs

    machine, cache = topologies.parse("v5e:2x4"), Cache(tmp_path / "cache")
    [program] = programs.make(tiny_config(tmp_path), Facts(60, 3, 60, 6), machine, ("vmap",), ("sample",))
    found = cost.Estimate(1, False, 1, 1.0, 1.0, None, None, None, 1.0, 1.0)
    assert cache.get(program, machine) is None
    cache.put(program, machine, found)
    assert cache.get(program, machine) == found
    assert cache.get(program, topologies.parse("v5e:4x4")) is None
    [file] = (tmp_path / "cache").glob("*.json")
    file.write_text("{}")
    assert cache.get(program, machine) is None
