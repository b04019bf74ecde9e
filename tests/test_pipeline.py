"""The whole pipeline at its smallest: what it writes, skips and refuses, and how it survives interruption."""

import json
import shutil
import stat

import numpy as np
import pytest
from kept import keep_programs
from pipelines import CLASSES, SIDE, release_bytes, run, tiny_config
from small_models import use_small_gan

from privimage_jax import config as configs
from privimage_jax.commands import export
from privimage_jax.errors import UserError
from privimage_jax.metrics.extractors import Extractor
from privimage_jax.models import gan
from privimage_jax.privacy import noise
from privimage_jax.report import measures
from privimage_jax.run import publication
from privimage_jax.run.inputs import DataSets, make_inputs
from privimage_jax.run.mechanism import Mechanism
from privimage_jax.run.stage import STAGES
from privimage_jax.stages import evaluate, finetune, pretrain, train_query
from privimage_jax.stages.parts import query_accuracy, seen_classes
from privimage_jax.storage import durable
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.checkpoint import Checkpoints, restore_tree
from privimage_jax.training.state import flatten_params

pytestmark = pytest.mark.usefixtures("programs_kept")

FIDELITY = ("fid", "inception_score", "precision", "recall", "fld", "kid")


def make_config(folder):
    """The smallest experiment, with the accountant that answers sooner."""
    config = tiny_config(folder)
    config.privacy.accountant = "rdp"
    return config


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """A folder with the tiny data, an uninterrupted run of it, and what was written when to its release.

    The last is a list of (the artefact that was being published, the path of a durable step).
    """
    folder, publishing, written = tmp_path_factory.mktemp("finished"), [], []
    original = publication.publish

    def publish(inputs, name, write):
        publishing.append(name)
        original(inputs, name, write)
        publishing.remove(name)

    def observe(step, path):
        if path.is_relative_to(folder / "run" / "release"):
            written.append((publishing[-1] if publishing else None, path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publication, "publish", publish)
        patch.setattr(durable, "observers", [observe])
        return folder, run(make_config(folder), folder / "run"), written


@pytest.fixture(scope="session")
def finished(recorded):
    """A folder with the tiny data and an uninterrupted run of it; tests must not change it."""
    return recorded[:2]


@pytest.fixture
def copy(finished, tmp_path):
    """A private copy of the finished run: (config, workdir)."""
    folder, workdir = finished
    shutil.copytree(workdir.root, tmp_path / "run")
    return make_config(folder), tmp_path / "run"


def test_the_release_is_written_by_one_function(recorded):
    _, workdir, written = recorded
    assert {name for name, _ in written} == {None, "generator", "semantics.json", "synthetic.npz", "report.html"}
    for name, path in written:
        if name is None:
            assert path in (workdir.release, workdir.ledger), path
        else:
            assert path.relative_to(workdir.release).parts[0].strip(".").removesuffix(".partial") == name, path


@pytest.mark.parametrize(("stage", "name"), [(stage, name) for stage in STAGES for name in stage.published])
def test_nothing_is_published_before_it_is_paid_for(tmp_path, stage, name):
    config = make_config(tmp_path)
    config.class_histogram.enabled = config.warmup.enabled = config.sampler_choice.enabled = True
    config.warmup.subset_size = 20
    inputs = make_inputs(configs.check(config), Workdir(tmp_path / "run")).of(stage)
    with pytest.raises(UserError, match=f"{name} would show the .*, of which .*ledger.jsonl has no line"):
        publication.publish(inputs, name, lambda path: pytest.fail("written"))


def test_every_artefact_is_there(finished):
    _, workdir = finished
    assert stat.S_IMODE(workdir.config_json.stat().st_mode) == 0o600  # it holds paths
    assert set(release_bytes(workdir)) == {
        "generator/model.json",
        "generator/params.npz",
        "ledger.jsonl",
        "report.html",
        "semantics.json",
        "synthetic.npz",
    }
    with np.load(workdir.release / "synthetic.npz") as synthetic:
        assert synthetic["images"].shape == (12, SIDE, SIDE, 1)
        assert synthetic["images"].dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(synthetic["labels"]), [4] * CLASSES)
    evaluation = json.loads((workdir.internal / "evaluation.json").read_text())
    assert {*FIDELITY, "sds", "accuracy_synthetic", "accuracy_labels", "accuracy_real", "picks_agreeing"} <= set(
        evaluation
    )
    assert evaluation["accuracy_majority"] == pytest.approx(1 / CLASSES)  # of 30 held-out images, ten a class
    assert 0 <= evaluation["accuracy_features"] <= 1
    accuracy = query_accuracy.read(workdir)
    assert evaluation["public_test_images"] == accuracy.images == 12
    assert (evaluation["query_accuracy"], evaluation["query_accuracy_top5"]) == (accuracy.top1, accuracy.top5)
    assert str(accuracy) in (workdir.release / "report.html").read_text()
    assert all(type(value) in (str, bool, int, float) for value in evaluation.values())
    assert (evaluation["classifier"], evaluation["recipe"]) == ("pipelines:Classifier", "quick")
    assert not (workdir.internal / "evaluate" / "accuracies.json").exists()
    assert evaluation["private"] is False
    assert all(measures.describe(name) for name in measures.numbers(evaluation))
    assert "Fine-tuning on the sensitive images" in (workdir.internal / "evaluation.html").read_text()


