"""What goes wrong while a run computes: public trouble stops it, private trouble is told, lack of memory is named."""

import json
import pathlib
import re
import resource
import shutil

import jax
import numpy as np
import pytest
from pipelines import release_bytes, run, tiny_config

from privimage_jax.configs import base
from privimage_jax.errors import UserError
from privimage_jax.run.inputs import make_inputs
from privimage_jax.run.mechanism import is_spent_on
from privimage_jax.run.stage import STAGES, named, value
from privimage_jax.stages import pretrain, train_query
from privimage_jax.stages.parts import preflight
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training import loop

pytestmark = pytest.mark.usefixtures("programs_kept")

EXHAUSTED = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A folder with the tiny data, and a run whose query is spent and whose public images are picked."""
    folder = tmp_path_factory.mktemp("asked")
    return folder, run(tiny_config(folder), folder / "run", last="select")


@pytest.fixture
def copy(asked, tmp_path):
    """A config of the tiny data and a workdir that may be changed."""
    folder, workdir = asked
    shutil.copytree(workdir.root, tmp_path / "run")
    return tiny_config(folder), tmp_path / "run"


@pytest.mark.parametrize(
    ("rate", "found"), [(1e30, "the loss of train-query is nan in the steps 1 to 2"), (1e3, "has diverged: its loss")]
)
def test_a_query_network_that_diverges_spends_nothing(asked, tmp_path, rate, found):
    config = tiny_config(asked[0])
    config.query_net.learning_rate = rate
    with pytest.raises(UserError, match=rf"{found}.*less than config\.query_net\.learning_rate=1"):
        run(config, tmp_path / "run", last="query")
    workdir = Workdir(tmp_path / "run")
    assert workdir.done_mark("train-query") is None and not workdir.ledger.exists()
    config.query_net.learning_rate = 0.01
    assert run(config, tmp_path / "run", last="train-query").done_mark("train-query")


def test_pre_training_that_diverges_keeps_what_the_query_spent(copy, capsys):
    config, folder = copy
    ledger = Workdir(folder).ledger.read_bytes()
    for rate, found in ((1e30, "is inf in the steps 1 to 2"), (10.0, "has diverged: the loss on its images was")):
        config.pretrain.learning_rate = rate
        with pytest.raises(UserError, match=rf"{found}.* less than config\.pretrain\.learning_rate=1"):
            run(config, folder, last="finetune")
        assert Workdir(folder).done_mark("pretrain") is None
    config.pretrain.learning_rate = 3e-4
    capsys.readouterr()
    workdir = run(config, folder, last="pretrain")
    assert workdir.done_mark("pretrain") and workdir.ledger.read_bytes() == ledger
    assert capsys.readouterr().out.count("skipped") == 3


@pytest.mark.parametrize(("stage", "module"), [("query", train_query), ("finetune", pretrain)])
def test_what_an_earlier_version_left_is_looked_at_again(asked, tmp_path, failing, monkeypatch, stage, module):
    """A network that is not finite reaches no mechanism, whatever its done mark says."""
    spending = named(stage).load().run
    failing("none", None)
    run(tiny_config(asked[0]), tmp_path / "run", last=module.STAGE.name)
    monkeypatch.setattr(named(stage).load(), "run", spending)
    monkeypatch.setattr(
        module, "restore_tree", lambda path, like: jax.tree.map(lambda x: np.full(x.shape, np.nan), like)
    )
    with pytest.raises(UserError, match=rf"internal/{module.STAGE.name}/.* holds a number that is not finite"):
        run(tiny_config(asked[0]), tmp_path / "run", last=stage)
    assert not Workdir(tmp_path / "run").ledger.exists()


def test_what_budget_was_spent_on_is_not_made_anew(copy):
    config, folder = copy
    inputs = make_inputs(config, Workdir(folder))
    assert {stage.name for stage in STAGES if is_spent_on(inputs, stage)} == {"train-query", "query"}


def test_fine_tuning_that_diverges_is_told_to_the_operator_alone(copy, capsys):
    config, folder = copy
    config.finetune.learning_rate = 1e30
    workdir = run(config, folder)
    out = capsys.readouterr().out
    assert "100% of the gradients are not finite" in out and "less than config.finetune.learning_rate=1e+30" in out
    assert out.index("gradients are not finite") < out.index("finetune  6/6"), "it was told while it happened"
    assert "all 12 released images look the same" in out
    page = (workdir.internal / "evaluation.html").read_text()
    assert "gradients are not finite" in page and "released images look the same" in page
    released = release_bytes(workdir)
    assert "synthetic.npz" in released
    assert not any(b"finite" in content or b"the same" in content for name, content in released.items())


@pytest.fixture
def failing(monkeypatch):
    """`failing("pretrain", error)`: that stage raises the error, and those before it do nothing."""

    def fail(name, error):
        def stop(inputs):
            raise error

        for stage in STAGES:
            monkeypatch.setattr(stage.load(), "run", stop if stage.name == name else lambda inputs: None)

    return fail


@pytest.mark.parametrize(
    ("stage", "error", "advice"),
    [
        ("train-query", EXHAUSTED, "give less than config.query_net.batch_size=20,"),
        ("query", EXHAUSTED, "use a machine or devices with more of it"),
        ("pretrain", MemoryError(), "(MemoryError); give less than config.pretrain.batch_size=8,"),
        ("finetune", EXHAUSTED, "(RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes. more); "),
        ("finetune", OSError(12, "Cannot allocate memory"), "use a machine or devices with more of it"),
        ("sample", ValueError("RESOURCE_EXHAUSTED, as somebody says"), None),
        ("sample", MemoryError(), "config.sample.batch_size=6 or config.sample.n=12,"),
        ("evaluate", MemoryError(), "config.evaluate.max_images=10000 or config.evaluate.classifier_batch_size=10,"),
    ],
)
def test_a_lack_of_memory_names_the_stage_and_what_to_lower(asked, tmp_path, failing, stage, error, advice):
    config = tiny_config(asked[0])
    config.clipping.microbatch = 0  # chosen: a batch of 20 makes it 1
    failing(stage, error)
    if advice is None:
        with pytest.raises(type(error)):
            run(config, tmp_path / "run")
        return
    with pytest.raises(UserError) as refused:
        run(config, tmp_path / "run")
    assert str(refused.value).startswith(f"memory ran out in the stage {stage} (")
    assert advice in str(refused.value)


@pytest.fixture(scope="module")
def spent(tmp_path_factory):
    """A config with every mechanism, and the workdir of a run in which all have spent."""
    folder = tmp_path_factory.mktemp("spent")
    config = tiny_config(folder)
    config.privacy.accountant, config.evaluate.enabled = "rdp", False
    config.class_histogram.enabled = config.warmup.enabled = config.sampler_choice.enabled = True
    config.warmup.subset_size, config.warmup.steps = 20, 4
    config.class_histogram.noise_multiplier = 4.0
    config.sampler_choice.noise_multiplier, config.sampler_choice.candidates = 6.0, (0.0, 1.0)
    workdir = run(config, folder / "run", last="choose-sampler")
    config.evaluate.enabled = True
    return config, workdir.root


def test_a_run_without_trouble_speaks_of_none(spent, tmp_path):
    workdir = run(spent[0], shutil.copytree(spent[1], tmp_path / "run"))
    assert not list(workdir.internal.rglob("trouble.json"))
    assert "What went wrong" not in (workdir.internal / "evaluation.html").read_text()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_what_a_lack_of_memory_advises_is_not_refused_as_spent(spent, tmp_path, failing, stage):
    config = spent[0].copy_and_resolve_references()
    workdir = Workdir(shutil.copytree(spent[1], tmp_path / "run"))
    workdir.clear_mark(stage.name)
    failing(stage.name, EXHAUSTED)
    with pytest.raises(UserError, match=f"memory ran out in the stage {stage.name} ") as refused:
        run(config, workdir.root, last=stage.name)
    advised = re.findall(r"config\.(\w+)\.(\w+)=(\d+)", str(refused.value))
    assert bool(advised) != ("use a machine or devices with more of it" in str(refused.value))
    for section, name, number in advised:
        config[section][name] = int(number) // 2
    failing("none", None)
    run(config, workdir.root, last=stage.name)


def test_what_to_lower_is_a_setting_of_the_stage():
    config = base.get_config()
    assert {type(value(config, key)) for stage in STAGES for key in stage.memory_settings} == {int}


@pytest.fixture
def little_memory():
    """Lets this process have 32 GiB of addresses more than it has, whatever the system would promise it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 35), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_memory_that_is_really_lacking(privimage, config, tmp_path, little_memory):
    command = ("train-query", "--config", config, "--workdir", tmp_path / "run")
    result = privimage(*command, "--config.query_net.batch_size=1000000000")
    result.refuses(
        "memory ran out in the stage train-query (RESOURCE_EXHAUSTED", "config.query_net.batch_size=1000000000"
    )


def test_memory_that_lacks_outside_a_stage_is_a_sentence(privimage, config, monkeypatch, tmp_path):
    def exhausted(*arguments):
        raise MemoryError

    monkeypatch.setattr(preflight, "check_models", exhausted)
    privimage("run", "--config", config, "--workdir", tmp_path / "run").refuses(
        "the memory does not suffice (MemoryError)"
    )


def test_a_smaller_microbatch_goes_on_where_memory_ran_out(copy, monkeypatch):
    """Although the first block was reserved before: other sums of the same numbers are no other computation."""
    config, folder = copy

    def exhausted(*arguments, before, **more):
        before(0, 1)
        raise EXHAUSTED

    run(config, folder, last="pretrain")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", exhausted)
        with pytest.raises(UserError, match=r"memory ran out in the stage finetune .*clipping\.microbatch=8,"):
            run(config, folder)
    config.clipping.microbatch = 4
    workdir = run(config, folder, last="finetune")
    lines = [json.loads(line) for line in workdir.ledger.read_text().splitlines()]
    assert [line["steps"] for line in lines if line["kind"] == "dp-sgd"] == [[0, 3], [3, 6]]
