"""A cache of public stages changes no result, holds nothing of sensitive images without noise, and survives damage."""

import json
import shutil
import threading

import jax
import numpy as np
import pytest
from pipelines import release_bytes, run, tiny_config

from privimage_jax import config as configs
from privimage_jax import pipeline
from privimage_jax.errors import UserError
from privimage_jax.run import public_cache, resources
from privimage_jax.run.inputs import make_inputs
from privimage_jax.run.stage import STAGES, named, upstream
from privimage_jax.stages import pretrain, selection, train_query
from privimage_jax.stages.parts import query_accuracy
from privimage_jax.storage import durable
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.checkpoint import restore_tree
from privimage_jax.training.mesh import make_mesh
from privimage_jax.training.state import tree_digest

pytestmark = pytest.mark.usefixtures("programs_kept")

KEPT = ("train-query", "pretrain")


def cached_config(folder):
    """The smallest experiment, quick to account, which keeps what it makes of public images."""
    config = tiny_config(folder)
    config.privacy.accountant = "rdp"
    config.log.sample_every = 2  # grids of pre-training are kept as well
    config.public_cache = str(folder / "cache")
    return config


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder with data, a run without a cache, `plain`, and one that filled `cache`; tests must not change it."""
    folder = tmp_path_factory.mktemp("filled")
    config = cached_config(folder)
    config.private_cache = str(folder / "private")
    run(config, folder / "first")
    config.public_cache = config.private_cache = ""
    run(config, folder / "plain")
    return folder


@pytest.fixture
def copied(filled, tmp_path):
    """A config with a private copy of the cache."""
    config = cached_config(filled)
    config.public_cache = str(shutil.copytree(filled / "cache", tmp_path / "cache"))
    return config


def taken(run: Workdir) -> list[str]:
    """The stages that took what the cache had."""
    found = resources.read(run)
    return [stage for stage in KEPT if found.get(stage, {}).get("taken")]


def results(run: Workdir) -> dict[str, object]:
    """All that stages made, and what they say of it; parameters by their digest, as orbax writes no equal files."""
    told = [run.internal / name for name in ("evaluation.json", "evaluation.html", "query/histogram.json")]
    told += [path for stage in KEPT for path in sorted((run.internal / stage / "metrics").glob("*.[cp]*"))]
    return {
        **{str(path.relative_to(run.root)): path.read_bytes() for path in told},
        **{stage: tree_digest(restore_tree(named(stage).artefact(run))) for stage in KEPT},
        **release_bytes(run),
    }


def test_a_cache_changes_no_result(filled, copied, tmp_path):
    """Parameters, releases, evaluations, curves and grids are those of a run without a cache, to the bit."""
    again, plain, first = run(copied, tmp_path / "run"), Workdir(filled / "plain"), Workdir(filled / "first")
    assert (taken(again), taken(plain), taken(first)) == ([*KEPT], [], [])
    assert results(again) == results(plain) == results(first)
    assert {"internal/pretrain/metrics/metrics.csv", "report.html"} <= results(again).keys()
    assert sum(name.endswith(".png") for name in results(again)) == 3
    assert not (again.internal / "pretrain" / "checkpoints").exists()


def test_a_finished_run_says_what_making_it_took(filled, copied, tmp_path):
    copied.private_cache = str(shutil.copytree(filled / "private", tmp_path / "private"))
    again, first = run(copied, tmp_path / "run", "pretrain"), resources.read(Workdir(filled / "first"))
    assert resources.read(again)["pretrain"] == {**first["pretrain"], "taken": True}
    assert resources.total(again)["seconds"] >= first["pretrain"]["seconds"] > 0
    assert resources.total(again)["peak_host_bytes"] > 2**20


@pytest.mark.parametrize(
    ("key", "value", "still"),
    [
        ("query_net.weight_decay", 1e-3, ["pretrain"]),  # another network finds the same semantics
        ("pretrain.learning_rate", 1e-3, ["train-query"]),
        ("log.every", 3, []),  # pages show curves
        ("clipping.norm", 2e-3, ["train-query", "pretrain"]),
        ("selection.method", "random", ["train-query"]),
    ],
)
def test_what_decides_the_result_is_asked_for(copied, tmp_path, key, value, still):
    copied.update_from_flattened_dict({key: value})
    assert taken(run(copied, tmp_path / "run", "pretrain")) == still


def test_equal_choices_of_unequal_counts_share_pre_training(copied, tmp_path, monkeypatch):
    """What the noise adds to the counts is published, but decides nothing by itself."""
    again, published = Workdir(tmp_path / "run"), selection.publication.publish_json
    monkeypatch.setattr(
        selection.publication,
        "publish_json",
        lambda inputs, name, value: published(inputs, name, {**value, "noise_std": 7.0}),
    )
    run(copied, again.root, "pretrain")
    assert json.loads((again.release / "semantics.json").read_text())["noise_std"] == 7.0
    assert taken(again) == [*KEPT]


def test_another_choice_shares_none(copied, tmp_path, monkeypatch):
    picked = selection.pick
    monkeypatch.setattr(selection, "pick", lambda *arguments: picked(*arguments)[::-1])
    assert taken(run(copied, tmp_path / "run", "pretrain")) == ["train-query"]


def test_other_code_and_other_devices_are_not_the_same(copied, tmp_path, monkeypatch):
    monkeypatch.setattr(public_cache, "code_version", lambda config, stage: "another")
    assert taken(run(copied, tmp_path / "code", "train-query")) == []
    monkeypatch.undo()
    two = make_inputs(configs.check(copied), Workdir(tmp_path / "devices"), make_mesh(jax.devices()[:2]))
    pipeline.run(two, "train-query")
    assert taken(two.workdir) == []


def damage_manifest(entry):
    (entry / "manifest.json").write_text("{")


def damage_file(entry):
    path = next(path for path in sorted((entry / "files").rglob("*")) if path.is_file() and path.stat().st_size)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def lose_file(entry):
    next(path for path in sorted((entry / "files").rglob("*")) if path.is_file()).unlink()


def add_link(entry):
    (entry / "files" / "link").symlink_to("/etc/passwd")


def take_another(entry):
    manifest = json.loads((entry / "manifest.json").read_text())
    manifest["made_from"]["settings"]["seed"] = 5
    (entry / "manifest.json").write_text(json.dumps(manifest))


def dangle(entry):
    shutil.rmtree(entry)
    entry.symlink_to("nowhere")


@pytest.mark.parametrize("harm", [damage_manifest, damage_file, lose_file, add_link, take_another, dangle])
def test_what_is_damaged_is_told_and_made_again(copied, tmp_path, capsys, harm):
    (entry,) = (tmp_path / "cache").glob("train-query-*[!k]")
    harm(entry)
    assert taken(run(copied, tmp_path / "run", "train-query")) == []
    said = " ".join(capsys.readouterr().out.split())
    assert f"{entry} of config.public_cache" in said and "it is made again" in said
    shutil.rmtree(tmp_path / "run")
    assert taken(run(copied, tmp_path / "run", "train-query")) == ["train-query"], "the damaged one was replaced"


def test_two_that_make_the_same_wait_for_each_other(filled, tmp_path, monkeypatch):
    config = cached_config(filled)
    config.public_cache = str(tmp_path / "cache")
    begun, go_on, made, original = threading.Event(), threading.Event(), [], train_query.run

    def slow(inputs):
        made.append(inputs.workdir.root.name)
        begun.set()
        assert go_on.wait(60)
        original(inputs)

    monkeypatch.setattr(train_query, "run", slow)
    first = threading.Thread(target=run, args=(config, tmp_path / "one", "train-query"))
    first.start()
    assert begun.wait(60)
    second = threading.Thread(target=run, args=(config, tmp_path / "two", "train-query"))
    second.start()
    second.join(1.0)
    assert second.is_alive() and made == ["one"]
    go_on.set()
    first.join(60)
    second.join(60)
    assert made == ["one"] and taken(Workdir(tmp_path / "two")) == ["train-query"]


def test_a_run_that_begins_meanwhile_takes_away_nothing_that_is_being_noted(filled, tmp_path):
    """Another share takes the study's lock, and removes what killed runs have left, just as this one writes."""
    config, disturbed = cached_config(filled), []
    config.public_cache, config.private_cache = str(tmp_path / "cache"), str(tmp_path / "private")

    def begin(step, path):
        if step == "flushed" and path.name.startswith(".resources-"):
            durable.remove_leftovers(tmp_path / "private")
            disturbed.append(path)

    durable.observers.append(begin)
    try:
        again = run(config, tmp_path / "run", "train-query")
    finally:
        durable.observers.remove(begin)
    assert len(disturbed) == 1
    (noted,) = (tmp_path / "private").glob("resources-*.json")
    assert json.loads(noted.read_text()) == resources.read(again)["train-query"]