def test_internal_files_are_their_owners_alone(finished):
    """But for locks, which are empty, and compiled programs, which hold no data."""
    files = [path for path in finished[1].internal.rglob("*") if path.is_file() and path.stat().st_size]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in files if "compilation_cache" not in path.parts}
    assert {path.name for path in modes} > {"evaluation.html", "evaluation.json", "metrics.csv", "images.npy"}
    assert not [path for path, mode in modes.items() if mode != 0o600]
    assert all(path.stat().st_mode & 0o044 for path in finished[1].release.rglob("*"))


def test_the_ledger_adds_up(finished):
    _, workdir = finished
    lines = [json.loads(line) for line in workdir.ledger.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["open", "gaussian", "closed", "dp-sgd", "dp-sgd", "closed"]
    assert [line["steps"] for line in lines if line["kind"] == "dp-sgd"] == [[0, 3], [3, 6]]
    spent = [line["epsilon"] for line in lines if "epsilon" in line]
    assert spent == sorted(spent)
    assert 9.9 < spent[-1] <= 10
    assert lines[0]["note"] == "NOT PRIVATE: fixed seed"


def test_an_evaluation_that_fails_takes_nothing_from_the_release(copy, monkeypatch):
    """It looks at real images without noise: that it does not end must not show."""
    config, workdir = copy
    before = release_bytes(Workdir(workdir))
    (workdir / "release" / "report.html").unlink()
    (workdir / "internal" / "evaluation.json").unlink()
    monkeypatch.setattr(evaluate, "run", lambda inputs: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run(config, workdir)
    assert release_bytes(Workdir(workdir)) == before


def test_a_fixed_seed_is_stamped_on_the_report(finished):
    assert "NOT PRIVATE" in (finished[1].release / "report.html").read_text()


def test_the_report_shows_public_training_and_nothing_of_fine_tuning(copy):
    config, workdir = copy
    before = release_bytes(Workdir(workdir))
    for section in ("neighbours", "training"):
        assert f'id="{section}"'.encode() in before["report.html"]
    (workdir / "internal" / "finetune" / "metrics" / "metrics.csv").write_text("step,loss\n6,1.0\n")
    (workdir / "release" / "report.html").unlink()
    assert release_bytes(run(config, workdir)) == before
    config.report.public_neighbours = False
    assert b'id="neighbours"' not in release_bytes(run(config, workdir))["report.html"]


def test_a_fixed_seed_is_stamped_on_an_export(finished, tmp_path):
    export.run(finished[1], ["png"], tmp_path / "out")
    assert "NOT PRIVATE: fixed seed" in (tmp_path / "out" / "README.md").read_text()
    assert len(list((tmp_path / "out").glob("*/*.png"))) == 12


def test_a_finished_run_skips_everything(copy, capsys):
    config, workdir = copy
    before = release_bytes(run(config, workdir))
    assert capsys.readouterr().out.count("skipped") == 8
    assert release_bytes(run(config, workdir)) == before


def test_a_change_downstream_runs_again_and_spends_nothing(copy):
    config, workdir = copy
    before = (workdir / "release" / "ledger.jsonl").read_bytes()
    config.sample.n = 9
    result = run(config, workdir)
    assert result.ledger.read_bytes() == before
    assert len(np.load(result.release / "synthetic.npz")["labels"]) == 9


def test_a_run_of_an_earlier_version_goes_on_without_what_it_did_not_keep(copy, capsys):
    """The accuracy of the query network and the exact counts: nothing runs again for them, and nothing needs them."""
    config, workdir = copy
    notes = [workdir / name for stage in STAGES for name in stage.notes]
    assert sum(note.is_file() for note in notes) == 2
    for note in notes:
        note.unlink(missing_ok=True)
    (workdir / "internal" / "evaluation.json").unlink()
    (workdir / "release" / "report.html").unlink()
    result = run(config, workdir)
    assert capsys.readouterr().out.count("skipped") == 6
    evaluation = json.loads((result.internal / "evaluation.json").read_text())
    assert "fid" in evaluation and not {"query_accuracy", "public_test_images", "picks_agreeing"} & set(evaluation)
    assert 'id="query-noise"' not in (result.internal / "evaluation.html").read_text()
    assert "held-out public images" not in (result.release / "report.html").read_text()


def test_several_extractors_and_a_second_evaluation(copy, monkeypatch):
    """The first gives the plain keys; features of real images are computed once."""
    config, workdir = copy
    seen, outputs = [], Extractor.outputs

    def spy(self, images, of, *more):
        seen.append((self.name, of))
        return outputs(self, images, of, *more)

    monkeypatch.setattr(Extractor, "outputs", spy)
    config.evaluate.extractors = ("pipelines:coarse", "query")

    def evaluated(**changes):
        seen.clear()
        config.evaluate.update(changes)
        run(config, workdir, "evaluate")
        return json.loads((workdir / "internal" / "evaluation.json").read_text())

    before = json.loads((workdir / "internal" / "evaluation.json").read_text())
    monkeypatch.setattr(seen_classes, "warning", lambda name, *of: f"{name} sees little.")
    first = evaluated()
    page = (workdir / "internal" / "evaluation.html").read_text()
    assert "pipelines:coarse sees little." in page and "the query network sees little." in page
    assert first["accuracy_features"] == first["accuracy_features_coarse"]
    assert first["accuracy_features_query"] == before["accuracy_features"]
    assert {measure: first[f"{measure}_query"] for measure in FIDELITY} == {name: before[name] for name in FIDELITY}
    assert not {"inception_score", "inception_score_coarse"} & set(first)  # a function gives no logits
    assert all(first[name] == first[f"{name}_coarse"] for name in FIDELITY if name != "inception_score")
    assert first["sds"] == before["sds"] and first["extractor"] == "pipelines:coarse"
    real = ("pipelines:coarse", "real")
    assert [of for of in seen if of[1] == "real"] == [real, real]  # training and held out; the query network's are kept
    assert evaluated(neighbours=1)["recall"] != first["recall"]
    assert "real" not in {of for _, of in seen}


@pytest.mark.parametrize(
    ("key", "value"),
    [("clipping.norm", 2e-3), ("pretrain.steps", 5), ("query.noise_multiplier", 6.0), ("privacy.epsilon", 20.0)],
)
def test_a_change_in_or_before_a_spent_stage_is_refused(copy, key, value):
    config, workdir = copy
    section, name = key.split(".")
    config[section][name] = value
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=rf"has spent privacy budget .*config\.{key}"):
        run(config, workdir)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_what_is_declared_and_cannot_be_is_refused_before_images_are_read(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(DataSets, "read", lambda *_: pytest.fail("read"))
    config = make_config(finished[0])
    config.data.n, config.privacy.epsilon, config.query.noise_multiplier = 60, 0.1, 1.0
    with pytest.raises(UserError, match="the semantic query alone costs epsilon"):
        run(config, tmp_path / "run")
    config.public.path = "/nowhere.npz"
    with pytest.raises(UserError, match=r"config\.public\.path=/nowhere\.npz does not exist"):
        run(config, tmp_path / "run")
    config.data.path = "~nobody_of_that_name/images.npz"
    with pytest.raises(UserError, match=r"config\.data\.path=~nobody.* names the home of a user who is not known"):
        run(config, tmp_path / "run")


def test_other_data_is_refused(copy, tmp_path):
    config, workdir = copy
    other = dict(np.load(config.data.path))
    other["train_images"][0] = 0
    np.savez(tmp_path / "other.npz", **other)
    config.data.path = str(tmp_path / "other.npz")
    with pytest.raises(UserError, match="has spent privacy budget .*other data"):
        run(config, workdir)


def test_the_same_data_elsewhere_is_the_same(copy, tmp_path, capsys):
    config, workdir = copy
    shutil.copy(config.data.path, tmp_path / "moved.npz")
    config.data.path = str(tmp_path / "moved.npz")
    run(config, workdir)
    assert capsys.readouterr().out.count("skipped") == 8


def test_a_deleted_output_is_made_again(copy):
    config, workdir = copy
    before = release_bytes(run(config, workdir))
    (workdir / "release" / "synthetic.npz").unlink()
    assert release_bytes(run(config, workdir)) == before


def test_deleted_outputs_of_mechanisms_stop_the_run(copy):
    config, workdir = copy
    shutil.rmtree(workdir / "release" / "generator")
    with pytest.raises(UserError, match="has spent its budget, but its output .*generator was deleted"):
        run(config, workdir)


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_a_ledger_that_lost_lines_stops_the_run(copy, kept):
    """Otherwise its budget could be spent again."""
    config, workdir = copy
    ledger = workdir / "release" / "ledger.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:kept]))
    config.clipping.norm = 2e-3
    with pytest.raises(UserError, match=r"ledger\.jsonl has lost lines"):
        run(config, workdir)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model.name", "pipelines:Nothing", "model.name"),
        ("query_net.model", "resnet7", "query_net.model"),
        ("evaluate.classifiers", ("vit",), "evaluate.classifiers"),
        ("finetune.trainable", "nothing", "finetune.trainable"),
        ("query_net.model", "pipelines:Failing", "query_net.model=pipelines:Failing fails with ZeroDivisionError"),
        (
            "evaluate.extractors",
            ("pipelines:nothing",),
            "evaluate.extractors: pipelines:nothing cannot be loaded, as the module has no 'nothing'",
        ),
        ("evaluate.classifiers", ("pipelines:Failing",), "evaluate.classifiers=pipelines:Failing fails with Zero"),
    ],
)
def test_a_wrong_model_is_told_before_anything_runs(finished, tmp_path, key, value, named):
    config = make_config(finished[0])
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(UserError, match=named):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "internal" / "train-query").exists()


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("generator", "pipelines:Nothing"),
        ("model.name", "unett"),
        ("query_net.model", "resnet7"),
        ("evaluate.classifiers", ("cnn", "vit")),
        ("evaluate.extractors", ("pipelines:nothing",)),
        ("evaluate.measures", ("pipelines:SIDE",)),
        ("sampler_choice.classifier", "pipelines:SIDE"),
        ("public.source", "pipelines:SIDE"),
    ],
)
def test_a_wrong_name_is_told_before_any_image_is_read(tmp_path, key, given):
    config = make_config(tmp_path)
    config.data.path = "nowhere.npz"
    config.sampler_choice.enabled = True
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = given
    with pytest.raises(UserError, match=rf"^config\.{key}"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_weights_are_told_before_anything_runs(finished, tmp_path):
    config = make_config(finished[0])
    config.evaluate.extractors, config.evaluate.inception_weights = ("inception",), "/no/file"
    with pytest.raises(UserError, match=r"inception_weights=/no/file is missing; download pt_inception-2015"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "internal" / "train-query").exists()


def test_a_query_network_that_may_be_handed_a_batch_spends_nothing(finished, tmp_path):
    config = make_config(finished[0])
    config.query_net.model = "mixing_networks:OnTheHost"
    with pytest.raises(UserError, match=r"config\.query_net\.model=mixing_networks:OnTheHost uses pure_callback"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "release" / "ledger.jsonl").exists()


def test_low_rank_changes_need_a_kernel(finished, tmp_path):
    config = make_config(finished[0])
    config.finetune.lora_rank = 2
    config.finetune.trainable = ".*bias"
    with pytest.raises(UserError, match=r"lora_rank=2 changes kernels, but config\.finetune\.trainable='\.\*bias'"):
        run(config, tmp_path / "run")


def test_without_any_mechanism_the_release_says_so(finished, tmp_path):
    config = make_config(finished[0])
    config.selection.method = "random"
    config.pretrain.steps = 0
    config.finetune.enabled = False
    config.evaluate.enabled = False
    workdir = run(config, tmp_path / "run")
    assert [json.loads(line)["kind"] for line in workdir.ledger.read_text().splitlines()] == ["open"]
    assert "NOT PRIVATE" in (workdir.release / "report.html").read_text()
    assert not (workdir.release / "semantics.json").exists()


class Stop(BaseException):
    """Stands for whatever ends a process; not an Exception, so nothing can swallow it."""


def interrupt(monkeypatch, owner, name, after):
    """Lets `owner.name` work `after` times and then stops before doing anything."""
    original, calls = getattr(owner, name), []

    def stopping(*args, **kwargs):
        calls.append(name)
        if len(calls) > after:
            raise Stop
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, stopping)


