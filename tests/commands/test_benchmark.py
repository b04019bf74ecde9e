"""`privimage benchmark`: what is measured is what is said, and mistakes are named before anything runs."""

import dataclasses
import functools
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from privimage_jax.cli import benchmark, devices
from privimage_jax.commands.benchmark import measuring, peers, problems, programs, torch_twin
from privimage_jax.configs import base
from privimage_jax.privacy import chacha, clipping, dp_sgd, sampling
from privimage_jax.training.mesh import make_mesh

FIELDS = {
    "method": str,
    "batch_size": int,
    "noise_multiplicity": int,
    "precision": str,
    "computes_in": str,
    "devices": int,
    "seconds_median": float,
    "seconds_spread": float,
    "examples_per_second": float,
}
HERE = [name for name in peers.MODULES if not peers.missing(name)]


@functools.cache
def problem_of(name="pipelines:Denoiser", **kwargs):
    """A batch of 6 with 2 draws, for a network whose parameters are random.

    (In a UNet's own start the last layers are 0, and hide what is before them.)
    """
    config = base.get_config()
    config.data.image_size, config.data.channels, config.data.class_names = 7, 1, ("a", "b", "c")
    config.model.name, config.model.kwargs = name, ConfigDict(kwargs)
    config.clipping.microbatch = 6
    first = problems.make_problem(config, 6, 2, "float32")
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), first.params)
    return problems.make_problem(config, 6, 2, "float32", params)


def test_the_help_names_every_method():
    assert not [name for name in measuring.METHODS if not re.search(rf"\b{name}\b", benchmark.COMMAND.help)]


def test_the_table_and_the_file_hold_every_method(privimage, config, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    monkeypatch.setattr(peers, "missing", lambda name: None if name == "optax" else f"{name} is not here.")
    out = tmp_path / "rows.json"
    given = (
        "--batch_sizes",
        "4",
        "--noise_multiplicities=2",
        "--precisions=float32",
        "--repeats=3",
        "--config.data.n=60",
    )
    model = "--config.model.name=small_models:SmallDenoiser"
    said = privimage("benchmark", "--config", config, *given, model, "--out", out).succeeds().out
    rows = {(row["method"], row["devices"]): row for row in json.loads(out.read_text())}
    expected = {(method, devices) for method in measuring.SCALED for devices in (1, 2)}
    assert rows.keys() == expected | {("nonprivate_best", 1), ("sampling", 1), ("optax", 1)}
    for row in rows.values():
        assert all(type(row[name]) is kind for name, kind in FIELDS.items()), row
        assert (row["batch_size"], row["noise_multiplicity"], row["precision"], row["repeats"]) == (4, 2, "float32", 3)
        assert row["peak_bytes"] > 0 and row["compile_seconds"] > 0 and row["seconds_spread"] >= 0
        baseline = rows["nonprivate", row["devices"]]["seconds_median"]
        assert row["ratio_to_nonprivate"] == pytest.approx(row["seconds_median"] / baseline)
        assert row["examples_per_second"] == pytest.approx(4 / row["seconds_median"])
        assert (row["model_flops_utilisation"] is None) == (row["method"] == "sampling")
    vmap, apart, peer = rows["vmap", 1], rows["vmap", 2], rows["optax", 1]
    assert vmap["ratio_to_optax"] == pytest.approx(vmap["seconds_median"] / peer["seconds_median"])
    assert apart["ratio_to_optax"] is None and vmap["ratio_to_opacus"] is None
    assert apart["speedup_over_one_device"] == pytest.approx(vmap["seconds_median"] / apart["seconds_median"])
    assert "K = 2, float32" in said and "nonprivate_best" in said and "opacus is not here." in said


def test_every_combination_is_measured_and_written(privimage, config, tmp_path, monkeypatch):
    def measure(problem, n, device_counts, repeats, rate, methods):
        assert methods == {"nonprivate", "bookkeeping", "optax"}
        row = {"batch_size": problem.batch_size, "noise_multiplicity": problem.noise_multiplicity, "n": n}
        return measuring.Result([row], [])

    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(measuring, "show", lambda result: None)
    out, lists = tmp_path / "rows.json", ("--batch_sizes=8,64,8", "--noise_multiplicities=1,3", "--precisions=float32")
    methods = "--methods=bookkeeping,optax"
    privimage("benchmark", "--config", config, *lists, methods, "--out", out).succeeds()
    rows = [(row["batch_size"], row["noise_multiplicity"]) for row in json.loads(out.read_text())]
    assert rows == [(8, 1), (8, 3), (64, 1), (64, 3)]


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        (["--precisions=float16"], ["--precisions: 'float16'", "float32, tf32, bfloat16"]),
        (["--precisions="], ["--precisions: ''"]),
        (["--batch_sizes=0"], ["--batch_sizes=0", "whole numbers from 1"]),
        (["--batch_sizes=8,"], ["--batch_sizes=8,"]),
        (["--batch_sizes=61", "--config.data.n=60"], ["--batch_sizes: 61", "config.data.n=60"]),
        (["--noise_multiplicities=-1"], ["--noise_multiplicities=-1"]),
        (["--noise_multiplicities=two"], ["--noise_multiplicities=two"]),
        (["--repeats=2,3"], ["--repeats=2,3", "one number"]),
        (["--out=nowhere/rows.json"], ["--out=nowhere/rows.json", "No such file or directory"]),
        (["--out=."], ["--out=.", "Is a directory"]),
        (["--out=file/rows.json"], ["--out=file/rows.json", "Not a directory"]),
        (["--workdir=w"], ["'workdir'"]),
    ],
)
def test_bad_input_is_refused_before_jax_is_set_up(privimage, config, tmp_path, monkeypatch, arguments, culprits):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(devices, "start", lambda *_: pytest.fail("too late"))
    privimage("benchmark", "--config", config, *arguments).refuses(*culprits)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unknown_method_is_refused(privimage, config):
    refused = privimage("benchmark", "--config", config, "--methods=ghost")
    refused.refuses("--methods: 'ghost' is not known", "bookkeeping, vmap")