def test_no_stage_that_sees_sensitive_images_unnoised_is_kept(tmp_path):
    config = cached_config(tmp_path)
    assert [stage.name for stage in STAGES if public_cache.keeps(config, stage)] == list(KEPT)
    for name in KEPT:
        for stage in upstream(config, named(name)):
            assert stage.mechanism or not stage.sees("sensitive") and not stage.sees("held_out")
    config.query_net.workdir = "elsewhere"
    assert not public_cache.keeps(config, train_query.STAGE), "it may come from other devices"
    config.pretrain.steps = 0
    assert not public_cache.keeps(config, pretrain.STAGE)


def test_the_cache_holds_no_more_than_public_stages_make(filled):
    names = {
        path.relative_to(entry / "files").parts[0]
        for entry in (filled / "cache").glob("*/")
        for path in (entry / "files").rglob("*")
    }
    assert names == {"accuracy.json", "metrics", "network", "params"}
    assert [*(filled / "first" / "internal" / "pretrain").rglob("events.out*")]
    assert not [*(filled / "cache").rglob("events.out*")], "which have times"
    for path in (filled / "cache").glob("*/manifest.json"):
        assert json.loads(path.read_text()).keys() == {"made_from", "files"}, "and neither times nor memory"
    assert "public_cache" in configs.PLACES


