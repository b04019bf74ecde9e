"""What was done to workdirs in an audit, by the command line: each is refused, bit-identical, or counted.

One run is observed: folders are copied off it as a snapshot, a backup or a kill would leave them.
"""

import dataclasses
import json
import pathlib
import re
import shutil

import jax
import pytest
from commands import in_process, write_config
from pipelines import release_bytes

from privimage_jax import main
from privimage_jax.privacy import sum_check
from privimage_jax.privacy.ledger import Ledger
from privimage_jax.run import inputs
from privimage_jax.storage import durable
from privimage_jax.storage.workdir import Workdir

pytestmark = pytest.mark.usefixtures("programs_kept")

STEPS, BLOCK = 6, 3
SETTINGS = (
    "--config.privacy.fixed_seed=-1",
    "--config.privacy.accountant=rdp",
    "--config.selection.method=none",
    "--config.pretrain.steps=0",
    "--config.class_histogram.enabled=True",
    f"--config.finetune.steps={STEPS}",
    f"--config.finetune.block={BLOCK}",
    "--config.evaluate.enabled=False",
    "--config.report.public_neighbours=False",
)
# A copy's name -> the durable step after which it is made, and how often that must have come.
SNAPSHOTS = {
    "before the ledger": ("renamed", "internal/class-histogram/started.json"),
    "before fine-tuning": ("renamed", "internal/done/class-histogram.json"),
    "first block": ("renamed", "internal/finetune/checkpoints/2"),
    "all reserved": ("renamed", "internal/finetune/checkpoints/4"),
    "all steps": ("renamed", f"internal/finetune/checkpoints/{STEPS}"),
}


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """A folder with a config file, the copies of `SNAPSHOTS`, the finished run, and the first copy finished as well."""
    folder = tmp_path_factory.mktemp("identity")
    write_config(folder, folder)
    run = folder / "finished"

    def copy(step, path):
        for name, place in SNAPSHOTS.items():
            if path.is_relative_to(run) and (step, str(path.relative_to(run))) == place:
                shutil.copytree(run, folder / name)

    def copy_other(step, path):
        if (step, path) == ("renamed", folder / "other" / "internal" / "finetune" / "checkpoints" / "2"):
            shutil.copytree(folder / "other", folder / "other before the end")

    with pytest.MonkeyPatch.context() as patch:
        in_process(patch)
        patch.setattr(durable, "observers", [copy])
        assert main.main(["privimage", *arguments(folder, run)]) == 0
        shutil.copytree(folder / "before the ledger", folder / "other")
        patch.setattr(durable, "observers", [copy_other])
        assert main.main(["privimage", *arguments(folder, folder / "other")]) == 0
    return folder


def arguments(folder, run):
    return ["run", "--config", str(folder / "tiny.py"), "--workdir", str(run), *SETTINGS]


@pytest.fixture
def copy(observed, tmp_path):
    """`copy(name) -> path`: a copy of one of the folders, to be spoilt."""
    return lambda name: pathlib.Path(shutil.copytree(observed / name, tmp_path / name.replace(" ", "_")))


@pytest.fixture
def resume(observed, privimage):
    """`resume(path) -> Result`: the same command on another folder."""
    return lambda path: privimage(*arguments(observed, path))


def put_back(path, other):
    """The ledger, and what remembers its end, of another folder."""
    for name in ("release/ledger.jsonl", "internal/ledger_head.json"):
        shutil.copy(other / name, path / name)


def lines(path):
    return Ledger.open(Workdir(path).ledger).entries


def test_reserved_steps_run_with_the_noise_of_the_ledger(observed, copy, resume, privimage, monkeypatch):
    """Finding 2: another dp-accounting solves another sigma2; the copy ends as the run that it was taken of.

    Which also makes it a copy, whose cost counts once.
    """
    path, make_plan, solved = copy("all reserved"), inputs.make_plan, []

    def solve_anew(*given):
        planned = make_plan(*given)
        solved.append(0.936 * planned.finetune_noise)
        return dataclasses.replace(planned, finetune_noise=solved[-1])

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "make_plan", solve_anew)
        resume(path).succeeds()
    assert solved and release_bytes(Workdir(path)) == release_bytes(Workdir(observed / "finished"))
    out = privimage("ledger", observed / "finished", path, "--verify").succeeds().out
    assert "are of one run, copies or earlier states of each other: it counts once" in out
    assert len(re.findall(r"(?:in all|together): epsilon = (9\.9\d+) ", out)) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_random_seed_offset", 1), ("jax_threefry_partitionable", False), ("jax_enable_x64", True)],
)
def test_copies_of_a_begun_run_under_another_jax_are_refused(copy, resume, name, value):
    """Finding 3: they ended with status 0, equal noise and other gradients."""
    path, before = copy("first block"), jax.config.values[name]
    left = release_bytes(Workdir(path))
    jax.config.update(name, value)
    try:
        result = resume(path)
    finally:
        jax.config.update(name, before)
    result.refuses(f"DP-SGD fine-tuning in {path} has spent budget on other inputs (changed: {name}); restore them")
    assert release_bytes(Workdir(path)) == left