def test_a_model_without_the_dtype_is_refused(privimage, config):
    given = ("--precisions=bfloat16", "--batch_sizes=4")
    privimage("benchmark", "--config", config, *given).refuses("takes no argument dtype", "config.model.kwargs")


def test_a_missing_peer_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert peers.missing("opacus") == (
        "opacus is left out, as torch and opacus cannot be imported; install the extra: "
        'pip install --constraint constraints.txt --editable ".[peers]".'
    )


def test_the_steps_have_the_expected_number_of_records():
    key = chacha.key_from_seed(0)
    steps = measuring.full_steps(key, 53, 12, 4)
    assert len(set(steps)) == 4
    counts = [int(sampling.membership(key, t, 53, sampling.threshold(12, 53)).sum()) for t in range(max(steps) + 1)]
    assert [t for t, count in enumerate(counts) if count == 12] == steps


@pytest.mark.parametrize("devices", [1, 2])
def test_the_nonprivate_step_is_the_private_one_less_clipping_and_noise(devices):
    """With a bound that no gradient reaches and without noise, both are the same."""

    def loss(params, batch, keys):
        return 0.5 * (batch["x"] @ params["w"] - jax.vmap(jax.random.normal)(keys)) ** 2

    settings = dp_sgd.DPSGD(n=53, batch_size=12, clip_norm=1e6, noise_multiplier=0.0, microbatch=3)
    state = {"params": {"w": np.linspace(-1, 1, 4, dtype=np.float32)}}
    data = {"x": np.random.default_rng(0).standard_normal((53, 4), np.float32)}
    mesh = make_mesh(jax.devices()[:devices])
    results = [
        jax.jit(make(loss, lambda state, gradient: gradient, settings, mesh))(
            state, data, chacha.key_from_seed(1), jax.random.key(2), 3
        )
        for make in (dp_sgd.dp_step, programs.nonprivate_step)
    ]
    np.testing.assert_allclose(results[1][0]["w"], results[0][0]["w"], rtol=1e-5)
    np.testing.assert_allclose(results[1][1]["loss"], results[0][1]["loss"], rtol=1e-5)
    assert results[1][1]["drawn"] == results[1][1]["processed"] == results[0][1]["drawn"]


@pytest.mark.parametrize("microbatch", [2, 6])
def test_the_best_nonprivate_step_is_the_gradient_of_the_mean_loss(microbatch):
    problem = problem_of()
    batch, key = problems.random_data(problem, 6), jax.random.key(1)

    def mean_loss(params):
        return problem.loss(params, batch, jax.random.split(key, 6)).mean()

    own = types.SimpleNamespace(batch_size=6, update=lambda: lambda state, gradient: {"gradient": gradient})
    got, _ = jax.jit(programs.plain_step(own, problem.loss, microbatch))({"params": problem.params}, batch, key)
    expected = jax.jit(jax.grad(mean_loss))(problem.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), got["gradient"], expected)


@pytest.mark.parametrize(("precision", "products"), [("float32", "HIGHEST"), ("tf32", "HIGH"), ("bfloat16", "DEFAULT")])
@pytest.mark.parametrize("method", ["nonprivate", "bookkeeping", "vmap", *sorted({*HERE} & {*peers.JAX_PEERS})])
def test_every_method_computes_in_the_precision_of_the_setting(monkeypatch, precision, products, method):
    def look(function, *inputs):
        text = function.lower(*inputs).as_text()
        found = re.findall(r"(?:dot_general|convolution)\b.*?precision(?:_config)? = \[[^\]]*?(\w+)>?\]", text)
        assert found and set(found) == {products}
        raise InterruptedError

    monkeypatch.setattr(programs, "compile_step", look)
    problem = problems.in_precision(problem_of(), precision)
    with pytest.raises(InterruptedError):
        if method in peers.MODULES:
            programs.peer_step(method, problem)
        else:
            data = problems.random_data(problem, 20)
            programs.own_step(problem, method, data, 20, 1, chacha.key_from_seed(0))