@pytest.fixture(scope="module")
def programs():
    """What the interrupted runs below, all of one config, need not compile again."""
    return {}


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (Checkpoints, "save", 1),  # in the training of the query network
        (Mechanism, "spend", 0),  # key made, nothing spent
        (noise, "rounded_gaussian", 0),  # spent, output not there
        (Mechanism, "close", 0),  # output there, key not deleted
        (Checkpoints, "save", 5),  # in pre-training
        (Mechanism, "spend", 2),  # one block reserved and run
        (Checkpoints, "save", 9),  # within the second block
        (finetune.artefact, "write", 0),  # all steps run, nothing published
        (Mechanism, "close", 1),  # published, not closed
        (pretrain, "save_tree", 0),
        (train_query, "save_tree", 0),
    ],
)
def test_an_interrupted_run_ends_with_the_same_release(finished, programs, tmp_path, monkeypatch, owner, name, after):
    folder, uninterrupted = finished
    config = make_config(folder)
    keep_programs(monkeypatch, programs)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, owner, name, after)
        with pytest.raises(Stop):
            run(config, tmp_path / "run", last="report")
    assert release_bytes(run(config, tmp_path / "run", last="report")) == release_bytes(uninterrupted)


def test_an_interrupted_run_of_a_gan_ends_with_the_same_release(tmp_path, monkeypatch):
    """After three steps of the discriminator, two of which make one of the generator."""
    monkeypatch.setattr(gan, "LEAST_BLOCKS", 2)
    keep_programs(monkeypatch)
    config = use_small_gan(make_config(tmp_path))
    config.finetune.block = config.log.checkpoint_every = 3
    whole = run(config, tmp_path / "whole", last="report")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, finetune.Mechanism, "spend", 2)
        with pytest.raises(Stop):
            run(config, tmp_path / "run", last="report")
    assert (tmp_path / "run" / "internal" / "finetune" / "checkpoints" / "3").is_dir()
    assert release_bytes(run(config, tmp_path / "run", last="report")) == release_bytes(whole)