def test_a_generator_of_jax_that_mixes_examples_is_named(copy, resume):
    path = copy("first block")
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        resume(path).refuses("JAX_DEFAULT_PRNG_IMPL=rbg draws the numbers of one example together")
    finally:
        jax.config.update("jax_default_prng_impl", "threefry2x32")


def test_a_checkpoint_ahead_of_the_ledger_is_refused(observed, copy, resume):
    """Finding 4: all steps were run, and the ledger stated the epsilon of half of them."""
    path = copy("all steps")
    put_back(path, observed / "first block")
    resume(path).refuses(f"the checkpoint of step {STEPS} is ahead of the ledger", f"the steps before {BLOCK}")


def test_a_checkpoint_of_another_run_is_refused(observed, copy, resume):
    """Same config, same step, another run: a ledger told of steps whose noise was that of another epsilon's."""
    path, other = copy("first block"), observed / "other before the end"
    ours, theirs = (folder / "internal" / "finetune" / "checkpoints" / "2" for folder in (path, other))
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours)
    resume(path).refuses(f"checkpoint {ours} is of another run than the ledger beside it tells of", "remove it, and")
    shutil.rmtree(ours)
    resume(path).succeeds()
    assert release_bytes(Workdir(path)) == release_bytes(Workdir(observed / "finished"))


@pytest.mark.parametrize("name", ["class_histogram.json", "generator/params.npz"])
def test_an_artefact_of_another_run_is_refused(observed, copy, resume, name):
    """It went into the report and the synthetic images as if this run had paid for it."""
    path = copy("finished")
    (path / "release" / "report.html").unlink()
    shutil.copy(observed / "other" / "release" / name, path / "release" / name)
    artefact = path / "release" / name.split("/")[0]
    resume(path).refuses(f"{artefact} is not what line", "restore it, or start a new workdir")


def test_the_ledger_of_another_run_is_refused(observed, copy, resume):
    """Finding 4: so it went with the ledger of any run of the same config."""
    path = copy("first block")
    put_back(path, observed / "other")
    resume(path).refuses("the stage class-histogram in", "was done under another ledger than")


def test_a_run_that_was_taken_back_and_run_again_is_told(observed, copy, resume, privimage):
    """Finding 4: the ledgers were equal to the byte, with other releases."""
    first, again = observed / "finished", copy("before fine-tuning")
    resume(again).succeeds()
    assert (
        release_bytes(Workdir(first))["generator/params.npz"] != release_bytes(Workdir(again))["generator/params.npz"]
    )
    result = privimage("ledger", first, again)
    result.refuses("are of one run, but went on apart", "they ran the DP-SGD fine-tuning 2 times", "count them all")
    drawn = ("computation", "artefacts", "previous")
    one, other = ([{**line, **dict.fromkeys(drawn)} for line in lines(folder)] for folder in (first, again))
    assert one == other, "but for what was drawn"


def test_a_device_that_does_not_add_reserves_no_step(copy, resume, monkeypatch):
    path = copy("before fine-tuning")
    before = lines(path)
    monkeypatch.setattr(sum_check, "error", lambda: 1e-7)
    resume(path).refuses("sums of gradients on this device are off by 1e-07, above 1e-10", "fast-math")
    assert lines(path) == before


def test_a_run_from_before_the_ledger_is_a_run_of_its_own(observed, privimage):
    one, other = observed / "finished", observed / "other"
    out = privimage("ledger", one, other, "--verify").succeeds().out
    assert "of one run" not in out and "together: epsilon = " in out
    assert lines(other)[0]["run"] != lines(one)[0]["run"]


def test_a_ledger_cut_short_is_noticed_without_its_head(copy, resume):
    """Finding 4: with the head deleted everything was skipped; with one that fits, done marks tell."""
    path = copy("finished")
    ledger, head = path / "release" / "ledger.jsonl", path / "internal" / "ledger_head.json"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:4]))
    head.unlink()
    resume(path).refuses(f"{head} is missing, but", "inputs.json says that a mechanism has begun")
    head.write_text(json.dumps(Ledger.open(ledger).head))
    resume(path).refuses(f"the stage finetune in {path} was done under another ledger than")


def test_an_output_that_no_line_pays_for_is_not_drawn_anew(copy, resume):
    """The ledger and its head were taken back, and no done mark tells of it."""
    path = copy("finished")
    ledger, head = path / "release" / "ledger.jsonl", path / "internal" / "ledger_head.json"
    ledger.write_text(ledger.read_text().splitlines(keepends=True)[0])
    head.write_text(json.dumps(Ledger.open(ledger).head))
    shutil.rmtree(path / "internal" / "done")
    resume(path).refuses("has no line that pays for the class histogram", "restore both from one copy")
    assert len(lines(path)) == 1


def test_a_release_of_another_run_does_not_verify(observed, copy, privimage):
    path = copy("finished")
    out = privimage("ledger", path, "--verify").succeeds().out
    assert "and release/class_histogram.json, release/generator are what it closes with" in out
    (path / "release" / "generator" / "model.json").write_text("{}")
    privimage("ledger", path, "--verify").refuses("release/generator is not what line")
    refusal = privimage("export", "--workdir", path, "--out", path.parent / "out", "--format", "npz")
    refusal.refuses("release/generator is not what line", "ask for the release that belongs to this ledger")