def test_xlas_own_convolution_is_not_tried_inside_a_loop_on_cpus(monkeypatch):
    tried = []
    step = programs.plain_step
    monkeypatch.setattr(programs, "plain_step", lambda *a: tried.append((a[2], a[1] is a[0].loss)) or step(*a))
    programs.best_nonprivate(dataclasses.replace(problem_of(), microbatch=2))
    assert sorted(tried) == [(1, False), (6, False), (6, True)]


def test_the_best_nonprivate_step_takes_the_precision_of_the_device():
    problem = problems.in_precision(problem_of("unet", nf=4, ch_mult=(1,), attn=(), num_blocks=0), "bfloat16")
    assert (problem.precision, problem.generator.model.dtype) == ("bfloat16", "bfloat16")
    assert problems.in_precision(problem, "float32").generator.model.dtype == "float32"
    built = problems.make_problem(problem.config, 6, 2, "bfloat16")
    assert problems.in_precision(built, "float32").generator.model.dtype == "float32", "as the setting says"
    assert problems.make_problem(built.config, 6, 2, "float32").generator.model.dtype == "float32"
    assert programs.best_nonprivate(problems.in_precision(problem_of(), "tf32")).precision == "float32"


@pytest.mark.skipif("torch_nonprivate" not in HERE, reason="PyTorch is not installed")
@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True), ("bfloat16", True)])
def test_pytorch_gets_the_same_precision(precision, allowed):
    import torch

    problem = problem_of("unet", nf=4, ch_mult=(1,), attn=(), num_blocks=1)
    torch_twin.TorchStep(problems.in_precision(problem, precision), private=False, memory=2**30)()
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (allowed, allowed)


def test_a_slow_method_is_run_once(monkeypatch):
    """All others in every round, and nothing of the first step but of the slow one."""
    ran, first = [], {"nonprivate": 1.0, "vmap": 11.0, "bookkeeping": 9.0}

    def fake(problem, method, *_):
        return programs.Entry(method, 1, lambda t: ran.append(method), 1.0, lambda: 1)

    def timed(run, t):
        run(t)
        return first[ran[-1]]

    monkeypatch.setattr(programs, "own_step", fake)
    monkeypatch.setattr(programs, "timed", timed)
    for name in ("best_nonprivate", "sampling_alone"):
        monkeypatch.setattr(programs, name, lambda *_: fake(None, "nonprivate"))
    monkeypatch.setattr(peers, "missing", lambda name: "not here.")
    rows = measuring.measure(problem_of(), 40, [1], 4, 1.0, set(measuring.METHODS)).rows
    assert ran.count("vmap") == 1 and ran.count("bookkeeping") == 5
    assert {row["method"]: row["repeats"] for row in rows} == {"nonprivate": 4, "bookkeeping": 4, "vmap": 1}


def test_work_is_counted_for_the_whole_batch():
    """Twice the microbatches are the same count of operations; the loop's rounds are not forgotten."""
    problem = problem_of()
    half = dataclasses.replace(problem, microbatch=problem.microbatch // 2)
    assert problems.model_flops(half) == pytest.approx(problems.model_flops(problem), rel=0.02)
    one = dataclasses.replace(problem, batch_size=problem.batch_size * 2)
    assert problems.model_flops(one) == pytest.approx(2 * problems.model_flops(problem), rel=1e-6)


def test_a_program_that_does_not_fit_is_left_out_with_a_sentence(monkeypatch):
    program = jax.jit(lambda x: x + 1).lower(jnp.zeros(1000)).compile()
    assert programs.checked_peak_bytes(program) >= 8000
    monkeypatch.setattr(programs.memory, "device_bytes", lambda: 7999)
    with pytest.raises(programs.DoesNotFit, match="it needs 0.0 GB of the device's 0.0 GB"):
        programs.checked_peak_bytes(program)


@pytest.mark.parametrize("name", HERE)
def test_a_peer_that_is_installed_trains(name):
    """Its parameters move by what one step of Adam moves them. For the twin of the UNet, this compares it as well."""
    problem = problem_of()
    if name in peers.TORCH_PEERS:
        assert "config.model.name=unet alone" in peers.unsuited(name, problem)
        # Every kind of layer, odd sides, and attention on the way down and up.
        problem = problem_of("unet", nf=4, ch_mult=(1, 2), attn=(4,), num_blocks=1)
        assert peers.unsuited(name, problem) is None
        step = torch_twin.TorchStep(problem, name == "opacus", memory=2**30)
        before = [weight.detach().clone() for weight in step.weights]
        step()
        moved = max(float((new - old).abs().max().detach()) for new, old in zip(step.weights, before, strict=True))
    else:
        batch = problems.random_data(problem, problem.batch_size)
        state, _ = jax.jit(peers.jax_step(name, problem))(problem.state(), batch, jax.random.key(0))
        moves = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), state["params"], problem.params)
        moved = max(jax.tree.leaves(moves))
    assert moved == pytest.approx(problem.learning_rate, rel=1e-2)


def test_every_clipping_method_is_measured():
    assert measuring.CLIPPING == ("bookkeeping", "vmap") and {*measuring.CLIPPING, "auto"} == {*clipping.METHODS}