def test_keys_come_from_entropy_are_private_and_are_deleted(finished, tmp_path, monkeypatch):
    config = make_config(finished[0])
    config.privacy.fixed_seed = -1
    keep_programs(monkeypatch)
    keys = tmp_path / "run" / "internal" / "keys"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, finetune.Mechanism, "spend", 2)
        with pytest.raises(Stop):
            run(config, tmp_path / "run", last="finetune")
    assert [path.name for path in keys.iterdir()] == ["finetune-0.key"]
    assert stat.S_IMODE((keys / "finetune-0.key").stat().st_mode) == 0o600
    (keys / "finetune-0.key").unlink()  # lost: its three reserved steps are spent
    workdir = run(config, tmp_path / "run", last="finetune")
    assert not list(keys.iterdir())
    lines = [json.loads(line) for line in workdir.ledger.read_text().splitlines()]
    blocks = [(line["key_generation"], line["steps"]) for line in lines if line["kind"] == "dp-sgd"]
    assert sum(end - begin for _, (begin, end) in blocks) == 6
    assert [generation for generation, _ in blocks] == [0, 1, 1]
    assert lines[0]["private"] is True
    assert max(line.get("epsilon", 0) for line in lines) <= 10


def test_a_lost_query_key_stops_the_run(finished, tmp_path):
    config = make_config(finished[0])
    config.privacy.fixed_seed = -1
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, noise, "rounded_gaussian", 0)
        with pytest.raises(Stop):
            run(config, tmp_path / "run")
    (tmp_path / "run" / "internal" / "keys" / "query-0.key").unlink()
    with pytest.raises(UserError, match="start a new workdir"):
        run(config, tmp_path / "run")