@pytest.mark.parametrize(
    ("place", "culprit"),
    [
        ("a_file", "is a file"),
        ("gs://bucket/cache", "is an object store"),
        ("run/release/cache", "is handed over"),
        ("other/cache", "is handed over"),
        ("link/cache", "is handed over"),
        ("~nosuchuser/cache", "a user who is not known"),
        ("/proc/nope", "cannot be written"),
        ("a_file/cache", "cannot be written"),
    ],
)
def test_a_cache_that_cannot_be_is_refused(filled, tmp_path, place, culprit):
    (tmp_path / "a_file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "ledger.jsonl").touch()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    config = cached_config(filled)
    config.public_cache = place if "://" in place or place[0] in "~/" else str(tmp_path / place)
    with pytest.raises(UserError, match=f"config.public_cache=.*{culprit}"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cache_may_lie_in_any_other_folder_of_that_name(filled, tmp_path):
    config = cached_config(filled)
    config.public_cache = str(tmp_path / "release" / "cache")
    public_cache.check(config, Workdir(tmp_path / "run"))
    assert (tmp_path / "release" / "cache").is_dir()


class Killed(BaseException):
    """Ends a stage as a signal does."""


def interrupted(config, folder, monkeypatch):
    """A run that is stopped in the training of its query network."""

    def stop(inputs):
        (inputs.folder("train-query") / "checkpoints").mkdir()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train_query, "run", stop)
        with pytest.raises(Killed):
            run(config, folder, "train-query")


@pytest.mark.parametrize("changed", [False, True])
def test_what_two_versions_made_together_is_not_kept(filled, tmp_path, monkeypatch, changed):
    config = cached_config(filled)
    config.public_cache = str(tmp_path / "cache")
    interrupted(config, tmp_path / "run", monkeypatch)
    if changed:
        monkeypatch.setattr(public_cache, "code_version", lambda config, stage: "another")
    run(config, tmp_path / "run", "train-query")
    assert bool([*(tmp_path / "cache").glob("train-query-*/manifest.json")]) is not changed


def test_other_held_out_images_have_another_accuracy(copied, tmp_path):
    """The artefacts are the same, and what is noted of them is not."""
    with np.load(copied.public.path) as arrays:
        held_out = {"test_images": arrays["test_images"][:3], "test_labels": arrays["test_labels"][:3]}
        np.savez(tmp_path / "fewer.npz", **{**arrays, **held_out})
    copied.public.path, copied.public.test_split = str(tmp_path / "fewer.npz"), "test"
    first = run(copied, tmp_path / "first", "train-query")
    assert query_accuracy.read(first).images == 3
    np.savez(
        tmp_path / "fewer.npz",
        **{**dict(np.load(tmp_path / "fewer.npz")), "test_images": 255 - held_out["test_images"]},
    )
    assert taken(run(copied, tmp_path / "second", "train-query")) == []


def test_taking_leaves_nothing_of_an_interrupted_lesson(tmp_path, filled):
    """The curves of the lesson on noisy means are kept, and its checkpoints go."""
    config = cached_config(filled)
    config.public_cache, config.warmup.enabled = str(tmp_path / "cache"), True
    config.warmup.update(steps=2, means=4, subset_size=8)
    made = run(config, tmp_path / "made", "pretrain")
    again = Workdir(shutil.copytree(made.root, tmp_path / "again"))
    folder = again.internal / "pretrain"
    again.clear_mark("pretrain")
    shutil.rmtree(folder / "params")
    shutil.rmtree(folder / "means" / "metrics")
    (folder / "means" / "checkpoints" / "1").mkdir(parents=True)
    run(config, again.root, "pretrain")
    assert "pretrain" in taken(again)
    assert not [*(folder / "means").rglob("checkpoints/*")]
    curves = "pretrain/means/metrics/metrics.csv"
    assert (again.internal / curves).read_bytes() == (made.internal / curves).read_bytes()