@pytest.fixture(scope="module")
def without_query():
    """The programs of runs that differ in the images that are selected alone."""
    return {}


@pytest.mark.parametrize("method", ["random", "all", "unlabelled"])
def test_other_selections_need_no_query(finished, without_query, tmp_path, monkeypatch, method):
    keep_programs(monkeypatch, without_query)
    config = make_config(finished[0])
    config.selection.method = method
    config.evaluate.enabled = False
    workdir = run(config, tmp_path / "run")
    assert "gaussian" not in workdir.ledger.read_text()
    assert json.loads((workdir.release / "semantics.json").read_text())["histogram"] is None
    assert ("Public class s taught" in (workdir.release / "report.html").read_text()) == (method == "all")
    labels = np.load(workdir.internal / "select" / "subset.npz")["labels"]
    taught = {"random": range(CLASSES), "all": range(CLASSES), "unlabelled": [CLASSES]}
    assert set(labels.tolist()) == {*taught[method]} and (len(labels) == 48) == (method != "random")


def test_low_rank_fine_tuning_changes_kernels_only(finished, tmp_path):
    folder, uninterrupted = finished
    config = make_config(folder)
    config.finetune.lora_rank, config.finetune.lora_scale = 2, 4.0
    workdir = run(config, tmp_path / "run", last="finetune")
    low, full = (np.load(w.release / "generator" / "params.npz") for w in (workdir, uninterrupted))
    assert set(low) == set(full)
    pretrained = flatten_params(restore_tree(workdir.internal / "pretrain" / "params"))
    for path, value in pretrained.items():
        assert np.array_equal(low[path], value) == path.endswith("bias"), path


def test_without_fine_tuning_only_the_query_spends(finished, tmp_path):
    config = make_config(finished[0])
    config.finetune.enabled = False
    config.evaluate.enabled = False
    workdir = run(config, tmp_path / "run")
    assert "dp-sgd" not in workdir.ledger.read_text()
    assert (workdir.release / "synthetic.npz").exists()


def test_a_query_network_is_reused(finished, tmp_path, capsys):
    folder, workdir = finished
    config = make_config(folder)
    config.query_net.workdir = str(workdir.root)
    run(config, tmp_path / "run", last="query")
    assert (tmp_path / "run" / "internal" / "query" / "histogram.json").read_text() == (
        workdir.internal / "query" / "histogram.json"
    ).read_text()
    config.query_net.epochs = 5.0
    with pytest.raises(UserError, match="other settings or public data"):
        run(config, tmp_path / "other", last="query")
